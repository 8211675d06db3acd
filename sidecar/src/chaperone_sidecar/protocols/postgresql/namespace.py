"""What the names of one session stand for at the backend, and what the texts that go there do to them.

Prepared statements and portals are made by messages of the protocol and by SQL, cursors by SQL alone. `follow` takes a
text when it is sent, statement by statement, and says how the results of its statements are masked: a FETCH shows the
rows of the cursor that has the name at that place of the text.

Code that a text runs may close a cursor or a portal and open another of the same name. Where results are masked no
such name is known afterwards, but for the portal that ran the code: the server does not close one that is active.
"""

from __future__ import annotations

from typing import Final

from chaperone_sidecar.protocols.postgresql.classify import Classified
from chaperone_sidecar.protocols.postgresql.classify import Statement as Parsed
from chaperone_sidecar.protocols.postgresql.plan import UNPLANNED, Plan
from chaperone_sidecar.protocols.postgresql.prepared import Change, Names, Portal, Statement
from chaperone_sidecar.protocols.postgresql.reading import runs_code

_STATEMENTS: Final = frozenset({"prepare", "deallocate"})
_TRANSACTION_ENDS: Final = frozenset({"commit", "rollback"})


class Namespace:
    """The names of one session."""

    def __init__(self) -> None:
        self.statements: Names[Statement] = Names()
        self.portals: Names[Portal] = Names()
        self.cursors: Names[Plan] = Names()
        """Made by DECLARE; followed where results are masked."""
        self.is_masked = False

    def clear(self) -> None:
        """A text ran that nobody has read."""
        self.statements.clear()
        self.portals.clear()
        self.cursors.clear()

    def follow(
        self, classified: Classified, segment: int, active: Portal | None = None
    ) -> tuple[tuple[Plan, ...], tuple[Change[Plan], ...]]:
        """A text goes upstream: forget what it may change, and note the cursors that it declares.

        The names of the cursors that it reads have to be settled (`fetched`).

        Args:
            classified: the text.
            segment: in which it is sent.
            active: the portal that runs it.

        Returns:
            The plans of the results of its statements, and the cursors that it declares; none where nothing is masked.
        """
        if not (self.is_masked or classified.changes_names or classified.changes_portals):
            return (), ()
        has_code = self.is_masked and runs_code(classified.facts)  # where in the text is not known
        if has_code:
            self._forget_what_code_may_change(active)
        plans: list[Plan] = []
        cursors: list[Change[Plan]] = []
        for index, statement in enumerate(classified.statements):
            plan = classified.plans[index] if index < len(classified.plans) else UNPLANNED
            self._forget(statement)
            if statement.kind == "declare" and self.is_masked and not has_code:
                cursors.append(self.cursors.send(statement.name.encode(), plan, segment))
            elif statement.kind == "fetch" and self.is_masked:
                plan = UNPLANNED if has_code else self._of_cursor(statement.name)
                if self._may_run_code(statement.name):
                    self._forget_what_code_may_change(active)
            plans.append(plan)
        return tuple(plans) if self.is_masked else (), tuple(cursors)

    def _forget(self, statement: Parsed) -> None:
        kind, name = statement.kind, statement.name
        if kind in _STATEMENTS:
            self.statements.forget(name)
        elif kind == "declare":
            self.portals.forget(name)
        elif kind == "close":
            self.portals.forget(name)
            self.cursors.forget(name)
        elif kind in _TRANSACTION_ENDS:  # drops all portals
            self.portals.clear()
            self.cursors.keep(lambda plan: plan.is_held)
        elif kind == "discard" and name == "all":
            self.clear()

    def _forget_what_code_may_change(self, active: Portal | None) -> None:
        self.cursors.clear()
        self.portals.keep(lambda portal: portal is active)

    def _of_cursor(self, name: str) -> Plan:
        """The plan of what FETCH reads: a portal of the protocol, or a cursor that DECLARE made."""
        key = name.encode()
        portal, cursor = self.portals.find(key), self.cursors.find(key)
        if portal is not None:
            answer = portal.statement.answer
            return answer.plan if cursor is None and answer is not None else UNPLANNED
        return cursor or UNPLANNED

    def _may_run_code(self, name: str) -> bool:
        """Whether reading the cursor may: what is known of DECLARE alone was declared by a text without any."""
        portal = self.portals.find(name.encode())
        if portal is not None:
            return runs_code(portal.statement.classified.facts)
        return self.cursors.find(name.encode()) is None


def fetched(classified: Classified) -> tuple[bytes, ...]:
    """The names of the cursors that a text reads."""
    return tuple(statement.name.encode() for statement in classified.statements if statement.kind == "fetch")
