"""What stands between a command and the server: it is read, decided, held for people, and recorded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Final

import msgspec

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Action, Decision, changed_meanwhile
from chaperone_sidecar.effects import Admit, Ask, Effects, Hold, Intend, Intent, Offload, ToClient
from chaperone_sidecar.errors import ProtocolError, SpoolFull, Unwitnessed
from chaperone_sidecar.protocols.mysql import answers
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.classify import Classified, classify
from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.pinned import Pinned
from chaperone_sidecar.protocols.mysql.plan import Result
from chaperone_sidecar.protocols.mysql.prepared import preview
from chaperone_sidecar.protocols.mysql.reading import Reader, changed_reading, question
from chaperone_sidecar.protocols.mysql.upstream_side import UpstreamSide

type Apart = Callable[[Callable[[], Classified]], Awaitable[Classified]]

INLINE_BYTES: Final = 2 << 10  # a longer text takes more than 9 ms to be read


class Gate:
    """See the module. `pinned` is there once the session is open.

    Args:
        reader: of the target.
        upstream: of the session.
        apart: does work elsewhere than on the event loop.
    """

    def __init__(self, reader: Reader, upstream: UpstreamSide, apart: Apart) -> None:
        self._reader = reader
        self._upstream = upstream
        self._apart = apart
        self.pinned: Pinned | None = None
        self.revision = ""  # of the policy by which the last command was admitted
        self._is_opaque = False  # whether all that the last command shows is redacted

    @property
    def reads(self) -> Pinned:
        """How the session reads texts.

        Raises:
            ProtocolError: it is not open.
        """
        if self.pinned is None:
            raise ProtocolError("The session has not started.")
        return self.pinned

    def classify(self, text: bytes) -> Effects[Classified]:
        """What a text would do."""
        if self.reads.is_changed:
            return Classified(changed_reading(), is_unknown=True)
        context = self.reads.context
        if len(text) <= INLINE_BYTES:
            return _classified(text, context)
        read: Classified = yield Offload(lambda: self._apart(partial(classify, text, context)))
        return read

    def admit(
        self,
        kind: str,
        text: bytes,
        classified: Classified,
        params: bytes = b"",
        values: list[bytes | None] | None = None,
        allowed: str = "",
    ) -> Effects[Intent | None]:
        """Decide on a command and record it; None where it was refused, and the client has heard so.

        `allowed` is the revision of policy by which that was allowed which the command goes on with, "" for none: by
        the same one people are not asked again.
        """
        if self.reads.is_changed:
            classified = Classified(changed_reading(), is_unknown=True)
        command = self._reader.command(kind, text, classified, params, in_transaction=self._upstream.is_in_transaction)
        decision = yield from self._decide(command, classified, values or [], allowed)
        intent = yield from self.intend(command, decision)
        if isinstance(intent, m.Err):
            yield from self.say(intent)
            return None
        if decision.action is not Action.ALLOW:
            yield from self.say(answers.refusal(decision, command))
            return None
        self.revision = decision.revision
        return intent

    def result(self, classified: Classified) -> Result:
        """How what the text shows that was admitted last is masked."""
        if self._is_opaque:
            return Result(is_opaque=True)
        columns = self._reader.columns
        return columns.result(classified.plan) if columns is not None else Result()

    def intend(self, command: Command, decision: Decision) -> Effects[Intent | m.Err]:
        """Record what is about to happen; an error when it cannot be recorded, and then it must not happen."""
        try:
            intent: Intent = yield Intend(command, decision)
        except (SpoolFull, Unwitnessed) as error:
            return answers.unrecorded(error)
        return intent

    def say(self, error: m.Err) -> Effects[None]:
        """Answer with an error of the gateway's own."""
        if self._upstream.tape is not None:
            self._upstream.tape.begin("")
            self._upstream.tape.message("ERROR", error.message, error.sqlstate)
        yield ToClient(m.packet(1, error.encode()))

    def _decide(
        self, command: Command, classified: Classified, values: list[bytes | None], allowed: str
    ) -> Effects[Decision]:
        decision: Decision = yield Ask(command)
        if decision.action is Action.DENY:
            return decision
        why = yield from self._unmaskable(classified)
        if why:
            return answers.unmaskable(why, decision)
        if decision.action is Action.REQUIRE_APPROVAL:
            # What is prepared does not run yet, and its parameters are not known.
            if not command.is_preparing and decision.revision != allowed:
                if allowed:
                    return answers.superseded(decision)
                return (yield from self._hold(command, decision, classified, values))
            decision = msgspec.structs.replace(decision, action=Action.ALLOW, message="")
        return decision if command.is_preparing else (yield Admit(command, decision))

    def _hold(
        self, command: Command, decision: Decision, classified: Classified, values: list[bytes | None]
    ) -> Effects[Decision]:
        """Ask people, and then policy again: it may have changed meanwhile. Limits are asked by `Hold`."""
        if command.shown_text is None:
            shown = preview(command.text, values)
        else:
            shown = preview(command.shown_text, self._reader.shown_values(command, values))
        held: Decision = yield Hold(command, decision, shown)
        if held.action is not Action.ALLOW:
            return held
        fresh: Decision = yield Ask(command, is_approved=True)
        why = yield from self._unmaskable(classified)
        if why:
            return answers.unmaskable(why, fresh)
        return held if fresh == decision else changed_meanwhile(held, fresh)

    def _unmaskable(self, classified: Classified) -> Effects[str]:
        tables = self._reader.asks_views(classified)
        views: list[str] = []
        if tables:
            rows = yield from self.reads.ask(question(tables))
            if rows.error is not None:
                return "the database does not say which of its tables are views."
            views = [f"{schema}.{name}" for schema, name in rows.rows]
        self._is_opaque = self._reader.is_opaque(classified, views)
        return self._reader.unmaskable(classified, views)


@lru_cache(maxsize=512)
def _classified(text: bytes, context: Context) -> Classified:
    return classify(text, context)
