"""What a request would do: the facts of its normal form and of its body.

Objects are named `namespace.group.resource.name` (README.md says how). A request that reaches more than one object
names them by `*`, which only a pattern with `*` at that place matches. Every risky thing adds an access of its own, so
that a request is allowed only where all of them are.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution, unknown
from chaperone_sidecar.protocols.kubernetes import body as bodies
from chaperone_sidecar.protocols.kubernetes.request import Request

CORE: Final = "core"  # what stands in objects' names for the group that has none
CLUSTER: Final = "_"  # what stands there for the namespace of what is in none; no namespace is called so
PLACEHOLDER: Final = "[masked]"  # what agents see in place of a Secret's value
PLACEHOLDER_BASE64: Final = "W21hc2tlZF0="
LAST_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"
MAX_ARGV_CHARACTERS: Final = (
    4096  # of the object that is a command line; a longer one is cut, and matches no exact name
)

JSON_PATCH: Final = "application/json-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
PATCHES: Final = frozenset(
    {JSON_PATCH, "application/merge-patch+json", "application/strategic-merge-patch+json", APPLY_PATCH}
)
JSON: Final = "application/json"

EXECUTING: Final = frozenset({"exec", "attach"})
FORWARDING: Final = "portforward"
PROXIES: Final = frozenset({"proxy"})
_KNOWN_SUBRESOURCES: Final = frozenset(
    {"status", "scale", "log", "exec", "attach", "portforward", "proxy", "ephemeralcontainers", "eviction", "binding",
     "token", "approval", "finalize", "resize"}
)  # fmt: skip
_DISCOVERY: Final = ("api", "apis", "openapi", "version", "healthz", "livez", "readyz")
_DISCOVERED_PATHS: Final = frozenset({"/", "/.well-known/openid-configuration", "/openid/v1/jwks"})
_MEASUREMENTS: Final = ("metrics",)
_REVIEWS: Final = frozenset({"authentication.k8s.io", "authorization.k8s.io"})
_PRIVILEGED: Final = frozenset(
    {"rbac.authorization.k8s.io", "certificates.k8s.io", "admissionregistration.k8s.io", "apiregistration.k8s.io",
     "node.k8s.io"}
)  # fmt: skip
"""Groups whose objects say who may do what, or through whose hands requests go."""
_SCHEMA: Final = frozenset({"apiextensions.k8s.io", "storage.k8s.io", "scheduling.k8s.io", "resource.k8s.io"})
_DESTROYED: Final = frozenset(
    {("", "namespaces"), ("", "persistentvolumes"), ("", "persistentvolumeclaims"), ("", "nodes")}
)
_ROUTES: Final = frozenset(
    {("", "endpoints"), ("discovery.k8s.io", "endpointslices"), ("", "persistentvolumes"), ("", "bindings")}
)
"""What leads pods' traffic or volumes anywhere, past namespaces (CVE-2021-25740; volumes of type `local`)."""
_SECRETS: Final = ("", "secrets")
_TOKENS: Final = ("authentication.k8s.io", "tokenreviews")
_MAKING: Final = frozenset({"create", "update", "patch"})
_WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})


def name(request: Request, content: Any = None) -> str:  # noqa: ANN401 - any JSON
    """The object of a request; what is created is named by its body."""
    if not request.resource:
        return f"path:{part(request.path)}"
    namespace = request.namespace or ("*" if _is_over_all_namespaces(request) else CLUSTER)
    resource = part(request.resource) + (f"/{request.subresource}" if request.subresource else "")
    own = request.name or (_own_name(content) if request.verb == "create" else "")
    return f"{namespace}.{part(request.group) if request.group else CORE}.{resource}.{part(own) if own else '*'}"


def _own_name(content: Any) -> str:  # noqa: ANN401
    metadata = content.get("metadata") if isinstance(content, dict) else None
    found = metadata.get("name") if isinstance(metadata, dict) else None
    return found if isinstance(found, str) and found.isprintable() else ""


def part(text: str) -> str:
    """A name as one part of an object's: `.` is written `_`, and what that would be mistaken for is escaped."""
    return text.replace("%", "%25").replace("_", "%5f").replace("*", "%2a").replace(".", "_")


def classify(request: Request, content_type: str = "", raw: bytes = b"") -> Command:
    """The command that a request is."""
    if is_forwarding(request) and not raw:
        return Command("create", _forwarding(request), _facts(request, content_type, raw))
    text = f"{request.method} {request.target}".encode()
    if raw:
        text += f"\nContent-Type: {content_type}\n\n".encode() + raw
    facts = _facts(request, content_type, raw)
    shown = _shown(request, content_type, raw)
    return Command(
        request.verb or request.method.lower(), text, facts, shown_text=None if shown is None else shown.encode()
    )


def is_forwarding(request: Request) -> bool:
    """Whether ports of a pod are to be forwarded."""
    place = (request.group, request.resource, request.subresource, request.rest)
    return place == ("", "pods", FORWARDING, "") and bool(request.namespace and request.name)


def connection(request: Request, port: int) -> Command:
    """The command that one connection of a port-forward is, where it is not let through."""
    return Command("connect", _forwarding(request) + f"\nport: {port}".encode(), _facts(request, "", b""))


def _forwarding(request: Request) -> bytes:
    """A port-forward is one act however it is asked for: over WebSocket by GET, over SPDY by POST."""
    return f"POST {request.target}".encode()


def unread(request: Request, content_type: str, raw: bytes, why: str) -> Command:
    """The command that a request is whose form is not read; people see of its body how long it is."""
    line = f"{request.method} {request.target}"
    shown = f"{line}\nContent-Type: {content_type}\n\n({len(raw)} bytes)" if raw else line
    text = f"{line}\nContent-Type: {content_type}\n\n".encode(errors="backslashreplace") + raw
    shown_text = shown.encode(errors="backslashreplace")
    return Command(request.verb or request.method.lower(), text, unknown(why), shown_text=shown_text)


def is_of_release(request: Request, raw: bytes) -> bool:
    """Whether helm asks for what it keeps of its releases in Secrets, or begins to keep one there."""
    if (request.group, request.resource) != _SECRETS:
        return False
    if request.verb == "create":
        return b"helm.sh/release.v1" in raw
    selected = (request.parameter("labelSelector") or "").replace(" ", "").replace("==", "=").split(",")
    is_named = request.name.startswith("sh.helm.release.") or "owner=helm" in selected
    return is_named and request.verb in ("get", "list", "watch")


def is_secret(request: Request) -> bool:
    """Whether what is asked for, or answered, holds values that nobody is shown."""
    return (request.group, request.resource) in (_SECRETS, _TOKENS) or request.subresource == "token"


def _facts(request: Request, content_type: str, raw: bytes) -> Facts:
    if not request.resource:
        return _facts_of_path(request)
    if not request.verb:
        return unknown(f"{request.method} on {request.qualified} is nothing that the Kubernetes API does.")
    if request.resource in ("watch", "proxy"):
        return unknown("paths below /watch and /proxy are outdated and not read.")
    if request.group == CORE or request.namespace == CLUSTER:
        return unknown("the API group has a name that stands for another one here.")
    if request.subresource and request.subresource not in _KNOWN_SUBRESOURCES:
        return unknown(f"what the subresource {request.qualified} does is not known.")
    if request.rest and request.subresource not in PROXIES:
        return unknown("the path goes on behind a subresource.")
    content: Any = None
    if raw and request.verb in _WRITES:
        try:
            content = bodies.decode(raw)
            if request.verb in ("delete", "deletecollection"):
                _check_options(content)
        except bodies.Unread as error:
            return unknown(str(error))
    try:
        accesses = tuple(dict.fromkeys(_accesses(request, content_type, content)))
    except bodies.Unread as error:
        return unknown(str(error))
    return Facts(accesses, Resolution.SYNTACTIC)


def _facts_of_path(request: Request) -> Facts:
    first = request.path.split("/")[1]
    reads = request.method in ("GET", "HEAD")
    if reads and (first in _DISCOVERY or request.path in _DISCOVERED_PATHS):
        return Facts((Access(Effect.READ, name(request)),), Resolution.SYNTACTIC)
    if reads and first in _MEASUREMENTS:
        return Facts((Access(Effect.READ_SENSITIVE, name(request)),), Resolution.SYNTACTIC)
    return unknown(f"what {request.method} does at this path is not known.")


def _accesses(request: Request, content_type: str, content: Any) -> Iterator[Access]:  # noqa: ANN401 - any JSON
    found = name(request, content)
    for effect in _effects(request, content_type, content):
        yield Access(effect, found)
    if content is not None and request.verb in _MAKING and not request.subresource and request.group not in _REVIEWS:
        for secret in _secrets(content_type, content):
            yield Access(Effect.READ_SENSITIVE, f"{request.namespace or CLUSTER}.{CORE}.secrets.{secret}")
    if request.subresource == "exec":
        yield Access(Effect.EXECUTE_CODE, command_line(request.parameters("command")))


def _secrets(content_type: str, content: Any) -> Iterator[str]:  # noqa: ANN401 - any JSON
    """Secrets that what is made can read, as parts of objects' names."""
    for found in bodies.secrets(content):
        yield part(found) if found else "*"
    if content_type == JSON_PATCH:
        for _, path in bodies.patched(content):
            if not bodies.SECRET_KEYS.isdisjoint(bodies.pointer_parts(path)):
                yield "*"


def command_line(argv: tuple[str, ...]) -> str:
    """The object that a program's arguments are."""
    printable = "".join(one if one.isprintable() else "?" for one in shlex.join(argv))
    return f"argv:{part(printable)}"[:MAX_ARGV_CHARACTERS]


def _effects(request: Request, content_type: str, content: Any) -> Iterator[Effect]:  # noqa: ANN401
    subresource = request.subresource
    if subresource in EXECUTING:
        yield Effect.EXECUTE_CODE
    elif subresource == FORWARDING:
        yield Effect.TUNNEL
    elif subresource in PROXIES:
        yield Effect.TUNNEL
        yield Effect.EXTERNAL_IO
    elif request.verb in ("get", "list", "watch"):
        yield from _reading(request)
    elif request.group in _REVIEWS:
        is_own = request.resource.startswith("self")
        yield Effect.READ if is_own else Effect.READ_SENSITIVE
    else:
        yield from _writing(request, content_type, content)


def _reading(request: Request) -> Iterator[Effect]:
    is_sensitive = is_secret(request) or request.subresource == "log"
    yield Effect.READ_SENSITIVE if is_sensitive else Effect.READ
    if _is_over_all_namespaces(request) or (request.subresource == "log" and request.is_set("follow")):
        yield Effect.BULK_READ


def _writing(request: Request, content_type: str, content: Any) -> Iterator[Effect]:  # noqa: ANN401
    verb, place = request.verb, (request.group, request.resource)
    if verb in ("delete", "deletecollection"):
        yield Effect.DELETE
        if verb == "deletecollection" or place in _DESTROYED or request.resource == "customresourcedefinitions":
            yield Effect.DESTROY
    elif request.subresource == "eviction":
        yield Effect.DELETE
    else:
        yield Effect.CREATE if verb == "create" else Effect.MODIFY
        if content_type == APPLY_PATCH or (verb == "update" and not _names_a_version(content)):
            yield Effect.CREATE  # these make what is not there
        if verb != "create" and _names_owner(content_type, content):
            yield Effect.DELETE
    if request.subresource == "eviction" or place == ("", "nodes"):
        yield Effect.MAINTAIN
    if request.subresource == "ephemeralcontainers":
        yield Effect.EXECUTE_CODE
    if request.group in _SCHEMA:
        yield Effect.SCHEMA
    if _is_privileged(request, content_type, content):
        yield Effect.PRIVILEGE
    if request.subresource == "token":
        yield Effect.READ_SENSITIVE
    if place == _SECRETS and content is not None:
        _check_secret(content_type, content)


def _is_privileged(request: Request, content_type: str, content: Any) -> bool:  # noqa: ANN401
    if request.group in _PRIVILEGED or request.subresource in ("token", "binding"):
        return True
    place = (request.group, request.resource)
    if (place in _ROUTES and request.verb in _MAKING) or (
        place == ("", "namespaces") and request.verb in ("update", "patch")
    ):
        return True  # a namespace's labels say what its pods may do (Pod Security)
    if place == ("", "services") and request.subresource == "status":
        return True  # its addresses are taken from others, as by externalIPs
    if content is None:
        return False
    if place == _SECRETS:
        return "kubernetes.io/service-account-token" in bodies.strings(content)  # the API server fills in a token
    if content_type == JSON_PATCH and any(
        bodies.is_risky_place(bodies.pointer_parts(path)) for _, path in bodies.patched(content)
    ):
        return True
    return next(bodies.risks(content), None) is not None


def _names_owner(content_type: str, content: Any) -> bool:  # noqa: ANN401
    if content_type == JSON_PATCH and any(
        bodies.OWNERS in bodies.pointer_parts(path) for _, path in bodies.patched(content)
    ):
        return True
    return bodies.names_owner(content)


def _check_secret(content_type: str, content: Any) -> None:  # noqa: ANN401
    """Refuse what would show a Secret's values in another place, or write back what masks them.

    Raises:
        Unread: with the reason.
    """
    if content_type == JSON_PATCH and any(op in ("copy", "move", "test") for op, _ in bodies.patched(content)):
        raise bodies.Unread("a JSON Patch that copies, moves or tests tells what a Secret holds.")
    if any(PLACEHOLDER in text or PLACEHOLDER_BASE64 in text for text in bodies.strings(content)):
        raise bodies.Unread("it would write the mask of a Secret's value into the Secret.")


def _check_options(content: Any) -> None:  # noqa: ANN401
    if not isinstance(content, dict) or content.get("kind", "DeleteOptions") != "DeleteOptions":
        raise bodies.Unread("the body of a deletion says how, in DeleteOptions.")


def _names_a_version(content: Any) -> bool:  # noqa: ANN401
    metadata = content.get("metadata") if isinstance(content, dict) else None
    return isinstance(metadata, dict) and metadata.get("resourceVersion") not in (None, "", "0")


def _is_over_all_namespaces(request: Request) -> bool:
    """Whether a collection may be of all namespaces: what is in none cannot be told from it by its path.

    Resources of the API server's own that are in no namespace are known; others count as being in all.
    """
    if request.namespace or request.verb not in ("list", "watch", "deletecollection"):
        return False
    return request.resource not in _CLUSTER_WIDE.get(request.group, frozenset())


_CLUSTER_WIDE: Final[dict[str, frozenset[str]]] = {
    "": frozenset({"namespaces", "nodes", "persistentvolumes", "componentstatuses"}),
    "rbac.authorization.k8s.io": frozenset({"clusterroles", "clusterrolebindings"}),
    "apiextensions.k8s.io": frozenset({"customresourcedefinitions"}),
    "apiregistration.k8s.io": frozenset({"apiservices"}),
    "storage.k8s.io": frozenset({"storageclasses", "csinodes", "csidrivers", "volumeattachments"}),
    "scheduling.k8s.io": frozenset({"priorityclasses"}),
    "node.k8s.io": frozenset({"runtimeclasses"}),
    "certificates.k8s.io": frozenset({"certificatesigningrequests"}),
    "networking.k8s.io": frozenset({"ingressclasses"}),
    "flowcontrol.apiserver.k8s.io": frozenset({"flowschemas", "prioritylevelconfigurations"}),
    "admissionregistration.k8s.io": frozenset(
        {"mutatingwebhookconfigurations", "validatingwebhookconfigurations", "validatingadmissionpolicies",
         "validatingadmissionpolicybindings"}
    ),
}  # fmt: skip


def _shown(request: Request, content_type: str, raw: bytes) -> str | None:
    """What people may see of a request that writes a Secret; None where they may see all."""
    if not raw or not is_secret(request):
        return None
    line = f"{request.method} {request.target}\nContent-Type: {content_type}\n\n"
    try:
        content = bodies.decode(raw)
        if content_type == JSON_PATCH:
            content = [{key: one[key] for key in ("op", "path", "from") if key in one} for one in content]
        else:
            content = hidden(content)
    except (bodies.Unread, TypeError, AttributeError):
        return f"{line}({len(raw)} bytes)"
    return line + msgspec.json.encode(content).decode()


def hidden(content: Any) -> Any:  # noqa: ANN401 - any JSON
    """JSON with a Secret's values, and copies of them, replaced by what stands for them. Works in place."""
    stack = [content]
    while stack:
        found = stack.pop()
        if isinstance(found, list):
            stack += found
            continue
        if not isinstance(found, dict):
            continue
        for key, value in found.items():
            if key in ("data", "stringData") and value is not None:
                stands = PLACEHOLDER_BASE64 if key == "data" else PLACEHOLDER
                found[key] = dict.fromkeys(value, stands) if isinstance(value, dict) else stands
            elif key in (LAST_APPLIED, "token") and isinstance(value, str):
                found[key] = PLACEHOLDER
            else:
                stack.append(value)
    return content
