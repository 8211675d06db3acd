"""One namespace, compiled: what its gateways, their OPA and the broker work with, under one revision.

`compile_namespace` is a pure function of the objects: the same objects in any order give the same bytes. When anything
that the namespace depends on has a blocking problem there are no bytes at all, and the last good snapshot stays.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Final

import msgspec

from chaperone_operator.compile import approvals, check, delegation, grants, limits, masks, recording, rego
from chaperone_operator.compile.address import VirtualHost, parse_host, virtual_hosts
from chaperone_operator.compile.binding import bind, bind_cluster
from chaperone_operator.compile.credential import MADE_PER_SESSION, Credential, Place, reference
from chaperone_operator.compile.model import (
    ClusterPolicy,
    ClusterPolicySpec,
    Document,
    Identity,
    IdentitySpec,
    Policy,
    PolicySpec,
    Suspension,
    Target,
    TargetSpec,
    decode,
)
from chaperone_operator.compile.problem import Problem
from chaperone_operator.compile.vocabulary import PORTS, Action

MAX_SNAPSHOT_BYTES: Final = 900_000  # a ConfigMap holds 1 MiB; the rest is room for its metadata
REVISION_DIGITS: Final = 16
NONE: Final = b"{}"
OWN: Final = "chaperone/own/"  # where the bundle has policies' own Rego

type Json = Mapping[str, Any]


class Snapshot(msgspec.Struct, frozen=True):
    """The compiled policy of one namespace.

    Attributes:
        revision: 16 hex digits; "" when there is a blocking problem.
        bundle: OPA bundle (tar.gz).
        gateway: JSON, identity name → GatewayConfig.
        leases: JSON, identity name → target name → `{"secret", "ca_secret"}`: what the broker may hand out.
        approvals: JSON, policy/rule → the approval that the rule asks for.
        problems: all that was found, notes included, in the order of the objects.
    """

    revision: str
    bundle: bytes
    gateway: bytes
    leases: bytes
    approvals: bytes
    problems: tuple[Problem, ...]

    @property
    def is_usable(self) -> bool:
        """Whether this snapshot may replace the last one."""
        return bool(self.revision)

    def binary_data(self) -> dict[str, str]:
        """`binaryData` of the ConfigMap that carries the snapshot to the broker."""
        files = {"bundle.tar.gz": self.bundle, "gateway.json": self.gateway, "leases.json": self.leases}
        if self.approvals != NONE:
            files["approvals.json"] = self.approvals
        return {name: base64.b64encode(content).decode("ascii") for name, content in files.items()}


def compile_namespace(
    namespace: str,
    identities: Iterable[Json],
    targets: Iterable[Json],
    policies: Iterable[Json],
    cluster_policies: Iterable[Json],
    *,
    namespace_labels: Mapping[str, str],
    system_namespace: str = "chaperone-system",
) -> Snapshot:
    """Compile all policy of one namespace.

    Args:
        namespace: the namespace; identities and policies of others are passed over.
        identities: AgentIdentities, as the API gives them.
        targets: all AccessTargets of the cluster.
        policies: AccessPolicies.
        cluster_policies: all ClusterAccessPolicies.
        namespace_labels: labels of the Namespace, for `allowedNamespaces.selector`.
        system_namespace: where Chaperone runs; told to the gateways.
    """
    own_identities, bad_identities = _decoded(_of(namespace, identities), IdentitySpec)
    own_policies, bad_policies = _decoded(_of(namespace, policies), PolicySpec)
    all_cluster, bad_cluster = _decoded(cluster_policies, ClusterPolicySpec)
    all_targets, bad_targets = _decoded(targets, TargetSpec)
    problems = [*bad_identities, *bad_policies, *bad_cluster]
    for identity in own_identities:
        problems += check.identity_problems(identity)

    target_problems = [*bad_targets, *(found for target in all_targets for found in check.target_problems(target))]
    broken = {found.name for found in target_problems if found.is_blocking}
    sound = {target.name: target for target in all_targets if target.name not in broken}
    admitted = {name: target for name, target in sound.items() if check.admits(target, namespace, namespace_labels)}
    problems += check.claim_problems(admitted.values())
    known = {identity.name for identity in own_identities} | {found.name for found in bad_identities}
    acting = {identity.name for identity in own_identities if identity.spec.delegation is not None}
    acting |= {found.name for found in bad_identities}
    world = check.World(namespace, frozenset(known), sound, frozenset(broken), frozenset(admitted), frozenset(acting))
    for policy in own_policies:
        problems += check.policy_problems(policy, world)
    for cluster_policy in all_cluster:
        problems += check.cluster_policy_problems(cluster_policy, world)
    # A broken target blocks through the policies that name it, so its own problems come after this question.
    is_blocked = any(found.is_blocking for found in problems)
    problems += target_problems
    if is_blocked:
        return _unusable(problems)
    compiled = _Compiled(namespace, namespace_labels, own_identities, admitted, own_policies, all_cluster)
    return compiled.snapshot(system_namespace, problems)


class _Compiled:
    """Sound objects of one namespace on their way to bytes."""

    def __init__(
        self,
        namespace: str,
        labels: Mapping[str, str],
        identities: list[Identity],
        targets: dict[str, Target],
        policies: list[Policy],
        cluster_policies: list[ClusterPolicy],
    ) -> None:
        self._identities = sorted(identities, key=lambda identity: identity.name)
        self._targets = dict(sorted(targets.items()))
        self._namespace = namespace
        cluster = bind_cluster(cluster_policies, namespace, labels, self._identities, self._targets)
        bindings = [*bind(policies), *cluster]
        self._bound = [
            grants.Bound(
                one.identity,
                one.target,
                one.policy,
                one.is_cluster,
                rule,
                one.spec.windows or (),
                one.spec.mode == "Observe",
            )
            for one in bindings
            for rule in one.spec.rules
        ]
        self._own = [
            grants.Own(
                one.identity, one.target, one.policy, rego.name(one.policy), one.spec.windows or (),
                one.spec.mode == "Observe",
            )
            for one in bindings
            if one.spec.rego is not None
        ]  # fmt: skip
        self._modules = {
            rego.name(one.policy): rego.module(one.policy, one.spec.rego)
            for one in bindings
            if one.spec.rego is not None
        }
        self._stated: dict[tuple[str, str], list[limits.Stated]] = {}
        self._masking: dict[tuple[str, str], list[PolicySpec | ClusterPolicySpec]] = {}
        for one in bindings:
            pair = (one.identity, one.target)
            if one.spec.limits is not None:
                stated = limits.Stated(one.policy, one.is_cluster, one.spec.limits)
                self._stated.setdefault(pair, []).append(stated)
            self._masking.setdefault(pair, []).append(one.spec)
        self._clashes = list(masks.clashes(bindings))

    def snapshot(self, system_namespace: str, problems: list[Problem]) -> Snapshot:
        if self._clashes:
            return _unusable([*problems, *self._clashes])
        data = {
            "identities": {identity.name: {"suspended": identity.spec.suspended} for identity in self._identities},
            "grants": grants.grants(
                self._bound, {name: target.spec.protocol for name, target in self._targets.items()}, self._own
            ),
        }
        found = build(data, self._gateway(system_namespace), self._leases(), engine(), self._modules, self._approvals())
        size = len(found.bundle) + len(found.gateway) + len(found.leases) + len(found.approvals)
        if size > MAX_SNAPSHOT_BYTES:
            message = f"The namespace's snapshot has {size} bytes, more than {MAX_SNAPSHOT_BYTES}; split the namespace."
            return _unusable([*problems, Problem("Namespace", "", self._namespace, "SnapshotTooLarge", message)])
        return msgspec.structs.replace(found, problems=tuple(sorted(set(problems))))

    def _leases(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Credentials only where something of the identity may pass at the target."""
        suspended = {identity.name for identity in self._identities if identity.spec.suspended}
        leases: dict[str, dict[str, dict[str, Any]]] = {}
        for one in self._bound:
            may_pass = one.rule.action != Action.DENY and not (one.is_observed and one.is_cluster)
            if may_pass and one.identity not in suspended:
                leases.setdefault(one.identity, {})[one.target] = _lease(self._targets[one.target])
        return leases

    def _approvals(self) -> dict[str, Any]:
        stated = (
            (one.policy, one.rule.name, one.rule.approval) for one in self._bound if one.rule.approval is not None
        )
        found: dict[str, Any] = msgspec.to_builtins(approvals.in_force(stated))
        return found

    def _gateway(self, system_namespace: str) -> dict[str, dict[str, Any]]:
        parsed = {name: list(map(parse_host, target.spec.hosts)) for name, target in self._targets.items()}
        virtual = virtual_hosts(host for hosts in parsed.values() for host in hosts if isinstance(host, str))
        targets = {name: _target(target, virtual) for name, target in self._targets.items()}
        return {
            identity.name: {
                "system_namespace": system_namespace,
                "identity": _identity(identity),
                "targets": [
                    described | self._limits(identity.name, name) | self._masks(identity.name, name)
                    for name, described in targets.items()
                ],
            }
            # Absent where there is none, as limits are.
            | ({"delegation": delegation.told(stated)} if (stated := identity.spec.delegation) is not None else {})
            | (suspended(list(targets.values()), identity.spec.suspension) if identity.spec.suspended else {})
            for identity in self._identities
        }

    def _limits(self, identity: str, target: str) -> dict[str, Any]:
        """Absent where there are none: a gateway of a version that knows no limits can read that."""
        found = limits.lowest(self._stated.get((identity, target), ()))
        return {"limits": found} if found else {}

    def _masks(self, identity: str, target: str) -> dict[str, Any]:
        """Absent where nothing is masked, as limits are."""
        found = masks.in_force(self._masking.get((identity, target), ()), self._targets[target].spec.classified)
        return {"masks": found} if found else {}


def build(
    data: dict[str, Any],
    gateway: dict[str, dict[str, Any]],
    leases: dict[str, Any],
    evaluator: bytes,
    modules: Mapping[str, str] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> Snapshot:
    """The bytes of a snapshot, under the revision that its content has.

    Args:
        data: what OPA works with.
        gateway: what gateways are told.
        leases: what the broker may hand out.
        evaluator: the text of the engine.
        modules: policies' own Rego by name.
        asked: the approvals that rules ask for, by `policy/rule`.
    """
    modules, asked = modules or {}, asked or {}
    for config in gateway.values():
        config.pop("revision", None)
    whole = {"data": data, "gateway": gateway, "leases": leases, "engine": evaluator.decode()}
    whole |= {name: part for name, part in (("modules", modules), ("approvals", asked)) if part}
    revision = hashlib.sha256(_json(whole)).hexdigest()[:REVISION_DIGITS]
    for config in gateway.values():
        config["revision"] = revision
    packed = bundle({"revision": revision, **data}, revision, evaluator, modules)
    return Snapshot(revision, packed, _json(gateway), _json(leases), _json(asked), ())


def suspended(targets: Iterable[Json], suspension: Suspension) -> dict[str, Any]:
    """What of a GatewayConfig is another while the identity is suspended.

    No target is left. Where they were is still told, so that who dials one hears why it is refused; limits and masks
    are not, so that nothing that a gateway needs for them keeps it from hearing this.
    """
    places = [{key: value for key, value in one.items() if key not in {"limits", "masks"}} for one in targets]
    return {"targets": [], "suspension": {**msgspec.structs.asdict(suspension), "targets": places}}


def _identity(identity: Identity) -> dict[str, Any]:
    spec = identity.spec
    return {
        "name": identity.name,
        "namespace": identity.namespace,
        "uid": identity.uid,
        "generation": identity.generation,
        "owner": {"name": spec.owner.name, "email": spec.owner.email},
        "team": spec.team,
        "purpose": spec.purpose,
        "durability": spec.evidence.durability,
        **recording.told(spec.evidence),
    }


def _lease(target: Target) -> dict[str, Any]:
    """What the broker is told of a target's credential."""
    spec, authority = target.spec, target.spec.tls.ca_secret_ref
    where = _place(target)
    place = Place(**where["upstream"], tls_mode=spec.tls.mode, server_name=where["tls"]["server_name"])
    return reference(spec.credential or Credential(), authority.name if authority else "", place)


def _target(target: Target, virtual: Mapping[str, VirtualHost]) -> dict[str, Any]:
    spec = target.spec
    hosts = list(dict.fromkeys(map(parse_host, spec.hosts)))
    is_made = spec.credential is not None and not MADE_PER_SESSION.isdisjoint(spec.credential.kinds)
    return {
        "name": target.name,
        "protocol": spec.protocol,
        "port": spec.port or PORTS[spec.protocol],
        "hosts": [msgspec.structs.asdict(virtual[host]) for host in hosts if isinstance(host, str)],
        "addresses": [str(host) for host in hosts if not isinstance(host, str)],
        **_place(target),
        # Absent where one credential serves all sessions: a gateway that knows only those can read that.
        **({"leased_per_session": True} if is_made else {}),
        **({"ssh": msgspec.structs.asdict(spec.ssh)} if spec.ssh is not None else {}),
    }


def _place(target: Target) -> dict[str, Any]:
    """Where a target's connections go."""
    spec = target.spec
    host = spec.upstream.host or check.upstream_host([*map(parse_host, spec.hosts)]) or ""
    port = spec.upstream.port or spec.port or PORTS[spec.protocol]
    return {
        "upstream": {"host": host, "port": port, "database": spec.upstream.database},
        "tls": {"mode": spec.tls.mode, "server_name": spec.tls.server_name or host},
    }


@functools.cache
def engine() -> bytes:
    """The text of the evaluator that every bundle carries."""
    return (resources.files(__package__) / "engine.rego").read_bytes()


def bundle(data: Json, revision: str, evaluator: bytes, modules: Mapping[str, str]) -> bytes:
    """A bundle for OPA (tar.gz): engine, data and policies' own Rego."""
    files = {
        ".manifest": _json({"revision": revision, "roots": ["chaperone"], "rego_version": 1}),
        "chaperone/data.json": _json(data),
        "chaperone/engine.rego": evaluator,
        **{f"{OWN}{name}.rego": text.encode() for name, text in sorted(modules.items())},
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)  # mtime, owner and group are 0 by default
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), compresslevel=9, mtime=0)


def _json(value: object) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _of(namespace: str, items: Iterable[Json]) -> list[Json]:
    return [item for item in items if (item.get("metadata") or {}).get("namespace") == namespace]


def _decoded[S](items: Iterable[Json], spec_type: type[S]) -> tuple[list[Document[S]], list[Problem]]:
    documents: list[Document[S]] = []
    problems: list[Problem] = []
    for item in items:
        document, found = decode(item, spec_type)
        problems += found
        if document is not None:
            documents.append(document)
    return documents, problems


def _unusable(problems: list[Problem]) -> Snapshot:
    return Snapshot("", b"", b"", b"", NONE, tuple(sorted(set(problems))))
