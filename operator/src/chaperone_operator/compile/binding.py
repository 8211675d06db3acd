"""A policy, bound to what it names in one namespace."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import msgspec

from chaperone_operator.compile.model import KINDS, ClusterPolicy, ClusterPolicySpec, Identity, Policy, PolicySpec
from chaperone_operator.compile.problem import Problem
from chaperone_operator.compile.vocabulary import WILDCARD


class Binding(msgspec.Struct, frozen=True):
    """One policy, bound to one identity and one target of the namespace; `namespace` is "" of a cluster policy."""

    identity: str
    target: str
    namespace: str
    name: str
    spec: PolicySpec | ClusterPolicySpec

    @property
    def policy(self) -> str:
        """The policy as it is reported: `namespace/name`, or `name` of a cluster policy."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    @property
    def is_cluster(self) -> bool:
        """Whether it is a ClusterAccessPolicy."""
        return isinstance(self.spec, ClusterPolicySpec)

    def problem(self, reason: str, message: str) -> Problem:
        """A problem of the policy."""
        return Problem(KINDS[type(self.spec)], self.namespace, self.name, reason, message)


def bind(policies: Iterable[Policy]) -> Iterator[Binding]:
    """Policies of one namespace, bound to what they name."""
    for policy in policies:
        for identity in {subject.identity for subject in policy.spec.subjects}:
            for target in {named.name for named in policy.spec.targets}:
                yield Binding(identity, target, policy.namespace, policy.name, policy.spec)


def bind_cluster(
    policies: Iterable[ClusterPolicy],
    namespace: str,
    labels: Mapping[str, str],
    identities: Collection[Identity],
    targets: Collection[str],
) -> Iterator[Binding]:
    """Policies of the cluster, bound to those identities and targets of a namespace that they mean.

    Args:
        policies: of the whole cluster.
        namespace: the namespace, and its labels.
        labels: see `namespace`.
        identities: of the namespace.
        targets: those that admit the namespace; another one is no matter of it, whoever names it.
    """
    for policy in policies:
        here = [one for one in policy.spec.subjects if one.is_of(namespace, labels)]
        named = {one.name for one in policy.spec.targets}
        for identity in identities:
            if not any(subject.means(identity) for subject in here):
                continue
            for target in targets:
                if target in named or WILDCARD in named:
                    yield Binding(identity.name, target, "", policy.name, policy.spec)
