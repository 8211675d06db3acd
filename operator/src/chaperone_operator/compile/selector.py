"""Kubernetes label selectors, decided here as the API server decides them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class Requirement(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One of `matchExpressions`."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.operator in {"In", "NotIn"}) != bool(self.values):
            raise ValueError("In and NotIn need values, Exists and DoesNotExist take none")

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil this requirement."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class LabelSelector(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """A label selector; the empty one admits everything, as everywhere in Kubernetes."""

    match_labels: dict[str, str] = msgspec.field(default_factory=dict)
    match_expressions: tuple[Requirement, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it selects everything."""
        return not self.match_labels and not self.match_expressions

    def admits(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            requirement.admits(labels) for requirement in self.match_expressions
        )
