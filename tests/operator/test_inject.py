"""What injection makes of a pod, and that nothing else passes for an injected one."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest

from chaperone_operator.admission.inject import (
    JAVA_OPTIONS,
    JAVA_VARIABLE,
    TRUST_VARIABLES,
    Agent,
    Settings,
    inject,
    missing,
    patch,
    without_ours,
)
from chaperone_operator.admission.protect import claims, violations
from chaperone_operator.admission.seal import Seal

type Object = dict[str, Any]
SETTINGS = Settings(
    version="0.1.0",
    gateway_image="example.com/gateway:1",
    opa_image="example.com/opa:1",
    cluster="cluster-uid",
    service_ca="-----BEGIN CERTIFICATE-----\n",
    policy_key="cluster-uid/operator+00000000+AAAA",
)
SEALED = msgspec.structs.replace(SETTINGS, seal=Seal(b"the service CA's key"))
AGENT = Agent("billing", (8080, 9090))
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def pod() -> Object:
    mount = {"name": "kube-api-access-x", "mountPath": ACCOUNT, "readOnly": True}
    token = {"serviceAccountToken": {"path": "token"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "agent", "labels": {"app": "agent"}},
        "spec": {
            "initContainers": [{"name": "setup", "image": "setup:1"}],
            "containers": [
                {
                    "name": "agent",
                    "image": "agent:1",
                    "env": [{"name": "SSL_CERT_FILE", "value": "/own"}, {"name": "MODE", "value": "x"}],
                    "volumeMounts": [mount, {"name": "data", "mountPath": "/data"}],
                },
                {"name": "strict", "image": "agent:1", "securityContext": {"capabilities": {"drop": ["ALL"]}}},
            ],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "kube-api-access-x", "projected": {"sources": [token]}},
            ],
        },
    }


def named(item: Object, name: str) -> Object:
    everything = [*item["spec"]["initContainers"], *item["spec"]["containers"]]
    found: Object = next(one for one in everything if one["name"] == name)
    return found


def environment(container: Object) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", ())}


def mounts(container: Object) -> dict[str, tuple[str, bool]]:
    return {one["mountPath"]: (one["name"], one.get("readOnly", False)) for one in container.get("volumeMounts", ())}


def test_ours_start_before_everything_else() -> None:
    done = inject(pod(), SETTINGS, AGENT)
    names = [one["name"] for one in done["spec"]["initContainers"]]
    assert names == ["chaperone-fence", "chaperone-gateway", "chaperone-opa", "setup"]
    assert "restartPolicy" not in named(done, "chaperone-fence")
    assert named(done, "chaperone-gateway")["restartPolicy"] == "Always"
    assert named(done, "chaperone-opa")["restartPolicy"] == "Always"
    assert named(done, "chaperone-gateway")["startupProbe"]["exec"] == {"command": ["chaperone-gateway", "ready"]}


def test_label_and_annotation_are_set() -> None:
    metadata = inject(pod(), SETTINGS, AGENT)["metadata"]
    assert metadata["labels"] == {"app": "agent", "chaperone.dev/identity": "billing"}
    assert metadata["annotations"] == {"chaperone.dev/injected": "0.1.0"}


def test_ids_and_capabilities_of_ours() -> None:
    done = inject(pod(), SETTINGS, AGENT)
    wanted = {"chaperone-fence": (0, 0, ["NET_ADMIN"]), "chaperone-gateway": (0, 64137, ["NET_RAW"])}
    wanted |= {"chaperone-opa": (64138, 64138, [])}
    for name, (user, group, add) in wanted.items():
        context = named(done, name)["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (user, group)
        assert context["capabilities"] == {"drop": ["ALL"]} | ({"add": add} if add else {})
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]


def test_gateway_has_its_mounts_and_environment() -> None:
    gateway = named(inject(pod(), SETTINGS, AGENT), "chaperone-gateway")
    assert mounts(gateway) == {
        "/var/run/chaperone/token": ("chaperone-token", True),
        "/var/lib/chaperone": ("chaperone-spool", False),
        "/run/chaperone": ("chaperone-run", False),
        "/run/chaperone-bundle": ("chaperone-bundle", False),
        "/run/chaperone-opa": ("chaperone-opa-socket", True),
        "/etc/chaperone-trust": ("chaperone-trust", False),
        "/run/chaperone-serviceaccount": ("chaperone-serviceaccount", False),
    }
    told = environment(gateway)
    assert told["CHAPERONE_BROKER"] == "https://chaperone-broker.chaperone-system.svc:8443"
    assert told["CHAPERONE_COLLECTOR"] == "https://chaperone-collector.chaperone-system.svc:8443"
    assert (told["CHAPERONE_IDENTITY"], told["CHAPERONE_INGRESS_PORTS"]) == ("billing", "8080,9090")
    assert (told["CHAPERONE_CA"], told["CHAPERONE_CLUSTER"]) == (SETTINGS.service_ca, "cluster-uid")
    assert told["CHAPERONE_SPOOL_BYTES"] == str(SETTINGS.spool_bytes)
    assert told["POD_UID"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.uid"}}
    assert {"POD_NAME", "POD_NAMESPACE", "NODE_NAME", "SERVICE_ACCOUNT"} <= told.keys()


def test_bundle_is_read_only_for_opa() -> None:
    opa = named(inject(pod(), SETTINGS, AGENT), "chaperone-opa")
    assert mounts(opa) == {
        "/run/chaperone-bundle": ("chaperone-bundle", True),
        "/run/chaperone-opa": ("chaperone-opa-socket", False),
    }
    assert "--addr=unix:///run/chaperone-opa/opa.sock" in opa["args"]


def test_a_pod_without_a_seccomp_profile_gets_the_runtimes_and_another_one_stays() -> None:
    assert inject(pod(), SETTINGS, AGENT)["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    own = {"seccompProfile": {"type": "Localhost", "localhostProfile": "strict.json"}, "fsGroup": 7}
    named_one = pod()
    named_one["spec"] = named_one["spec"] | {"securityContext": own}
    assert inject(named_one, SETTINGS, AGENT)["spec"]["securityContext"] == own


def test_token_is_for_the_broker_and_short() -> None:
    volumes = {one["name"]: one for one in inject(pod(), SETTINGS, AGENT)["spec"]["volumes"]}
    [source] = volumes["chaperone-token"]["projected"]["sources"]
    assert source["serviceAccountToken"] == {"audience": "chaperone-broker", "expirationSeconds": 600, "path": "token"}
    assert volumes["chaperone-run"]["emptyDir"]["medium"] == "Memory"


@pytest.mark.parametrize("name", ["agent", "setup", "strict"])
def test_other_containers_lose_raw_sockets_and_get_our_trust(name: str) -> None:
    container = named(inject(pod(), SETTINGS, AGENT), name)
    drop = container["securityContext"]["capabilities"]["drop"]
    assert drop == (["ALL"] if name == "strict" else ["NET_RAW"])
    assert mounts(container)[ACCOUNT] == ("chaperone-serviceaccount", True)
    assert mounts(container)["/etc/chaperone-trust"] == ("chaperone-trust", True)
    assert TRUST_VARIABLES.items() <= environment(container).items()


@pytest.mark.parametrize("own", ["", "-Xmx512m", "-Djavax.net.ssl.trustStore=/own.jks"])
def test_java_gets_our_trust_behind_its_own_options(own: str) -> None:
    item = pod()
    item["spec"]["containers"][0]["env"] = [{"name": JAVA_VARIABLE, "value": own}] if own else []
    once = inject(item, SETTINGS, AGENT)
    assert environment(once["spec"]["containers"][0])[JAVA_VARIABLE] == f"{own} {JAVA_OPTIONS}".strip()
    assert inject(once, SETTINGS, AGENT) == once


def test_javas_options_from_elsewhere_stay() -> None:
    item = pod()
    given = {"name": JAVA_VARIABLE, "valueFrom": {"configMapKeyRef": {"name": "java", "key": "options"}}}
    item["spec"]["containers"][0]["env"] = [given]
    done = inject(item, SETTINGS, AGENT)["spec"]["containers"][0]["env"]
    assert [one for one in done if one["name"] == JAVA_VARIABLE] == [given]


def test_own_environment_and_mounts_stay_and_real_account_goes() -> None:
    done = inject(pod(), SETTINGS, AGENT)
    agent = named(done, "agent")
    assert environment(agent)["MODE"] == "x"
    assert mounts(agent)["/data"] == ("data", False)
    assert "kube-api-access-x" not in {one["name"] for one in done["spec"]["volumes"]}
    assert done["spec"]["automountServiceAccountToken"] is False


def test_ephemeral_container_loses_raw_sockets() -> None:
    item = pod()
    item["spec"]["ephemeralContainers"] = [{"name": "debug", "image": "debug:1"}]
    [debug] = inject(item, SETTINGS, AGENT)["spec"]["ephemeralContainers"]
    assert debug["securityContext"]["capabilities"]["drop"] == ["NET_RAW"]


def test_injection_is_idempotent_and_leaves_its_argument() -> None:
    item = pod()
    before = copy.deepcopy(item)
    once = inject(item, SETTINGS, AGENT)
    assert item == before
    assert inject(once, SETTINGS, AGENT) == once
    assert patch(once, inject(once, SETTINGS, AGENT)) == []
    assert {one["path"] for one in patch(item, once)} == {"/spec", "/metadata/labels", "/metadata/annotations"}


def test_injected_pod_is_complete_and_without_violations() -> None:
    done = inject(pod(), SETTINGS, AGENT)
    assert missing(done, SETTINGS, AGENT) == ()
    assert violations(done) == ()


def test_only_a_true_injection_is_taken_for_one() -> None:
    done = inject(pod(), SETTINGS, AGENT)
    assert claims(without_ours(done, SETTINGS, AGENT)) == ()
    _other_image(done)
    assert claims(without_ours(done, SETTINGS, AGENT)) != ()


def test_requests_that_a_limit_range_adds_are_no_difference() -> None:
    done = inject(pod(), SETTINGS, AGENT)
    named(done, "chaperone-opa")["resources"]["limits"]["cpu"] = "1"
    assert missing(done, SETTINGS, AGENT) == ()


def _other_image(item: Object) -> None:
    named(item, "chaperone-gateway")["image"] = "evil:1"


def _other_environment(item: Object) -> None:
    named(item, "chaperone-gateway")["env"][0]["value"] = "https://evil"


def _more_capabilities(item: Object) -> None:
    named(item, "chaperone-opa")["securityContext"]["capabilities"] = {"add": ["SYS_ADMIN"]}


def _another_first(item: Object) -> None:
    item["spec"]["initContainers"].insert(0, {"name": "early", "image": "evil:1"})


def _gone(item: Object) -> None:
    del item["spec"]["initContainers"][0]


def _raw_sockets(item: Object) -> None:
    named(item, "agent")["securityContext"] = {}


def _other_volume(item: Object) -> None:
    item["spec"]["volumes"][-1]["emptyDir"] = {}


def _other_label(item: Object) -> None:
    item["metadata"]["labels"]["chaperone.dev/identity"] = "other"


def _another_of_ours(item: Object) -> None:
    item["spec"]["containers"].append({"name": "chaperone-helper", "image": "evil:1"})


@pytest.mark.parametrize(
    "change",
    [
        _other_image,
        _other_environment,
        _more_capabilities,
        _another_first,
        _gone,
        _raw_sockets,
        _other_volume,
        _other_label,
        _another_of_ours,
    ],
)
@pytest.mark.parametrize("settings", [SETTINGS, SEALED], ids=["plain", "sealed"])
def test_altered_injection_is_noticed(change: Any, settings: Settings) -> None:
    done = copy.deepcopy(inject(pod(), settings, AGENT))
    change(done)
    assert missing(done, settings, AGENT)


def test_a_replica_with_other_settings_knows_the_work_of_its_sister() -> None:
    older = msgspec.structs.replace(SEALED, version="0.0.9", gateway_image="example.com/gateway:0", spool_bytes=1 << 20)
    done = inject(pod(), older, Agent("billing", (8080,)))
    assert missing(done, SEALED, AGENT) == ()
    assert claims(without_ours(done, SEALED, AGENT)) == ()
    assert missing(done, SETTINGS, AGENT)
    stranger = msgspec.structs.replace(older, seal=Seal(b"another installation's key"))
    assert missing(inject(pod(), stranger, AGENT), SEALED, AGENT)


def test_a_seal_outlives_one_change_of_the_key() -> None:
    before = msgspec.structs.replace(SEALED, version="0.0.9", seal=Seal(b"old", b"new"))
    after = msgspec.structs.replace(SEALED, seal=Seal(b"new"))
    assert missing(inject(pod(), msgspec.structs.replace(after, version="1"), AGENT), before, AGENT) == ()


def test_a_copied_seal_is_replaced_with_what_it_sealed() -> None:
    done = inject(pod(), msgspec.structs.replace(SEALED, gateway_image="example.com/gateway:0"), AGENT)
    again = inject(done, SEALED, AGENT)
    assert again == inject(pod(), SEALED, AGENT)
    assert "reserved-label" in {one.rule for one in claims(done)}


CREATOR = "chaperone.dev/created-by"


def test_creator_is_written_down_whatever_the_pod_says_and_held_to_it() -> None:
    item = pod()
    item["metadata"]["annotations"] = {CREATOR: "somebody-else", "own": "kept"}
    done = inject(item, SEALED, AGENT, "alice")
    assert done["metadata"]["annotations"][CREATOR] == "alice"
    assert done["metadata"]["annotations"]["own"] == "kept"
    assert missing(done, SEALED, AGENT, "alice") == ()
    assert CREATOR not in inject(item, SEALED, AGENT)["metadata"]["annotations"]
    for forged in ("mallory", None):
        changed = copy.deepcopy(done)
        changed["metadata"]["annotations"] |= {CREATOR: forged}
        if forged is None:
            del changed["metadata"]["annotations"][CREATOR]
        assert any(CREATOR in one.message for one in missing(changed, SEALED, AGENT, "alice"))


def test_pod_that_a_replica_before_the_creator_was_known_has_sealed_passes() -> None:
    assert missing(inject(pod(), SEALED, AGENT), SEALED, AGENT, "alice") == ()


def test_creator_of_a_copied_pod_is_who_copies_it() -> None:
    done = inject(pod(), SEALED, AGENT, "alice")
    assert any(CREATOR in one.message for one in missing(done, SEALED, AGENT, "bob"))
    assert inject(done, SEALED, AGENT, "bob") == inject(pod(), SEALED, AGENT, "bob")
