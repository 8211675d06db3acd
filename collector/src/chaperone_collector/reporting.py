"""Periodic reports: which days and months are over and have none, and how one is kept.

A report is made once, when its period is over by the collector's clock, UTC, and stored as an entry of the log with its
text as a body: nothing recomputes it. Each daily report is about the entries that came after those of the one before,
so that each entry is in one; where the collector was away, the days are made up when it starts.

Sad path: a clock that was years ahead has made reports of days to come, and none is made until these are over.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal

import msgspec

from chaperone_collector.database import Connection
from chaperone_collector.errors import CollectorError
from chaperone_evidence import canonical, entry
from chaperone_evidence.record import Commitment
from chaperone_evidence.statement import ReportMade

DAILY: Final = "Daily"
MONTHLY: Final = "Monthly"
GRACE_US: Final = 60_000_000  # after a period's end: a transaction that began in it is committed by then
MAX_MADE_UP: Final = 400  # days of before; a first entry by a clock without battery would ask for fifty years

type Kind = Literal["Daily", "Monthly"]


class Period(msgspec.Struct, frozen=True):
    """A day or a month that is over. Times are microseconds since 1970, `until_us` is not in it."""

    kind: Kind
    name: str
    since_us: int
    until_us: int


class Altered(CollectorError):
    """The text of a report is not the one whose hash the log holds."""

    def __init__(self, kind: str, period: str) -> None:
        super().__init__(f"The {kind.lower()} report of {period} is not what the log holds; restore the database.")
        self.month = period[:7]


class Made(msgspec.Struct, frozen=True):
    """A report, and what its text is hidden by in the log."""

    said: ReportMade
    salt: bytes
    text: bytes


def keep(db: Connection, said: ReportMade, idx: int) -> None:
    """Note a report whose entry is `idx`; in its transaction."""
    db.execute(
        "INSERT INTO report (idx, kind, period, first, until) VALUES (?,?,?,?,?)",
        (idx, said.kind, said.period, said.first, said.end),
    )


def is_made(db: Connection, period: Period) -> bool:
    """Whether there is a report of it."""
    row = db.execute("SELECT idx FROM report WHERE kind = ? AND period = ?", (period.kind, period.name)).fetchone()
    return row is not None


def store_body(db: Connection, made: Made) -> None:
    """Keep the text of a report; in the transaction of its entry."""
    body = made.salt + made.text
    db.execute("INSERT INTO body (hash, bytes) VALUES (?,?)", (entry.body_commit(body), body))


def make(
    period: Period, place: tuple[int, int], log: tuple[int, str], exceptions: int, text: bytes, now_us: int
) -> Made:
    """The report of a text; `place` is the entries that it is about, `log` the checkpoint's size and root."""
    salt = os.urandom(entry.SALT_BYTES)
    commit = base64.b64encode(entry.body_commit(salt + text)).decode()
    said = ReportMade(
        wall_us=now_us, kind=period.kind, period=period.name, first=place[0], end=place[1], size=log[0], root=log[1],
        exceptions=exceptions, sha256=hashlib.sha256(text).hexdigest(), body=Commitment(commit, len(text)),
    )  # fmt: skip
    return Made(said, salt, text)


def read(db: Connection, said: ReportMade) -> tuple[bytes, bytes]:
    """Salt and text of a report, which are what the log holds the commitment of.

    Raises:
        Altered: they are not, or are gone.
    """
    rows = db.execute("SELECT bytes FROM body WHERE hash = ?", (canonical.decode_base64(said.body.commit),)).fetchall()
    body = bytes(rows[0][0]) if rows else b""
    salt, text = body[: entry.SALT_BYTES], body[entry.SALT_BYTES :]
    is_committed = bool(text) and base64.b64encode(entry.body_commit(body)).decode() == said.body.commit
    if not is_committed or hashlib.sha256(text).hexdigest() != said.sha256:
        raise Altered(said.kind, said.period)
    return salt, text


def days_of(db: Connection, period: Period) -> list[bytes]:
    """The texts of a month's daily reports.

    Raises:
        Altered: one is not what the log holds.
    """
    rows = db.execute(
        "SELECT e.bytes FROM report r JOIN entry e ON e.idx = r.idx WHERE r.kind = ? AND r.period >= ? "
        "AND r.period < ? ORDER BY r.period",
        (DAILY, *_within(period)),
    ).fetchall()
    return [read(db, said_in(bytes(raw)))[1] for (raw,) in rows]


def said_in(raw: bytes) -> ReportMade:
    """The statement in an entry of table `report`."""
    return msgspec.json.decode(raw[entry.PREFIX_BYTES :], type=ReportMade)


def due(db: Connection, now_us: int, without: Collection[str] = ()) -> Period | None:
    """The first period that is over and has no report; None when there is none, or nothing is logged yet.

    `without` names months that cannot be reported.
    """
    last = db.execute("SELECT max(period) FROM report WHERE kind = ?", (DAILY,)).fetchone()[0]
    month = _month_due(db, last) if last else None
    if month is not None and month.name not in without:
        return month
    over = _day_of(now_us - GRACE_US)
    if last:
        following = date.fromisoformat(last) + timedelta(days=1)
    else:
        first = db.execute("SELECT wall_us FROM received ORDER BY idx LIMIT 1").fetchone()
        if first is None:
            return None
        following = max(_day_of(int(first[0])), over - timedelta(days=MAX_MADE_UP))
    return day(following) if following < over else None


def day(which: date) -> Period:
    """A day."""
    return Period(DAILY, which.isoformat(), _us(which), _us(which + timedelta(days=1)))


def _month_due(db: Connection, last: str) -> Period | None:
    """The month of the newest daily report, when that was its last one and it has none of its own."""
    newest = date.fromisoformat(last)
    following = newest + timedelta(days=1)
    if following.day != 1:
        return None
    period = Period(MONTHLY, last[:7], _us(newest.replace(day=1)), _us(following))
    return None if is_made(db, period) else period


def place(db: Connection, period: Period, size: int) -> tuple[int, int]:
    """The entries that a period is about, from the first to before the second; `size` is what is signed of the log."""
    if period.kind == MONTHLY:
        first, until = db.execute(
            "SELECT min(first), max(until) FROM report WHERE kind = ? AND period >= ? AND period < ?",
            (DAILY, *_within(period)),
        ).fetchone()
        return int(first), int(until)
    before = db.execute("SELECT max(until) FROM report WHERE kind = ?", (DAILY,)).fetchone()[0]
    first = int(before) if before is not None else _came_at(db, 0, size, period.since_us)
    return first, _came_at(db, first, size, period.until_us)


def _came_at(db: Connection, low: int, high: int, moment_us: int) -> int:
    """The first entry from `low` on of a transaction at that moment or later; `high` for none."""
    while low < high:
        middle = (low + high) // 2
        # The transaction that stored the entry in the middle, and where the next one begins.
        begun = db.execute(
            "SELECT wall_us FROM received WHERE idx <= ? ORDER BY idx DESC LIMIT 1", (middle,)
        ).fetchone()
        if begun is not None and int(begun[0]) >= moment_us:
            high = middle
        else:
            low = middle + 1
    return low


def _within(month: Period) -> tuple[str, str]:
    return f"{month.name}-01", f"{month.name}-99"


def _day_of(wall_us: int) -> date:
    return datetime.fromtimestamp(wall_us // 1_000_000, UTC).date()


def _us(which: date) -> int:
    return int(datetime(which.year, which.month, which.day, tzinfo=UTC).timestamp()) * 1_000_000
