"""What goes into an agent's pod: fence, gateway and OPA before everything else, and a poorer life for all the others.

Pure and idempotent: whatever bears our names is taken out first, so an injected pod comes out as it went in. All fields
that the API server would default are written out; so what stands in the API can be compared with what was injected,
field by field, and a pod that only looks injected is noticed (`missing`).
"""

from __future__ import annotations

from posixpath import normpath
from typing import Any, Final

import msgspec

from chaperone_operator.admission.names import (
    ACCOUNT_PATH,
    ACCOUNT_VOLUME,
    BROKER_AUDIENCE,
    BUNDLE_VOLUME,
    CONTAINERS,
    CREATOR_ANNOTATION,
    FENCE,
    GATEWAY,
    GATEWAY_GID,
    IDENTITY_LABEL,
    INJECTED_ANNOTATION,
    KNOWN_HOSTS,
    KNOWN_HOSTS_PATH,
    OPA,
    OPA_ID,
    OPA_VOLUME,
    PREFIX,
    RUN_VOLUME,
    SEAL_ANNOTATION,
    SPOOL_VOLUME,
    TOKEN_VOLUME,
    TRUST_PATH,
    TRUST_VOLUME,
)
from chaperone_operator.admission.protect import Object, Violation, containers_of, drops_raw_sockets, our_volumes
from chaperone_operator.admission.seal import Seal

type Json = dict[str, Any]

OPA_SOCKETS: Final = "/run/chaperone-opa"
TOKEN_LIFE_S: Final = 600  # the shortest that Kubernetes issues
START_TRIES: Final = 120  # one a second; after two minutes without a proven fence the kubelet starts the gateway anew
MEMORY_VOLUME: Final = "16Mi"  # trust, ready file and bundle: kilobytes each, counted against the pod
SPOOL_SLACK: Final = 64 << 20  # bytes beyond the spool's own bound before the kubelet evicts: bodies, directory entries
TRUST_VARIABLES: Final = {
    "AWS_CA_BUNDLE": f"{TRUST_PATH}/ca-bundle.crt",
    "CURL_CA_BUNDLE": f"{TRUST_PATH}/ca-bundle.crt",
    "DENO_CERT": f"{TRUST_PATH}/ca.crt",
    "GIT_SSL_CAINFO": f"{TRUST_PATH}/ca-bundle.crt",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": f"{TRUST_PATH}/ca-bundle.crt",
    "NODE_EXTRA_CA_CERTS": f"{TRUST_PATH}/ca.crt",
    "PGSSLROOTCERT": f"{TRUST_PATH}/ca.crt",
    "PIP_CERT": f"{TRUST_PATH}/ca-bundle.crt",
    "REQUESTS_CA_BUNDLE": f"{TRUST_PATH}/ca-bundle.crt",
    "SSL_CERT_FILE": f"{TRUST_PATH}/ca-bundle.crt",
}
"""Where clients look for CAs: ours alone for variables that add to the system's CAs, else the bundle."""
JAVA_VARIABLE: Final = "JAVA_TOOL_OPTIONS"
JAVA_OPTIONS: Final = f"-Djavax.net.ssl.trustStore={TRUST_PATH}/truststore.p12 -Djavax.net.ssl.trustStoreType=PKCS12"
"""Java has no variable for CAs alone; these options stand behind a container's own."""


class Settings(msgspec.Struct, frozen=True):
    """What the operator injects everywhere.

    Attributes:
        service_ca: PEM of the CA of broker and collector; `cluster` is the uid of kube-system.
        policy_key: the public key (note verifier key) by which gateways know the operator's policy.
        runtime_classes: RuntimeClasses that agents may name.
        seal: marks what this installation injected; None where one process does everything.
    """

    version: str
    gateway_image: str
    opa_image: str
    cluster: str
    service_ca: str
    policy_key: str
    system_namespace: str = "chaperone-system"
    pull_policy: str = "IfNotPresent"
    spool_bytes: int = 256 << 20
    runtime_classes: frozenset[str] = frozenset()
    seal: Seal | None = None


class Agent(msgspec.Struct, frozen=True):
    """What an injected pod is told of its AgentIdentity."""

    identity: str
    ingress_ports: tuple[int, ...] = ()


def inject(pod: Object, settings: Settings, agent: Agent, creator: str = "") -> Json:
    """The pod with everything that makes it an agent's; the argument is left as it is. `creator` asks for it."""
    metadata, spec = dict(pod.get("metadata") or {}), dict(pod.get("spec") or {})
    metadata["labels"] = {**(metadata.get("labels") or {}), IDENTITY_LABEL: agent.identity}
    kept = {key: value for key, value in (metadata.get("annotations") or {}).items() if key != CREATOR_ANNOTATION}
    by = {CREATOR_ANNOTATION: creator} if creator else {}
    metadata["annotations"] = {**kept, INJECTED_ANNOTATION: settings.version, **by}
    spec["automountServiceAccountToken"] = False  # or the API server mounts the real token into our containers
    spec["securityContext"] = _with_seccomp(spec.get("securityContext") or {})
    spec["initContainers"] = [*_ours(settings, agent), *_others(spec, "initContainers")]
    spec["containers"] = _others(spec, "containers")
    if spec.get("ephemeralContainers"):
        spec["ephemeralContainers"] = [_without_raw_sockets(one) for one in spec["ephemeralContainers"]]
    spec["volumes"] = [*_kept_volumes(pod, spec), *_volumes(settings)]
    injected = {**pod, "metadata": metadata, "spec": spec}
    if settings.seal is not None:
        metadata["annotations"][SEAL_ANNOTATION] = settings.seal.make(_parts(injected))
    return injected


def patch(pod: Object, injected: Object) -> list[Json]:
    """The JSON patch that turns one into the other; empty when they are equal."""
    found: list[Json] = []
    before, after = pod.get("metadata") or {}, injected["metadata"]
    for key in ("labels", "annotations"):
        if before.get(key) != after[key]:
            found.append({"op": "add", "path": f"/metadata/{key}", "value": after[key]})
    if pod.get("spec") != injected["spec"]:
        found.append({"op": "replace", "path": "/spec", "value": injected["spec"]})
    return found


def missing(pod: Object, settings: Settings, agent: Agent, creator: str = "") -> tuple[Violation, ...]:
    """How a pod differs from one injected for `creator`: anything of ours absent, altered, out of order or doubled."""
    found: list[Violation] = []
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    wanted = {IDENTITY_LABEL: agent.identity}
    is_sealed = _is_sealed(pod, settings)
    if not is_sealed:
        wanted[INJECTED_ANNOTATION] = settings.version
    told = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    for key, value in wanted.items():
        if told.get(key) != value:
            found.append(_absent(f"{key} is not {value}"))
    by = told.get(CREATOR_ANNOTATION)
    if (by or "") != creator and not (is_sealed and by is None):  # replicas before this one wrote none
        found.append(_absent(f"{CREATOR_ANNOTATION} is not {creator}"))
    if not (spec.get("securityContext") or {}).get("seccompProfile"):
        found.append(_absent("spec.securityContext has no seccompProfile"))
    initial = list(spec.get("initContainers") or ())
    for index, ours in enumerate(() if is_sealed else _ours(settings, agent)):
        if index >= len(initial) or not _is_same(initial[index], ours):
            found.append(_absent(f"spec.initContainers[{index}] is not the container {ours['name']}"))
    for where, container in containers_of(spec):
        name = str(container.get("name", ""))
        if name.startswith(PREFIX) and not (name in CONTAINERS and container in initial[: len(CONTAINERS)]):
            found.append(
                Violation("reserved-name", f"{where}: names that begin with {PREFIX} are Chaperone's; use another.")
            )
        elif name not in CONTAINERS and not drops_raw_sockets(container):
            found.append(_absent(f"{where} keeps the capability NET_RAW"))
    if not is_sealed and our_volumes(spec) != {one["name"]: one for one in _volumes(settings)}:
        found.append(_absent(f"the volumes {PREFIX}* are not those that are injected"))
    return tuple(found)


def without_ours(pod: Object, settings: Settings, agent: Agent) -> Object:
    """An injected pod less everything of ours; any other pod, also one that merely resembles it, as it is."""
    metadata, spec = dict(pod.get("metadata") or {}), dict(pod.get("spec") or {})
    initial = spec.get("initContainers") or ()
    found = {one.get("name"): one for one in initial}
    is_sealed = _is_sealed(pod, settings)
    if not is_sealed and not all(_is_same(found.get(ours["name"], {}), ours) for ours in _ours(settings, agent)):
        return pod
    own_keys = {IDENTITY_LABEL, INJECTED_ANNOTATION, SEAL_ANNOTATION, CREATOR_ANNOTATION}
    for where in ("labels", "annotations"):
        metadata[where] = {name: value for name, value in (metadata.get(where) or {}).items() if name not in own_keys}
    spec["initContainers"] = [one for one in initial if one.get("name") not in CONTAINERS]
    own = list(our_volumes(spec).values()) if is_sealed else _volumes(settings)
    spec["volumes"] = [one for one in spec.get("volumes") or () if one not in own]
    return {**pod, "metadata": metadata, "spec": spec}


def _is_sealed(pod: Object, settings: Settings) -> bool:
    """Whether a replica of this installation, perhaps with other settings, injected exactly what stands here."""
    seal = ((pod.get("metadata") or {}).get("annotations") or {}).get(SEAL_ANNOTATION, "")
    return settings.seal is not None and settings.seal.holds(_parts(pod), str(seal))


def _parts(pod: Object) -> Json:
    """What is sealed: whose pod it is and everything of ours, less resources, to which a LimitRange adds."""
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    first = list(spec.get("initContainers") or ())[: len(CONTAINERS)]
    creator = (metadata.get("annotations") or {}).get(CREATOR_ANNOTATION)
    return {
        "identity": (metadata.get("labels") or {}).get(IDENTITY_LABEL),
        "version": (metadata.get("annotations") or {}).get(INJECTED_ANNOTATION),
        "containers": [{**one, "resources": None} for one in first],
        "names": [one.get("name") for one in first] == list(CONTAINERS),
        "volumes": our_volumes(spec),
    } | ({"creator": creator} if creator is not None else {})


def _absent(what: str) -> Violation:
    return Violation(
        "not-injected",
        f"{what}; another admission webhook changed the pod after Chaperone. Exempt agents' pods from it.",
    )


def _is_same(found: Object, wanted: Json) -> bool:
    """Equal but for resources, to which a LimitRange may add."""
    return {**found, "resources": None} == {**wanted, "resources": None}


def _others(spec: Json, kind: str) -> list[Json]:
    return [_agents(one) for one in spec.get(kind) or () if one.get("name") not in CONTAINERS]


def _agents(container: Object) -> Json:
    mounts = [
        mount
        for mount in container.get("volumeMounts") or ()
        if not mount.get("name", "").startswith(PREFIX) and normpath(mount.get("mountPath", "")) != ACCOUNT_PATH
    ]
    mounts += [_mount(TRUST_VOLUME, TRUST_PATH, read_only=True), _mount(ACCOUNT_VOLUME, ACCOUNT_PATH, read_only=True)]
    if not any(_holds(mount.get("mountPath", ""), KNOWN_HOSTS_PATH) for mount in mounts):
        mounts.append({**_mount(TRUST_VOLUME, KNOWN_HOSTS_PATH, read_only=True), "subPath": KNOWN_HOSTS})
    environment = [one for one in container.get("env") or () if one.get("name") not in TRUST_VARIABLES]
    environment += [{"name": name, "value": value} for name, value in TRUST_VARIABLES.items()]
    return _without_raw_sockets({**container, "volumeMounts": mounts, "env": _with_java(environment)})


def _with_java(environment: list[Json]) -> list[Json]:
    """The variables with Java's options behind the container's own; a value from elsewhere is left as it is."""
    own = [one for one in environment if one.get("name") == JAVA_VARIABLE]
    if any("valueFrom" in one for one in own):
        return environment
    words = [one.get("value", "").removesuffix(JAVA_OPTIONS).rstrip() for one in own[-1:]]
    value = " ".join([*filter(None, words), JAVA_OPTIONS])
    return [*(one for one in environment if one not in own), {"name": JAVA_VARIABLE, "value": value}]


def _holds(mounted: str, path: str) -> bool:
    """Whether a volume of the container's own is mounted there or above: then it may not be possible to mount in it."""
    return f"{path}/".startswith(f"{normpath(mounted).rstrip('/')}/")


def _with_seccomp(context: Object) -> Json:
    """The runtime's own filter, unless the pod names another: it closes sockets that netfilter does not see."""
    return {"seccompProfile": {"type": "RuntimeDefault"}, **context}


def _without_raw_sockets(container: Object) -> Json:
    if drops_raw_sockets(container):
        return dict(container)
    context = dict(container.get("securityContext") or {})
    capabilities = dict(context.get("capabilities") or {})
    capabilities["drop"] = [*(capabilities.get("drop") or ()), "NET_RAW"]
    return {**container, "securityContext": {**context, "capabilities": capabilities}}


def _kept_volumes(pod: Object, spec: Json) -> list[Json]:
    """Volumes of the pod, less ours and less those whose only use was the service account that was replaced."""
    replaced = {
        mount.get("name")
        for _, container in containers_of(pod.get("spec") or {})
        for mount in container.get("volumeMounts") or ()
        if normpath(mount.get("mountPath", "")) == ACCOUNT_PATH
    }
    used = {mount.get("name") for _, one in containers_of(spec) for mount in one.get("volumeMounts") or ()}
    kept = [one for one in spec.get("volumes") or () if not one.get("name", "").startswith(PREFIX)]
    return [one for one in kept if one["name"] not in replaced or one["name"] in used]


def _ours(settings: Settings, agent: Agent) -> tuple[Json, Json, Json]:
    return _fence(settings, agent), _gateway(settings, agent), _opa(settings)


def _fence(settings: Settings, agent: Agent) -> Json:
    return {
        "name": FENCE,
        "image": settings.gateway_image,
        "command": ["chaperone-gateway", "fence"],
        "env": [_ingress(agent)],
        "resources": _resources("10m", "64Mi", "128Mi"),
        "securityContext": _context(0, 0, "NET_ADMIN"),
        **_defaults(settings),
    }


def _gateway(settings: Settings, agent: Agent) -> Json:
    host = f"{settings.system_namespace}.svc:8443"
    fields = {
        "POD_NAME": "metadata.name",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_UID": "metadata.uid",
        "NODE_NAME": "spec.nodeName",
        "SERVICE_ACCOUNT": "spec.serviceAccountName",
    }
    values = {
        "CHAPERONE_BROKER": f"https://chaperone-broker.{host}",
        "CHAPERONE_COLLECTOR": f"https://chaperone-collector.{host}",
        "CHAPERONE_CA": settings.service_ca,
        "CHAPERONE_CLUSTER": settings.cluster,
        "CHAPERONE_IDENTITY": agent.identity,
        "CHAPERONE_POLICY_KEY": settings.policy_key,
        "CHAPERONE_SPOOL_BYTES": str(settings.spool_bytes),
    }
    environment: list[Json] = [{"name": name, "value": value} for name, value in values.items()]
    environment.append(_ingress(agent))
    environment += [
        {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}
        for name, path in fields.items()
    ]
    return {
        "name": GATEWAY,
        "image": settings.gateway_image,
        "command": ["chaperone-gateway", "run"],
        "restartPolicy": "Always",
        "env": environment,
        "startupProbe": {
            "exec": {"command": ["chaperone-gateway", "ready"]},
            "failureThreshold": START_TRIES,
            "periodSeconds": 1,
            "successThreshold": 1,
            "timeoutSeconds": 5,
        },
        # Asked for is what it takes with every protocol in use (docs/decisions/029); the rest is for what it remembers
        # of statements, and for long answers that have to be whole to be masked.
        "resources": _resources("20m", "96Mi", "512Mi"),
        "securityContext": _context(0, GATEWAY_GID, "NET_RAW"),
        "volumeMounts": [
            _mount(TOKEN_VOLUME, "/var/run/chaperone/token", read_only=True),
            _mount(SPOOL_VOLUME, "/var/lib/chaperone"),
            _mount(RUN_VOLUME, "/run/chaperone"),
            _mount(BUNDLE_VOLUME, "/run/chaperone-bundle"),
            _mount(OPA_VOLUME, OPA_SOCKETS, read_only=True),
            _mount(TRUST_VOLUME, TRUST_PATH),
            _mount(ACCOUNT_VOLUME, "/run/chaperone-serviceaccount"),
        ],
        **_defaults(settings),
    }


def _opa(settings: Settings) -> Json:
    return {
        "name": OPA,
        "image": settings.opa_image,
        "args": [
            "run",
            "--server",
            f"--addr=unix://{OPA_SOCKETS}/opa.sock",
            "--unix-socket-perm=666",  # gateway and OPA have different ids, and nobody else mounts the volume
            "--skip-version-check",
            "--log-level=error",
            "--watch",
            "--bundle",
            "/run/chaperone-bundle/bundle.tar.gz",
        ],
        "restartPolicy": "Always",
        "resources": _resources("10m", "48Mi", "256Mi"),
        "securityContext": _context(OPA_ID, OPA_ID),
        "volumeMounts": [
            _mount(BUNDLE_VOLUME, "/run/chaperone-bundle", read_only=True),
            _mount(OPA_VOLUME, OPA_SOCKETS),
        ],
        **_defaults(settings),
    }


def _volumes(settings: Settings) -> list[Json]:
    memory: Json = {"medium": "Memory", "sizeLimit": MEMORY_VOLUME}
    token = {"audience": BROKER_AUDIENCE, "expirationSeconds": TOKEN_LIFE_S, "path": "token"}
    size = f"{(settings.spool_bytes + SPOOL_SLACK) >> 20}Mi"
    return [
        {"name": TOKEN_VOLUME, "projected": {"defaultMode": 0o400, "sources": [{"serviceAccountToken": token}]}},
        {"name": SPOOL_VOLUME, "emptyDir": {"sizeLimit": size}},
        {"name": RUN_VOLUME, "emptyDir": memory},
        {"name": BUNDLE_VOLUME, "emptyDir": memory},
        {"name": OPA_VOLUME, "emptyDir": memory},
        {"name": TRUST_VOLUME, "emptyDir": memory},
        {"name": ACCOUNT_VOLUME, "emptyDir": memory},
    ]


def _defaults(settings: Settings) -> Json:
    return {
        "imagePullPolicy": settings.pull_policy,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _context(user: int, group: int, *add: str) -> Json:
    capabilities: Json = {"drop": ["ALL"]} | ({"add": list(add)} if add else {})
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": capabilities,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsGroup": group,
        "runAsNonRoot": user != 0,
        "runAsUser": user,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _mount(name: str, path: str, *, read_only: bool = False) -> Json:
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def _resources(cpu: str, memory: str, most: str) -> Json:
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": most}}


def _ingress(agent: Agent) -> Json:
    name = "CHAPERONE_INGRESS_PORTS"
    # The API server leaves out an empty value, and the comparison with what it stores is exact.
    ports = ",".join(str(port) for port in agent.ingress_ports)
    return {"name": name, "value": ports} if ports else {"name": name}
