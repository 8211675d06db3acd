"""Flows: the few combinations of namespace, identity, target and protocol that records share.

Everything that a label can say, and most of what fields can, is a property of the flow; so a selector is answered by
choosing flows first and reading only their records.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from chaperone_collector.api.selector import Requirement, Term
from chaperone_collector.database import Connection

LABELS: Final = {
    "chaperone.dev/identity": "identity", "chaperone.dev/target": "target", "chaperone.dev/protocol": "protocol",
}  # fmt: skip
_FIELDS: Final = {
    "metadata.namespace": "namespace", "spec.identity": "identity", "spec.target": "target",
    "spec.protocol": "protocol",
}  # fmt: skip
_LABEL_VALUE: Final = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?\Z")


class Flow(msgspec.Struct, frozen=True):
    """One row of the table."""

    id: int
    namespace: str
    identity: str
    target: str
    protocol: str

    def labels(self) -> dict[str, str]:
        """The labels of every object of the flow; what is no label value is left out."""
        found = {label: getattr(self, attribute) for label, attribute in LABELS.items()}
        return {label: value for label, value in found.items() if _LABEL_VALUE.match(value)}


class Flows:
    """All flows; the table only grows, so what was read stays true."""

    def __init__(self) -> None:
        self._known: dict[int, Flow] = {}

    def all(self, connection: Connection) -> dict[int, Flow]:
        """The flows that this connection sees. Safe in several threads: a dict is replaced, never changed."""
        known = self._known
        last = max(known, default=0)
        rows = connection.execute(
            "SELECT id, namespace, identity, target, protocol FROM flow WHERE id > ? ORDER BY id", (last,)
        ).fetchall()
        if rows:
            known = {**known, **{row[0]: Flow(*row) for row in rows}}
            self._known = known
        return known


def choose(
    flows: Iterable[Flow], namespace: str, labels: tuple[Requirement, ...], fields: tuple[Term, ...]
) -> list[Flow]:
    """The flows that fit; terms about other fields are left to the caller."""
    terms = [(term, _FIELDS[term.field]) for term in fields if term.field in _FIELDS]
    return [
        flow
        for flow in flows
        if namespace in ("", flow.namespace)
        and all(term.holds(getattr(flow, attribute)) for term, attribute in terms)
        and (not labels or _fits(flow.labels(), labels))
    ]


def _fits(found: dict[str, str], labels: tuple[Requirement, ...]) -> bool:
    return all(requirement.holds(found) for requirement in labels)
