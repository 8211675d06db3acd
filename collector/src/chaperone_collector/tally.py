"""How often each rule fired, and what each identity did last: counted as records are stored, in their transaction.

What is stored once counts once: a batch that is sent again brings no new entry, and a transaction that is undone undoes
its counts. Counting begins with the version of the tables that has it; what was stored before is not counted.

Names come from gateways, and one that is seized may make them up: namespace and identity are those of its certificate,
texts have bounds, and a namespace has a bounded number of counters.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from chaperone_collector.database import Connection
from chaperone_evidence import record

MAX_PER_NAMESPACE: Final = 10_000  # counters; a namespace with more rules than that has the first ones counted
MAX_NAME: Final = 320  # characters: a namespace, a slash and a name of Kubernetes have 317
MAX_RULE: Final = 64
MAX_ACTION: Final = 32

type _Key = tuple[str, int, str, str, str]  # namespace, what, name, rule, action


class What(IntEnum):
    """What is counted; the numbers are stored."""

    RULE = 1  # commands that a rule of a policy decided
    WOULD = 2  # commands that it would have decided, were observed policies in force
    IDENTITY = 3  # commands of an identity


class Counter(msgspec.Struct, frozen=True):
    """One counter as it stands; `last_us` by the gateway's clock, never later than the collector's."""

    namespace: str
    what: What
    name: str  # of the policy as it is reported, `namespace/name` or `name`; or of the identity
    rule: str
    action: str
    count: int
    last_us: int
    changed: int  # index of the entry that changed it last


class Tally:
    """What one transaction after another adds; after a rollback the owner makes a new one."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._fresh: dict[_Key, tuple[int, int, int]] = {}  # how many more, last time, index of the entry
        self._sizes: dict[str, int] = {}

    def take(self, found: record.CommandIntent, namespace: str, identity: str, idx: int, now_us: int) -> None:
        """Count one command."""
        last_us = min(found.wall_us, now_us)
        for what, name, rule, action in (
            (What.RULE, found.policy, found.rule, found.decision),
            (What.WOULD, found.would_policy, found.would_rule, found.would),
            (What.IDENTITY, identity, "", found.decision),
        ):
            is_said = bool(name if what == What.IDENTITY else rule)
            if not is_said or len(name) > MAX_NAME or len(rule) > MAX_RULE or len(action) > MAX_ACTION:
                continue
            key = (namespace, int(what), name, rule, action)
            count, before_us, _ = self._fresh.get(key, (0, 0, 0))
            self._fresh[key] = (count + 1, max(before_us, last_us), idx)

    def flush(self) -> None:
        """Write what was counted; before the transaction ends."""
        for key, (count, last_us, idx) in self._fresh.items():
            moved = self._db.execute(
                "UPDATE tally SET count = count + ?, changed = ?, "
                "last_us = CASE WHEN last_us < ? THEN ? ELSE last_us END "
                "WHERE namespace = ? AND what = ? AND name = ? AND rule = ? AND action = ?",
                (count, idx, last_us, last_us, *key),
            )
            if moved.rowcount == 0 and self._has_room(key[0]):
                self._db.execute(
                    "INSERT INTO tally (namespace, what, name, rule, action, count, last_us, changed) "
                    "VALUES (?,?,?,?,?,?,?,?)",
                    (*key, count, last_us, idx),
                )
                self._sizes[key[0]] += 1
        self._fresh = {}

    def _has_room(self, namespace: str) -> bool:
        if namespace not in self._sizes:
            rows = self._db.execute("SELECT count(*) FROM tally WHERE namespace = ?", (namespace,)).fetchone()
            self._sizes[namespace] = int(rows[0])
        return self._sizes[namespace] < MAX_PER_NAMESPACE


def changes(connection: Connection, since: int, limit: int) -> tuple[list[Counter], int]:
    """At most `limit` counters that changed since the log had `since` entries, the oldest change first; and its size.

    Counters that the same entry changed may be on both sides of a limit: whoever goes on asks from the last `changed`.
    """
    rows = connection.execute(
        "SELECT namespace, what, name, rule, action, count, last_us, changed FROM tally WHERE changed >= ? "
        "ORDER BY changed LIMIT ?",
        (since, limit),
    ).fetchall()
    size = int(connection.execute("SELECT coalesce(max(idx), -1) + 1 FROM entry").fetchone()[0])
    return [Counter(row[0], What(row[1]), *row[2:]) for row in rows], size
