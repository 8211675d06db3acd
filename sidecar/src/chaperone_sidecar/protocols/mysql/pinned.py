"""How a session reads texts: what it is pinned to, and the gateway's own questions that keep it so.

A session begins with utf8mb4 and an sql_mode that changes no reading. Code that ran may have changed that, and so may
what nobody could read: then the server is asked before the next command, and where it is no longer so, nothing that
follows is known. COM_RESET_CONNECTION forgets it: then it is pinned anew.
"""

from __future__ import annotations

import msgspec

from chaperone_sidecar.effects import Effects, Receipt, ToUpstream, Wait
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.classify import Classified
from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.upstream import PIN_NAMES, STATE, Rows, set_mode
from chaperone_sidecar.protocols.mysql.upstream_side import Step, UpstreamSide
from chaperone_sidecar.protocols.mysql.utility import changes_reading


class Pinned:
    """One session's.

    Args:
        upstream: the server's half of the session.
        receipt: of the session's opening.
        told: what the log-in found out.
    """

    def __init__(self, upstream: UpstreamSide, receipt: Receipt, told: dict[str, str]) -> None:
        self._upstream = upstream
        self._receipt = receipt
        self._sql_mode = told["sql_mode"]
        self._must_check = False
        self._must_pin = False
        self.context = Context(told["database"], told["folds_tables"] == "1")
        self.is_changed = False
        """Whether the session reads otherwise now, so that no text is known any more."""

    def follow(self, classified: Classified) -> None:
        """A text goes upstream."""
        self._must_check |= classified.may_change_session

    def use(self, database: str) -> None:
        """Another database is that of names without one."""
        self.context = msgspec.structs.replace(self.context, database=database)

    def forget(self) -> None:
        """The server has reset the session."""
        self._must_pin = True

    def settle(self) -> Effects[None]:
        """Make sure that the next text is read as it will be."""
        if self._must_pin:
            self._must_pin = False
            yield from self._run(PIN_NAMES, Step("hidden"))
            yield from self._run(set_mode(self._sql_mode), Step("hidden"))
            self._must_check = True
        if self._must_check and not self.is_changed:
            self._must_check = False
            rows = yield from self.ask(STATE)
            self.is_changed = rows.error is not None or len(rows.rows) != 1 or self._is_other(rows.rows[0])

    def ask(self, statement: str) -> Effects[Rows]:
        """Ask the server something, between two commands of the client."""
        rows = Rows()
        yield from self._run(statement, Step("hidden", asked=rows))
        return rows

    def absorb(self) -> Effects[None]:
        """Let a kill that came too late hit a statement of the gateway's own."""
        yield from self.ask("SELECT 0")

    def _is_other(self, state: list[str]) -> bool:
        mode, _, client, results, database, collation = state
        self.use(database)
        has_names = (client, results) == ("utf8mb4", "utf8mb4") and collation.startswith("utf8mb4")
        return changes_reading(mode) or not has_names

    def _run(self, statement: str, step: Step) -> Effects[None]:
        self._upstream.begin(step)
        yield ToUpstream(m.packet(0, bytes((m.COM_QUERY,)) + statement.encode()), self._receipt)
        yield Wait(lambda: not self._upstream.is_busy)
