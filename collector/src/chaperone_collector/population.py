"""Populations in the database: which epochs there are, and what they say of each pod.

The table `producer` has every pod that a population has named or that has opened a stream. It follows from the log:
populations are entries of it, in their order. Runs in the writer's thread.
"""

from __future__ import annotations

import base64
from typing import Final

import msgspec

from chaperone_collector import retention
from chaperone_collector.database import Connection
from chaperone_collector.errors import Refused
from chaperone_evidence import entry, population
from chaperone_evidence.coverage import Said
from chaperone_evidence.population import Population
from chaperone_evidence.record import Commitment
from chaperone_evidence.statement import PopulationEpoch

KEY: Final = "population-key"  # in `meta`: whose populations are believed, as a verifier key

_MERGE: Final = """
INSERT INTO producer (namespace, pod_uid, pod, identity, state, reason, exit_code, finished_us, expected_us, idx,
    met_us, said_us) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)
ON CONFLICT (namespace, pod_uid) DO UPDATE SET
    pod = excluded.pod, identity = excluded.identity, state = excluded.state, reason = excluded.reason,
    exit_code = excluded.exit_code, finished_us = excluded.finished_us,
    expected_us = CASE WHEN producer.expected_us > 0 THEN producer.expected_us ELSE excluded.expected_us END,
    said_us = CASE WHEN producer.state = excluded.state THEN producer.said_us ELSE excluded.said_us END
    WHERE producer.state <> 'Ended' OR excluded.state <> 'Ended'
"""


class Given(msgspec.Struct, frozen=True):
    """A population whose signature was verified with the key that came with it."""

    said: Population
    note: bytes
    vkey: str
    salt: bytes

    def statement(self, now_us: int) -> PopulationEpoch:
        """What its entry says."""
        commit = entry.body_commit(self.salt + self.note)
        return PopulationEpoch(
            wall_us=now_us, namespace=self.said.namespace, epoch=self.said.epoch,
            previous=base64.b64encode(self.said.previous).decode(), count=self.said.count,
            body=Commitment(base64.b64encode(commit).decode(), len(self.note)),
        )  # fmt: skip


def admit(db: Connection, given: Given) -> None:
    """Whether the population is by the operator of this cluster and follows the newest one of its namespace.

    The first key that comes is the one from then on.

    Raises:
        Refused: 403, another key or cluster; 409, another epoch than the next.
    """
    said = given.said
    admit_key(db, given.vkey, said.cluster)
    epoch, digest = newest(db, said.namespace)
    if (said.epoch, said.previous) != (epoch + 1, digest):
        raise Refused(409, "Conflict", f"The next population of {said.namespace} has epoch {epoch + 1} and follows "
                      f"{base64.b64encode(digest).decode()}; this one has epoch {said.epoch}.")  # fmt: skip
    pin_key(db, given.vkey)


def admit_key(db: Connection, vkey: str, cluster: str) -> None:
    """Whether the operator of this key is believed here.

    Raises:
        Refused: 403, another key or cluster.
    """
    pinned = db.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()
    if pinned is not None and bytes(pinned[0]).decode() != vkey:
        raise Refused(403, "Forbidden", f"The operator of this cluster signs with {bytes(pinned[0]).decode()}; "
                      f"{vkey} is another key. Restore the operator's.")  # fmt: skip
    known = db.execute("SELECT cluster FROM stream ORDER BY id LIMIT 1").fetchone()
    if known is not None and known[0] != cluster:
        raise Refused(403, "Forbidden", f"This log is of the cluster {known[0]}, what was signed is of {cluster}.")


def pin_key(db: Connection, vkey: str) -> None:
    """From now on this key is the operator's, unless there is one."""
    db.execute("INSERT INTO meta (key, value) VALUES (?,?) ON CONFLICT (key) DO NOTHING", (KEY, vkey.encode()))


def newest(db: Connection, namespace: str) -> tuple[int, bytes]:
    """The newest epoch of a namespace and the hash of its note; 0 and zeros where there is none."""
    row = db.execute(
        "SELECT epoch, hash FROM population WHERE namespace = ? ORDER BY epoch DESC LIMIT 1", (namespace,)
    ).fetchone()
    return (row[0], bytes(row[1])) if row else (0, population.FIRST)


def keep(db: Connection, given: Given, idx: int, now_us: int) -> None:
    """Take over what the population says; `idx` is its entry's."""
    said = given.said
    digest = population.note_hash(given.note)
    db.execute(
        "INSERT INTO population (idx, namespace, epoch, hash) VALUES (?,?,?,?)",
        (idx, said.namespace, said.epoch, digest),
    )
    retention.hear(db, said)
    there = "SELECT pod_uid FROM producer WHERE namespace = ? AND state IN ('Covered', 'Uncovered')"
    before = {row[0] for row in db.execute(there, (said.namespace,))}
    rows = [
        *((one.pod_uid, one.pod, one.identity, Said.COVERED, "", None, 0, one.since_us) for one in said.covered),
        *((one.pod_uid, one.pod, one.identity, Said.UNCOVERED, one.reason, None, 0, 0) for one in said.uncovered),
        *(
            (one.pod_uid, one.pod, one.identity, Said.ENDED, one.reason, one.exit_code, one.finished_us, one.since_us)
            for one in said.ended
        ),
    ]
    # A stream is expected from when the collector hears of the gateway: by its own clock.
    db.executemany(_MERGE, [(said.namespace, *row[:-1], now_us if row[-1] else 0, idx, now_us, now_us) for row in rows])
    dropped = before - {row[0] for row in rows}
    db.executemany(
        "UPDATE producer SET state = 'Dropped', said_us = ? WHERE namespace = ? AND pod_uid = ?",
        [(now_us, said.namespace, uid) for uid in sorted(dropped)],
    )


def meet(db: Connection, namespace: str, pod_uid: str, pod: str, identity: str, idx: int, now_us: int) -> None:
    """A pod opens a stream, whether a population has named it or not."""
    db.execute(
        "INSERT INTO producer (namespace, pod_uid, pod, identity, idx, met_us, said_us) "
        "VALUES (?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
        (namespace, pod_uid, pod, identity, idx, now_us, now_us),
    )
