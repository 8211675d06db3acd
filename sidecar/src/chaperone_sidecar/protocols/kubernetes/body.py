"""What a request's body would make: read strictly, and looked through for what gives rights to a pod.

Read strictly: a body that the API server might read otherwise than this module (a key twice, numbers that are none,
half a character) is not understood. Looked through generically: a pod's template may be anywhere, also inside custom
resources.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

from chaperone_sidecar.errors import ChaperoneError

MAX_BODY_BYTES: Final = 3 << 20  # the API server's own bound
MAX_VALUES: Final = 50_000  # of a body that is no JSON; a ConfigMap with a thousand keys has 3,000 in protobuf
MAX_DEPTH: Final = 64  # no object of Kubernetes is half as deep; the reader's stack is bounded by it
_UNPRINTABLE: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")  # in YAML no characters, or line breaks
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

_FLAGS: Final = frozenset(
    {"privileged", "hostNetwork", "hostPID", "hostIPC", "hostProcess", "shareProcessNamespace", "hostPath", "hostPort"}
)
_NAMED: Final = {
    "serviceAccountName": ("default",), "serviceAccount": ("default",), "procMount": ("Default",),
    "runtimeClassName": (), "nodeName": (), "ephemeralContainers": (),
}  # fmt: skip
_PROBES: Final = frozenset({"httpGet", "tcpSocket"})  # with a host, the node's kubelet speaks to it
_APPARMOR: Final = "container.apparmor.security.beta.kubernetes.io/"  # begins an annotation that stands for the field
_SELINUX_TYPES: Final = ("container_t", "container_init_t", "container_kvm_t", "container_engine_t")
_RISKY: Final = (
    _FLAGS
    | _NAMED.keys()
    | {"capabilities", "seccompProfile", "appArmorProfile", "serviceAccountToken", "seLinuxOptions", "externalIPs"}
)
"""Keys of pod templates that decide what a pod may do to its node, or as whom it acts; and of a Service, whose address
is taken from others (CVE-2020-8554)."""
OWNERS: Final = "ownerReferences"


SECRET_KEYS: Final = frozenset({"secret", "secretRef", "secretKeyRef"})
"""Keys of pod templates under which a Secret is named."""


class Unread(ChaperoneError):
    """The body is not understood; the text says why."""


def decode(raw: bytes) -> Any:  # noqa: ANN401 - any JSON
    """Read JSON as strictly as no server does.

    Raises:
        Unread: it is no JSON, has a key twice, or is deeper than an object may be.
    """
    if len(raw) > MAX_BODY_BYTES:
        raise Unread(f"the body has more than {MAX_BODY_BYTES >> 20} MiB.")
    try:
        found = json.loads(raw.decode(), object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        if _SURROGATE.search(raw):
            json.dumps(found, ensure_ascii=False).encode()  # half of a character is another one for the API server
    except (ValueError, RecursionError) as error:
        raise Unread("the body is no JSON.") from error
    if _depth(found) > MAX_DEPTH:
        raise Unread("the body is nested too deeply.")
    return found


def encode(content: dict[str, Any]) -> bytes:
    """Write JSON that means the same to a reader of YAML, such as that of server-side apply.

    Raises:
        Unread: it has more bytes than a body may have.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    found = _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()
    if len(found) > MAX_BODY_BYTES:
        raise Unread(f"the body has more than {MAX_BODY_BYTES >> 20} MiB as JSON.")
    return found


def risks(body: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """Keys by which a body gives a pod more than a plain one has; nothing where there is none."""
    for key, value in _entries(body):
        if (
            (key in _FLAGS and value not in (None, False))
            or (key in _NAMED and value not in (None, "", *_NAMED[key]))
            or (key == "capabilities" and isinstance(value, dict) and value.get("add"))
            or (key == "seLinuxOptions" and isinstance(value, dict) and _is_other_label(value))
            or (key == "externalIPs" and value)
            or (key in _PROBES and isinstance(value, dict) and value.get("host"))
            or (key.startswith(_APPARMOR) and value not in (None, "", "runtime/default"))
        ):
            yield key
        elif key in ("seccompProfile", "appArmorProfile") and isinstance(value, dict):
            if value.get("type") not in (None, "RuntimeDefault"):
                yield key
        elif key == "serviceAccountToken" and value is not None:
            yield key


def is_risky_place(keys: list[str]) -> bool:
    """Whether what a JSON Patch writes there could be what `risks` finds."""
    is_probe = not _PROBES.isdisjoint(keys) and (keys[-1] in _PROBES or keys[-1] == "host")
    return is_probe or any(key in _RISKY or key.startswith(_APPARMOR) for key in keys)


def names_owner(body: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether an object gets owners: without them, garbage collection deletes it."""
    return any(key == OWNERS and value for key, value in _entries(body))


def secrets(body: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """Names of the Secrets that a body puts into a pod, as variables or as files; "" where one is not named by it."""
    for key, value in _entries(body):
        if key in SECRET_KEYS and isinstance(value, dict):
            name = value.get("secretName") or value.get("name")
            yield name if isinstance(name, str) else ""


def patched(operations: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - any JSON
    """Each place that a JSON Patch (RFC 6902) names, with its operation; `from` counts as a place.

    Raises:
        Unread: it is no list of operations.
    """
    if not isinstance(operations, list):
        raise Unread("a JSON Patch is a list of operations.")
    for one in operations:
        if not isinstance(one, dict) or not isinstance(one.get("path"), str) or not isinstance(one.get("op"), str):
            raise Unread("a JSON Patch is a list of operations.")
        yield one["op"], one["path"]
        if isinstance(one.get("from"), str):
            yield one["op"], one["from"]


def pointer_parts(path: str) -> list[str]:
    """The keys of a JSON Pointer (RFC 6901)."""
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def strings(body: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """All texts that are values."""
    stack = [body]
    while stack:
        found = stack.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            stack += found.values()
        elif isinstance(found, list):
            stack += found


def _is_other_label(options: dict[str, Any]) -> bool:
    return bool(options.get("user") or options.get("role")) or options.get("type") not in (None, "", *_SELINUX_TYPES)


def _entries(body: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    stack = [body]
    while stack:
        found = stack.pop()
        if isinstance(found, dict):
            yield from found.items()
            stack += found.values()
        elif isinstance(found, list):
            stack += found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _no_number(_: str) -> float:
    raise ValueError


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError
    return found


def _depth(body: Any) -> int:  # noqa: ANN401
    deepest, level = 0, [body]
    while level:
        deepest += 1
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if deepest > MAX_DEPTH:
            break
    return deepest
