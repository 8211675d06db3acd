"""An agent with the in-cluster configuration that every pod has: its way to the API leads through the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fix_interop import SOURCES, built
from fix_kube import OLD_KUBECTL
from kubeapi import DOWN, FORGED, TARGET, drop_kube_target, make_kube_target, may_read_pods
from manifests import rule
from stage import DATA, HOST, NEVER, READ, Database, Pod, Team, secret, target, until

from chaperone_tools.cache import binary
from chaperone_tools.install import Installed
from chaperone_tools.kubectl import Kubectl

pytestmark = pytest.mark.cluster
PROGRAMS = ["argv:cat", "argv:cat /etc/hostname", "argv:tar *", "argv:test *"]  # the last two are kubectl cp's
MAP = "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: '{value}'}}\n"
POD_TARGET = "e2e-orders-pod"
CHART = """
mkdir -p /tmp/tiny/templates
printf 'apiVersion: v2\\nname: tiny\\nversion: 0.1.0\\n' > /tmp/tiny/Chart.yaml
printf 'apiVersion: v1\\nkind: ConfigMap\\nmetadata: {name: tiny}\\ndata: {a: b}\\n' > /tmp/tiny/templates/map.yaml
"""
# What every client library does in a pod, with nothing but the standard library: the address of the environment, and
# the CA, the namespace and the token of the mount.
PROGRAM = """
import json, os, ssl, urllib.request
mount = "/var/run/secrets/kubernetes.io/serviceaccount/"
token, namespace = open(mount + "token").read(), open(mount + "namespace").read()
context = ssl.create_default_context(cafile=mount + "ca.crt")
for host in (os.environ["KUBERNETES_SERVICE_HOST"], "kubernetes.default.svc"):
    for path in PATHS:
        url = f"https://{host}:{os.environ['KUBERNETES_SERVICE_PORT']}{path.replace('OWN', namespace)}"
        asked = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
        try:
            print(json.dumps(json.load(urllib.request.urlopen(asked, context=context, timeout=20))))
        except urllib.error.HTTPError as error:
            print(json.dumps(json.load(error)))
"""


@pytest.fixture(scope="module")
def agent(kubectl: Kubectl, chaperone_installed: Installed, team: Team) -> Iterator[Pod]:
    """An agent that may read what is in its namespace."""
    make_kube_target(kubectl, chaperone_installed.namespace, team.namespace)
    kubectl.apply(secret("db", team.namespace, password="canary-of-a-secret"))
    team.identity("triage")
    rules = [
        rule("look", "Allow", ["read", "read_sensitive", "bulk_read"], [f"{team.namespace}.*.*.*", "path:*"]),
        rule(
            "work",
            "Allow",
            ["create", "modify", "delete"],
            [f"{team.namespace}.core.configmaps.*", f"{team.namespace}.core.pods.*", f"{team.namespace}.apps.*.*"],
        ),
        rule(
            "database",
            "Allow",
            ["read", "tunnel"],
            [f"{DATA}.core.pods.orders-db-0", f"{DATA}.core.pods/portforward.*"],
        ),
        rule("run", "Allow", ["execute_code"], [f"{team.namespace}.core.pods/exec.*", *PROGRAMS]),
        rule("never", "Deny", ["destroy", "privilege"], message="Ask the SRE on call."),
    ]
    team.policy(*rules, name="triage", targets=(TARGET, f"{TARGET}-down", f"{TARGET}-forged"))
    yield team.pod("triage", app="triage")
    drop_kube_target(kubectl)


def test_the_in_cluster_configuration_leads_through_the_gateway(agent: Pod, team: Team) -> None:
    paths = [
        "/version",
        "/api/v1/namespaces/OWN/pods",
        "/api/v1/namespaces/OWN/secrets/db",
        "/api/v1/namespaces/default/pods",
    ]
    done = agent.run("python3", "-c", f"PATHS = {paths!r}\n{PROGRAM}")
    assert done.status == 0, done.err
    found = [json.loads(line) for line in done.out.splitlines()]
    for version, pods, hidden, refused in (found[:4], found[4:]):
        assert version["gitVersion"].startswith("v1.")
        assert "triage" in [one["metadata"]["name"] for one in pods["items"]]
        assert hidden["data"] == {"password": "W21hc2tlZF0="}
        assert (refused["code"], refused["reason"]) == (403, "Forbidden")
        assert 'rule "uncovered"' in refused["message"]

    def are_recorded() -> bool:
        return {one["spec"]["decision"] for one in team.commands(target=TARGET)} == {"Allow", "Deny"}

    until("what was allowed and what was refused is recorded", are_recorded)


def test_the_token_in_the_mount_is_worth_nothing_elsewhere(agent: Pod, kubectl: Kubectl) -> None:
    token = agent.run("cat", "/var/run/secrets/kubernetes.io/serviceaccount/token").out.strip()
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
    review = json.loads(kubectl("create", "--output=json", "--filename=-", stdin=json.dumps(asked)))
    assert not review["status"].get("authenticated")


@pytest.mark.parametrize("name", ["kubectl", OLD_KUBECTL])
def test_what_people_do_with_kubectl(agent: Pod, name: str) -> None:
    """With the one of the cluster's version, and with one that is four minors older and speaks SPDY with programs."""
    program = agent.put(binary(name).resolve())

    def kubectl(*arguments: str, stdin: str = "") -> str:
        done = agent.run(program, *arguments, stdin=stdin)
        assert done.status == 0, done.err
        return done.out

    def shell(text: str) -> str:
        done = agent.run("sh", "-ec", f"kubectl='timeout 60 {program}'; {text}")
        assert done.status == 0, done.err
        return done.out

    known = name.replace("kubectl", "day")
    assert f"pod/{agent.name}" in kubectl("get", "pods", "--output=name").split()
    for value, said in (("one", "created"), ("two", "configured")):
        assert said in kubectl("apply", "--filename=-", stdin=MAP.format(name=known, value=value))
    change = f'$kubectl patch configmap {known} --patch=\'{{"data":{{"a":"%s"}}}}\' >&2'
    wait = f"$kubectl wait configmap/{known} --for=jsonpath='{{.data.a}}'=three --timeout=30s"
    assert "condition met" in shell(f"{wait} & {change % 'three'}; wait $!")
    watch = f"$kubectl get configmap {known} --watch --output=jsonpath='{{.data.a}} '"
    shown = f"/tmp/{known}-seen"  # one for each program: what another one saw is not taken for its own
    seen = shell(
        f"{watch} > {shown} 2>&1 & until grep -q three {shown}; do sleep 0.1; done; {change % 'four'}; "
        f"until grep -q four {shown}; do sleep 0.1; done; kill $!; cat {shown}"
    )
    assert seen == "three four "
    assert kubectl("exec", "-i", agent.name, "--container=main", "--", "cat", stdin="through") == "through"
    here, there = f"/tmp/{known}", f"{agent.name}:/tmp/{known}-copy"
    shell(f"head -c 300000 /dev/urandom > {here}; $kubectl cp --container=main {here} {there}")
    shell(f"$kubectl cp --container=main {there} {here}-back; cmp {here} {here}-back")
    follow = f"$kubectl logs {agent.name} --container=main --follow"
    shell(
        f"echo {known} said this > /proc/1/fd/1; {follow} > /tmp/log 2>&1 & "
        f"until grep -q '{known} said this' /tmp/log; do sleep 0.1; done; kill $!"
    )
    refused = agent.run(program, "create", "clusterrolebinding", known, "--clusterrole=admin", "--user=x")
    assert 'rule "never"' in refused.err
    assert "deleted" in kubectl("delete", "configmap", known)
    assert "NotFound" in agent.run(program, "get", "configmap", known).err


def test_a_typed_client_an_informer_and_a_program_over_spdy(agent: Pod, team: Team) -> None:
    typed = agent.put(built(SOURCES / "typed", "typed"))
    done = agent.run(typed, team.namespace, agent.name, "main")
    assert done.status == 0, done.err
    said = {one.pop("op"): one for one in map(json.loads, done.out.splitlines())}
    assert said["informer"]["events"] == ["add first", "update second", "delete second"]
    assert said["deployment"] == {"replicas": 0, "image": "i"}
    assert said["refused"]["forbidden"]
    assert 'rule "never"' in said["refused"]["error"]
    assert said["program"] == {"out": "through", "err": ""}


OFFICIAL = """
import json, os, sys
from kubernetes import client, config, watch
from kubernetes.stream import stream
config.load_incluster_config()
api, namespace, pod = client.CoreV1Api(), sys.argv[1], sys.argv[2]
print(json.dumps([one.metadata.name for one in api.list_namespaced_pod(namespace).items]))
api.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata={"name": "official"}, data={"a": "b"}))
for event in watch.Watch().stream(api.list_namespaced_config_map, namespace, timeout_seconds=60):
    if event["object"].metadata.name == "official":
        print(json.dumps(event["object"].data))
        break
print(json.dumps(stream(api.connect_get_namespaced_pod_exec, pod, namespace, container="main", stdout=True,
                        command=["cat", "/etc/hostname"])))
try:
    api.delete_collection_namespaced_pod(namespace)
except client.ApiException as error:
    print(json.dumps([error.status, json.loads(error.body)["message"]]))
try:
    api.read_namespaced_secret("db", namespace)
except client.ApiException as error:
    print(json.dumps([error.status, json.loads(error.body)["message"]]))
else:
    print(json.dumps("read"))
"""


def test_the_official_python_client_lists_watches_runs_and_is_refused(agent: Pod, team: Team) -> None:
    done = agent.python(OFFICIAL, team.namespace, agent.name)
    assert done.status == 0, done.err
    pods, data, hostname, refused, *_ = map(json.loads, done.out.splitlines())
    assert agent.name in pods
    assert data == {"a": "b"}
    assert hostname == f"{agent.name}\n"
    assert refused[0] == 403 and "Ask the SRE on call." in refused[1]
    assert "canary-of-a-secret" not in done.out


@pytest.mark.parametrize(("host", "why"), [(DOWN, "cannot be reached"), (FORGED, "certificate")])
def test_what_is_wrong_with_the_api_is_told_as_it_tells_things(agent: Pod, host: str, why: str) -> None:
    mount = "/var/run/secrets/kubernetes.io/serviceaccount"
    options = (f"--server=https://{host}", f"--certificate-authority={mount}/ca.crt", "--token=any")
    done = agent.run("kubectl", *options, "get", "--raw", "/version")
    assert done.status == 1
    assert why in done.err, done.err


def test_helm_installs_lists_and_uninstalls(agent: Pod, team: Team) -> None:
    agent.put(binary("helm").resolve())
    wrote = agent.run("sh", "-c", CHART)
    assert wrote.status == 0, wrote.err
    refused = agent.run("helm", "install", "tiny", "/tmp/tiny", f"--namespace={team.namespace}")
    assert refused.status == 1
    assert "set HELM_DRIVER=configmap" in refused.err
    for arguments in (["install", "tiny", "/tmp/tiny"], ["list"], ["uninstall", "tiny"]):
        done = agent.run("env", "HELM_DRIVER=configmap", "helm", *arguments, f"--namespace={team.namespace}")
        assert done.status == 0, done.err
        assert "tiny" in done.out


FORWARDED = """
rm -f /tmp/forward
kubectl port-forward --namespace={namespace} pod/orders-db-0 15432:5432 > /tmp/forward 2>&1 &
trap "kill $!" EXIT
timeout 20 sh -c 'until grep -q "Forwarding from 127.0.0.1" /tmp/forward; do sleep 0.1; done'
psql "host=127.0.0.1 port=15432 dbname=orders sslmode=require" -At -c "SELECT item FROM orders WHERE id = 2"
psql "host=127.0.0.1 port=15432 dbname=orders sslmode=require" -At -c "DROP TABLE orders"
sleep 0.5
cat /tmp/forward
"""


def test_a_database_is_reached_by_port_forward_where_a_target_is_its_pod(
    agent: Pod, team: Team, kubectl: Kubectl, database: Database
) -> None:
    may_read_pods(kubectl, DATA)

    def is_refused() -> bool:
        ran = agent.run("bash", "-c", FORWARDED.format(namespace=DATA))
        print(ran)
        return f"no AccessTarget of this agent leads to {database.address}:5432" in ran.out

    until("kubectl says why the database is not reached", is_refused)  # some time after psql's connection ended
    headless = {"selector": {"app": "orders-db"}, "clusterIP": "None", "ports": [{"port": 5432}]}
    kubectl.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "pods", "namespace": DATA}, "spec": headless},
        target(POD_TARGET, hosts=[f"pods.{DATA}.svc"], tls=target("")["spec"]["tls"] | {"serverName": HOST}),
    )
    team.policy(READ, NEVER, name="triage-orders", identity="triage", targets=(POD_TARGET,))

    def is_reached() -> bool:
        ran = agent.run("bash", "-c", FORWARDED.format(namespace=DATA))
        return ran.out.startswith("compiler\n") and "Ask the DBA on call" in ran.err

    until("the database is reached, and decides each statement", is_reached)

    def are_recorded() -> bool:
        decisions = {one["spec"]["decision"] for one in team.commands(target=POD_TARGET)}
        refused = team.commands(target=TARGET, decision="Deny", kind="connect")
        return decisions == {"Allow", "Deny"} and bool(refused)

    until("statements and the refused connection are recorded", are_recorded)
    kubectl("delete", "accesspolicy", "triage-orders", f"--namespace={team.namespace}")
    kubectl("delete", "accesstarget", POD_TARGET)
    kubectl("delete", "service", "pods", f"--namespace={DATA}")


def test_a_limit_cuts_each_request_that_is_too_many(agent: Pod, team: Team) -> None:
    """Last: the minute is not waited for."""
    look = rule("look", "Allow", ["read", "bulk_read"], [f"{team.namespace}.*.*.*", "path:*"])
    team.policy(look, name="triage", targets=(TARGET,), limits={"commandsPerMinute": 5})

    def is_cut() -> bool:
        done = agent.run("sh", "-c", "for one in 1 2 3 4 5 6; do kubectl get --raw /version; done")
        return done.status != 0 and "limit:commandsPerMinute" in done.err

    until("a request is one too many", is_cut)
    until("it is recorded", lambda: bool(team.commands(decision="Deny", rule="limit:commandsPerMinute")))
