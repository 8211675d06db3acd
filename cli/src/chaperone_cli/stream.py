"""`chaperone stream`: commands and sessions of the aggregated API to a receiver, each at least once.

Commands come in the order of the log, sessions in the order in which they change. What a receiver has acknowledged is
kept in the state file before more is read, so a restart goes on there; what was delivered but not kept is delivered
again under the same id. Memory holds one batch and what was read with it: while a receiver is slow nothing is read.
"""

from __future__ import annotations

import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import msgspec

from chaperone_cli.kubectl import EVERYWHERE, CannotAsk, Cluster, place
from chaperone_cli.say import say
from chaperone_cli.stream_receiver import CannotSend, Line, NotTaken, Receiver, open_receiver
from chaperone_cli.stream_state import CannotKeep, State
from chaperone_cli.stream_watch import Change, Ended, Watches, pause_s
from chaperone_evidence.errors import Malformed
from chaperone_evidence.ocsf.objects import Said, of_command, of_session

MAX_BATCH: Final = 500  # lines
MAX_BATCH_BYTES: Final = 1 << 20  # what common receivers take at once
LINGER_S: Final = 0.2  # a batch waits that long for more
MAX_TOLD: Final = 10_000  # sessions whose beginning was delivered by this process; of others it is delivered again


class Options(msgspec.Struct, frozen=True):
    """Where to, from where, and how."""

    to: str
    state: Path
    form: str
    ca: Path | None = None
    token: Path | None = None


class _Batch:
    """Lines that were read and not delivered, and how far the log is with them."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.versions: dict[str, str] = {}
        self._size_bytes = 0

    def add(self, change: Change, lines: list[Line]) -> None:
        self.lines += lines
        self._size_bytes += sum(len(line.data) for line in lines)
        self.versions[change.resource] = change.version

    @property
    def is_full(self) -> bool:
        return len(self.lines) >= MAX_BATCH or self._size_bytes >= MAX_BATCH_BYTES


class Lines:
    """Changes as lines: `ocsf` events, or the objects without the texts of commands (`jsonl`)."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._told: OrderedDict[str, None] = OrderedDict()

    def of(self, change: Change) -> list[Line]:
        """The lines of a change; none of a bookmark, nor of a session that only counted on.

        Raises:
            Malformed: it is no object of this API.
        """
        if change.value is None:
            return []
        said = of_command(change.value) if change.resource == "commands" else None
        if said is not None:
            change.value["spec"].pop("command", None)
            return [self._line(said, change.value)]
        return [self._line(one, change.value) for one in self._session(change)]

    def _session(self, change: Change) -> Iterator[Said]:
        began, ended = of_session(change.value or {})
        if change.is_new or began.uid not in self._told:
            yield began
        self._told[began.uid] = None
        if ended is not None:
            yield ended
            del self._told[began.uid]
        elif len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)

    def _line(self, said: Said, value: dict[str, Any]) -> Line:
        at_us = said.event["time"] * 1000
        if self._form == "ocsf":
            return Line(msgspec.json.encode(said.event), at_us)
        trace = {"traceparent": said.trace.header} if said.trace else {}
        return Line(msgspec.json.encode({"id": said.uid, **trace, "object": value}), at_us)


def run(cluster: Cluster, namespace: str, options: Options) -> int:
    """Deliver until SIGTERM or ctrl-C; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        where = "" if namespace == EVERYWHERE else place(cluster, namespace)
        receiver = open_receiver(options.to, options.ca, options.token, options.form)
        state = State(options.state, where)
    except KeyboardInterrupt:
        return 0
    except (CannotAsk, CannotSend, CannotKeep, OSError) as error:
        say(f"stream: FAILED: {error}", err=True)
        return 1
    watches = Watches(cluster, where, state.progress.versions)
    try:
        watches.open()
        _follow(watches, Lines(options.form), receiver, state)
    except KeyboardInterrupt:
        say("stream: ended; what was acknowledged is kept", err=True)
        return 0
    except (CannotAsk, Malformed, OSError) as error:
        say(f"stream: FAILED: {error}", err=True)
        return 1
    finally:
        watches.close()
        receiver.close()
        state.close()


def _follow(watches: Watches, lines: Lines, receiver: Receiver, state: State) -> NoReturn:
    batch = _Batch()
    while True:
        ready = watches.ready(LINGER_S if batch.versions else None)
        if not ready:
            _deliver(batch, receiver, state)
            batch = _Batch()
        for watch in ready:
            try:
                for change in watches.read(watch):
                    batch.add(change, lines.of(change))
                    if batch.is_full:
                        _deliver(batch, receiver, state)
                        batch = _Batch()
            except Ended as end:
                _deliver(batch, receiver, state)
                batch = _Batch()
                watches.begin_again(watch, end, "stream")


def _deliver(batch: _Batch, receiver: Receiver, state: State) -> None:
    """Deliver a batch, however often that takes, and keep that it is delivered."""
    if not batch.versions:
        return
    failures = 0
    while batch.lines:
        try:
            receiver.deliver(batch.lines)
            break
        except NotTaken as error:
            failures += 1
            wait_s = pause_s(failures)
            say(f"stream: {error}; {len(batch.lines)} lines are tried again in {wait_s:.1f} s", err=True)
            time.sleep(wait_s)  # meanwhile nothing is read, so memory holds this batch; SIGTERM ends it
    state.reached(batch.versions)
