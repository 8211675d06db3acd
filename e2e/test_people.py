"""What an auditor and an agent may see, and what somebody who makes a mistake is told."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta

import pytest
from pki import Authority
from stage import HOST, READ, TARGET, Database, Kubectl, Object, Pod, Team, named, pod, secret, target, until

from chaperone_tools.cache import binary
from chaperone_tools.errors import ToolsError
from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

EXPIRED = """
import socket, ssl, threading
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
server = socket.create_server(("", 5432))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    try:
        connection.recv(8)
        connection.sendall(b"S")
        context.wrap_socket(connection, server_side=True)
    except OSError as error:
        print(error, flush=True)
    connection.close()
"""


@pytest.fixture(scope="module")
def agent(team: Team) -> Pod:
    """An agent that may read orders at the database, and whatever a test adds."""
    team.identity()
    team.policy(READ)
    return team.pod()


def as_user(kubectl: Kubectl, account: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """kubectl as a service account would use it."""
    user = f"--as=system:serviceaccount:{account}"
    command = [str(binary("kubectl")), f"--kubeconfig={kubectl.kubeconfig}", user, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def condition(kubectl: Kubectl, kind: str, name: str, type_: str, *where: str) -> Object:
    """One condition of an object; empty while it is not there."""
    found = kubectl.json(kind, name, *where).get("status", {}).get("conditions") or ()
    return next((one for one in found if one["type"] == type_), {})


def test_an_auditor_reads_evidence_and_kinds_and_nothing_else(kubectl: Kubectl, team: Team, agent: Pod):
    assert agent.psql("SELECT 1 FROM orders").status == 0
    until("a session is listed", lambda: bool(kubectl.json("sessions", f"--namespace={team.namespace}")["items"]))
    where = f"--namespace={team.namespace}"
    kubectl("create", "serviceaccount", "auditor", where)
    account = f"{team.namespace}:auditor"
    refused = as_user(kubectl, account, "get", "sessions", where)
    assert "forbidden" in refused.stderr
    kubectl(
        "create", "rolebinding", "auditor", where, "--clusterrole=chaperone-auditor", f"--serviceaccount={account}"
    )  # fmt: skip
    until("the binding counts", lambda: as_user(kubectl, account, "get", "sessions", where).returncode == 0)
    assert "billing" in as_user(kubectl, account, "get", "sessions,commands", where).stdout
    assert as_user(kubectl, account, "get", "agentidentities,accesspolicies,approvalrequests", where).returncode == 0
    for forbidden in (
        ("get", "secrets", where),
        ("get", "sessions", "--all-namespaces"),
        ("delete", "sessions", "--all", where),
        ("delete", "accesspolicy", "billing", where),
    ):
        assert "forbidden" in as_user(kubectl, account, *forbidden).stderr, forbidden


def test_an_agents_own_account_sees_no_evidence_and_changes_no_policy(kubectl: Kubectl, team: Team, agent: Pod):
    account = f"{team.namespace}:default"
    where = f"--namespace={team.namespace}"
    kubectl("create", "rolebinding", "agent-edits", where, "--clusterrole=edit", f"--serviceaccount={account}")
    until("the binding counts", lambda: as_user(kubectl, account, "get", "pods", where).returncode == 0)
    for forbidden in (("get", "sessions"), ("get", "commands"), ("delete", "accesspolicy", "billing")):
        assert "forbidden" in as_user(kubectl, account, *forbidden, where).stderr, forbidden
    spec = kubectl.json("agentidentity", "billing", where)["spec"] | {"suspended": True}
    patch = ("patch", "agentidentity", "billing", "--type=merge", f"--patch={json.dumps({'spec': spec})}")
    assert "forbidden" in as_user(kubectl, account, *patch, where).stderr


def test_a_suspended_identity_is_cut_off_and_comes_back(kubectl: Kubectl, team: Team):
    team.identity("kill", suspended=False)
    team.policy(READ, name="kill")
    agent = team.pod("kill", app="kill")
    assert agent.psql("SELECT 1 FROM orders WHERE id = 1").out == "1\n"
    team.identity("kill", suspended=True)
    until("nothing is reached", lambda: agent.psql("SELECT 1 FROM orders").status != 0)
    team.identity("kill", suspended=False)
    until("it works again", lambda: agent.psql("SELECT 1 FROM orders WHERE id = 1").out == "1\n")


def test_what_is_no_manifest_or_names_what_is_not_there_is_told(kubectl: Kubectl, team: Team):
    with pytest.raises(ToolsError, match=r"spec\.rules\[0\]\.action|unknown field|Unsupported value"):
        rule = READ | {"action": "Perhaps"}
        spec = {"subjects": [{"identity": "billing"}], "targets": [{"name": TARGET}], "rules": [rule]}
        team.apply(named("AccessPolicy", "broken", spec, team.namespace))
    with pytest.raises(ToolsError, match="not supported yet"):
        masks = [{"columns": ["public.orders.item"], "method": "Tokenize"}]
        spec = {"subjects": [{"identity": "billing"}], "targets": [{"name": TARGET}], "rules": [READ], "masks": masks}
        team.apply(named("AccessPolicy", "masks", spec, team.namespace))


def test_statements_that_a_policy_is_tested_with_are_read_when_it_is_written(team: Team):
    spec = {"subjects": [{"identity": "billing"}], "targets": [{"name": TARGET}], "rules": [READ]}
    with pytest.raises(ToolsError, match=r"spec\.tests\[0\] \(clean-up\).*expected Allow"):
        tests = [{"name": "clean-up", "sql": "DELETE FROM orders", "expect": {"action": "Allow"}}]
        team.apply(named("AccessPolicy", "tested", spec | {"tests": tests}, team.namespace))
    tests = [{"name": "look", "sql": "SELECT item FROM public.orders", "expect": {"action": "Allow"}}]
    team.apply(named("AccessPolicy", "tested", spec | {"tests": tests}, team.namespace))
    team.until_ready("accesspolicy", "tested")


def test_a_policy_for_an_unknown_target_is_refused_or_not_ready_and_says_so(kubectl: Kubectl, team: Team, agent: Pod):
    spec = {"subjects": [{"identity": "billing"}], "targets": [{"name": "no-such-db"}], "rules": [READ]}
    try:
        team.apply(named("AccessPolicy", "lost", spec, team.namespace))
    except ToolsError as error:
        assert re.search(r"no-such-db", str(error))
    else:
        where = f"--namespace={team.namespace}"
        until("it is judged", lambda: bool(condition(kubectl, "accesspolicy", "lost", "Ready", where)))
        found = condition(kubectl, "accesspolicy", "lost", "Ready", where)
        assert found["status"] == "False"
        assert "no-such-db" in found["message"]
        kubectl("delete", "accesspolicy", "lost", where)
    assert agent.psql("SELECT 1 FROM orders WHERE id = 1").out == "1\n"


def test_a_missing_secret_is_named_in_the_error_and_in_the_targets_status(kubectl: Kubectl, team: Team, agent: Pod):
    name = f"lacking-{team.namespace}"
    host = f"lacking.{team.namespace}.svc"
    kubectl.apply(target(name, hosts=[host], upstream={"host": HOST, "database": "orders"},
                         credential={"secretRef": {"name": "not-there"}}))  # fmt: skip
    team.policy(READ, targets=(TARGET, name))
    connect = f"host={host} dbname=orders sslmode=require"
    until("the error names it", lambda: "not-there" in agent.run("psql", connect, "-c", "SELECT 1").err)
    until(
        "the target says so",
        lambda: "not-there" in condition(kubectl, "accesstarget", name, "CredentialReady").get("message", ""),
    )
    assert condition(kubectl, "accesstarget", name, "CredentialReady")["status"] == "False"
    kubectl("delete", "accesstarget", name)


def test_a_wrong_password_and_an_expired_certificate_are_told_as_the_platform_teams_affair(
    kubectl: Kubectl, team: Team, agent: Pod, database: Database, chaperone_installed: Installed
):
    system, where = chaperone_installed.namespace, team.namespace
    authority = Authority("expired CA")
    upstream = f"expired.{where}.svc"
    key, certificate = authority.server_pair(
        upstream, life=timedelta(days=1), start=datetime.now(UTC) - timedelta(days=9)
    )
    listener = pod(
        where, "expired", team.image,
        container={
            "command": ["tini", "--", "python3", "-c", EXPIRED],
            "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
            "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1},
        },
        volumes=[{"name": "tls", "secret": {"secretName": "expired-tls"}}],
    )  # fmt: skip
    service: Object = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "expired", "namespace": where},
        "spec": {"selector": {"app": "expired"}, "ports": [{"port": 5432}]},
    }  # fmt: skip
    cases = {f"wrong-{where}": "wrong-password", f"expired-{where}": f"{TARGET}-agent"}
    kubectl.apply(
        secret("wrong-password", system, "kubernetes.io/basic-auth", username="agent_rw", password="not-this-one"),
        secret("expired-ca", system, **{"ca.crt": authority.pem}),
        secret("expired-tls", where, **{"tls.crt": certificate.decode(), "tls.key": key.decode()}),
        listener, service,
        target(f"wrong-{where}", hosts=[f"wrong.{where}.svc"], upstream={"host": HOST, "database": "orders"},
               credential={"secretRef": {"name": "wrong-password"}}),
        target(f"expired-{where}", hosts=[upstream], tls={"mode": "VerifyFull", "caSecretRef": {"name": "expired-ca"}}),
    )  # fmt: skip
    team.wait_for("expired")
    team.policy(READ, targets=(TARGET, *cases))
    for host, told in ((f"wrong.{where}.svc", "password"), (upstream, "certificate has expired")):
        connect = f"host={host} dbname=orders sslmode=require"
        until(told, lambda c=connect, t=told: t in agent.run("psql", c, "-c", "SELECT 1").err)  # type: ignore[misc]
        said = agent.run("psql", connect, "-c", "SELECT 1").err
        assert "Target" in said, said
        assert database.password not in said
    for name in cases:
        kubectl("delete", "accesstarget", name)
