"""Can this pod be fenced? Every way around the gateway that a pod can ask for is a violation with a name.

Pure: a pod as the API has it goes in, violations come out, all of them at once. The rules hold for init, ordinary and
ephemeral containers alike, and no annotation loosens one. What the API server cannot see (the USER of an image, what a
volume claim leads to) is not judged here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from posixpath import normpath
from typing import Any, Final

import msgspec

from chaperone_operator.admission.names import (
    ACCOUNT_PATH,
    ACCOUNT_VOLUME,
    BROKER_AUDIENCE,
    CONTAINERS,
    CREATOR_ANNOTATION,
    IDENTITY_LABEL,
    INJECTED_ANNOTATION,
    KNOWN_HOSTS,
    KNOWN_HOSTS_PATH,
    PREFIX,
    RESERVED_GIDS,
    RESERVED_UIDS,
    SEAL_ANNOTATION,
    TRUST_PATH,
    TRUST_VOLUME,
)

type Object = Mapping[str, Any]

CONTAINER_LISTS: Final = ("initContainers", "containers", "ephemeralContainers")
CAPABILITIES: Final = frozenset(
    {
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "IPC_LOCK",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
        "SYS_NICE",
    }
)
"""What a container may add: the runtimes' default set less NET_RAW, and two for memory and priority."""
_NETWORK_ANNOTATIONS: Final = (
    "k8s.v1.cni.cncf.io/networks",
    "k8s.v1.cni.cncf.io/resourceName",
    "v1.multus-cni.io/",
    "k8s.ovn.org/",
    "danm.io/",
    "kuryr.openstack.org/",
)
_MIRROR: Final = "kubernetes.io/config.mirror"
_AGENT_MOUNTS: Final = {TRUST_VOLUME: TRUST_PATH, ACCOUNT_VOLUME: ACCOUNT_PATH}


class Violation(msgspec.Struct, frozen=True, order=True):
    """One reason why a pod is refused.

    Attributes:
        rule: stable name, for people to search and for tests.
        message: what is wrong and what to do, one sentence or two.
    """

    rule: str
    message: str


def violations(pod: Object, runtime_classes: frozenset[str] = frozenset()) -> tuple[Violation, ...]:
    """All reasons why a pod that an AgentIdentity selects cannot be protected.

    Args:
        pod: before or after injection; our own three containers are judged by `inject.missing`, not here.
        runtime_classes: RuntimeClasses that are known to run netfilter; a pod without one is always well.
    """
    spec = pod.get("spec") or {}
    found = [*_of_pod(pod, spec, runtime_classes), *_of_volumes(spec)]
    for where, container in containers_of(spec):
        if container.get("name") not in CONTAINERS:
            found += _of_container(where, container)
    return tuple(dict.fromkeys(found))


def claims(pod: Object) -> tuple[Violation, ...]:
    """What a pod may not bear unless this operator has injected it: names, labels and tokens that stand for it."""
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    found = []
    for where, key in (
        ("labels", IDENTITY_LABEL), ("annotations", INJECTED_ANNOTATION), ("annotations", SEAL_ANNOTATION),
        ("annotations", CREATOR_ANNOTATION),
    ):  # fmt: skip
        if key in (metadata.get(where) or {}):
            found.append(Violation("reserved-label", f"metadata.{where} {key} is set by Chaperone alone; remove it."))
    return (*found, *_reserved_names(spec), *_broker_tokens(spec))


def update_violations(old: Object, new: Object) -> tuple[Violation, ...]:
    """What an update may not do: remove or alter anything injected, or pretend an injection."""
    found = []
    before, after = old.get("metadata") or {}, new.get("metadata") or {}
    for where, key in (
        ("labels", IDENTITY_LABEL), ("annotations", INJECTED_ANNOTATION), ("annotations", CREATOR_ANNOTATION)
    ):  # fmt: skip
        if (before.get(where) or {}).get(key) != (after.get(where) or {}).get(key):
            found.append(Violation("injected-changed", f"metadata.{where} {key} never changes; make the pod anew."))
    old_spec, new_spec = old.get("spec") or {}, new.get("spec") or {}
    for name in CONTAINERS:
        if _named(old_spec, name) != _named(new_spec, name):
            found.append(
                Violation("injected-changed", f"The container {name} never changes after creation; make the pod anew.")
            )
    if our_volumes(old_spec) != our_volumes(new_spec):
        found.append(Violation("injected-changed", f"Volumes {PREFIX}* never change; make the pod anew."))
    return tuple(found)


def containers_of(spec: Object) -> Iterator[tuple[str, Object]]:
    """Every container of a pod with its place, such as `spec.initContainers[0] (setup)`."""
    for kind in CONTAINER_LISTS:
        for index, container in enumerate(spec.get(kind) or ()):
            yield f"spec.{kind}[{index}] ({container.get('name', '')})", container


def capability(name: str) -> str:
    """A capability in one spelling: the API takes any case and an optional prefix."""
    return name.strip().upper().removeprefix("CAP_")


def drops_raw_sockets(container: Object) -> bool:
    """Whether a container gives up NET_RAW, without which no packet can be marked."""
    drop = ((container.get("securityContext") or {}).get("capabilities") or {}).get("drop") or ()
    return bool({"ALL", "NET_RAW"} & {capability(name) for name in drop})


def _of_pod(pod: Object, spec: Object, runtime_classes: frozenset[str]) -> Iterator[Violation]:
    for field, rule in (("hostNetwork", "host-network"), ("hostPID", "host-pid"), ("hostIPC", "host-ipc")):
        if spec.get(field):
            yield Violation(rule, f"spec.{field} lets the agent leave the pod; remove it.")
    if spec.get("shareProcessNamespace"):
        yield Violation(
            "share-process-namespace", "spec.shareProcessNamespace lets the agent reach into the gateway; remove it."
        )
    if (spec.get("os") or {}).get("name", "linux") != "linux":
        yield Violation("operating-system", "spec.os.name: the fence knows Linux only; run this agent on Linux.")
    runtime_class = spec.get("runtimeClassName")
    if runtime_class and runtime_class not in runtime_classes:
        known = ", ".join(sorted(runtime_classes)) or "none"
        yield Violation(
            "runtime-class",
            f"spec.runtimeClassName {runtime_class} is not known to run the fence (allowed: {known}); "
            "remove it, or let the administrator add it to the operator's runtime classes.",
        )
    for key in sorted((pod.get("metadata") or {}).get("annotations") or {}):
        if key.startswith(_NETWORK_ANNOTATIONS):
            yield Violation(
                "extra-network", f"metadata.annotations {key} gives the pod a network that is not fenced; remove it."
            )
        elif key == _MIRROR:
            yield Violation("mirror-pod", "A static pod cannot be injected; run this agent as an ordinary pod.")
    if spec.get("resourceClaims"):
        yield Violation(
            "resource-claim", "spec.resourceClaims may attach devices and networks that are not fenced; remove them."
        )
    context = spec.get("securityContext") or {}
    for setting in context.get("sysctls") or ():
        name = str(setting.get("name", "")).replace("/", ".")
        if name.startswith("net."):
            yield Violation(
                "net-sysctl", f"spec.securityContext.sysctls {name} changes the network under the fence; remove it."
            )
    yield from _of_context("spec.securityContext", context)


def _of_volumes(spec: Object) -> Iterator[Violation]:
    for index, volume in enumerate(spec.get("volumes") or ()):
        name = volume.get("name", "")
        if "hostPath" in volume and volume["hostPath"] is not None:
            yield Violation(
                "host-path", f"spec.volumes[{index}] ({name}) opens the node to the agent; use another kind of volume."
            )


def _of_container(where: str, container: Object) -> Iterator[Violation]:
    context = container.get("securityContext") or {}
    if context.get("privileged"):
        yield Violation("privileged", f"{where}: a privileged container can take the fence down; remove privileged.")
    for name in (context.get("capabilities") or {}).get("add") or ():
        if capability(name) not in CAPABILITIES:
            yield Violation(
                "capability", f"{where}: the capability {name} may not be added to an agent's container; remove it."
            )
    if context.get("procMount") not in {None, "Default"}:
        yield Violation("proc-mount", f"{where}: securityContext.procMount must be Default; remove it.")
    yield from _of_context(f"{where}.securityContext", context)
    for key in ("volumeMounts", "volumeDevices"):
        for mount in container.get(key) or ():
            yield from _of_mount(where, mount)


def _of_mount(where: str, mount: Object) -> Iterator[Violation]:
    name, path = mount.get("name", ""), normpath(str(mount.get("mountPath", "")))
    part = (name, path, mount.get("subPath") or "")
    is_known = part in ((name, _AGENT_MOUNTS.get(name), ""), (TRUST_VOLUME, KNOWN_HOSTS_PATH, KNOWN_HOSTS))
    is_agents = is_known and mount.get("readOnly") is True
    if name.startswith(PREFIX) and not is_agents:
        yield Violation("our-volume", f"{where}: the volume {name} belongs to the gateway; remove the mount.")
    elif not name.startswith(PREFIX) and (path == TRUST_PATH or path.startswith(f"{TRUST_PATH}/")):
        yield Violation("our-path", f"{where}: {TRUST_PATH} is where Chaperone puts its trust; mount elsewhere.")


def _of_context(where: str, context: Object) -> Iterator[Violation]:
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield Violation("host-process", f"{where}.windowsOptions.hostProcess lets the agent leave the pod; remove it.")
    if (context.get("seccompProfile") or {}).get("type") == "Unconfined":
        yield Violation(
            "seccomp", f"{where}.seccompProfile Unconfined opens sockets that no fence sees; use RuntimeDefault."
        )
    if context.get("runAsUser") in RESERVED_UIDS:
        yield Violation("reserved-id", f"{where}.runAsUser {context['runAsUser']} is Chaperone's own; use another.")
    named = [(field, context.get(field)) for field in ("runAsGroup", "fsGroup")]
    named += [("supplementalGroups", group) for group in context.get("supplementalGroups") or ()]
    for field, group in named:
        if group in RESERVED_GIDS:
            yield Violation("reserved-id", f"{where}.{field} {group} is Chaperone's own; use another.")


def _reserved_names(spec: Object) -> Iterator[Violation]:
    for where, container in containers_of(spec):
        if str(container.get("name", "")).startswith(PREFIX):
            yield Violation("reserved-name", f"{where}: names that begin with {PREFIX} are Chaperone's; use another.")
    for index, volume in enumerate(spec.get("volumes") or ()):
        if str(volume.get("name", "")).startswith(PREFIX):
            yield Violation(
                "reserved-name",
                f"spec.volumes[{index}] ({volume['name']}): names with {PREFIX} are Chaperone's; use another.",
            )


def _broker_tokens(spec: Object) -> Iterator[Violation]:
    for index, volume in enumerate(spec.get("volumes") or ()):
        for source in (volume.get("projected") or {}).get("sources") or ():
            if (source.get("serviceAccountToken") or {}).get("audience") == BROKER_AUDIENCE:
                yield Violation(
                    "broker-token",
                    f"spec.volumes[{index}] ({volume.get('name', '')}): tokens for the audience {BROKER_AUDIENCE} "
                    "are the gateway's; remove the source.",
                )


def _named(spec: Object, name: str) -> list[tuple[str, Object]]:
    return [(kind, one) for kind in CONTAINER_LISTS for one in spec.get(kind) or () if one.get("name") == name]


def our_volumes(spec: Object) -> dict[str, Object]:
    """The volumes that bear our names, by name."""
    return {one["name"]: one for one in spec.get("volumes") or () if str(one.get("name", "")).startswith(PREFIX)}
