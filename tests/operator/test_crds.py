"""The custom resource definitions on a real API server: what is accepted, and what is refused with which words."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import manifests
import pytest
import yaml
from fix_apiserver import ApiServer
from fix_crds import kubectl

from chaperone_operator import kubeconfig
from chaperone_operator.kube import (
    ACCESS_POLICIES,
    ACCESS_TARGETS,
    AGENT_IDENTITIES,
    CLUSTER_ACCESS_POLICIES,
    NAMESPACES,
    ApiError,
    Client,
    Object,
    Resource,
)

pytestmark = pytest.mark.peer
EXAMPLES = Path(__file__).parents[2] / "examples"

RESOURCES = {
    resource.kind: resource for resource in (AGENT_IDENTITIES, ACCESS_TARGETS, ACCESS_POLICIES, CLUSTER_ACCESS_POLICIES)
}


def policy(**rule: Any) -> Object:
    return manifests.policy([manifests.rule("read-orders", "Allow", ["read"], ["public.orders"]) | rule])


def masks(**mask: Any) -> Object:
    return manifests.policy([RULE], masks=[mask])


def credential(**kinds: Any) -> Object:
    return manifests.target(credential=kinds)


RULE = manifests.rule("read-orders", "Allow", ["read"], ["public.orders"])
TEST = {"name": "t", "expect": {"action": "Deny"}}
SELECTOR = {"matchLabels": {"app": "x"}}
WORK = {"days": ["Mon-Fri", "Sun"], "from": "07:00", "to": "19:00", "timezone": "Europe/Berlin"}
SECRET = {"name": "a"}
ROLE: Object = {"adminSecretRef": SECRET, "grants": ["app_reader"]}
CERTIFICATE: Object = {"caSecretRef": SECRET, "principals": ["deploy"]}
TOKEN: Object = {"serviceAccount": "reader", "namespace": "apps"}
KV: Object = {"address": "https://vault:8200", "login": {"tokenSecretRef": SECRET}, "path": "apps/orders"}

DELEGATION = {"issuer": "https://login.example.com/realms/a", "audience": "billing-agent"}
GOOD: dict[str, Object] = {
    "identity": manifests.identity(
        owner={"name": "Billing on-call", "email": "billing@example.com"},
        team="billing",
        purpose="Reconciles invoices",
        ingress={"ports": [8080]},
        evidence={
            "durability": "Witnessed",
            "retention": "400d",
            "legalHold": True,
            "results": "Full",
            "maxResultBytes": "4Mi",
        },
        suspended=False,
    ),
    "suspended identity": manifests.identity(suspended=True),
    "delegation": manifests.identity(delegation=DELEGATION),
    "whole delegation": manifests.identity(
        delegation=DELEGATION
        | {
            "required": False,
            "jwks": {"url": "https://login.example.com/keys", "caSecretRef": {"name": "issuer-ca"}},
            "claims": {"user": "oid", "email": "upn", "groups": "roles"},
        }
    ),
    "identity by expressions": manifests.identity(
        selector={"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}
    ),
    "target": manifests.target(
        port=5432,
        upstream={"host": "orders-db.data.svc", "port": 5432, "database": "orders"},
        tls={"mode": "VerifyFull", "serverName": "orders", "caSecretRef": {"name": "orders-db-ca"}},
    ),
    "target by labels": manifests.target(
        hosts=["10.1.2.3/32", "db.example.com"], allowedNamespaces={"selector": SELECTOR}
    ),
    "role of a session": credential(postgresqlRole=ROLE | {"connectionLimit": 2, "validFor": "1h"}),
    "key-value of Vault": credential(vaultKv=KV | {"mount": "kv", "namespace": "team/a", "caSecretRef": SECRET}),
    "database of Vault": credential(
        vaultDatabase={"address": "https://vault", "login": {"kubernetesRole": "x"}, "role": "reader"}
    ),
    "policy": manifests.policy(
        [RULE, manifests.rule("never", "Deny", ["destroy", "privilege"], message="Ask the DBA on call.")],
        mode="Enforce",
    ),
    "limits": manifests.policy(
        [RULE],
        limits={
            "rowsPerCommand": 5000,
            "bytesPerSession": "50Mi",
            "commandsPerMinute": 120,
            "connections": 8,
            "commandDuration": "30s",
        },
    ),
    "bytes as a number": manifests.policy([RULE], limits={"bytesPerSession": 1048576}),
    "cluster policy of limits alone": manifests.cluster_policy([], limits={"connections": 20}),
    "masks": manifests.policy(
        [RULE],
        masks=[
            {"columns": ["public.customers.email", "*.public.c*.e*"], "method": "Partial"},
            {"detectors": ["PaymentCard", "USSocialSecurity", "Email"], "method": "Redact"},
            {"patterns": [{"name": "Customer", "pattern": r"CU-[0-9]{8}\b"}], "method": "Hash"},
        ],
        unmaskable="Redact",
    ),
    "masks alone": manifests.policy([], masks=[{"detectors": ["IBAN"], "method": "Null"}]),
    "cluster policy of masks alone": manifests.cluster_policy([], masks=[{"detectors": ["IBAN"], "method": "Null"}]),
    "guardrail of unmaskable alone": manifests.cluster_policy([], unmaskable="Deny"),
    "as many masks as there may be": manifests.policy(
        [RULE],
        masks=[{"columns": [f"public.t{one}.c{two}" for two in range(100)], "method": "Hash"} for one in range(50)],
    ),
    "classified": manifests.target(classified=[{"columns": ["public.customers.email", "db.s.t.*"], "class": "email"}]),
    "requirements": policy(
        match={
            "effects": ["read"],
            "require": {
                "where": True,
                "limit": 0,
                "maxEstimatedRows": 10,
                "maxRepeats": {"count": 50, "per": "24h"},
                "userGroups": ["finance"],
            },
        }
    ),
    "windows": manifests.policy([RULE | {"windows": [WORK]}], windows=[WORK, {**WORK, "from": "22:00", "to": "06:00"}]),
    "rego alone": manifests.cluster_policy([], rego='deny contains "no" if input.minute < 0'),
    "tests": manifests.policy(
        [RULE],
        tests=[
            {
                "name": "orders are read",
                "identity": "billing-agent",
                "target": "orders-db",
                "at": "2026-07-03T10:00:00Z",
                "rows": 5,
                "repeats": {"read-orders": 1},
                "accesses": [{"effect": "read", "object": "public.orders", "where": True, "limit": 5}],
                "expect": {"action": "Allow", "rule": "read-orders"},
            },
            TEST | {"sql": "DELETE FROM orders WHERE id = 1"},
        ],
    ),
    "observed": manifests.policy([RULE], mode="Observe"),
    "cluster policy that is observed": manifests.cluster_policy([RULE], mode="Observe", windows=[WORK]),
    "every object": manifests.policy([manifests.rule("all", "Allow", ["*"])]),
    "cluster policy by labels": manifests.cluster_policy(
        [RULE], subjects=[{"identitySelector": SELECTOR, "namespaceSelector": SELECTOR}, {"identity": "*"}]
    ),
    "cluster policy": manifests.cluster_policy([RULE]),
    "cluster policy of a namespace": manifests.cluster_policy([RULE], subjects=[{"identity": "a", "namespace": "b"}]),
}

BAD: dict[str, tuple[Object, str]] = {
    "long name": (manifests.identity("a" * 64, selector=SELECTOR), "at most 63 characters"),
    "no selector": (manifests.identity(selector={}), "selects every pod of the namespace; name labels"),
    "operator": (
        manifests.identity(selector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
        "In and NotIn need values",
    ),
    "owner": (manifests.identity(owner={"name": "  "}), "name the human who answers"),
    "mail": (manifests.identity(owner={"name": "a", "email": "b"}), "write one with an @"),
    "ingress port": (manifests.identity(ingress={"ports": [0]}), "greater than or equal to 1"),
    "issuer": (manifests.identity(delegation=DELEGATION | {"issuer": "x"}), "a URL that begins with https://"),
    "issuer in the clear": (
        manifests.identity(delegation=DELEGATION | {"issuer": "http://login.example.com"}),
        "a URL that begins with https://",
    ),
    "keys with a query": (
        manifests.identity(delegation=DELEGATION | {"jwks": {"url": "https://login.example.com/keys?a=b"}}),
        "neither user, query nor fragment",
    ),
    "no audience": (manifests.identity(delegation={"issuer": "https://a.example.com"}), "audience: Required value"),
    "blank audience": (manifests.identity(delegation=DELEGATION | {"audience": " "}), "audience is empty"),
    "claim of a time": (
        manifests.identity(delegation=DELEGATION | {"claims": {"user": "exp"}}),
        "says nothing of a person",
    ),
    "retention": (
        manifests.identity(evidence={"retention": "1 year"}),
        "such as 400d, 13w or 2y; leave it out to keep",
    ),
    "no retention": (manifests.identity(evidence={"retention": "0d"}), "such as 400d, 13w or 2y"),
    "retention that is a number": (manifests.identity(evidence={"retention": 400}), "retention"),
    "legal hold": (manifests.identity(evidence={"legalHold": "yes"}), "legalHold"),
    "results": (manifests.identity(evidence={"results": "Some"}), "Unsupported value"),
    "few result bytes": (manifests.identity(evidence={"maxResultBytes": 1023}), "from 1Ki to 64Mi"),
    "many result bytes": (manifests.identity(evidence={"maxResultBytes": "65Mi"}), "from 1Ki to 64Mi"),
    "no result bytes": (manifests.identity(evidence={"maxResultBytes": "some"}), "from 1Ki to 64Mi"),
    "durability": (manifests.identity(evidence={"durability": "Remembered"}), "supported values"),
    "unknown field": (manifests.identity(trusted=True), "unknown field"),
    "protocol": (manifests.target(protocol="FTP"), "supported values"),
    "hosts": (manifests.target(hosts=[]), "name at least one host"),
    "metadata address": (manifests.target(hosts=["169.254.169.254"]), "never leads to loopback, link-local"),
    "loopback upstream": (manifests.target(upstream={"host": "localhost"}), "never leads to loopback, link-local"),
    "wildcard host": (manifests.target(hosts=["*.example.com"]), "leave out wildcards"),
    "port": (manifests.target(port=70000), "less than or equal to 65535"),
    "tls mode": (manifests.target(tls={"mode": "Prefer"}), "supported values"),
    "no credential": (manifests.target(credential={}), "name exactly one of secretRef"),
    "secret name": (manifests.target(credential={"secretRef": {"name": "A/B"}}), "no name of a Secret"),
    "two credentials": (credential(secretRef=SECRET, postgresqlRole=ROLE), "name exactly one of secretRef"),
    "impersonation alone": (credential(secretRef=SECRET, impersonate={}), "impersonate needs kubernetesToken"),
    "impersonated cluster": (
        credential(kubernetesToken=TOKEN, impersonate={"groups": ["system:masters"]}),
        "belong to the cluster itself",
    ),
    "credential of SSH": (credential(sshCertificate=CERTIFICATE), "sshCertificate fits protocol SSH alone"),
    "credential of Kubernetes": (credential(kubernetesToken=TOKEN), "kubernetesToken fits protocol Kubernetes alone"),
    "credential of HTTP": (credential(httpHeader={"secretRef": SECRET, "host": "a"}), "httpHeader fits protocols HTTP"),
    "header of the connection": (
        credential(httpHeader={"secretRef": SECRET, "host": "a", "header": "Host"}),
        "belongs to the connection",
    ),
    "no grants": (credential(postgresqlRole=ROLE | {"grants": []}), "should have at least 1 items"),
    "no principals": (credential(sshCertificate=CERTIFICATE | {"principals": []}), "should have at least 1 items"),
    "short role": (credential(postgresqlRole=ROLE | {"validFor": "30s"}), "a duration from 1m to 24h"),
    "long role": (credential(postgresqlRole=ROLE | {"validFor": "25h"}), "a duration from 1m to 24h"),
    "short token": (credential(kubernetesToken=TOKEN | {"validFor": "5m"}), "a duration from 10m to 24h"),
    "vault in the clear": (credential(vaultKv=KV | {"address": "http://vault"}), "begins with https://"),
    "two log-ins": (
        credential(vaultKv=KV | {"login": {"tokenSecretRef": SECRET, "kubernetesRole": "x"}}),
        "name either tokenSecretRef or kubernetesRole",
    ),
    "path of elsewhere": (credential(vaultKv=KV | {"path": "../sys"}), "a path has parts"),
    "nothing classified": (manifests.target(classified=[{"columns": [], "class": "email"}]), "columns is empty"),
    "classified without class": (manifests.target(classified=[{"columns": ["a.b.c"]}]), "class: Required value"),
    "class of two words": (
        manifests.target(classified=[{"columns": ["a.b.c"], "class": "personal data"}]),
        "a class has 1 to 48 letters",
    ),
    "classified table": (
        manifests.target(classified=[{"columns": ["public.customers"], "class": "email"}]),
        "a column is schema.table.column",
    ),
    "classified double star": (
        manifests.target(classified=[{"columns": ["public.**"], "class": "email"}]),
        "write one * for each part",
    ),
    "inspection": (manifests.target(inspection={"mode": "x"}), "spec.inspection is not supported yet"),
    "namespace": (manifests.target(allowedNamespaces={"names": ["*"]}), "no name of a Namespace"),
    "observe nothing": (manifests.policy([], limits={"connections": 2}, mode="Observe"), "there are none; add some"),
    "subjects": (manifests.policy([RULE], subjects=[]), "name an identity"),
    "targets": (manifests.policy([RULE], targets=[]), "name a target"),
    "rules": (manifests.policy([]), "a policy without rules, limits and masks says nothing"),
    "same rule twice": (manifests.policy([RULE, RULE]), "Duplicate value"),
    "rule name": (policy(name="a b"), "a rule's name has 1 to 63"),
    "approval missing": (policy(action="RequireApproval"), "say in approval.groups who may approve"),
    "approval of an Allow": (policy(approval={"groups": ["leads"]}), "goes with action RequireApproval alone"),
    "approval by nobody": (policy(action="RequireApproval", approval={"groups": []}), "nobody could approve"),
    "approval by eleven": (
        policy(action="RequireApproval", approval={"groups": ["a"], "count": 11}),
        "less than or equal",
    ),
    "rule durability": (policy(durability="Synced"), "durability is not supported yet"),
    "rule windows": (policy(windows=[{"from": "08:00"}]), "to: Required value"),
    "no window": (policy(windows=[]), "windows is empty"),
    "window of nothing": (policy(windows=[WORK | {"to": "07:00"}]), "a whole day is 00:00 to 24:00"),
    "window of a late hour": (policy(windows=[WORK | {"from": "24:00"}]), "from is a time such as 07:00"),
    "window of a day": (policy(windows=[WORK | {"days": ["Monday"]}]), "a day is Mon, Tue"),
    "effects": (policy(match={"effects": []}), "match.effects is empty"),
    "effect": (policy(match={"effects": ["explode"]}), "supported values"),
    "objects": (policy(match={"effects": ["read"], "objects": []}), "match.objects is empty"),
    "double star": (policy(match={"effects": ["read"], "objects": ["a.**"]}), "write one * for each part"),
    "empty part": (policy(match={"effects": ["read"], "objects": ["a..b"]}), "a part between dots is empty"),
    "require nothing": (policy(match={"effects": ["read"], "require": {}}), "match.require is empty"),
    "require no where": (policy(match={"effects": ["read"], "require": {"where": False}}), "false requires nothing"),
    "require of another name": (policy(match={"effects": ["read"], "require": {"rows": 1}}), "unknown field"),
    "require in a Deny": (
        policy(action="Deny", match={"effects": ["read"], "require": {"where": True}}),
        "a Deny rule has no match.require",
    ),
    "repeats": (
        policy(match={"effects": ["create"], "require": {"maxRepeats": {"count": 5, "per": "day"}}}),
        "such as 24h",
    ),
    "rule message": (policy(message="x" * 501), "Too long"),
    "no mask": (manifests.policy([RULE], masks=[]), "spec.masks is empty; name a mask"),
    "mask of nothing": (masks(method="Redact"), "names neither columns, detectors nor patterns"),
    "mask of empty lists": (masks(columns=[], detectors=[], method="Redact"), "names neither columns, detectors"),
    "no method": (masks(detectors=["Email"]), "a mask names no method"),
    "bare Null": (masks(detectors=["Email"], method=None), 'write Redact, Partial, Hash or "Null", with the quotation'),
    "tokenize": (masks(detectors=["Email"], method="Tokenize"), "method Tokenize is not supported yet; Hash gives"),
    "method": (masks(detectors=["Email"], method="redact"), "method is one of Redact, Partial, Hash"),
    "detector": (masks(detectors=["Mail"], method="Redact"), "supported values"),
    "detector of your own": (
        masks(detectors=[{"name": "a", "pattern": "b"}], method="Redact"),
        "unknown field",
    ),
    "column of two parts": (masks(columns=["customers.email"], method="Redact"), "a column is schema.table.column"),
    "column of five parts": (masks(columns=["a.b.c.d.e"], method="Redact"), "a column is schema.table.column"),
    "column of empty parts": (masks(columns=["a..c"], method="Redact"), "a column is schema.table.column"),
    "double star of columns": (masks(columns=["a.b.**"], method="Redact"), "write one * for each part"),
    "pattern name": (
        masks(patterns=[{"name": "1a", "pattern": "b"}], method="Redact"),
        "a pattern's name has 1 to 48 letters",
    ),
    "pattern twice": (masks(patterns=[{"name": "a", "pattern": "b"}] * 2, method="Redact"), "Duplicate value"),
    "long pattern": (masks(patterns=[{"name": "a", "pattern": "b" * 1001}], method="Redact"), "Too long"),
    "unmaskable": (manifests.policy([RULE], unmaskable="Show"), "supported values"),
    "no limit": (manifests.policy([RULE], limits={}), "spec.limits is empty"),
    "limit of another name": (manifests.policy([RULE], limits={"rowsPerSession": 8}), "unknown field"),
    "no connections": (manifests.policy([RULE], limits={"connections": 0}), "greater than or equal to 1"),
    "too many connections": (manifests.policy([RULE], limits={"connections": 201}), "less than or equal to 200"),
    "no rows": (manifests.policy([RULE], limits={"rowsPerCommand": 0}), "greater than or equal to 1"),
    "half a command": (manifests.policy([RULE], limits={"commandsPerMinute": 0.5}), "must be of type integer"),
    "bytes": (manifests.policy([RULE], limits={"bytesPerSession": "50 MB"}), "a quantity of bytes such as 50Mi"),
    "no bytes": (manifests.policy([RULE], limits={"bytesPerSession": 0}), "a quantity of bytes such as 50Mi"),
    "duration": (manifests.policy([RULE], limits={"commandDuration": "half a minute"}), "Too long"),
    "duration of nothing": (manifests.policy([RULE], limits={"commandDuration": "0s"}), "such as 30s"),
    "cluster limit": (manifests.cluster_policy([], limits={"commandDuration": "30"}), "such as 30s"),
    "empty rego": (manifests.policy([RULE], rego=""), "should be at least 1 chars long"),
    "test of a statement": (manifests.policy([RULE], tests=[{"statement": "SELECT 1"}]), "unknown field"),
    "test of nothing": (manifests.policy([RULE], tests=[TEST]), "either sql, a statement, or accesses"),
    "test of both": (
        manifests.policy([RULE], tests=[TEST | {"sql": "SELECT 1", "accesses": [{"effect": "read"}]}]),
        "either sql, a statement, or accesses",
    ),
    "test of a long text": (manifests.policy([RULE], tests=[TEST | {"sql": "x" * 4097}]), "Too long"),
    "windows": (manifests.policy([RULE], windows=[WORK | {"timezone": ""}]), "timezone"),
    "mode": (manifests.policy([RULE], mode="Watch"), "supported values"),
    "two subjects in one": (
        manifests.cluster_policy([RULE], subjects=[{"identity": "*", "identitySelector": SELECTOR}]),
        "names identity or identitySelector",
    ),
    "no subject": (manifests.cluster_policy([RULE], subjects=[{}]), "names identity or identitySelector"),
    "two namespaces in one": (
        manifests.cluster_policy([RULE], subjects=[{"identity": "*", "namespace": "a", "namespaceSelector": SELECTOR}]),
        "names namespace or namespaceSelector",
    ),
    "selector of all": (
        manifests.cluster_policy([RULE], subjects=[{"identitySelector": {}}]),
        "the selector selects all",
    ),
    "cluster masks": (manifests.cluster_policy([RULE], masks=[{"method": "Hash"}]), "it masks nothing; name one"),
    "cluster subjects": (manifests.cluster_policy([RULE], subjects=[]), '"*" names all'),
}


@pytest.fixture
async def client(crds: ApiServer) -> AsyncIterator[Client]:
    async with Client(kubeconfig.from_file(crds.kubeconfig)) as client:
        yield client


@pytest.fixture
async def namespace(client: Client) -> str:
    made = await client.create(NAMESPACES, {"metadata": {"generateName": "crds-"}})
    name: str = made["metadata"]["name"]
    return name


def at(item: Object, namespace: str) -> tuple[Resource, Object, str]:
    """An object of the manifests as it is created in a namespace of this test."""
    resource, made = RESOURCES[item["kind"]], copy.deepcopy(item)
    where = namespace if "namespace" in made["metadata"] else ""
    made["metadata"] = {"name": made["metadata"]["name"] if where else f"{namespace}-{made['metadata']['name']}"}
    return resource, made, where


@pytest.mark.parametrize("case", GOOD)
async def test_what_the_compiler_understands_is_accepted(client: Client, namespace: str, case: str) -> None:
    resource, item, where = at(GOOD[case], namespace)
    made = await client.create(resource, item, where)
    assert made["spec"] == item["spec"], "something was pruned or defaulted"
    await client.delete(resource, item["metadata"]["name"], where)


@pytest.mark.parametrize("case", BAD)
def test_what_does_nothing_or_cannot_be_is_refused_in_words(crds: ApiServer, case: str) -> None:
    item, words = BAD[case]
    _, made, _ = at(item, "default")
    told = kubectl(crds, "create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(made), is_checked=False)
    assert words in told, told
    assert "created" not in told


def test_examples_are_accepted(crds: ApiServer) -> None:
    kubectl(crds, "create", "namespace", "agents", is_checked=False)
    for path in sorted(EXAMPLES.rglob("*.yaml")):
        ours = [item for item in yaml.safe_load_all(path.read_text()) if item and item.get("kind") in RESOURCES]
        if ours:
            told = kubectl(crds, "apply", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump_all(ours))
            assert told.count("(server dry run)") == len(ours)


async def test_kubectl_shows_columns_short_names_and_category(crds: ApiServer, client: Client, namespace: str) -> None:
    for case in ("suspended identity", "policy", "target", "cluster policy"):
        resource, item, where = at(GOOD[case], namespace)
        await client.create(resource, item, where)
    moment = "2026-01-01T00:00:00Z"
    ready = {"type": "Ready", "status": "True", "reason": "Compiled", "lastTransitionTime": moment}
    status = {"status": {"observedGeneration": 1, "conditions": [ready], "pods": {"covered": 3, "uncovered": 1}}}
    await client.apply(
        AGENT_IDENTITIES, "billing-agent", status, manager="test", namespace=namespace, subresource="status"
    )
    agents = kubectl(crds, "get", "agents", "-n", namespace)
    assert agents.split("\n")[0].split() == ["NAME", "OWNER", "SUSPENDED", "COVERED", "UNCOVERED", "READY", "AGE"]
    assert all(word in agents for word in ("Billing on-call", "true", " 3 ", " 1 ", "True"))
    assert "orders-db" in kubectl(crds, "get", "ap", "-n", namespace)
    assert "PostgreSQL" in kubectl(crds, "get", "target")
    assert "guardrail" in kubectl(crds, "get", "cap")
    everything = kubectl(crds, "get", "chaperone", "-n", namespace)
    assert all(kind in everything for kind in ("agentidentity", "accesstarget", "accesspolicy", "clusteraccesspolicy"))


async def test_conditions_of_two_writers_live_side_by_side(client: Client, namespace: str) -> None:
    resource, item, _ = at(GOOD["target"], namespace)
    name = item["metadata"]["name"]
    await client.create(resource, item)
    for kind in ("Ready", "CredentialReady"):
        condition = {"type": kind, "status": "True", "reason": "Tested", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        body: Object = {"status": {"conditions": [condition]}}
        await client.apply(ACCESS_TARGETS, name, body, manager=f"test-{kind.lower()}", subresource="status")
    found = await client.get(ACCESS_TARGETS, name)
    assert {one["type"] for one in found["status"]["conditions"]} == {"Ready", "CredentialReady"}
    with pytest.raises(ApiError):
        await client.create(resource, item)
