"""The Helm chart: what it renders, and what it grants."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fix_chart import CHART, KUBE_VERSION, ROOT, SYSTEM, Object, helm, of, pod_specs, rendered

from chaperone_collector.archive import options
from chaperone_operator import policykey
from chaperone_operator.certs import CA_SECRET, SERVICES, WEBHOOKS

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

EXEMPT = {"kube-system", "kube-node-lease", "kube-public", SYSTEM}
KINDS = ["agentidentities", "accesstargets", "accesspolicies", "clusteraccesspolicies"]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return rendered()


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
        "collector.archive.retentionDays=0", "collector.replicas=0", "collector.replicas=2",
        "collector.postgresql.key=a/b",
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


def test_collectors_share_a_database_in_place_of_a_volume(objects: list[Object]) -> None:
    (alone,) = of(objects, "StatefulSet")
    assert (alone["spec"]["replicas"], len(alone["spec"]["volumeClaimTemplates"])) == (1, 1)
    shared = rendered("--set", "collector.replicas=3,collector.postgresql.secretName=log,collector.postgresql.key=url")
    (collector,) = of(shared, "StatefulSet")
    assert collector["spec"]["replicas"] == 3
    assert "volumeClaimTemplates" not in collector["spec"]
    spec = collector["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert not [one for one in container["args"] if one.startswith("--data=")]
    place = {"--database-file=/etc/chaperone-database/url", "--log-key=/etc/chaperone-database/log.key"}
    assert place <= set(container["args"])
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert mounted["database"] == "/etc/chaperone-database"
    assert "data" not in mounted
    (volume,) = [one for one in spec["volumes"] if one["name"] == "database"]
    assert volume["secret"] == {"secretName": "log", "defaultMode": 0o440}
    budgets = {one["metadata"]["name"] for one in of(shared, "PodDisruptionBudget")}
    assert "chaperone-collector" in budgets


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


def test_auditors_read_approval_requests_and_vote_on_none(objects: list[Object]) -> None:
    for resource, wanted in (("approvalrequests", ["get", "list", "watch"]), ("approvalrequests/status", [])):
        rules = rules_with(objects, resource).get("ClusterRole/chaperone-auditor", [])
        assert [verb for rule in rules for verb in rule["verbs"]] == wanted


def test_what_everybody_gets_neither_writes_nor_reads_evidence(objects: list[Object]) -> None:
    aggregated = []
    for one in of(objects, "ClusterRole"):
        labels = one["metadata"]["labels"]
        if any("aggregate-to" in label for label in labels):
            aggregated.append(one["metadata"]["name"])
            assert {verb for rule in one["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
            assert {group for rule in one["rules"] for group in rule["apiGroups"]} == {"chaperone.dev"}
    assert aggregated == ["chaperone-view"]
