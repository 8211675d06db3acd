"""What is wrong with a policy beyond its shape: names that do not exist, rules that never fire, claims that collide.

Each function returns all problems it finds; none of them stops at the first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from chaperone_operator.compile import (
    approvals,
    credential,
    delegation,
    glob,
    hostkeys,
    limits,
    masks,
    prove,
    recording,
    rego,
    require,
    window,
)
from chaperone_operator.compile.address import MAX_HOSTS, BadHost, Network, parse_host
from chaperone_operator.compile.model import (
    ClusterPolicy,
    ClusterPolicySpec,
    Document,
    Identity,
    IdentitySpec,
    Policy,
    PolicySpec,
    Rule,
    Target,
    TargetSpec,
    decode,
)
from chaperone_operator.compile.problem import Problem
from chaperone_operator.compile.vocabulary import EFFECTS, FORMS, PARTS, PORTS, REACHABLE, WILDCARD, Action, meant

MAX_RULES: Final = 200  # a policy; more is a generated file that belongs into several policies
MAX_OBJECTS: Final = 500  # patterns of one rule
MAX_MESSAGE: Final = 500  # characters shown to an agent in a native error
_RULE_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_OBJECT_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class World(msgspec.Struct, frozen=True):
    """What a policy of one namespace may name.

    Attributes:
        identities: names of the namespace's AgentIdentities, readable or not.
        targets: readable targets by name.
        broken_targets: names of targets with problems of their own.
        admitted: names of the targets that admit the namespace.
        delegating: names of the AgentIdentities that act on behalf of persons, and of those that cannot be read.
    """

    namespace: str
    identities: frozenset[str]
    targets: Mapping[str, Target]
    broken_targets: frozenset[str]
    admitted: frozenset[str]
    delegating: frozenset[str] = frozenset()


NOWHERE: Final = World("", frozenset(), {}, frozenset(), frozenset())


def alone(item: Mapping[str, Any]) -> tuple[Problem, ...]:
    """What can be said of one object without knowing any other: its shape, and what it says of itself."""
    found: Iterable[Problem] = ()
    match item.get("kind"):
        case "AgentIdentity":
            identity, problems = decode(item, IdentitySpec)
            found = identity_problems(identity) if identity else ()
        case "AccessTarget":
            target, problems = decode(item, TargetSpec)
            found = target_problems(target) if target else ()
        case "AccessPolicy":
            policy, problems = decode(item, PolicySpec)
            found = rules_problems(policy, (), NOWHERE) if policy else ()
        case _:
            cluster_policy, problems = decode(item, ClusterPolicySpec)
            found = cluster_policy_alone(cluster_policy) if cluster_policy else ()
    return tuple(sorted({*problems, *found}))


def identity_problems(identity: Identity) -> Iterator[Problem]:
    """Problems of one AgentIdentity."""
    if identity.spec.selector.is_empty:
        yield identity.problem("EmptySelector", "spec.selector: selects every pod of the namespace; name labels.")
    if not identity.spec.owner.name.strip():
        yield identity.problem("NoOwner", "spec.owner.name: name the human who answers for this agent.")
    for reason, message in recording.problems(identity.spec.evidence):
        yield identity.problem(reason, message)
    if identity.spec.delegation is not None:
        for reason, message in delegation.problems(identity.spec.delegation):
            yield identity.problem(reason, message)


def target_problems(target: Target) -> Iterator[Problem]:
    """Problems of one AccessTarget by itself."""
    spec = target.spec
    if not spec.hosts:
        yield target.problem("NoHosts", "spec.hosts: empty; name at least one host that the agent uses.")
    parsed = []
    for index, host in enumerate(spec.hosts):
        try:
            parsed.append(parse_host(host))
        except BadHost as error:
            yield target.problem("BadHost", f"spec.hosts[{index}]: {error}.")
    if spec.upstream.host:
        try:
            upstream = parse_host(spec.upstream.host)
        except BadHost as error:
            yield target.problem("BadHost", f"spec.upstream.host: {error}.")
        else:
            if not isinstance(upstream, str) and upstream.num_addresses > 1:
                yield target.problem("BadHost", f"spec.upstream.host: {spec.upstream.host} is no single address.")
    elif parsed and upstream_host(parsed) is None:
        yield target.problem("NoUpstream", "spec.upstream.host: needed, because spec.hosts names only networks.")
    if spec.credential is None:
        kinds = ", ".join(kind for kind, protocols in credential.PROTOCOLS.items() if spec.protocol in protocols)
        yield target.problem("NoCredential", f"spec.credential: missing; name one of {kinds}.")
    else:
        for reason, message in credential.problems(spec.credential, spec.protocol):
            yield target.problem(reason, message)
    for field, name in _secret_names(spec):
        if not _OBJECT_NAME.fullmatch(name):
            yield target.problem("BadSecretName", f"{field}: {name!r} is no name of a Secret.")
    for reason, message in masks.classified_problems(spec):
        yield target.problem(reason, message)
    for reason, message in hostkeys.problems(spec):
        yield target.problem(reason, message)
    if spec.tls.mode == "Disable" and spec.protocol != "SSH":
        yield target.problem(
            "TlsDisabled",
            "spec.tls.mode: Disable sends credentials and data in the clear and cannot tell whom it talks to.",
            is_blocking=False,
        )
    allowed = spec.allowed_namespaces
    if not allowed.names and allowed.selector is None:
        yield target.problem(
            "NoNamespaceAllowed",
            "spec.allowedNamespaces: empty, so no namespace may use this target; give names or a selector.",
            is_blocking=False,
        )


def _secret_names(spec: TargetSpec) -> Iterator[tuple[str, str]]:
    """The Secrets that a target names, with their fields."""
    if spec.credential is not None:
        yield from credential.secret_names(spec.credential)
    if spec.tls.ca_secret_ref is not None:
        yield "spec.tls.caSecretRef.name", spec.tls.ca_secret_ref.name


def upstream_host(hosts: Sequence[str | Network]) -> str | None:
    """The host to connect to when a target names none: its first that is one name or one address."""
    for host in hosts:
        if isinstance(host, str):
            return host
        if host.num_addresses == 1:
            return str(host.network_address)
    return None


def admits(target: Target, namespace: str, labels: Mapping[str, str]) -> bool:
    """Whether a target may be granted in a namespace with these labels."""
    allowed = target.spec.allowed_namespaces
    return namespace in allowed.names or (allowed.selector is not None and allowed.selector.admits(labels))


def claim_problems(targets: Iterable[Target]) -> Iterator[Problem]:
    """Targets of one namespace that claim the same host and port: the later name has the problem."""
    names: dict[tuple[str, int], Target] = {}
    networks: list[tuple[Network, int, Target]] = []
    for target in sorted(targets, key=lambda target: target.name):
        port = target.spec.port or PORTS[target.spec.protocol]
        for host in dict.fromkeys(map(parse_host, target.spec.hosts)):
            if isinstance(host, str):
                other = names.setdefault((host, port), target)
                if other is not target:
                    yield _claimed(target, f"{host}:{port}", other)
            else:
                for network, network_port, owner in networks:
                    if owner is not target and port == network_port and _overlap(network, host):
                        yield _claimed(target, f"{host} port {port}", owner)
                networks.append((host, port, target))
    if len(names) > MAX_HOSTS:
        last = max(names.values(), key=lambda target: target.name)
        yield last.problem("TooManyHosts", f"More than {MAX_HOSTS} hosts are admitted to one namespace.")


def policy_problems(policy: Policy, world: World) -> Iterator[Problem]:
    """Problems of one AccessPolicy in its namespace."""
    if not policy.spec.subjects:
        yield policy.problem("NoSubjects", "spec.subjects: empty, so the policy applies to nobody; name an identity.")
    for index, subject in enumerate(policy.spec.subjects):
        if subject.identity not in world.identities:
            yield _unknown_identity(policy, index, subject.identity, world)
    if world.delegating.isdisjoint(subject.identity for subject in policy.spec.subjects):
        for index, rule in enumerate(policy.spec.rules):
            if rule.match.require is not None and rule.match.require.user_groups is not None:
                yield policy.problem(
                    "RuleNeverFires",
                    f"spec.rules[{index}].match.require.userGroups: none of the policy's subjects acts on behalf of a "
                    "user, so the rule can never fire; give the AgentIdentity spec.delegation.",
                )
    if not policy.spec.targets:
        yield policy.problem("NoTargets", "spec.targets: empty, so the policy applies to nothing; name a target.")
    for index, named in enumerate(policy.spec.targets):
        at = f"spec.targets[{index}].name"
        yield from _target_problems(policy, at, named.name, world)
        if named.name in world.targets and named.name not in world.admitted:
            yield policy.problem(
                "NamespaceNotAllowed",
                f"{at}: AccessTarget {named.name} does not admit namespace {world.namespace}; "
                "its spec.allowedNamespaces must name the namespace.",
            )
    yield from rules_problems(policy, [named.name for named in policy.spec.targets], world)


def cluster_policy_problems(policy: ClusterPolicy, world: World) -> Iterator[Problem]:
    """Problems of one ClusterAccessPolicy, as seen from one namespace."""
    if not policy.spec.subjects:
        yield policy.problem("NoSubjects", "spec.subjects: empty, so the policy applies to nobody; `*` names all.")
    for index, subject in enumerate(policy.spec.subjects):
        name = subject.identity
        if subject.namespace == world.namespace and name not in {None, WILDCARD, *world.identities}:
            yield _unknown_identity(policy, index, str(name), world)
    yield from _subject_problems(policy)
    if not policy.spec.targets:
        yield policy.problem("NoTargets", "spec.targets: empty, so the policy applies to nothing; `*` names all.")
    for index, named in enumerate(policy.spec.targets):
        if named.name != WILDCARD:
            yield from _target_problems(policy, f"spec.targets[{index}].name", named.name, world)
    yield from rules_problems(policy, [named.name for named in policy.spec.targets], world)


def cluster_policy_alone(policy: ClusterPolicy) -> Iterator[Problem]:
    """Problems of one ClusterAccessPolicy wherever it is seen from."""
    yield from _subject_problems(policy)
    yield from rules_problems(policy, (), NOWHERE)


def _subject_problems(policy: ClusterPolicy) -> Iterator[Problem]:
    for index, subject in enumerate(policy.spec.subjects):
        at = f"spec.subjects[{index}]"
        if (subject.identity is None) == (subject.identity_selector is None):
            yield policy.problem("BadSubject", f"{at}: name identity or identitySelector, one of them; `*` names all.")
        if subject.namespace is not None and subject.namespace_selector is not None:
            yield policy.problem("BadSubject", f"{at}: name namespace or namespaceSelector, not both.")
        for field, selector in (
            ("identitySelector", subject.identity_selector),
            ("namespaceSelector", subject.namespace_selector),
        ):
            if selector is not None and selector.is_empty:
                yield policy.problem(
                    "EmptySelector", f"{at}.{field}: selects all; name labels, or write `*` as a name."
                )


def rules_problems[S: (PolicySpec, ClusterPolicySpec)](
    policy: Document[S], targets: Sequence[str], world: World
) -> Iterator[Problem]:
    """Problems of a policy's rules, limits and masks; its tests are run when there are none."""
    found = list(_sound_problems(policy, targets, world))
    yield from found
    if not found and policy.spec.subjects and policy.spec.targets:
        yield from (policy.problem(reason, message) for reason, message in prove.problems(policy.spec))


def _sound_problems[S: (PolicySpec, ClusterPolicySpec)](
    policy: Document[S], targets: Sequence[str], world: World
) -> Iterator[Problem]:
    spec = policy.spec
    rules = spec.rules
    protocols: set[str] = {world.targets[name].spec.protocol for name in targets if name in world.targets}
    if spec.limits is not None:
        for reason, message in limits.problems(spec.limits):
            yield policy.problem(reason, message)
    for reason, message in masks.problems(spec, protocols):
        yield policy.problem(reason, message)
    for reason, message in window.problems(spec.windows, "spec.windows"):
        yield policy.problem(reason, message)
    if spec.mode == "Observe" and not rules:
        yield policy.problem("NothingToObserve", "spec.mode: Observe is about rules, and there are none; add some.")
    if spec.rego is not None:
        try:
            rego.check(spec.rego)
        except rego.BadRego as error:
            yield policy.problem("BadRego", f"spec.rego: {error}.")
    if not rules and all(one is None for one in (spec.limits, spec.masks, spec.unmaskable, spec.rego)):
        yield policy.problem("NoRules", "spec.rules: empty; a policy without rules, limits and masks says nothing.")
    if len(rules) > MAX_RULES:
        yield policy.problem("TooManyRules", f"spec.rules: more than {MAX_RULES}; split the policy.")
    for name, count in Counter(rule.name for rule in rules).items():
        if count > 1:
            yield policy.problem(
                "DuplicateRule", f"spec.rules: {count} rules are named {name!r}; names must be unique."
            )
    for index, test in enumerate(spec.tests or ()):
        target = world.targets.get(test.target or (spec.targets[0].name if spec.targets else ""))
        if test.sql is not None and target is not None and target.spec.protocol != "PostgreSQL":
            yield policy.problem(
                "BadTest",
                f"spec.tests[{index}].sql: is read as PostgreSQL reads it, and target {target.name!r} speaks "
                f"{target.spec.protocol}; write accesses.",
            )
    for index, rule in enumerate(rules):
        at = f"spec.rules[{index}]"
        for reason, message in _rule_problems(rule):
            yield policy.problem(reason, f"{at}{message}")
        yield from _unreachable(policy, at, rule, protocols)
        if window.never_meet(spec.windows, rule.windows):
            yield policy.problem(
                "RuleNeverFires", f"{at}.windows: never within the windows of the policy, so the rule can never fire."
            )
        for other in rules:
            if _shadows(other, rule):
                yield policy.problem(
                    "RuleNeverFires",
                    f"{at}: {rule.action} rule {rule.name!r} can never fire; "
                    f"Deny rule {other.name!r} of this policy matches everything that it matches.",
                )


def _rule_problems(rule: Rule) -> Iterator[tuple[str, str]]:
    match = rule.match
    if not _RULE_NAME.fullmatch(rule.name):
        yield (
            "BadRuleName",
            ".name: 1 to 63 letters, digits, '.', '_' or '-', beginning and ending with a letter or digit.",
        )
    if not match.effects:
        yield "NoEffects", f".match.effects: empty, so rule {rule.name!r} can never fire; name effects."
    for index, effect in enumerate(match.effects):
        if effect not in EFFECTS and effect != WILDCARD:
            known = ", ".join(sorted(EFFECTS))
            yield "UnknownEffect", f".match.effects[{index}]: {effect!r} is no effect; known are {known} and *."
    if match.objects is not None and not match.objects:
        yield "NoObjects", ".match.objects: empty, so the rule can never fire; leave it out to mean every object."
    if match.objects is not None and len(match.objects) > MAX_OBJECTS:
        yield "TooManyObjects", f".match.objects: more than {MAX_OBJECTS}."
    for index, pattern in enumerate(match.objects or ()):
        try:
            glob.check(pattern)
        except glob.BadPattern as error:
            yield "BadPattern", f".match.objects[{index}]: {pattern!r}: {error}."
    yield from require.problems(match, rule.action)
    yield from window.problems(rule.windows, ".windows")
    if rule.action == Action.REQUIRE_APPROVAL and rule.approval is None:
        yield "NoApprover", ".approval: missing, so nobody could approve; say which groups may."
    elif rule.approval is not None:
        if rule.action != Action.REQUIRE_APPROVAL:
            yield "UnusedApproval", f".approval: an {rule.action} rule asks nobody; write action RequireApproval."
        for reason, message in approvals.problems(rule.approval):
            yield reason, f".{message}"
    if len(rule.message) > MAX_MESSAGE or not rule.message.isprintable():
        yield "BadMessage", f".message: at most {MAX_MESSAGE} printable characters on one line."


def _unreachable[S: (PolicySpec, ClusterPolicySpec)](
    policy: Document[S], at: str, rule: Rule, protocols: set[str]
) -> Iterator[Problem]:
    if not protocols or not protocols <= REACHABLE.keys():
        return
    for effect in sorted(meant(rule.match.effects) & EFFECTS):
        if effect in rule.match.effects and not any(effect in REACHABLE[protocol] for protocol in protocols):
            names = " and ".join(sorted(protocols))
            yield policy.problem(
                "EffectNotReachable", f"{at}.match.effects: no command of {names} has the effect {effect}."
            )
    for index, pattern in enumerate(rule.match.objects or ()):
        if all(_has_no_such_object(protocol, pattern, rule.match.effects) for protocol in protocols):
            names = " and ".join(sorted(protocols))
            yield policy.problem(
                "ObjectNotReachable",
                f"{at}.match.objects[{index}]: nothing of {names} is called {pattern!r}; write "
                f"{'; or '.join(FORMS[protocol] for protocol in sorted(protocols))}.",
            )


def _has_no_such_object(protocol: str, pattern: str, effects: tuple[str, ...]) -> bool:
    parts = pattern.split(".")
    if protocol in PARTS and "read_sensitive" in meant(effects) and len(parts) == PARTS[protocol] + 1:
        return False  # a classified column
    return (
        protocol in PARTS
        and all(parts)
        and len(parts) != PARTS[protocol]
        and "*" not in parts[0]
        and ":" not in parts[0]
    )


def _shadows(deny: Rule, rule: Rule) -> bool:
    """Whether `deny` matches everything that a milder `rule` matches, at all times."""
    if deny.action != Action.DENY or rule.action == Action.DENY or not rule.match.effects or deny.windows:
        return False
    if not meant(rule.match.effects) <= meant(deny.match.effects):
        return False
    if deny.match.objects is None:
        return True
    return rule.match.objects is not None and all(
        any(glob.covers(wide, narrow) for wide in deny.match.objects) for narrow in rule.match.objects
    )


def _target_problems[S: (PolicySpec, ClusterPolicySpec)](
    policy: Document[S], at: str, name: str, world: World
) -> Iterator[Problem]:
    if name in world.broken_targets:
        yield policy.problem("TargetNotUsable", f"{at}: AccessTarget {name} has problems of its own; see its status.")
    elif name not in world.targets:
        yield policy.problem("UnknownTarget", f"{at}: there is no AccessTarget {name!r}.")


def _unknown_identity[S: (PolicySpec, ClusterPolicySpec)](
    policy: Document[S], index: int, name: str, world: World
) -> Problem:
    return policy.problem(
        "UnknownIdentity",
        f"spec.subjects[{index}].identity: namespace {world.namespace} has no AgentIdentity {name!r}.",
    )


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _claimed(target: Target, what: str, owner: Target) -> Problem:
    return target.problem("HostClaimedTwice", f"spec.hosts: {what} is already claimed by AccessTarget {owner.name}.")
