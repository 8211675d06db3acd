"""A session as lines for people: what was asked, what was decided, what was shown, and how it ended.

Each line begins with a time (or room for one) and a sign that says whose words follow; whatever a statement or a value
holds stands behind it on lines of its own, without anything that a terminal obeys. So nothing in evidence can pass for
a line of this program.

    >  the agent's statement        =  the decision          ?  people are asked, or have answered
    |  what the agent was shown     !  an error or notice    #  how it ended
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Final

import msgspec

from chaperone_cli.recording import Head, Item
from chaperone_cli.say import printable
from chaperone_cli.values import cell, parameters
from chaperone_evidence import frames, record

MAX_BEGUN_BYTES: Final = 64 << 10  # of a line that may go on; a longer one is shown in parts
_NO_TIME: Final = " " * 10
# What a terminal would obey (ECMA-48: control sequences and control strings) in what one was shown; it is no text.
_OBEYED: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\`-~])")
_WITH_BODY: Final = frozenset({"HTTP", "MCP"})  # protocols whose parameters are a request's body
_QUIET: Final = frozenset({"COMPLETE", "PARAMETER"})  # of messages: no errors, and no notices


class Event(msgspec.Struct, frozen=True):
    """Lines that belong to one moment of a session."""

    t_us: int
    lines: list[str]


class _Begun(msgspec.Struct, frozen=True):
    """A line of output that has no end yet."""

    t_us: int
    text: bytes


class Transcript:
    """Turns items into events, in their order."""

    def __init__(self) -> None:
        self._opened_us = 0
        self._protocol = ""
        self.opened_wall_us = 0
        self._columns: tuple[frames.Column, ...] = ()
        self._widths: list[int] = []
        self._is_headed = False
        self._begun: dict[str, _Begun] = {}

    def events(self, items: Iterable[Item]) -> Iterator[Event]:
        """The events of a session. Raises what `items` raises.

        A short result is recorded after its command's outcome, and shown after both; people read the outcome last.
        """
        ended: tuple[str, Event] | None = None
        for item in items:
            known = item.record
            if isinstance(known, record.Unknown):
                continue
            if ended is not None and not (isinstance(known, record.RecordingChunk) and known.command == ended[0]):
                yield from self._line_ends(ended[0])
                yield ended[1]
                ended = None
            if isinstance(known, record.SessionOpen):
                self._opened_us, self.opened_wall_us = known.mono_us, known.wall_us
                self._protocol = known.protocol
            if isinstance(known, record.RecordingChunk):
                yield from self._chunk(known, item)
                continue
            lines = _said(known, item, self._protocol)
            event = Event(max(0, known.mono_us - self._opened_us), lines)
            if isinstance(known, record.CommandOutcome):
                ended = known.command, event
            elif lines:
                yield event
        for command in tuple(self._begun):
            yield from self._line_ends(command)
        if ended is not None:
            yield ended[1]

    def _chunk(self, known: record.RecordingChunk, item: Item) -> Iterator[Event]:
        if item.problem:
            yield Event(known.first_us, [f"! a part of the recording is missing: {printable(item.problem)}"])
        for frame in item.frames:
            if isinstance(frame, frames.Output):
                yield from self._shown(known.command, frame)
            else:
                yield from self._line_ends(known.command)
            lines = self._frame(frame)
            if lines:
                yield Event(frame.t_us, lines)

    def _frame(self, frame: frames.Known) -> list[str]:
        match frame:
            case frames.Columns(columns=columns):
                self._columns, self._widths, self._is_headed = columns, [], False
                return []
            case frames.Rows(rows=rows):
                return self._rows(rows)
            case frames.Data(data=data, part_of="row"):
                return [f"| (a piece of a long row: {_size(data)} bytes)"]
            case frames.Data(data=data, direction=direction):
                return _text("|" if direction == "out" else ">", data)
            case frames.Message():
                return _message(frame)
            case frames.Cut(why="maxResultBytes", kept_bytes=kept):
                return [f"# the rest of this result is not recorded: {kept} bytes are (maxResultBytes)"]
            case frames.Cut(kept_bytes=kept):
                return [f"# the rest of this message is not recorded: {kept} bytes are"]
            case frames.Output():
                return []  # its pieces are no lines; see `_shown`
            case frames.Input(data=data):
                return _terminal(">", _raw(data))
            case frames.Resize(width=width, height=height):
                return [f"# the terminal has {width} columns and {height} lines"]

    def _shown(self, command: str, frame: frames.Output) -> Iterator[Event]:
        """The lines that end in what was shown; the rest waits, for it comes in pieces that say nothing of lines."""
        before = self._begun.pop(command, None)
        text = (before.text if before is not None else b"") + _raw(frame.data)
        end = text.rfind(b"\n") + 1
        if end:
            yield Event(frame.t_us, _terminal("|", text[:end]))
        if text[end:]:
            self._begun[command] = _Begun(frame.t_us, text[end:])
        if len(text) - end > MAX_BEGUN_BYTES:
            yield from self._line_ends(command)

    def _line_ends(self, command: str) -> Iterator[Event]:
        """What waits of a command's last line: something else comes now."""
        begun = self._begun.pop(command, None)
        if begun is not None:
            yield Event(begun.t_us, _terminal("|", begun.text))

    def _rows(self, rows: tuple[tuple[frames.Cell, ...], ...]) -> list[str]:
        """A piece of a table: columns are never narrower than in the piece before."""
        types = [column.type for column in self._columns]
        found = [
            [cell(value, types[index] if index < len(types) else "") for index, value in enumerate(row)] for row in rows
        ]
        names = [cell(column.name) + ("*" if column.is_masked else "") for column in self._columns]
        count = max([len(names), *(len(row) for row in found)])
        widths = self._widths + [0] * (count - len(self._widths))
        for row in [names, *found]:
            widths = [max(width, len(row[i])) if i < len(row) else width for i, width in enumerate(widths)]
        self._widths = widths
        lines = []
        if names and not self._is_headed:
            lines = ["| " + _aligned(names, widths), "| " + "-+-".join("-" * width for width in widths)]
        self._is_headed = True
        return lines + ["| " + _aligned(row, widths) for row in found]


def heading(head: Head) -> list[str]:
    """Who acted."""
    who = f"{head.namespace}/{head.identity}" + (f" ({head.owner})" if head.owner else "")
    return [printable(f"session {head.session} of {who}, pod {head.pod}, stream {head.stream}")]


def stamped(event: Event) -> list[str]:
    """The lines of an event, the first with its time in seconds since the session was opened."""
    first, *others = event.lines
    return [f"{event.t_us / 1e6:10.3f} {first}", *(f"{_NO_TIME} {line}" for line in others)]


def moment(wall_us: int) -> str:
    """A time of a gateway's clock."""
    try:
        return datetime.fromtimestamp(wall_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{wall_us} us"


def statement(item: Item) -> list[str]:
    """The statement of a command, line by line."""
    known = item.record
    if item.text is None and isinstance(known, record.CommandIntent):
        return [f"(the text is not here; its SHA-256 is {printable(known.sha256)})"]
    if not item.text and isinstance(known, record.CommandIntent):
        return [f"({printable(known.kind)})"]
    return [printable(line.replace("\t", "    ")) for line in (item.text or b"").decode("utf-8", "replace").split("\n")]


def decision(known: record.CommandIntent) -> str:
    """What was decided, and by what."""
    by = "/".join(part for part in (known.policy, known.rule) if part) or "no rule"
    approval = f", approved as {known.approval}" if known.approval else ""
    would = f" (observed only; else {known.would} by {known.would_policy}/{known.would_rule})" if known.would else ""
    return printable(f"{known.decision} by {by}{approval}{would}")


def outcome(known: record.CommandOutcome) -> str:
    """How a command ended."""
    code = f" {known.code}" if known.code else ""
    return printable(f"{known.status}{code}, {known.rows} rows, {known.bytes} bytes, {known.duration_us / 1000:.1f} ms")


def approval(known: record.ApprovalRequest | record.ApprovalOutcome) -> str:
    """What people are asked, or what came of it."""
    if isinstance(known, record.ApprovalRequest):
        return printable(f"held for people: {known.approval}, asked by {known.policy}/{known.rule}")
    return printable(f"{known.approval}: {known.state}" + (f", {known.message}" if known.message else ""))


def _said(known: record.Known, item: Item, protocol: str) -> list[str]:
    match known:
        case record.SessionOpen():
            whom = f", on behalf of {known.delegated.subject}" if isinstance(known.delegated, record.Delegated) else ""
            where = f"{known.target} ({known.protocol})" + (f", database {known.database}" if known.database else "")
            application = known.application or "-"
            return [printable(f"# opened {moment(known.wall_us)} at {where}, application {application}{whom}")]
        case record.SessionClose():
            return [printable(f"# closed: {known.reason}; {known.commands} commands, {known.denied} not allowed")]
        case record.CommandIntent():
            lines = [*statement(item), *_bound(item.params or b"", protocol)]
            return [*(f"> {line}" for line in lines), f"= {decision(known)}"]
        case record.CommandOutcome():
            return [f"# {outcome(known)}"]
        case record.ApprovalRequest() | record.ApprovalOutcome():
            return [f"? {approval(known)}"]
        case _:
            return []


def _bound(raw: bytes, protocol: str) -> list[str]:
    """What a command was sent with: a request's body, or parameters as the protocol binds them."""
    if protocol in _WITH_BODY:
        return printable_lines(raw.decode("utf-8", "replace")) if raw else []
    if protocol == "PostgreSQL":
        return [f"${number} = {value}" for number, value in enumerate(parameters(raw), 1)]
    return [f"({len(raw)} bytes of parameters)"] if raw else []


def _message(frame: frames.Message) -> list[str]:
    if frame.severity in _QUIET:
        return [f"# {printable(f'{frame.detail} = {frame.text}' if frame.detail else frame.text)}"]
    code = f" {frame.code}" if frame.code else ""
    lines = [f"! {line}" for line in printable_lines(f"{frame.severity}{code}: {frame.text}")]
    lines += [f"! DETAIL: {line}" for line in printable_lines(frame.detail) if frame.detail]
    return lines + [f"! HINT: {line}" for line in printable_lines(frame.hint) if frame.hint]


def printable_lines(text: str) -> list[str]:
    """Lines of a text, each without what a terminal could obey."""
    return [printable(line.replace("\t", "    ")) for line in text.split("\n")]


def _text(sign: str, data: str | frames.Bytes) -> list[str]:
    if isinstance(data, frames.Bytes):
        return [f"{sign} ({_size(data)} bytes that are no text)"]
    return [f"{sign} {line}" for line in printable_lines(data.replace("\r\n", "\n").removesuffix("\n"))]


def _terminal(sign: str, data: bytes) -> list[str]:
    """What a terminal showed, as text; what is written over a line is a line of its own."""
    text = frames.cell(data)
    if isinstance(text, frames.Bytes):
        return _text(sign, text)
    plain = _OBEYED.sub("", text).replace("\r\n", "\n")
    return _text(sign, re.sub(r"(^|\n)\r+", r"\1", plain).replace("\r", "\n"))


def _raw(data: str | frames.Bytes) -> bytes:
    return data.raw if isinstance(data, frames.Bytes) else data.encode()


def _size(data: str | frames.Bytes) -> int:
    return len(_raw(data))


def _aligned(cells: list[str], widths: list[int]) -> str:
    return " | ".join(text.ljust(width) for text, width in zip(cells, widths, strict=False)).rstrip()
