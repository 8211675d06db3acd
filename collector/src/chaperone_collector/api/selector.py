"""Label and field selectors, as kubectl writes them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from chaperone_collector.api.status import bad_request

MAX_SELECTOR_CHARS: Final = 4096
FIELDS: Final = {
    "sessions": (
        "metadata.name", "metadata.namespace", "spec.identity", "spec.target", "spec.protocol", "spec.owner",
        "spec.delegated.subject", "status.state", "status.denied",
    ),
    "commands": (
        "metadata.name", "metadata.namespace", "spec.session", "spec.identity", "spec.target", "spec.decision",
        "spec.rule", "spec.effect", "spec.approval", "spec.subject",
    ),
    "reads": ("metadata.name", "metadata.namespace", "spec.user", "spec.verb", "spec.resource"),
    "checkpoints": ("metadata.name",),
    "populations": ("metadata.name", "metadata.namespace"),
    "evidencereports": ("metadata.name", "spec.kind", "spec.period"),
    "policyrevisions": ("metadata.name", "metadata.namespace", "spec.revision"),
    "coverages": ("metadata.name", "metadata.namespace", "spec.identity", "spec.pod", "status.state"),
}  # fmt: skip

_KEY: Final = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9.]{0,251}[A-Za-z0-9])?/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_VALUE: Final = r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?"
_EQUALS: Final = re.compile(rf"\s*({_KEY})\s*(==|=|!=)\s*({_VALUE})\s*\Z")
_SET: Final = re.compile(rf"\s*({_KEY})\s+(in|notin)\s*\(([^()]*)\)\s*\Z")
_EXISTS: Final = re.compile(rf"\s*(!?)\s*({_KEY})\s*\Z")
_VALUE_ALONE: Final = re.compile(rf"{_VALUE}\Z")


class Requirement(msgspec.Struct, frozen=True):
    """One part of a label selector; all parts must hold."""

    key: str
    operator: Literal["in", "notin", "exists", "absent"]
    values: frozenset[str] = frozenset()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels fits."""
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value is not None and value in self.values
            case "notin":
                return value is None or value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None


class Term(msgspec.Struct, frozen=True):
    """One part of a field selector: the field is, or is not, the value."""

    field: str
    is_equal: bool
    value: str

    def holds(self, value: str) -> bool:
        """Whether an object whose field has this value fits."""
        return (value == self.value) is self.is_equal


def parse_labels(text: str) -> tuple[Requirement, ...]:
    """Read a label selector.

    Raises:
        ApiError: 400, it is not one.
    """
    if len(text) > MAX_SELECTOR_CHARS:
        raise bad_request(f"A selector is at most {MAX_SELECTOR_CHARS} characters long.")
    return tuple(_requirement(part) for part in _split_labels(text)) if text.strip() else ()


def parse_fields(text: str, resource: str) -> tuple[Term, ...]:
    """Read a field selector of one resource.

    Raises:
        ApiError: 400, it is not one, or names a field that cannot be selected.
    """
    if len(text) > MAX_SELECTOR_CHARS:
        raise bad_request(f"A selector is at most {MAX_SELECTOR_CHARS} characters long.")
    return tuple(_term(part, text, resource) for part in _split_fields(text) if part.strip())


def _split_labels(text: str) -> list[str]:
    parts, start, depth = [], 0, 0
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]


def _requirement(part: str) -> Requirement:
    if match := _EQUALS.match(part):
        key, sign, value = match.groups()
        return Requirement(key, "notin" if sign == "!=" else "in", frozenset({value}))
    if match := _SET.match(part):
        key, word, inside = match.groups()
        values = frozenset(value.strip() for value in inside.split(","))
        if all(_VALUE_ALONE.match(value) for value in values):
            return Requirement(key, "in" if word == "in" else "notin", values)
    elif match := _EXISTS.match(part):
        return Requirement(match[2], "absent" if match[1] else "exists")
    raise bad_request(f'unable to parse requirement "{part.strip()}" of the label selector')


def _split_fields(text: str) -> list[str]:
    """Split at commas that no backslash protects."""
    return re.findall(r"(?:\\.|[^,\\])+", text)


def _term(part: str, whole: str, resource: str) -> Term:
    match = re.match(r"((?:\\.|[^=!\\])+)(==|=|!=)((?:\\.|[^=\\])*)\Z", part.strip())
    if match is None:
        raise bad_request(f'invalid field selector "{whole}": cannot understand "{part.strip()}"')
    field, sign, value = match.groups()
    if field not in FIELDS[resource]:
        known = ", ".join(f'"{name}"' for name in FIELDS[resource])
        raise bad_request(
            f'Unable to find "{resource}" that match field selector "{whole}": "{field}" is not a known field '
            f"selector: only {known}"
        )
    return Term(field, sign != "!=", re.sub(r"\\(.)", r"\1", value))
