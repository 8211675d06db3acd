"""Changes of sessions and commands as moments, and moments as lines for people: `chaperone follow`.

    >  the agent's command          =  the decision, and how it ended if it has
    ?  people are asked, or answer  #  a session, or how an earlier command ended

A command is its text and what was decided; where it runs on, its end is told apart, and while it waits for people
`waits.py` tells of it. Whatever the agent chose stands
behind a sign, without anything that a terminal obeys, and no line is longer than the terminal is wide: so nothing of it
can begin a line.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

import click

from chaperone_cli.say import printable
from chaperone_cli.stream_watch import Change
from chaperone_cli.timeline import Moment, Timeline
from chaperone_evidence.errors import Malformed

MAX_TEXT_CHARS: Final = 400  # of a command; a line has room for less
TIME_CHARS: Final = len("10:00:01.000")
MIN_NAME_CHARS: Final = 12  # of a column
MAX_NAME_CHARS: Final = 24
PROTOCOL_CHARS: Final = len("PostgreSQL")
MIN_TEXT_CHARS: Final = 24  # on however narrow a terminal
MAX_LINES: Final = 3  # of a command, a decision, an end or a session
TAIL_CHARS: Final = 6  # of a session's name, by which its end is known again
_LABEL: Final = "chaperone.dev/protocol"
_REQUESTS: Final = frozenset({"HTTP", "MCP", "Kubernetes"})
_COLOURS: Final = {"allowed": "green", "refused": "red", "failed": "yellow", "asked": "cyan"}


def moments(change: Change, timeline: Timeline, *, is_refused: bool = False) -> list[Moment]:
    """What a change says: nothing where it is a bookmark, or a session that only counts on.

    Args:
        change: of a watch.
        timeline: what it goes to; of a command that is still held there nothing else is told.
        is_refused: tell of commands alone, for they were chosen.

    Raises:
        Malformed: it is no object of this API.
    """
    if change.value is None or (is_refused and change.resource == "sessions"):
        return []
    try:
        if change.resource == "sessions":
            return list(_session(change))
        return list(_command(change, timeline))
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise Malformed("An object of the watch is none of this API.") from error


def _session(change: Change) -> Iterator[Moment]:
    value = change.value or {}
    spec, status, name = value["spec"], value["status"], value["metadata"]["name"]
    if change.is_new:
        person = spec.get("delegated", {}).get("subject", "")
        whose = f", on behalf of {person}" if person else ""
        user = f", user {spec['user']}" if spec.get("user") else ""
        text = f"opened {name}{user}{whose}"
        yield _moment(value, ("opened", name), status["startedAt"], spec.get("protocol", ""), (("#", text),))
    if "endedAt" in status:
        text = f"ended …{name[-TAIL_CHARS:]}: {status.get('reason') or '-'}"
        yield _moment(value, ("ended", name), status["endedAt"], spec.get("protocol", ""), (("#", text),), is_end=True)


def _command(change: Change, timeline: Timeline) -> Iterator[Moment]:
    value = change.value or {}
    spec, status, name = value["spec"], value["status"], value["metadata"]["name"]
    protocol = value["metadata"].get("labels", {}).get(_LABEL, "")
    shown, end = brief(spec, protocol), _end(status)
    is_failed = status["status"] not in ("Ok", "Pending", "Refused")
    if change.is_new or timeline.is_held(("command", name)):
        decided = _decision(spec, value["metadata"]["namespace"]) + (f": {end}" if end else "")
        yield _moment(
            value, ("command", name), status["decidedAt"], protocol, ((">", shown), ("=", decided)),
            is_refused=spec["decision"] != "Allow", is_failed=is_failed,
        )  # fmt: skip
    elif end:
        at = _later(status["decidedAt"], status["durationMicroseconds"])
        text = f"{status['status'].lower()}, {end}: {shown}"
        yield _moment(value, ("outcome", name), at, protocol, (("#", text),), is_end=True, is_failed=is_failed)


def _moment(
    value: dict[str, Any], key: tuple[str, str], at: str, protocol: str, lines: tuple[tuple[str, str], ...], *,
    is_end: bool = False, is_refused: bool = False, is_failed: bool = False,
) -> Moment:  # fmt: skip
    datetime.fromisoformat(at)
    who = f"{value['metadata']['namespace']}/{value['spec']['identity']}"
    return Moment(key, at, is_end, who, value["spec"]["target"], protocol, lines, is_refused, is_failed)


def brief(spec: dict[str, Any], protocol: str) -> str:
    """A command on one line: of a request its first line and its body, of MCP what it asks for between them."""
    text = spec.get("command")
    if text is None:
        return "<not kept>" if spec["sizeBytes"] else f"({spec['kind']})"  # a shell has no text
    if protocol in _REQUESTS:
        head, _, body = text.partition("\n\n")
        asked = _asked(spec) if protocol == "MCP" else ""
        text = f"{head.partition('\n')[0]} {asked} {body}"
    return " ".join(text[: 4 * MAX_TEXT_CHARS].split())[:MAX_TEXT_CHARS]


def _asked(spec: dict[str, Any]) -> str:
    return " ".join([spec["kind"], *(one for one in spec.get("objects", ()) if not one.startswith("path:"))])


def _decision(spec: dict[str, Any], namespace: str) -> str:
    policy = spec.get("policy", "").removeprefix(f"{namespace}/")
    by = "/".join(part for part in (policy, spec.get("rule", "")) if part)
    released = f", approved as {spec['approval']}" if spec.get("approval") else ""
    return f"{spec['decision']}{f' by {by}' if by else ''}{released}"


def _end(status: dict[str, Any]) -> str:
    """How a command ended; "" where it has not, or never began. Rows are those of a result, so none is not said."""
    if "durationMicroseconds" not in status:
        return ""
    parts = [f"{status['status'].lower()} {status['code']}"] if status.get("code") else []
    if rows := status["rows"]:
        parts.append(f"{rows} row" if rows == 1 else f"{rows} rows")
    return ", ".join([*parts, f"{status.get('bytes', 0)} B", f"{status['durationMicroseconds'] / 1000:.1f} ms"])


def _later(at: str, by_us: int) -> str:
    found = datetime.fromisoformat(at) + timedelta(microseconds=by_us)
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Page:
    """Moments as lines.

    Args:
        is_coloured: decisions in colour, and sessions faint.
        has_who: whether it says whose it is; not where one agent was chosen.
    """

    def __init__(self, *, is_coloured: bool, has_who: bool) -> None:
        self._is_coloured = is_coloured
        self._has_who = has_who
        self._date = ""
        self._who_chars = self._target_chars = MIN_NAME_CHARS

    def lines(self, moment: Moment, width: int) -> Iterator[str]:
        """The lines of a moment, as wide as that at most; before the first of a day, its date."""
        if moment.at[:10] != self._date:
            self._date = moment.at[:10]
            yield self._styled(f"-- {printable(self._date)} UTC --", "faint")
        self._who_chars = max(self._who_chars, min(len(moment.who), 2 * MAX_NAME_CHARS))
        self._target_chars = max(self._target_chars, min(len(moment.target), MAX_NAME_CHARS))
        columns = [moment.at[11:19].ljust(TIME_CHARS) if moment.is_whole_second else moment.at[11 : 11 + TIME_CHARS]]
        if self._has_who:
            columns.append(fitted(moment.who, self._who_chars))
        columns += [fitted(moment.target, self._target_chars), fitted(moment.protocol, PROTOCOL_CHARS)]
        margin = "  ".join(columns)
        room = max(MIN_TEXT_CHARS, width - len(margin) - 4)
        before = margin
        for sign, text in moment.lines:
            for part in _wrapped(text, room):
                line = f"{sign} {fitted(part, room).rstrip()}"
                yield f"{self._styled(before, 'faint') if sign == '#' else before}  {self._toned(line, sign, moment)}"
                before = " " * len(margin)

    def _toned(self, line: str, sign: str, moment: Moment) -> str:
        if sign == ">":
            return line
        if sign == "?":
            return self._styled(line, "refused" if moment.is_refused else "asked")
        if moment.is_refused or moment.is_failed:
            return self._styled(line, "refused" if moment.is_refused else "failed")
        return self._styled(line, "allowed" if sign == "=" else "faint")

    def _styled(self, text: str, tone: str) -> str:
        if not self._is_coloured:
            return text
        return click.style(text, dim=True) if tone == "faint" else click.style(text, fg=_COLOURS[tone])


def _wrapped(text: str, room: int) -> list[str]:
    lines = textwrap.wrap(printable(text), room, break_on_hyphens=False) or [""]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1] = lines[MAX_LINES - 1][: room - 1] + "…"
    return lines[:MAX_LINES]


def fitted(text: str, chars: int) -> str:
    """A text on one line that takes so many characters of a terminal: filled up, or cut where it is longer."""
    kept: list[str] = []
    taken = 0
    for character in printable(text):
        size = _size(character)
        if taken + size > chars:
            while kept and taken + 1 > chars:
                taken -= _size(kept.pop())
            return "".join(kept) + "…" + " " * (chars - taken - 1)
        kept.append(character)
        taken += size
    return "".join(kept) + " " * (chars - taken)


def _size(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in ("W", "F") else 1
