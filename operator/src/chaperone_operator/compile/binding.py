"""A policy, bound to what it names in one namespace."""

from __future__ import annotations

import msgspec

from chaperone_operator.compile.model import KINDS, ClusterPolicySpec, PolicySpec
from chaperone_operator.compile.problem import Problem


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
