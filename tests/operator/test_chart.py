"""The Helm chart: what it renders, what it grants, and an installation of it on an API server of its own."""

from __future__ import annotations

import base64
import contextlib
import inspect
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import manifests
import pytest
import yaml
from fix_apiserver import ApiServer, api_server
from fix_approvals import request as approval_request
from fix_crds import kubectl
from fix_operator import Operator, free_ports

from chaperone_collector.archive import options
from chaperone_operator import policykey
from chaperone_operator.admission.inject import Agent, Settings, inject
from chaperone_operator.broker import ca
from chaperone_operator.certs import API_SERVICE, CA_SECRET, SERVICES, TRUST, TRUST_KEY, WEBHOOKS
from chaperone_tools.cache import binary
from chaperone_tools.errors import ToolsError

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "chaperone"
SYSTEM = "chaperone-system"
EXEMPT = {"kube-system", "kube-node-lease", "kube-public", SYSTEM}
KUBE_VERSION = "1.34.0"  # a helm built from source takes itself for one of an old Kubernetes when it has no cluster
HELM_TIMEOUT_S = 120.0
WAIT_S = 60.0
REGISTRATIONS = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
KINDS = ["agentidentities", "accesstargets", "accesspolicies", "clusteraccesspolicies"]

type Object = dict[str, Any]


def helm(*arguments: str, is_checked: bool = True) -> str:
    """What helm prints; its errors too when it fails."""
    try:
        program = binary("helm")
    except ToolsError as error:
        pytest.fail(str(error))
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=HELM_TIMEOUT_S, check=False, cwd=ROOT
    )
    assert done.returncode == 0 or not is_checked, done.stdout + done.stderr
    return done.stdout if done.returncode == 0 else done.stdout + done.stderr


def rendered(*arguments: str) -> list[Object]:
    told = helm("template", "chaperone", str(CHART), "-n", SYSTEM, "--kube-version", KUBE_VERSION, *arguments)
    return [one for one in yaml.safe_load_all(told) if one]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return rendered()


def of(objects: list[Object], *kinds: str) -> list[Object]:
    found = [one for one in objects if one["kind"] in kinds]
    assert found
    return found


def pod_specs(objects: list[Object]) -> dict[str, Object]:
    """Pod specs of all workloads, by the workload's name."""
    return {
        one["metadata"]["name"]: one["spec"]["template"]["spec"]
        for one in objects
        if "template" in (one.get("spec") or {})
    }


def webhooks(objects: list[Object]) -> list[Object]:
    found = of(objects, "MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
    assert {one["metadata"]["name"] for one in found} == {WEBHOOKS}
    return [webhook for one in found for webhook in one["webhooks"]]


# What is rendered


def test_lint_finds_nothing() -> None:
    helm("lint", "--strict", str(CHART), "--kube-version", KUBE_VERSION)


@pytest.mark.parametrize(
    "value",
    [
        "nonsense=1", "operator.nonsense=1", "operator.resources.nonsense=1", "collector.storage.nonsense=1",
        "images.sidecar=x", "operator.replicas=0", "imagePullPolicy=Sometimes", "spoolBytes=many", "images.opa=",
        "exemptNamespaces={UPPER}", "approvals.retentionHours=0", "collector.retention.minimum=0",
        "approvals.notify.format=Email", "collector.archive.bucket=evidence", "collector.archive.mode=Sometimes",
        "collector.archive.retentionDays=0",
    ],
)  # fmt: skip
def test_unknown_and_unfit_values_are_refused(value: str) -> None:
    told = helm(
        "template", "x", str(CHART), "--kube-version", KUBE_VERSION, "--set", value, is_checked=False
    )  # fmt: skip
    assert "values don't meet the specifications of the schema" in told


def test_witnesses_are_those_of_a_config_map() -> None:
    names = ("--set", "collector.witnesses.configMap=our-witnesses", "--set", "collector.witnesses.hasCA=true")
    pod = pod_specs(rendered(*names))["chaperone-collector"]
    (container,) = pod["containers"]
    assert container["args"][-2:] == [
        "--witnesses=/etc/chaperone-witnesses/policy", "--witness-ca=/etc/chaperone-witnesses/ca.crt"
    ]  # fmt: skip
    assert {"name": "witnesses", "configMap": {"name": "our-witnesses"}} in pod["volumes"]
    assert {"name": "witnesses", "mountPath": "/etc/chaperone-witnesses", "readOnly": True} in container["volumeMounts"]
    assert "witness" not in str(pod_specs(rendered())["chaperone-collector"])


def test_the_least_retention_is_the_collectors() -> None:
    (container,) = pod_specs(rendered())["chaperone-collector"]["containers"]
    assert container["args"][-1] == "--min-retention=365"
    (container,) = pod_specs(rendered("--set", "collector.retention.minimum=90"))["chaperone-collector"]["containers"]
    assert container["args"][-1] == "--min-retention=90"


def test_the_archive_is_told_as_the_collector_reads_it(tmp_path: Path) -> None:
    said = {"bucket": "evidence", "endpoint": "https://s3.example.com", "secretName": "our-archive", "hasCA": "true"}
    objects = rendered(
        *(word for name, value in said.items() for word in ("--set", f"collector.archive.{name}={value}"))
    )
    (told,) = [one for one in of(objects, "ConfigMap") if one["metadata"]["name"] == "chaperone-archive"]
    (tmp_path / "archive.yaml").write_text(told["data"]["archive.yaml"])
    found = options.load(tmp_path / "archive.yaml")
    assert (found.bucket, found.mode, found.retention_days) == ("evidence", "COMPLIANCE", 365)
    assert found.ca_file == f"{found.credentials}/ca.crt"
    pod = pod_specs(objects)["chaperone-collector"]
    (container,) = pod["containers"]
    assert "--archive=/etc/chaperone-archive/archive.yaml" in container["args"]
    assert {one["mountPath"] for one in container["volumeMounts"]} >= {"/etc/chaperone-archive", found.credentials}
    assert "our-archive" in [one["secret"]["secretName"] for one in pod["volumes"] if "secret" in one]
    assert "archive" not in str(pod_specs(rendered())["chaperone-collector"])


def test_every_object_of_the_schema_is_closed() -> None:
    def open_ones(schema: Object, path: str) -> Iterator[str]:
        if schema.get("type") == "object" and "additionalProperties" not in schema:
            yield path
        for key, value in ((schema.get("properties") or {}) | (schema.get("definitions") or {})).items():
            yield from open_ones(value, f"{path}/{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    # Kubernetes judges affinities; Helm puts globals there itself.
    known = {"/global", *(f"/affinity/{kind}" for kind in ("nodeAffinity", "podAffinity", "podAntiAffinity"))}
    assert set(open_ones(schema, "")) == known
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())) == set(schema["properties"]) - {"global"}


def test_crds_are_those_of_the_project_also_in_a_package(tmp_path: Path) -> None:
    ours = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (CHART / "crds").iterdir()} == ours
    told = [one for one in rendered("--include-crds") if one["kind"] == "CustomResourceDefinition"]
    by_name = sorted(told, key=lambda one: str(one["metadata"]["name"]))
    assert by_name == [yaml.safe_load(ours[name]) for name in sorted(ours)]
    helm("package", str(CHART), "--destination", str(tmp_path))
    with tarfile.open(next(tmp_path.glob("*.tgz"))) as packed:
        for name, content in ours.items():
            member = packed.extractfile(f"chaperone/crds/{name}")
            assert member is not None
            assert member.read() == content


def test_images_are_of_the_version_and_can_be_named(objects: list[Object]) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    images = {name: [one["image"] for one in spec["containers"]] for name, spec in pod_specs(objects).items()}
    assert images == {
        "chaperone-operator": [f"chaperone/operator:{version}"],
        "chaperone-broker": [f"chaperone/operator:{version}"],
        "chaperone-collector": [f"chaperone/collector:{version}"],
    }
    told = rendered(
        "--set", "images.gateway=r/g@sha256:1,images.operator=r/o:2,images.opa=r/opa:3,runtimeClasses={runc,kata}",
        "--set", "imagePullPolicy=Always,spoolBytes=1099511627776,imagePullSecrets[0].name=pull",
    )  # fmt: skip
    spec = pod_specs(told)["chaperone-operator"]
    assert spec["containers"][0]["args"] == [
        f"--namespace={SYSTEM}", "--gateway-image=r/g@sha256:1", "--opa-image=r/opa:3", "--pull-policy=Always",
        "--spool-bytes=1099511627776", "--runtime-classes=runc,kata",
    ]  # fmt: skip
    assert spec["containers"][0]["image"] == "r/o:2"
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


def test_images_of_this_checkout_are_those_that_it_runs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"]
    modules = (ROOT / "tools" / "opa" / "go.mod").read_text()
    opa = yaml.safe_load((CHART / "values.yaml").read_text())["images"]["opa"].rpartition(":")[2]
    assert f"github.com/open-policy-agent/opa v{opa} " in modules


def test_containers_are_bounded_and_write_to_volumes_only(objects: list[Object]) -> None:
    specs = pod_specs(objects)
    assert set(specs) == {"chaperone-operator", "chaperone-broker", "chaperone-collector"}
    for spec in specs.values():
        assert spec["securityContext"]["runAsUser"] == 65532
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


def test_one_replica_does_not_hold_up_the_draining_of_nodes(objects: list[Object]) -> None:
    budgets = {one["metadata"]["name"] for one in of(objects, "PodDisruptionBudget")}
    assert budgets == {"chaperone-operator", "chaperone-broker"}
    alone = rendered("--set", "operator.replicas=1,broker.replicas=1")
    assert not [one for one in alone if one["kind"] == "PodDisruptionBudget"]


def test_broker_notifies_whom_the_values_name(objects: list[Object]) -> None:
    (plain,) = pod_specs(objects)["chaperone-broker"]["containers"]
    assert plain["args"] == [f"--namespace={SYSTEM}", "--approval-retention=604800"]
    told = pod_specs(rendered(
        "--set", "approvals.retentionHours=24,approvals.notify.secretName=hook,approvals.notify.format=Slack",
        "--set", "approvals.notify.includeText=true",
    ))["chaperone-broker"]  # fmt: skip
    (container,) = told["containers"]
    assert container["args"][1:] == [
        "--approval-retention=86400", "--notify-dir=/etc/chaperone-notify", "--notify-format=Slack", "--notify-text",
    ]  # fmt: skip
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted["notify"] == "/etc/chaperone-notify"
    (volume,) = [one for one in told["volumes"] if one["name"] == "notify"]
    assert volume["secret"] == {"secretName": "hook", "defaultMode": 0o440, "optional": True}


def test_services_find_their_pods(objects: list[Object]) -> None:
    ports = {}
    workloads = of(objects, "Deployment", "StatefulSet")
    for service in of(objects, "Service"):
        selector = service["spec"]["selector"].items()
        found = [one for one in workloads if selector <= one["spec"]["template"]["metadata"]["labels"].items()]
        assert len(found) == 1
        named = {
            port["name"]: port["containerPort"]
            for one in found[0]["spec"]["template"]["spec"]["containers"]
            for port in one["ports"]
        }
        ports[service["metadata"]["name"]] = [
            (port["port"], named[port["targetPort"]]) for port in service["spec"]["ports"]
        ]
    assert ports == {
        "chaperone-operator": [(443, 8443)],
        "chaperone-broker": [(8443, 8443)],
        "chaperone-collector": [(8443, 8443)],
        "chaperone-evidence": [(443, 6443)],
    }
    assert {name for services in SERVICES.values() for name in services} == set(ports)


def test_webhooks_fail_closed_and_leave_the_system_alone(objects: list[Object]) -> None:
    for more, exempt in ((), EXEMPT), (("--set", "exemptNamespaces={cni-system,kube-system}"), EXEMPT | {"cni-system"}):
        found = webhooks(rendered(*more)) if more else webhooks(objects)
        assert {one["name"].partition(".")[0] for one in found} == {
            "mutate-pod", "validate-pod", "validate-exec", "validate-crd", "mutate-approval", "validate-approval",
            "mutate-suspension", "validate-suspension",
        }  # fmt: skip
        for one in found:
            assert (one["failurePolicy"], one["timeoutSeconds"]) == ("Fail", 5)
            assert "objectSelector" not in one
            if one["name"].partition(".")[0].endswith(("-approval", "-suspension")):  # somebody's, everywhere
                assert "namespaceSelector" not in one
                continue
            (expression,) = one["namespaceSelector"]["matchExpressions"]
            assert (expression["key"], expression["operator"]) == ("kubernetes.io/metadata.name", "NotIn")
            assert set(expression["values"]) == exempt
            assert len(expression["values"]) == len(exempt)


def test_webhooks_hold_what_the_operator_judges(objects: list[Object]) -> None:
    rules = {
        one["name"].partition(".")[0]: {
            (operation, resource)
            for rule in one["rules"]
            for operation in rule["operations"]
            for resource in rule["resources"]
        }
        for one in webhooks(objects)
    }
    enters = {("CONNECT", f"pods/{how}") for how in ("exec", "attach", "portforward")}
    updates = {("UPDATE", f"pods{part}") for part in ("", "/ephemeralcontainers", "/resize")}
    assert rules == {
        "mutate-pod": {("CREATE", "pods"), ("UPDATE", "pods/ephemeralcontainers")},
        "validate-pod": {("CREATE", "pods")} | updates,
        "validate-exec": enters,
        "validate-crd": {(operation, kind) for operation in ("CREATE", "UPDATE") for kind in KINDS},
        "mutate-approval": {("UPDATE", "approvalrequests/status")},
        "validate-approval": {
            (operation, f"approvalrequests{part}") for operation in ("CREATE", "UPDATE") for part in ("", "/status")
        },
        "mutate-suspension": {("CREATE", "agentidentities"), ("UPDATE", "agentidentities")},
        "validate-suspension": {("CREATE", "agentidentities"), ("UPDATE", "agentidentities")},
    }


# What is granted


def rules_with(objects: list[Object], resource: str) -> dict[str, list[Object]]:
    """Rules about a resource, by kind and name of the role."""
    found: dict[str, list[Object]] = {}
    for one in of(objects, "Role", "ClusterRole"):
        for rule in one["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if resource in rule["resources"]:
                found.setdefault(f"{one['kind']}/{one['metadata']['name']}", []).append(rule)
    return found


def test_only_the_broker_reads_any_secret(objects: list[Object]) -> None:
    found = rules_with(objects, "secrets")
    assert set(found) == {"Role/chaperone-operator", "Role/chaperone-broker"}
    named, made, key, key_made = found["Role/chaperone-operator"]
    assert set(named["resourceNames"]) == {CA_SECRET, *SERVICES}
    assert (key["resourceNames"], key["verbs"]) == ([policykey.SECRET], ["get"])
    assert made["verbs"] == key_made["verbs"] == ["create"]
    assert [rule["verbs"] for rule in found["Role/chaperone-broker"]] == [["get", "create"]]


def test_only_the_operator_says_populations_and_auditors_read_them(objects: list[Object]) -> None:
    for resource, writers in (
        ("populations", {"ClusterRole/chaperone-operator": ["create", "get"]}),
        ("coverages", {}),
    ):
        found = {
            name: [verb for rule in rules for verb in rule["verbs"]]
            for name, rules in rules_with(objects, resource).items()
        }
        assert found == writers | {"ClusterRole/chaperone-auditor": ["get", "list"]}


def test_what_everybody_gets_neither_writes_nor_reads_evidence(objects: list[Object]) -> None:
    aggregated = []
    for one in of(objects, "ClusterRole"):
        labels = one["metadata"]["labels"]
        if any("aggregate-to" in label for label in labels):
            aggregated.append(one["metadata"]["name"])
            assert {verb for rule in one["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
            assert {group for rule in one["rules"] for group in rule["apiGroups"]} == {"chaperone.dev"}
    assert aggregated == ["chaperone-view"]


# An installation


class Installation:
    """A release of the chart."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def kubectl(self, *arguments: str, stdin: str = "", is_checked: bool = True) -> str:
        return kubectl(self.server, *arguments, stdin=stdin, is_checked=is_checked)

    def helm(self, command: str, *arguments: str) -> str:
        return helm(command, "chaperone", *arguments, "-n", SYSTEM, f"--kubeconfig={self.server.kubeconfig}")

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def try_pod(self, pod: Object, namespace: str) -> str:
        """What the API server says to a pod, "" when it would take it."""
        given = yaml.safe_dump(pod)
        told = self.kubectl(
            "create", "--dry-run=server", "-n", namespace, "-f", "-", stdin=given, is_checked=False
        )  # fmt: skip
        return "" if "created (server dry run)" in told else told

    def may(self, part: str, verb: str, resource: str, namespace: str = SYSTEM, subresource: str = "") -> bool:
        account = f"system:serviceaccount:{SYSTEM}:chaperone-{part}"
        more = [f"--subresource={subresource}"] if subresource else []
        told = self.kubectl(
            "auth", "can-i", verb, resource, f"--as={account}", "-n", namespace, *more, is_checked=False
        )  # fmt: skip
        return "yes" in told.splitlines()

    def ca_bundles(self) -> set[str]:
        """Everything that stands as a CA in our registrations."""
        found = {
            webhook["clientConfig"].get("caBundle", "")
            for kind in REGISTRATIONS
            for webhook in self.get(kind, WEBHOOKS)["webhooks"]
        }
        return found | {self.get("apiservice", API_SERVICE)["spec"].get("caBundle", "")}


def eventually(is_so: Any, told: str) -> None:
    ends = time.monotonic() + WAIT_S
    while not is_so():
        if time.monotonic() > ends:
            pytest.fail(f"{told}: not within {WAIT_S:.0f} s")
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server for this module alone: a release holds the pods of all namespaces."""
    with contextlib.contextmanager(inspect.unwrap(api_server))(tmp_path_factory) as found:
        yield found


@pytest.fixture(scope="module")
def installed(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The chart, as `helm install` leaves it; nothing of it runs, for there are no nodes."""
    release = Installation(server, tmp_path_factory.mktemp("release"))
    release.kubectl("create", "namespace", "agents")
    release.helm("install", str(CHART), "--create-namespace")
    release.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(ROOT / "crds"))
    return release


@pytest.fixture
def without_webhooks(installed: Installation) -> Iterator[Installation]:
    """Somebody took the webhooks out; they come back afterwards."""
    with _without_webhooks(installed):
        yield installed


@contextlib.contextmanager
def _without_webhooks(installed: Installation) -> Iterator[None]:
    kept = [installed.get(kind, WEBHOOKS) for kind in REGISTRATIONS]
    for kind, one in zip(REGISTRATIONS, kept, strict=True):
        installed.kubectl("delete", kind, WEBHOOKS)
        one["metadata"] = {key: one["metadata"][key] for key in ("name", "labels", "annotations")}
    eventually(
        lambda: "no endpoints available" not in installed.try_pod(pod(), "agents"), "the API server forgets webhooks"
    )
    try:
        yield
    finally:
        installed.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all(kept))


def pod(**spec: Any) -> Object:
    """A pod that is no agent's."""
    usual: Object = {"containers": [{"name": "main", "image": "example.com/main:1"}], "serviceAccountName": "default"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "billing"}, "spec": usual | spec}


def agent(**spec: Any) -> Object:
    """A pod as the webhook leaves it, but for what is named."""
    settings = Settings(version="1", gateway_image="g", opa_image="o", cluster="c", service_ca="ca", policy_key="key")
    found = inject(pod(), settings, Agent("billing"))
    return found | {"spec": found["spec"] | spec}


def container(**context: Any) -> list[Object]:
    return [{"name": "main", "image": "example.com/main:1", "securityContext": context}]


def test_api_server_takes_every_object_as_it_is(installed: Installation) -> None:
    told = installed.kubectl(
        "apply", "--server-side", "--dry-run=server", "--force-conflicts", "--validate=strict", "-f", "-",
        stdin=yaml.safe_dump_all(rendered("--include-crds")),
    )  # fmt: skip
    assert "Warning" not in told


def test_pods_pass_pod_security_restricted(installed: Installation, objects: list[Object]) -> None:
    installed.kubectl(
        "label", "namespace", SYSTEM, "--overwrite",
        *(f"pod-security.kubernetes.io/{mode}=restricted" for mode in ("enforce", "warn")),
    )  # fmt: skip
    assert "violates PodSecurity" in installed.try_pod(pod(), SYSTEM)
    for name, spec in pod_specs(objects).items():
        claimed = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]  # as the StatefulSet adds it
        spec = spec | {"volumes": [*spec.get("volumes", ()), *claimed]}  # noqa: PLW2901
        assert installed.try_pod(pod(**spec), SYSTEM) == "", name


def test_without_an_operator_pods_are_refused_but_in_exempt_namespaces(installed: Installation) -> None:
    assert "failed calling webhook" in installed.try_pod(pod(), "agents")
    assert installed.try_pod(pod(), "kube-system") == ""


def test_accounts_may_what_they_need_and_no_more(installed: Installation) -> None:
    may = installed.may
    for name in (CA_SECRET, *SERVICES):
        assert may("operator", "get", f"secrets/{name}")
        assert may("operator", "update", f"secrets/{name}")
    for verb in ("get", "list", "watch", "delete", "patch"):
        assert not may("operator", verb, "secrets")
        assert not may("collector", verb, "secrets")
    for name in ("orders-db-reader", ca.SECRET):
        assert not may("operator", "get", f"secrets/{name}")
        assert may("broker", "get", f"secrets/{name}")
        assert not may("broker", "get", f"secrets/{name}", "agents")
    assert not may("broker", "list", "secrets")
    keys = policykey.namespace_of(SYSTEM)
    for part in ("broker", "collector"):  # who hands policy out cannot sign it
        for verb in ("get", "list", "watch", "create", "update", "patch", "delete"):
            assert not may(part, verb, f"secrets/{policykey.SECRET}", keys)
    assert may("operator", "get", f"secrets/{policykey.SECRET}", keys)
    assert may("operator", "create", "secrets", keys)
    assert not may("operator", "get", "secrets/another", keys)
    assert may("collector", "create", "subjectaccessreviews.authorization.k8s.io")
    assert may("collector", "get", "configmaps/extension-apiserver-authentication", "kube-system")
    assert may("broker", "patch", "pods", "agents", "status")
    assert not may("operator", "patch", "pods", "agents", "status")
    for verb in ("list", "create", "delete"):
        assert may("broker", verb, "leases.coordination.k8s.io")
        assert not may("broker", verb, "leases.coordination.k8s.io", "agents")
    for account, namespace in (("chaperone-operator", SYSTEM), ("chaperone-broker", "agents"), ("default", "agents")):
        assert not may("broker", "create", f"serviceaccounts/{account}", namespace, "token")
    assert may("broker", "create", "serviceaccounts/chaperone-broker", SYSTEM, "token")
    for part in ("operator", "broker", "collector"):
        for verb in ("create", "update", "patch", "delete"):
            assert not may(part, verb, "pods")
            assert not may(part, verb, "accesspolicies.chaperone.dev", "agents")
    for verb in ("get", "list", "watch", "create", "delete"):
        assert may("broker", verb, "approvalrequests.chaperone.dev", "agents")
    assert may("broker", "patch", "approvalrequests.chaperone.dev", "agents", "status")
    for part in ("operator", "collector"):
        for verb in ("get", "create", "delete", "patch"):
            assert not may(part, verb, "approvalrequests.chaperone.dev", "agents")
            assert not may(part, verb, "approvalrequests.chaperone.dev", "agents", "status")
    assert not may("operator", "get", "mutatingwebhookconfigurations/another")
    for name, is_granted in ((TRUST, True), ("snapshot-agents", False)):  # a policy is the operator's to write
        assert all(may("broker", verb, f"configmaps/{name}") == is_granted for verb in ("create", "patch"))


def test_upgrade_keeps_the_ca_that_the_operator_wrote(installed: Installation) -> None:
    assert installed.ca_bundles() == {""}
    for remark in ("first", "second"):
        encoded = base64.b64encode(f"{installed.server.authority.pem}# {remark}\n".encode()).decode()
        for kind in REGISTRATIONS:
            found = installed.get(kind, WEBHOOKS)
            for webhook in found["webhooks"]:
                webhook["clientConfig"]["caBundle"] = encoded
            installed.kubectl("replace", "-f", "-", stdin=json.dumps(found))
        service = installed.get("apiservice", API_SERVICE)
        service["spec"]["caBundle"] = encoded
        installed.kubectl("replace", "-f", "-", stdin=json.dumps(service))
        for more in (("--set", "broker.replicas=3"), ()):
            installed.helm("upgrade", str(CHART), *more)
            assert installed.ca_bundles() == {encoded}


REFUSED: dict[str, tuple[Object, str]] = {
    "no gateway": (agent(initContainers=[]), "must begin with the init containers chaperone-fence and"),
    "fence alone": (agent(initContainers=agent()["spec"]["initContainers"][:1]), "must begin with the init"),
    "another first": (
        agent(initContainers=[{"name": "first", "image": "i"}, *agent()["spec"]["initContainers"]]),
        "must begin with the init",
    ),
    "gateway that ends": (
        agent(initContainers=[{"name": name, "image": "i"} for name in ("chaperone-fence", "chaperone-gateway")]),
        "must begin with the init",
    ),
    "host network": (agent(hostNetwork=True), "take them out of the pod's spec"),
    "host pid": (agent(hostPID=True), "hostPID"),
    "host ipc": (agent(hostIPC=True), "hostIPC"),
    "one process namespace": (agent(shareProcessNamespace=True), "shareProcessNamespace"),
    "privileged": (agent(containers=container(privileged=True)), "a privileged container cannot be fenced"),
    "privileged gateway": (
        agent(initContainers=[
            agent()["spec"]["initContainers"][0],
            {**agent()["spec"]["initContainers"][1], "securityContext": {"privileged": True}},
        ]),
        "a privileged container cannot be fenced",
    ),
    "gateway with more": (
        agent(initContainers=[
            agent()["spec"]["initContainers"][0],
            {**agent()["spec"]["initContainers"][1], "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}},
        ]),
        "chaperone-gateway NET_RAW, and nothing else",
    ),
    "capability of an init container": (
        agent(initContainers=[
            *agent()["spec"]["initContainers"],
            {"name": "i", "image": "i", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}},
        ]),
        "could leave the fence",
    ),
    "our name outside init": (
        agent(containers=[
            {"name": "chaperone-x", "image": "i", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}
        ]),
        "could leave the fence",
    ),
} | {
    capability: (agent(containers=container(capabilities={"add": ["CHOWN", capability]})), "could leave the fence")
    for capability in ("NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "BPF", "ALL", "CAP_NET_ADMIN",
                       "net_raw")
}  # fmt: skip


def test_second_lock_holds_agents_without_webhooks(without_webhooks: Installation) -> None:
    held = without_webhooks
    # Its verdicts begin a moment after it is stored.
    eventually(lambda: held.try_pod(agent(initContainers=[]), "agents") != "", "the policy is in force")
    for name, (refused, why) in REFUSED.items():
        told = held.try_pod(refused, "agents")
        if "disallowed by cluster policy" in told:
            continue  # an API server without --allow-privileged, as this one may be, refuses those itself
        assert "ValidatingAdmissionPolicy 'chaperone-agents'" in told, (name, told)
        assert why in told, (name, told)
    assert held.try_pod(agent(), "agents") == ""
    assert held.try_pod(agent(containers=container(capabilities={"add": ["CHOWN"], "drop": ["ALL"]})), "agents") == ""
    assert (
        held.try_pod(pod(hostNetwork=True, containers=container(capabilities={"add": ["NET_ADMIN"]})), "agents") == ""
    )
    assert held.try_pod(agent(hostNetwork=True), SYSTEM).count("ValidatingAdmissionPolicy") == 0


def test_second_lock_holds_what_becomes_of_a_pod(without_webhooks: Installation) -> None:
    held = without_webhooks
    eventually(lambda: held.try_pod(agent(initContainers=[]), "agents") != "", "the policy is in force")
    plain = pod()
    plain["metadata"]["name"] = "plain"
    held.kubectl("create", "-n", "agents", "-f", "-", stdin=yaml.safe_dump_all([agent(), plain]))

    def label(name: str, value: str) -> str:
        return held.kubectl("label", "pod", name, "-n", "agents", "--overwrite", value, is_checked=False)

    for name, value in (
        ("plain", "chaperone.dev/identity=billing"),
        ("billing", "chaperone.dev/identity=other"),
        ("billing", "chaperone.dev/identity-"),
    ):
        assert "cannot be set, changed or removed" in label(name, value)
    for name in ("plain", "billing"):
        assert f"pod/{name} labeled" in label(name, "team=billing")
    found = held.get("pod", "billing", "-n", "agents")
    for capability, is_held in (("NET_ADMIN", True), ("CHOWN", False)):
        debugger = {
            "name": "debugger", "image": "i", "securityContext": {"capabilities": {"add": [capability]}},
            "terminationMessagePolicy": "File",
        }  # fmt: skip
        changed = {**found, "spec": {**found["spec"], "ephemeralContainers": [debugger]}}
        told = held.kubectl(
            "replace", "--raw", "/api/v1/namespaces/agents/pods/billing/ephemeralcontainers", "-f", "-",
            stdin=json.dumps(changed), is_checked=False,
        )  # fmt: skip
        assert ("could leave the fence" in told) == is_held, told
    held.kubectl("delete", "pod", "plain", "billing", "-n", "agents", "--grace-period=0", "--force")


def test_second_lock_holds_approvals_without_webhooks(without_webhooks: Installation) -> None:
    held = without_webhooks
    account = f"--as=system:serviceaccount:{SYSTEM}:chaperone-broker"
    now = {"by": {"username": "lead-1"}, "groups": ["billing-leads"], "at": "2026-01-01T00:00:00Z"}

    def create(*arguments: str) -> str:
        given = yaml.safe_dump(approval_request("apr-1"))
        return held.kubectl("create", "-n", "agents", "-f", "-", *arguments, stdin=given, is_checked=False)

    def patch(user: str, *patches: Object, groups: tuple[str, ...] = ("billing-leads", "system:masters")) -> str:
        return held.kubectl(
            "patch", "approvalrequest", "apr-1", "-n", "agents", "--subresource=status", "--type=json",
            "-p", json.dumps(patches), f"--as={user}", *(f"--as-group={one}" for one in groups), is_checked=False,
        )  # fmt: skip

    def vote(**changed: Any) -> Object:
        return {"op": "add", "path": "/status/votes/-", "value": {"decision": "Approve"} | now | changed}

    # Its verdicts begin a moment after it is stored.
    eventually(lambda: "made, changed and deleted by the broker alone" in create("--dry-run=server"), "it is in force")
    assert "created" in create(account)
    assert "by the broker alone" in held.kubectl("delete", "apr", "apr-1", "-n", "agents", is_checked=False)
    assert "by the broker alone" in held.kubectl("label", "apr", "apr-1", "-n", "agents", "a=b", is_checked=False)
    approved = {"op": "replace", "path": "/status/state", "value": "Approved"}
    for told, why in (
        (patch("lead-1", approved), "people add exactly one vote"),
        (patch("lead-1", vote(), approved), "people add exactly one vote"),
        (patch("lead-1", vote(), vote(decision="Deny")), "people add exactly one vote"),
        (patch("lead-1", vote(by={"username": "lead-2"})), "bears the name and the groups of whoever sends it"),
        (patch("lead-1", vote(), groups=("staff", "system:masters")), "bears the name and the groups"),
        (patch("lead-1", vote(groups=["system:masters"])), "bears the name and the groups"),
        (patch("creator", vote(by={"username": "creator"})), "nobody votes on an own request"),
    ):
        assert "ValidatingAdmissionPolicy 'chaperone-approvals'" in told, told
        assert why in told, told
    assert "patched" in patch("lead-1", vote())
    assert "nobody votes on an own request, twice" in patch("lead-1", vote(decision="Deny"))
    assert "people add exactly one vote" in patch("lead-2", vote(by={"username": "lead-2"}), {
        "op": "replace", "path": "/status/votes/0/decision", "value": "Deny",
    })  # fmt: skip
    removed = held.kubectl("delete", "apr", "apr-1", "-n", "agents", account, is_checked=False)
    assert "deleted" in removed, removed


def test_second_lock_holds_who_suspends_and_who_resumes(without_webhooks: Installation) -> None:
    held = without_webhooks
    people = {"developer": "chaperone-agent-developer", "responder": "chaperone-responder"}
    for user, role in people.items():
        held.kubectl("create", "rolebinding", user, "-n", "agents", f"--clusterrole={role}", f"--user={user}")
    stamp = {"by": "developer", "at": "2026-01-01T00:00:00Z", "reason": "odd"}
    spec: Object = {"selector": {"matchLabels": {"app": "killed"}}, "owner": {"name": "Billing on-call"}}
    item = {
        "apiVersion": "chaperone.dev/v1alpha1", "kind": "AgentIdentity",
        "metadata": {"name": "killed", "namespace": "agents"}, "spec": spec,
    }  # fmt: skip
    lock = "ValidatingAdmissionPolicy 'chaperone-suspension'"

    def create(user: str, **more: Any) -> str:
        given = json.dumps({**item, "spec": spec | more})
        return held.kubectl("create", "-f", "-", f"--as={user}", stdin=given, is_checked=False)

    def patch(user: str, **changed: Any) -> str:
        return held.kubectl(
            "patch", "agentidentity", "killed", "-n", "agents", "--type=merge", f"--as={user}",
            "-p", json.dumps({"spec": changed}), is_checked=False,
        )  # fmt: skip

    eventually(lambda: lock in create("developer", suspended=True), "it is in force")
    assert lock in create("developer", suspension=stamp)
    assert "created" in create("developer")
    for told in (
        patch("developer", suspended=True),
        patch("developer", suspended=True, suspension=stamp | {"by": "responder"}),
        patch("developer", suspension=stamp),
    ):
        assert lock in told, told
        assert "says who changed spec.suspended last" in told, told
    assert "changes nothing but spec.suspended" in patch("responder", purpose="mine")
    assert "changes nothing but spec.suspended" in patch("responder", owner={"name": "me"})
    assert "patched" in patch("developer", purpose="books")
    assert "patched" in patch("developer", suspended=True, suspension=stamp)

    resumed = {"suspended": False, "suspension": stamp | {"reason": "fine"}}
    for told in (
        patch("developer", **resumed),
        patch("developer", suspended=None, suspension=None),
        held.kubectl("delete", "agentidentity", "killed", "-n", "agents", "--as=developer", is_checked=False),
        held.kubectl("delete", "agentidentity", "--all", "-n", "agents", "--as=developer", is_checked=False),
    ):
        assert lock in told, told
        assert "developer may not resume a suspended agent, nor delete it" in told, told
    assert "the selector of a suspended agent stays" in patch("developer", selector={"matchLabels": {"app": "x"}})
    assert "says who changed" in patch("developer", suspension=stamp | {"by": "responder"})
    assert "patched" in patch("developer", purpose="all the same")
    assert "patched" in patch("responder", suspended=False, suspension=stamp | {"by": "responder", "reason": "fine"})
    assert "deleted" in held.kubectl("delete", "agentidentity", "killed", "-n", "agents", "--as=developer")


def test_operator_and_broker_run_with_the_rights_that_they_get(installed: Installation) -> None:
    accounts = {
        part: installed.server.kubeconfig_of(f"system:serviceaccount:{SYSTEM}:chaperone-{part}")
        for part in ("operator", "broker")
    }
    identity = {
        "apiVersion": "chaperone.dev/v1alpha1", "kind": "AgentIdentity",
        "metadata": {"name": "billing", "namespace": "kube-public"},
        "spec": {"selector": {"matchLabels": {"app": "billing"}}, "owner": {"name": "Billing on-call"}},
    }  # fmt: skip
    unfit = manifests.policy(
        [manifests.rule("read", "Allow", ["read"])], "billing", "kube-public", subjects=[{"identity": "billing"}],
        targets=[{"name": "none-such"}],
    )  # fmt: skip
    unfit["metadata"] = {"name": "billing", "namespace": "kube-public"}
    with _without_webhooks(installed):  # nobody answers them before the operator runs
        installed.kubectl("create", "-f", "-", stdin=yaml.safe_dump_all([identity, unfit]))
    operator = Operator(installed.server, SYSTEM, installed.folder)
    try:
        replica = operator.start(f"--kubeconfig={accounts['operator']}")
        operator.eventually(lambda: operator.condition("agentidentity", "billing", "kube-public"), bool, WAIT_S)
        operator.eventually(lambda: operator.get("events.events.k8s.io", "-n", "kube-public")["items"], bool)
        operator.eventually(
            lambda: operator.condition("accesspolicy", "billing", "kube-public").get("status"),
            lambda one: one == "False",
        )
        trust = operator.get("configmap", TRUST, "-n", SYSTEM)["data"][TRUST_KEY]
        assert installed.ca_bundles() == {base64.b64encode(trust.encode()).decode()}
        with _broker(installed, accounts["broker"]) as log:
            operator.eventually(
                lambda: operator.get("configmap", TRUST, "-n", SYSTEM)["data"].get(ca.TRUST_KEY, log.read_text()),
                lambda told: told.startswith("-----BEGIN"), WAIT_S,
            )  # fmt: skip
            assert set(operator.get("configmap", TRUST, "-n", SYSTEM)["data"]) == {TRUST_KEY, ca.TRUST_KEY}
        assert replica.stop() == 0
        for told in (replica.log.read_text(), log.read_text()):
            assert "forbidden" not in told, told
    finally:
        operator.end()


def test_uninstalling_lets_pods_start_and_keeps_what_was_declared(installed: Installation) -> None:
    installed.helm("uninstall")
    try:
        eventually(lambda: installed.try_pod(pod(), "agents") == "", "the API server forgets webhooks")
        for kind, name in *((kind, WEBHOOKS) for kind in REGISTRATIONS), ("apiservice", API_SERVICE):
            assert "not found" in installed.kubectl("get", kind, name, is_checked=False)
        assert "chaperone.dev" in installed.kubectl("get", "customresourcedefinitions")
    finally:
        installed.helm("install", str(CHART))


@contextlib.contextmanager
def _broker(installed: Installation, kubeconfig: Path) -> Iterator[Path]:
    data = installed.get("secret", "chaperone-broker-tls", "-n", SYSTEM)["data"]
    for name in ("tls.crt", "tls.key"):
        (installed.folder / name).write_bytes(base64.b64decode(data[name]))
    port, metrics_port = free_ports(2)
    log = installed.folder / "broker.log"
    command = [
        sys.executable, "-m", "chaperone_operator.broker", f"--namespace={SYSTEM}", f"--kubeconfig={kubeconfig}",
        f"--port={port}", f"--metrics-port={metrics_port}", "--address=127.0.0.1",
        f"--tls-cert={installed.folder / 'tls.crt'}", f"--tls-key={installed.folder / 'tls.key'}",
    ]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield log
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
