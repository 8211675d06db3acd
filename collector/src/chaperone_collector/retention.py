"""Retention: which texts are old enough to go, and how they go. Runs in the writer's thread.

Only the operator says for how long texts are kept, in populations that it signs: a gateway that could shorten that
could hide what it did. What the collector was told to keep at least wins over a shorter word. A session's texts go
together, once its last record is old enough, so that a text which a later command names again stays. Old is what both
clocks call old, the collector's and the operator's: one that jumps ahead erases nothing.

A text is erased by making its row empty, not by deleting it. SQLite overwrites what is freed (`secure_delete`), but
when rows are deleted it moves others between pages, and of those it leaves copies behind that nothing overwrites
later; a row that shrinks moves nothing. The row keeps the commitment, as the log does, and says that there was a text.
What the write-ahead log still holds goes with the next checkpoint that empties it (`Transaction.forget`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final

import msgspec

from chaperone_collector import datakeys
from chaperone_collector.database import Connection
from chaperone_collector.project import NO_SESSION
from chaperone_evidence import canonical, entry, record
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.population import Population
from chaperone_evidence.statement import BodiesErased, erased_hash

DAY_US: Final = 86_400_000_000
MAX_COMMANDS: Final = 500  # looked at in one transaction: 10 to 20 ms in which gateways wait
OPERATOR_US: Final = "operator-us"  # in `meta`: the newest time that the operator has signed

_DUE: Final = (
    "SELECT namespace, identity, days, epoch FROM retention WHERE days > 0 AND held = 0 ORDER BY namespace, identity"
)
_SESSIONS: Final = (
    "SELECT idx, changed FROM session WHERE flow = ? AND changed >= ? AND changed < ? ORDER BY changed LIMIT ?"
)
_NAMING: Final = (
    "SELECT n.idx, e.bytes FROM (SELECT idx FROM command WHERE session = ? AND idx > ? "
    "UNION ALL SELECT idx FROM chunk WHERE session = ? AND idx > ?) n JOIN entry e ON e.idx = n.idx "
    "ORDER BY n.idx LIMIT ?"
)
_STRAY: Final = (  # The plus keeps SQLite from the index of flows: few commands have no session.
    "SELECT c.idx, e.bytes FROM command c JOIN entry e ON e.idx = c.idx "
    "WHERE c.session = ? AND +c.flow = ? AND c.idx > ? AND c.idx < ? ORDER BY c.idx LIMIT ?"
)
_UNNAMED: Final = (
    "SELECT u.hash FROM unnamed u JOIN body b ON b.hash = u.hash WHERE length(b.bytes) > 0 "
    "AND NOT EXISTS (SELECT 1 FROM stream s WHERE s.pod_uid = u.pod_uid AND s.seen_us >= ?) "
    "AND EXISTS (SELECT 1 FROM stream s WHERE s.pod_uid = u.pod_uid AND s.namespace = ? AND s.identity = ?) LIMIT ?"
)
_KEEP_PLACE: Final = (
    "INSERT INTO erased_flow (flow, changed, command, stray) VALUES (?,?,?,?) ON CONFLICT (flow) DO UPDATE SET "
    "changed = excluded.changed, command = excluded.command, stray = excluded.stray"
)


class Step(msgspec.Struct):
    """What one transaction does."""

    is_last: bool  # nothing more is due
    commits: dict[bytes, None] = {}  # of the texts that were erased
    sessions: dict[int, None] = {}
    left: int = MAX_COMMANDS
    key_day: int | None = None  # the last day whose keys go; None: none has to
    said: BodiesErased | None = None  # None: there was no text, and no key


def hear(db: Connection, said: Population) -> None:
    """Take over what a population says of retention."""
    db.executemany(
        "INSERT INTO retention (namespace, identity, days, held, epoch) VALUES (?,?,?,?,?) "
        "ON CONFLICT (namespace, identity) DO UPDATE SET days = excluded.days, held = excluded.held, "
        "epoch = excluded.epoch",
        [(said.namespace, one.identity, one.days, int(one.is_held), said.epoch) for one in said.retention],
    )
    db.execute(
        "INSERT INTO meta (key, value) VALUES (?,?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (OPERATOR_US, str(max(_operator_us(db), said.wall_us)).encode()),
    )


def erase(db: Connection, now_us: int, minimum_days: int) -> Step:
    """Erase texts of one identity that are due, as many as one transaction may."""
    at_us = min(now_us, _operator_us(db))
    due = db.execute(_DUE).fetchall()
    for namespace, identity, days, epoch in due:
        until_us = at_us - max(days, minimum_days) * DAY_US
        before = _first_since(db, until_us)
        step = Step(is_last=False)
        for (flow,) in db.execute("SELECT id FROM flow WHERE namespace = ? AND identity = ?", (namespace, identity)):
            if step.left > 0:
                _flow(db, step, flow, before)
        _never_named(db, step, namespace, identity, until_us)
        step.key_day = _key_day(db, namespace, identity, until_us, before)
        if step.commits or step.key_day is not None:
            step.said = BodiesErased(
                wall_us=now_us, namespace=namespace, identity=identity, until_us=until_us, count=len(step.commits),
                hash=base64.b64encode(erased_hash(step.commits)).decode(), retention_days=days,
                minimum_days=minimum_days, epoch=epoch,
            )  # fmt: skip
        if step.said is not None or step.left <= 0:
            return step
    return Step(is_last=True)


def _operator_us(db: Connection) -> int:
    """The newest time that the operator has signed; 0 for none."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (OPERATOR_US,)).fetchone()
    return int(row[0]) if row else 0  # digits, or what older versions wrote: an integer


def certify(db: Connection, step: Step, said: BodiesErased, idx: int) -> None:
    """What goes along with texts, in the transaction of their certificate, whose entry is `idx`.

    The archive's copies go by their keys, of whole days.
    """
    db.executemany("INSERT INTO erasure (session, idx) VALUES (?,?)", [(session, idx) for session in step.sessions])
    if step.key_day is not None:
        datakeys.destroy(db, said.namespace, said.identity, step.key_day, idx)


def _key_day(db: Connection, namespace: str, identity: str, until_us: int, before: int) -> int | None:
    """The last day of which every text is due, if there are keys of then or before it.

    A session that goes on has older texts that are not due, so no day counts on which one of those began, or later.
    """
    known = "SELECT min(day) FROM datakey WHERE namespace = ? AND identity = ? AND key IS NOT NULL"
    oldest = db.execute(known, (namespace, identity)).fetchone()[0]
    last = datakeys.day_of(until_us) - 1
    if oldest is None or oldest > last:
        return None
    going_on = db.execute(
        "SELECT min(s.idx) FROM flow f JOIN session s ON s.flow = f.id "
        "WHERE f.namespace = ? AND f.identity = ? AND s.changed >= ?",
        (namespace, identity, before),
    ).fetchone()[0]
    if going_on is not None:
        last = min(last, datakeys.day_of(received(db, going_on)[1]) - 1)
    return last if oldest <= last else None


def received(db: Connection, idx: int) -> tuple[int, int]:
    """First index and time of the transaction that stored an entry."""
    row = db.execute("SELECT idx, wall_us FROM received WHERE idx <= ? ORDER BY idx DESC LIMIT 1", (idx,)).fetchone()
    return (int(row[0]), int(row[1])) if row else (idx, 0)


def _first_since(db: Connection, since_us: int) -> int:
    """The index of the first entry that came then or later."""
    low, high = 0, int(db.execute("SELECT coalesce(max(idx), -1) + 1 FROM entry").fetchone()[0])
    while low < high:
        middle = (low + high) // 2
        if received(db, middle)[1] < since_us:
            low = middle + 1
        else:
            high = middle
    return low


def _flow(db: Connection, step: Step, flow: int, before: int) -> None:
    """Erase texts of a flow whose sessions ended before an index, from where this ended last."""
    place = db.execute("SELECT changed, command, stray FROM erased_flow WHERE flow = ?", (flow,)).fetchone()
    changed, command, stray = start = place or (0, -1, -1)
    for session, its_changed in db.execute(_SESSIONS, (flow, changed, before, step.left)).fetchall():
        if step.left <= 0:
            break
        after = command if its_changed == changed else -1
        rows = db.execute(_NAMING, (session, after, session, after, step.left)).fetchall()
        step.left -= len(rows) + (its_changed > start[0])  # what was looked at before costs nothing
        _empty(db, step, session, rows)
        changed, command = its_changed, rows[-1][0] if rows else max(after, session)
    if step.left > 0:
        rows = db.execute(_STRAY, (NO_SESSION, flow, stray, before, step.left)).fetchall()
        step.left -= len(rows)
        _empty(db, step, NO_SESSION, rows)
        stray = rows[-1][0] if rows else stray
    if (changed, command, stray) != start:
        db.execute(_KEEP_PLACE, (flow, changed, command, stray))


def _never_named(db: Connection, step: Step, namespace: str, identity: str, until_us: int) -> None:
    """Erase what pods that are gone sent ahead of records that never came."""
    if step.left <= 0:
        return
    for (commit,) in db.execute(_UNNAMED, (until_us, namespace, identity, step.left)).fetchall():
        step.left -= 1
        if _is_emptied(db, commit):
            step.commits[commit] = None


def _empty(db: Connection, step: Step, session: int, rows: Iterable[tuple[int, bytes]]) -> None:
    for _, raw in rows:
        for commit in commits(bytes(raw)):
            if _is_emptied(db, commit):
                step.commits[commit] = None
                step.sessions[session] = None


def _is_emptied(db: Connection, commit: bytes) -> bool:
    return db.execute("UPDATE body SET bytes = ? WHERE hash = ? AND length(bytes) > 0", (b"", commit)).rowcount > 0


def commits(raw: bytes) -> list[bytes]:
    """What an entry commits to: the texts of a command, or a part of a recording."""
    try:
        found = record.decode(raw[entry.PREFIX_BYTES :])
    except EvidenceError:
        return []
    named = []
    for commitment in record.commitments(found):
        try:
            named.append(canonical.decode_base64(commitment.commit))
        except EvidenceError:
            continue  # the verifier says so
    return named
