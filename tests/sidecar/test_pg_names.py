"""Names of statements, portals and cursors: what the gateway takes them for, beside what a server makes of them.

The server is a model: it takes messages in order, skips after an error up to Sync, and answers. The gateway hears the
answers at any later moment.
"""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from chaperone_sidecar.protocols.postgresql.prepared import Change, Names

NAMES = st.sampled_from([b"", b"a", b"b", b"n" * 63 + b"x", b"n" * 63 + b"y"])

type Answer = tuple[str, Change[int] | None]


class NamesBesideAServer(RuleBasedStateMachine):
    """Sends changes, by protocol and by SQL, and compares what can be relied on."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Names[int] = Names()
        self.segment = 0
        self.value = 0
        self.server: dict[bytes, int | str] = {}
        self.is_skipping = False  # the server, up to Sync
        self.answers: deque[Answer] = deque()
        self.failed_segment = -1  # as the gateway has heard
        self.error_segment = -1

    def _change(self, name: bytes, value: int | None) -> None:
        if self.failed_segment == self.segment:  # the gateway sends no more of this segment
            return
        change = self.names.send(name, value, self.segment)
        key = name[:63]
        fails = value is not None and key and key in self.server
        if self.is_skipping:
            self.answers.append(("skipped", change))
        elif fails:
            self._fail(change)
        else:
            self.server.pop(key, None)
            if value is not None:
                self.server[key] = value
            self.answers.append(("done", change))

    def _fail(self, change: Change[int] | None) -> None:
        self.is_skipping = True
        self.error_segment = self.segment
        self.answers.append(("failed", change))

    @rule(name=NAMES)
    def prepare(self, name: bytes) -> None:
        self.value += 1
        self._change(name, self.value)

    @rule(name=NAMES)
    def close(self, name: bytes) -> None:
        self._change(name, None)

    @rule(name=NAMES.filter(bool), is_made=st.booleans(), is_run=st.booleans())
    def sql(self, name: bytes, is_made: bool, is_run: bool) -> None:
        """DEALLOCATE, and perhaps PREPARE of the same name; perhaps a text of which only the first half runs."""
        if self.failed_segment == self.segment:
            return
        self.names.forget(name[:63].decode())
        if not self.is_skipping and is_run:
            self.server.pop(name[:63], None)
            if is_made:
                self.server[name[:63]] = "made by SQL"

    @rule(is_run=st.booleans())
    def discard(self, is_run: bool) -> None:
        if self.failed_segment == self.segment:
            return
        self.names.clear()
        if not self.is_skipping and is_run:
            self.server.clear()
            self.server[b"a"] = "made by SQL"

    @rule(least=st.integers(0, 20))
    def commit(self, least: int) -> None:
        """Some names go with the transaction."""
        if self.failed_segment == self.segment or self.is_skipping:
            return
        self.names.keep(lambda value: value >= least)
        for name, value in tuple(self.server.items()):
            if isinstance(value, int) and value < least:
                self.server[name] = "made by SQL"

    @rule()
    def fail(self) -> None:
        if not self.is_skipping and self.failed_segment != self.segment:
            self._fail(None)

    @rule()
    def sync(self) -> None:
        self.is_skipping = False
        self.segment += 1

    @precondition(lambda self: self.answers)
    @rule(count=st.integers(1, 5))
    def hear(self, count: int) -> None:
        for _ in range(min(count, len(self.answers))):
            what, change = self.answers.popleft()
            if what == "failed":
                self.failed_segment = max(self.failed_segment, change.segment if change else self.error_segment)
            if change is None:
                continue
            if what == "done":
                self.names.confirm(change)
            else:
                self.names.take_back(change)

    @rule(name=NAMES)
    def use(self, name: bytes) -> None:
        """What the gateway relies on is what the server has, or the server does not look at it."""
        if self.failed_segment == self.segment or not self.names.is_settled(name, self.segment):
            return
        found = self.names.find(name)
        if found is not None and not self.is_skipping:
            assert self.server.get(name[:63]) in (found, None)

    @rule()
    def everything_is_settled_once_it_is_answered(self) -> None:
        self.sync()
        self.hear(len(self.answers))
        for name in (b"", b"a", b"b", b"n" * 63):
            assert self.names.is_settled(name, self.segment)
            self.use(name)


TestNamesBesideAServer = NamesBesideAServer.TestCase
TestNamesBesideAServer.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
