"""`chaperone replay` and `chaperone show`: a session as it was, from the cluster or from a bundle, offline.

From a bundle every record is verified on the way; the first that does not hold ends the transcript, and is named.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import msgspec

from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.kubectl import CannotAsk, Cluster
from chaperone_cli.recording import Broken, Bundle, NoSession, Served, fetch, temporary
from chaperone_cli.say import printable, say
from chaperone_cli.transcript import Event, Transcript, approval, decision, heading, moment, outcome, stamped, statement
from chaperone_cli.verify import CANNOT, FINDINGS, OK, read_trust
from chaperone_evidence import record

CAST_WIDTH: Final = 160
CAST_HEIGHT: Final = 48
NO_FRAMES_S: Final = 1e9  # asked for from then on: records come, and no frames
MAX_STATEMENT: Final = 60  # characters in a table


class Where(msgspec.Struct, frozen=True):
    """Where a session is read from: a bundle, or else the cluster."""

    session: str
    bundle: Path | None
    trust: Path | None
    log_policy: Path | None
    cluster: Cluster
    namespace: str


class Pace(msgspec.Struct, frozen=True):
    """How fast it is played, from when on, and the longest pause; 0 for at once."""

    speed: float = 0
    idle_limit_s: float | None = None
    from_s: float = 0


def replay(where: Where, pace: Pace, cast: Path | None) -> int:
    """Print, play or write a session; returns the exit status."""

    def work(items: Bundle | Served) -> None:
        script = Transcript()
        events = (event for event in script.events(items) if event.t_us >= pace.from_s * 1e6)
        if cast is not None:
            _write_cast(cast, items, script, events, pace)
        elif pace.speed:
            _play(items, events, pace)
        else:
            _print(_lines(items, events))

    return _run("replay", where, pace.from_s, work)


def show(where: Where) -> int:
    """Print a session on one page; returns the exit status."""
    return _run("show", where, NO_FRAMES_S, lambda items: _print(_page(items)))


def _run(name: str, where: Where, from_s: float, work: Callable[[Bundle | Served], None]) -> int:
    try:
        with _opened(where, from_s) as items:
            work(items)
            return _judge(name, items)
    except Broken as error:
        say(f"{name}: FAILED at {error}; nothing after it is shown", err=True)
        return FINDINGS
    except BrokenPipeError:
        raise
    except (CannotVerify, CannotAsk, NoSession, OSError) as error:
        say(f"{name}: CANNOT SHOW: {error}", err=True)
        return CANNOT


@contextmanager
def _opened(where: Where, from_s: float) -> Iterator[Bundle | Served]:
    if where.bundle is not None:
        with open_source(where.bundle) as source:
            trust = read_trust(source, where.trust, where.log_policy)
            if not trust.is_given:
                say("note: this gateway CA lay beside the evidence; give --trust to check against yours", err=True)
            yield Bundle(source, trust, where.session)
        return
    with temporary() as file:
        yield fetch(where.cluster, where.namespace, where.session, file, from_s)


def _judge(name: str, items: Bundle | Served) -> int:
    """What the streams prove, when all was read: nothing, where the cluster was asked."""
    verdict = items.verdict if isinstance(items, Bundle) else None
    if verdict is None:
        return OK
    if verdict.problems:
        say(f"{name}: FAILED at {verdict.problems[0]}", err=True)
        return FINDINGS
    say("verify: OK", err=True)
    return OK


def _head(items: Bundle | Served) -> list[str]:
    return heading(items.head) if items.head is not None else []


def _lines(items: Bundle | Served, events: Iterable[Event]) -> Iterator[str]:
    is_first = True
    for event in events:
        if is_first:  # by now it is known who acted
            yield from _head(items)
            is_first = False
        yield from stamped(event)


def _print(lines: Iterable[str]) -> None:
    if sys.stdout.isatty():
        click.echo_via_pager(line + "\n" for line in lines)
        return
    for line in lines:
        click.echo(line)


def _pauses(events: Iterable[Event], pace: Pace) -> Iterator[tuple[float, Event]]:
    """Each event with the seconds to wait before it."""
    last_us = round(pace.from_s * 1e6)
    for event in events:
        pause_s = max(0, event.t_us - last_us) / 1e6
        last_us = max(last_us, event.t_us)
        yield min(pause_s, pace.idle_limit_s) if pace.idle_limit_s is not None else pause_s, event


def _play(items: Bundle | Served, events: Iterable[Event], pace: Pace) -> None:
    is_first = True
    for pause_s, event in _pauses(events, pace):
        if is_first:
            for line in _head(items):
                click.echo(line)
            is_first = False
        time.sleep(pause_s / pace.speed)  # the pause is what is played
        for line in stamped(event):
            click.echo(line)


def _write_cast(path: Path, items: Bundle | Served, script: Transcript, events: Iterable[Event], pace: Pace) -> None:
    """Write the transcript as asciicast v2 (docs.asciinema.org): a header, then times and what is printed then."""
    # Readable by its owner alone: it holds what the agent was shown.
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123
        now_s = 0.0
        is_first = True
        for pause_s, event in _pauses(events, pace):
            now_s += pause_s / (pace.speed or 1)
            lines = stamped(event)
            if is_first:
                lines = [*_head(items), *lines]
                header = {
                    "version": 2, "width": CAST_WIDTH, "height": CAST_HEIGHT,
                    "timestamp": script.opened_wall_us // 1_000_000, "title": _head(items)[0],
                }  # fmt: skip
                file.write(msgspec.json.encode(header) + b"\n")
                is_first = False
            text = "".join(f"{line}\r\n" for line in lines)
            file.write(msgspec.json.encode([round(now_s, 6), "o", text]) + b"\n")


def _page(items: Bundle | Served) -> Iterator[str]:
    is_first = True
    counts: Counter[str] = Counter()
    opened_us = 0
    commands: dict[int, tuple[record.CommandIntent, str, str]] = {}
    approvals: list[str] = []
    for item in items:
        if is_first:
            yield from _head(items)
            is_first = False
        match item.record:
            case record.SessionOpen() as known:
                opened_us = known.mono_us
                yield from _opening(known)
            case record.SessionClose() as known:
                yield printable(f"closed       {moment(known.wall_us)}: {known.reason}")
                yield f"traffic      {known.bytes_in} bytes from the agent, {known.bytes_out} to it"
            case record.CommandIntent() as known:
                counts[known.decision] += 1
                commands[known.seq] = (known, statement(item)[0], "-")
            case record.CommandOutcome() as known if known.ref in commands:
                intent, text, _ = commands[known.ref]
                commands[known.ref] = (intent, text, outcome(known))
            case record.ApprovalRequest() | record.ApprovalOutcome() as known:
                approvals.append(f"approval     {approval(known)}")
            case record.RecordingChunk() as known:
                counts["chunks"] += 1
            case _:
                pass
    decided = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if name != "chunks")
    yield printable(f"commands     {len(commands)}" + (f" ({decided})" if decided else ""))
    yield f"recording    {counts['chunks']} parts" if counts["chunks"] else "recording    none"
    yield from approvals
    for intent, text, ended in commands.values():
        at_s = (intent.mono_us - opened_us) / 1e6
        short = text if len(text) <= MAX_STATEMENT else text[: MAX_STATEMENT - 1] + "…"
        yield f"{at_s:10.3f} > {short}"
        yield f"{'':10} = {decision(intent)}"
        if ended != "-":
            yield f"{'':10} # {ended}"


def _opening(known: record.SessionOpen) -> Iterator[str]:
    yield printable(f"opened       {moment(known.wall_us)}")
    database = f", database {known.database}" if known.database else ""
    yield printable(f"target       {known.target} ({known.protocol}) at {known.upstream}{database}")
    yield printable(f"client       {known.client}, user {known.user or '-'}, application {known.application or '-'}")
    if isinstance(known.delegated, record.Delegated):
        person = f"{known.delegated.subject} {known.delegated.email}".strip()
        yield printable(f"on behalf of {person}, says {known.delegated.issuer}")
