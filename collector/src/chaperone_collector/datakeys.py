"""Keys of the bodies that leave this database: one per namespace, identity and UTC day.

What lies in an archive cannot be deleted, so bodies are erased there by destroying the key they are encrypted with; the
database is the only place that has it, beside copies that people made with `export-keys`. Runs in the writer's thread.
"""

from __future__ import annotations

import os
from typing import Final

from chaperone_collector.database import Connection
from chaperone_collector.errors import KeyDestroyed

KEY_BYTES: Final = 32  # AES-256
DAY_US: Final = 86_400_000_000


def day_of(at_us: int) -> int:
    """The UTC day of a time, counted from 1970-01-01."""
    return at_us // DAY_US


def key_for(db: Connection, namespace: str, identity: str, day: int) -> tuple[int, bytes]:
    """Number and key of an identity's day, made where there is none; in a transaction.

    Numbers are random, so that a database that was restored without its keys does not give one out twice.

    Raises:
        KeyDestroyed: there was one, and what it protects was erased.
    """
    where = (namespace, identity, day)
    db.execute(
        "INSERT INTO datakey (id, namespace, identity, day, key) VALUES (?,?,?,?,?) ON CONFLICT DO NOTHING",
        (int.from_bytes(os.urandom(8), "big") >> 1, *where, os.urandom(KEY_BYTES)),
    )
    row = db.execute("SELECT id, key FROM datakey WHERE namespace = ? AND identity = ? AND day = ?", where).fetchone()
    if row[1] is None:
        raise KeyDestroyed(f"The bodies of {identity} in {namespace} of day {day} were erased.")
    return int(row[0]), bytes(row[1])


def destroy(db: Connection, namespace: str, identity: str, until_day: int, idx: int) -> int:
    """Destroy an identity's keys up to and with a day; in a transaction.

    Args:
        db: the writer's connection.
        namespace: of the identity.
        identity: whose bodies are erased.
        until_day: the last day that is.
        idx: of the entry that says so.

    Returns:
        How many keys there were. Their bytes are overwritten in the database; the write-ahead log lets go of them when
        it is next written over.
    """
    return db.execute(
        "UPDATE datakey SET key = NULL, destroyed_idx = ? "
        "WHERE namespace = ? AND identity = ? AND day <= ? AND key IS NOT NULL",
        (idx, namespace, identity, until_day),
    ).rowcount
