"""The custom resources as types, and strict reading of their JSON.

Only what the gateways of this version really do is accepted. A field that the API names but that is not built yet is a
problem of its own ("… is not supported yet"), because an approval that is silently ignored would be a hole; an
unknown field is refused by the decoder. Nothing is defaulted to something looser than what the author wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec

from chaperone_operator.approval import Reason
from chaperone_operator.compile.credential import Credential, SecretRef
from chaperone_operator.compile.delegation import Delegation
from chaperone_operator.compile.problem import Problem
from chaperone_operator.compile.selector import LabelSelector
from chaperone_operator.compile.vocabulary import GROUP, VERSION, WILDCARD, Action

type Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
type Protocol = Literal["PostgreSQL", "MySQL", "SSH", "Kubernetes", "HTTP", "MCP"]
type Method = Literal["Null", "Redact", "Hash", "Partial", "Tokenize"]
type Unmaskable = Literal["Deny", "Redact", "Allow"]
type TlsMode = Literal["Disable", "Require", "VerifyCA", "VerifyFull"]


class Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Base of everything inside a `spec`."""


class Owner(Part, frozen=True):
    """The accountable human."""

    name: str
    email: str = ""


class Ingress(Part, frozen=True):
    """Ports on which the agent may be reached."""

    ports: tuple[Port, ...] = ()


class Evidence(Part, frozen=True):
    """How durable records are, for how long texts are kept (reconcile.retention), and how much of results."""

    durability: Literal["Written", "Synced", "Witnessed"] = "Written"
    retention: str = ""
    legal_hold: bool = False
    results: Literal["None", "Full"] = "None"
    max_result_bytes: int | str = "1Mi"


class Suspension(Part, frozen=True):
    """The last change of `suspended`: by whom and when, which admission writes, and why."""

    by: str = ""
    at: str = ""
    reason: str = ""


class IdentitySpec(Part, frozen=True):
    """`AgentIdentity.spec`."""

    selector: LabelSelector
    owner: Owner
    team: str = ""
    purpose: str = ""
    ingress: Ingress = Ingress()
    evidence: Evidence = Evidence()
    suspended: bool = False
    suspension: Suspension = Suspension()
    delegation: Delegation | None = None


class Upstream(Part, frozen=True):
    """Where the gateway really connects; absent parts follow the target."""

    host: str = ""
    port: Port | None = None
    database: str = ""


class Tls(Part, frozen=True):
    """How the backend proves itself."""

    mode: TlsMode = "VerifyFull"
    server_name: str = ""
    ca_secret_ref: SecretRef | None = None


class AllowedNamespaces(Part, frozen=True):
    """Namespaces that may be granted the target: by name, or by the labels of the Namespace; one is enough."""

    names: tuple[str, ...] = ()
    selector: LabelSelector | None = None


class Classified(Part, frozen=True, rename={"kind": "class"}):
    """Columns that hold values of one class."""

    columns: tuple[str, ...]
    kind: str


class Ssh(Part, frozen=True):
    """`spec.ssh`: how an SSH server proves itself, by public keys in OpenSSH's form."""

    host_keys: tuple[str, ...] = ()
    host_authorities: tuple[str, ...] = ()


class TargetSpec(Part, frozen=True):
    """`AccessTarget.spec`."""

    protocol: Protocol
    hosts: tuple[str, ...] = ()
    port: Port | None = None
    upstream: Upstream = Upstream()
    tls: Tls = Tls()
    credential: Credential | None = None
    allowed_namespaces: AllowedNamespaces = AllowedNamespaces()
    classified: tuple[Classified, ...] = ()
    ssh: Ssh | None = None


class MaxRepeats(Part, frozen=True):
    """How often a rule may be used within a span of time, in one pod."""

    count: int
    per: str


class Require(Part, frozen=True):
    """What must hold for a command, beyond effects and objects; `compile.require` says what the texts mean."""

    where: bool | None = None
    limit: int | None = None
    max_estimated_rows: int | None = None
    max_repeats: MaxRepeats | None = None
    user_groups: tuple[str, ...] | None = None


class Match(Part, frozen=True):
    """What a rule applies to; without `objects` it applies to every object."""

    effects: tuple[str, ...] = ()
    objects: tuple[str, ...] | None = None
    require: Require | None = None


class Window(Part, frozen=True, rename={"begin": "from", "end": "to"}):
    """When something is in force; `compile.window` says what the texts mean. Without `days` on every day."""

    begin: str
    end: str
    timezone: str
    days: tuple[str, ...] | None = None


class Approval(Part, frozen=True):
    """Who has to approve what a rule matches, and for how long that lasts; durations are texts such as 45s."""

    groups: tuple[str, ...] = ()
    count: int = 1
    deny_count: int = 1
    wait: str = "45s"
    valid_for: str = "10m"
    reason: Reason = "Optional"
    self_approval: bool = False


class Rule(Part, frozen=True):
    """One rule of a policy."""

    name: str
    action: Action
    match: Match
    message: str = ""
    windows: tuple[Window, ...] | None = None
    approval: Approval | None = None


class Limits(Part, frozen=True):
    """How much an identity may do at a target; `compile.limits` says what the texts mean."""

    rows_per_command: int | None = None
    bytes_per_session: int | str | None = None
    commands_per_minute: int | None = None
    connections: int | None = None
    command_duration: str | None = None


class Pattern(Part, frozen=True):
    """A detector of a policy's own, in RE2."""

    name: str
    pattern: str


class Mask(Part, frozen=True):
    """One of `masks`: what is masked, and how. Without quotation marks, Null is YAML's null, so that is no method."""

    columns: tuple[str, ...] = ()
    detectors: tuple[str, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    method: Method | None = None


class TargetName(Part, frozen=True):
    """A target by name; in a ClusterAccessPolicy `*` names all."""

    name: str


class Subject(Part, frozen=True):
    """An AgentIdentity of the policy's own namespace."""

    identity: str


class ClusterSubject(Part, frozen=True):
    """Identities across namespaces: by name, of which `*` names all, or by labels; without a namespace, of all."""

    identity: str | None = None
    identity_selector: LabelSelector | None = None
    namespace: str | None = None
    namespace_selector: LabelSelector | None = None

    def is_of(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether identities of a namespace with these labels are meant."""
        if self.namespace_selector is not None:
            return self.namespace_selector.admits(labels)
        return self.namespace in {None, WILDCARD, namespace}

    def means(self, identity: Identity) -> bool:
        """Whether an identity of such a namespace is meant."""
        if self.identity_selector is not None:
            return self.identity_selector.admits(identity.labels)
        return self.identity in {WILDCARD, identity.name}


class TestAccess(Part, frozen=True):
    """One access of a test, as a classifier finds it."""

    effect: str
    object: str = ""
    through: str = ""
    where: bool = False
    limit: int | None = None


class TestUser(Part, frozen=True):
    """On whose behalf the agent of a test asks, as its issuer says."""

    subject: str = "somebody"
    issuer: str = "https://issuer.example.com"
    email: str = ""
    groups: tuple[str, ...] = ()


class Expected(Part, frozen=True):
    """What a test expects."""

    action: Action
    rule: str | None = None


class PolicyTest(Part, frozen=True):
    """A statement, or facts, and what the policy says to it; identity and target are the policy's first, if absent."""

    name: str
    expect: Expected
    accesses: tuple[TestAccess, ...] | None = None
    sql: str | None = None
    identity: str = ""
    target: str = ""
    at: str | None = None
    rows: int | None = None
    repeats: dict[str, int] | None = None
    user: TestUser | None = None


class PolicySpec(Part, frozen=True):
    """`AccessPolicy.spec`."""

    subjects: tuple[Subject, ...] = ()
    targets: tuple[TargetName, ...] = ()
    rules: tuple[Rule, ...] = ()
    limits: Limits | None = None
    masks: tuple[Mask, ...] | None = None
    unmaskable: Unmaskable | None = None
    mode: Literal["Enforce", "Observe"] = "Enforce"
    windows: tuple[Window, ...] | None = None
    rego: str | None = None
    tests: tuple[PolicyTest, ...] | None = None


class ClusterPolicySpec(Part, frozen=True):
    """`ClusterAccessPolicy.spec`."""

    subjects: tuple[ClusterSubject, ...] = ()
    targets: tuple[TargetName, ...] = ()
    rules: tuple[Rule, ...] = ()
    limits: Limits | None = None
    masks: tuple[Mask, ...] | None = None
    unmaskable: Unmaskable | None = None
    mode: Literal["Enforce", "Observe"] = "Enforce"
    windows: tuple[Window, ...] | None = None
    rego: str | None = None
    tests: tuple[PolicyTest, ...] | None = None


type Spec = IdentitySpec | TargetSpec | PolicySpec | ClusterPolicySpec


class Document[S](msgspec.Struct, frozen=True):
    """One decoded object. `namespace` is "" for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    spec: S
    labels: dict[str, str] = {}

    def problem(self, reason: str, message: str, *, is_blocking: bool = True) -> Problem:
        """A problem of this object."""
        return Problem(self.kind, self.namespace, self.name, reason, message, is_blocking)


type Identity = Document[IdentitySpec]
type Target = Document[TargetSpec]
type Policy = Document[PolicySpec]
type ClusterPolicy = Document[ClusterPolicySpec]

KINDS: Final[dict[type, str]] = {
    IdentitySpec: "AgentIdentity",
    TargetSpec: "AccessTarget",
    PolicySpec: "AccessPolicy",
    ClusterPolicySpec: "ClusterAccessPolicy",
}

type _Path = tuple[str, ...]  # "[]" steps into each member of a list

_POLICY_FIELDS: Final[tuple[_Path, ...]] = (("rules", "[]", "durability"),)
_LATER_FIELDS: Final[dict[str, tuple[_Path, ...]]] = {
    "AgentIdentity": (),
    "AccessTarget": (("inspection",),),
    "AccessPolicy": _POLICY_FIELDS,
    "ClusterAccessPolicy": _POLICY_FIELDS,
}
_POLICY_VALUES: Final[dict[_Path, frozenset[str]]] = {
    ("masks", "[]", "method"): frozenset({"Tokenize"}),
}
_LATER_VALUES: Final[dict[str, dict[_Path, frozenset[str]]]] = {
    "AgentIdentity": {},
    "AccessTarget": {},
    "AccessPolicy": _POLICY_VALUES,
    "ClusterAccessPolicy": _POLICY_VALUES,
}
_CHOICES: Final = {
    "mode": "Enforce or Observe",
    "protocol": "PostgreSQL, MySQL, SSH, Kubernetes, HTTP or MCP",
    "durability": "Written, Synced or Witnessed",
    "results": "None or Full",
    "method": 'Redact, Partial, Hash or "Null"',
    "unmaskable": "Deny, Redact or Allow",
    "operator": "In, NotIn, Exists or DoesNotExist",
}
_AT: Final = re.compile(r" - at `\$(?P<path>[^`]*)`$")


def decode[S](item: Mapping[str, Any], spec_type: type[S]) -> tuple[Document[S] | None, tuple[Problem, ...]]:
    """Read one object as the API server or a manifest gives it.

    Returns:
        The document, or None when its shape is wrong, and all problems found. A document with problems
        of reason `NotSupported` must not be used; it is returned for further checks only.
    """
    kind = KINDS[spec_type]
    metadata = item.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    name, namespace = _text(metadata, "name"), _text(metadata, "namespace")
    problems: list[Problem] = []

    def say(reason: str, message: str) -> None:
        problems.append(Problem(kind, namespace, name, reason, message))

    if item.get("apiVersion") != f"{GROUP}/{VERSION}" or item.get("kind") != kind:
        say("InvalidSpec", f"apiVersion and kind must be {GROUP}/{VERSION} and {kind}.")
        return None, tuple(problems)
    if not name:
        say("InvalidSpec", "metadata.name: missing.")
    spec = item.get("spec", {})
    for path, value in _present(spec, _LATER_FIELDS[kind]):
        if value is not None:
            say("NotSupported", f"{path} is not supported yet; remove it.")
    for wanted, values in _LATER_VALUES[kind].items():
        for path, value in _present(spec, (wanted,)):
            if isinstance(value, str) and value in values:
                say("NotSupported", f"{path}: {value} is not supported yet; use {_CHOICES[wanted[-1]]}.")
    try:
        decoded = msgspec.convert(_without(spec, _LATER_FIELDS[kind]), spec_type)
    except msgspec.ValidationError as error:
        say("InvalidSpec", _readable(str(error)))
        return None, tuple(problems)
    generation = metadata.get("generation")
    document = Document(
        kind,
        namespace,
        name,
        _text(metadata, "uid"),
        generation if isinstance(generation, int) else 0,
        decoded,
        _labels(metadata),
    )
    return (document if name else None), tuple(problems)


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    return value if isinstance(value, str) else ""


def _labels(metadata: Mapping[str, Any]) -> dict[str, str]:
    found = metadata.get("labels")
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, Mapping) else {}


def _readable(message: str) -> str:
    """A decoder's message as "spec.rules[1].match: …"."""
    at = _AT.search(message)
    path = at["path"] if at else ""
    text = message[: at.start()] if at else message
    text = text.replace("Object contains", "contains").replace(
        "Object missing required field", "missing required field"
    )
    field = path.rsplit(".", 1)[-1]
    if text.startswith("Invalid enum value") and field in _CHOICES:
        text += f"; use {_CHOICES[field]}"
    return f"spec{path}: {text}."


def _present(value: object, paths: tuple[_Path, ...]) -> Iterator[tuple[str, object]]:
    """The places of a spec at which one of the paths leads to a value."""
    for path in paths:
        yield from _walk(value, path, "spec")


def _walk(value: object, path: _Path, at: str) -> Iterator[tuple[str, object]]:
    if not path:
        yield at, value
    elif path[0] == "[]":
        if isinstance(value, list):
            for index, member in enumerate(value):
                yield from _walk(member, path[1:], f"{at}[{index}]")
    elif isinstance(value, Mapping) and path[0] in value:
        yield from _walk(value[path[0]], path[1:], f"{at}.{path[0]}")


def _without(value: object, paths: tuple[_Path, ...]) -> object:
    """A copy without the fields that the paths lead to."""
    if isinstance(value, list):
        inner = tuple(path[1:] for path in paths if path[0] == "[]")
        return [_without(member, inner) for member in value] if inner else value
    if not isinstance(value, Mapping):
        return value
    dropped = {path[0] for path in paths if len(path) == 1}
    kept: dict[object, object] = {}
    for key, member in value.items():
        if key not in dropped:
            inner = tuple(path[1:] for path in paths if path[0] == key and len(path) > 1)
            kept[key] = _without(member, inner) if inner else member
    return kept
