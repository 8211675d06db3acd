"""One promise for each way out of the fence that a pod can ask for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from chaperone_operator.admission.protect import claims, update_violations, violations

type Object = dict[str, Any]


def pod(**spec: Any) -> Object:
    usual: Object = {"containers": [{"name": "agent", "image": "example.com/agent:1"}]}
    return {"metadata": {"name": "agent", "labels": {"app": "agent"}}, "spec": usual | spec}


def rules(item: Object, *runtime_classes: str) -> set[str]:
    found = violations(item, frozenset(runtime_classes))
    assert all(one.message.endswith(".") and len(one.message) > 20 for one in found)
    return {one.rule for one in found}


def everywhere(**fields: Any) -> list[Object]:
    """The pod with a container of these fields as an ordinary, an init and an ephemeral one."""
    other = {"name": "other", "image": "example.com/other:1", **fields}
    agent = pod()["spec"]["containers"]
    return [
        pod(containers=[*agent, other]),
        pod(initContainers=[other]),
        pod(ephemeralContainers=[other]),
    ]


def test_ordinary_pod_is_well() -> None:
    context = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000, "supplementalGroups": [2000], "sysctls": []}
    ordinary = {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE", "cap_chown"]}, "procMount": "Default"}
    container: Object = {"name": "agent", "image": "example.com/agent:1", "securityContext": ordinary}
    container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    item = pod(containers=[container], securityContext=context, volumes=[{"name": "data", "emptyDir": {}}])
    item["metadata"]["annotations"] = {"example.com/note": "x"}
    assert violations(item) == ()
    assert claims(item) == ()


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("hostNetwork", "host-network"),
        ("hostPID", "host-pid"),
        ("hostIPC", "host-ipc"),
        ("shareProcessNamespace", "share-process-namespace"),
    ],
)
def test_shared_namespaces_are_refused(field: str, rule: str) -> None:
    assert rules(pod(**{field: True})) == {rule}
    assert rules(pod(**{field: False})) == set()


def test_privileged_container_is_refused_of_every_kind() -> None:
    for item in everywhere(securityContext={"privileged": True}):
        assert rules(item) == {"privileged"}


@pytest.mark.parametrize(
    "name",
    [
        *("NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "BPF", "ALL"),
        *("all", "CAP_NET_ADMIN", "cap_net_raw", "Net_Admin", "CAP_ALL"),
        *("SYS_RAWIO", "DAC_READ_SEARCH", "PERFMON", "SOMETHING_NEW"),
    ],
)
def test_added_capability_is_refused_in_any_spelling(name: str) -> None:
    for item in everywhere(securityContext={"capabilities": {"add": [name]}}):
        assert rules(item) == {"capability"}


def test_host_path_is_refused() -> None:
    assert rules(pod(volumes=[{"name": "node", "hostPath": {"path": "/var/run"}}])) == {"host-path"}


@pytest.mark.parametrize(
    "context",
    [
        {"runAsUser": 64138},
        {"runAsGroup": 64137},
        {"runAsGroup": 64138},
        {"fsGroup": 64137},
        {"fsGroup": 64138},
        {"supplementalGroups": [1, 64137]},
        {"supplementalGroups": [64138]},
    ],
)
def test_our_ids_are_refused_for_the_pod(context: Object) -> None:
    assert rules(pod(securityContext=context)) == {"reserved-id"}


@pytest.mark.parametrize("context", [{"runAsUser": 64138}, {"runAsGroup": 64137}, {"runAsGroup": 64138}])
def test_our_ids_are_refused_for_every_container(context: Object) -> None:
    for item in everywhere(securityContext=context):
        assert rules(item) == {"reserved-id"}


@pytest.mark.parametrize(
    "key", ["k8s.v1.cni.cncf.io/networks", "v1.multus-cni.io/default-network", "k8s.ovn.org/pod-networks"]
)
def test_extra_networks_are_refused(key: str) -> None:
    item = pod()
    item["metadata"]["annotations"] = {key: "other"}
    assert rules(item) == {"extra-network"}


def test_runtime_class_outside_the_list_is_refused() -> None:
    assert rules(pod(runtimeClassName="gvisor"), "kata") == {"runtime-class"}
    assert rules(pod(runtimeClassName="kata"), "kata") == set()


@pytest.mark.parametrize("name", ["chaperone-fence", "chaperone-gateway", "chaperone-opa", "chaperone-other"])
def test_our_container_names_are_refused(name: str) -> None:
    for item in everywhere(name=name):
        assert {one.rule for one in claims(item)} == {"reserved-name"}


def test_our_volume_names_are_refused() -> None:
    item = pod(volumes=[{"name": "chaperone-token", "emptyDir": {}}])
    assert {one.rule for one in claims(item)} == {"reserved-name"}


def test_our_label_and_annotation_are_refused() -> None:
    item = pod()
    item["metadata"] |= {"labels": {"chaperone.dev/identity": "x"}, "annotations": {"chaperone.dev/injected": "1"}}
    assert [one.rule for one in claims(item)] == ["reserved-label", "reserved-label"]


def test_token_for_the_broker_is_refused() -> None:
    source = {"serviceAccountToken": {"audience": "chaperone-broker", "path": "token"}}
    item = pod(volumes=[{"name": "mine", "projected": {"sources": [source]}}])
    assert {one.rule for one in claims(item)} == {"broker-token"}


@pytest.mark.parametrize(
    "mount",
    [
        {"name": "chaperone-token", "mountPath": "/token", "readOnly": True},
        {"name": "chaperone-spool", "mountPath": "/spool"},
        {"name": "chaperone-bundle", "mountPath": "/run/chaperone-bundle"},
        {"name": "chaperone-trust", "mountPath": "/etc/chaperone-trust"},
        {"name": "chaperone-trust", "mountPath": "/elsewhere", "readOnly": True},
    ],
)
def test_our_volumes_are_not_mounted_by_others(mount: Object) -> None:
    for item in everywhere(volumeMounts=[mount]):
        assert rules(item) == {"our-volume"}


def test_our_volumes_are_no_devices_of_others() -> None:
    for item in everywhere(volumeDevices=[{"name": "chaperone-spool", "devicePath": "/dev/x"}]):
        assert rules(item) == {"our-volume"}


@pytest.mark.parametrize(
    "path",
    ["/etc/chaperone-trust", "/etc/chaperone-trust/", "/etc/x/../chaperone-trust", "/etc/chaperone-trust/ca.crt"],
)
def test_nothing_is_mounted_over_our_trust(path: str) -> None:
    for item in everywhere(volumeMounts=[{"name": "mine", "mountPath": path}]):
        assert rules(item) == {"our-path"}


def test_unmasked_proc_is_refused() -> None:
    for item in everywhere(securityContext={"procMount": "Unmasked"}):
        assert rules(item) == {"proc-mount"}
    for item in everywhere(securityContext={"seccompProfile": {"type": "Unconfined"}}):
        assert rules(item) == {"seccomp"}


@pytest.mark.parametrize("name", ["net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_local_port_range"])
def test_network_sysctls_are_refused(name: str) -> None:
    assert rules(pod(securityContext={"sysctls": [{"name": name, "value": "0"}]})) == {"net-sysctl"}
    assert rules(pod(securityContext={"sysctls": [{"name": "kernel.shm_rmid_forced", "value": "1"}]})) == set()


def test_host_processes_and_other_systems_are_refused() -> None:
    assert rules(pod(securityContext={"windowsOptions": {"hostProcess": True}})) == {"host-process"}
    assert rules(pod(os={"name": "windows"})) == {"operating-system"}


def test_claimed_devices_and_static_pods_are_refused() -> None:
    assert rules(pod(resourceClaims=[{"name": "nic", "resourceClaimName": "nic"}])) == {"resource-claim"}
    item = pod()
    item["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
    assert rules(item) == {"mirror-pod"}


def test_all_violations_are_told_at_once() -> None:
    item = pod(hostNetwork=True, hostPID=True, volumes=[{"name": "node", "hostPath": {"path": "/"}}])
    assert rules(item) == {"host-network", "host-pid", "host-path"}


def injected() -> Object:
    item = pod(
        initContainers=[{"name": name, "image": "gateway:1"} for name in ("chaperone-fence", "chaperone-gateway")],
        volumes=[{"name": "chaperone-spool", "emptyDir": {}}],
    )
    item["metadata"] |= {
        "labels": {"app": "agent", "chaperone.dev/identity": "billing"},
        "annotations": {"chaperone.dev/injected": "1"},
    }
    return item


def test_update_of_the_agents_own_parts_passes() -> None:
    new = injected()
    new["spec"]["containers"][0]["image"] = "example.com/agent:2"
    new["metadata"]["labels"]["app"] = "other"
    assert update_violations(injected(), new) == ()


def test_update_never_touches_what_was_injected() -> None:
    def without_label(item: Object) -> None:
        del item["metadata"]["labels"]["chaperone.dev/identity"]

    def other_identity(item: Object) -> None:
        item["metadata"]["labels"]["chaperone.dev/identity"] = "other"

    def other_version(item: Object) -> None:
        item["metadata"]["annotations"]["chaperone.dev/injected"] = "2"

    def other_image(item: Object) -> None:
        item["spec"]["initContainers"][1]["image"] = "evil:1"

    def without_gateway(item: Object) -> None:
        del item["spec"]["initContainers"][1]

    def other_volume(item: Object) -> None:
        item["spec"]["volumes"] = []

    for change in (without_label, other_identity, other_version, other_image, without_gateway, other_volume):
        new = copy.deepcopy(injected())
        change(new)
        assert {one.rule for one in update_violations(injected(), new)} == {"injected-changed"}, change.__name__


def test_label_of_an_identity_is_not_put_on_later() -> None:
    assert {one.rule for one in update_violations(pod(), injected())} == {"injected-changed"}
