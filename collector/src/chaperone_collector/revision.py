"""Revisions of policy in the database: which there are, and what is kept of them.

The table `policy_revision` follows from the log: each is an entry of it, and its three files are bodies, which no term
of retention concerns: commands refer to them for as long as there are commands. Runs in the writer's thread.
"""

from __future__ import annotations

import hashlib

import msgspec

from chaperone_collector import population
from chaperone_collector.database import Connection
from chaperone_collector.errors import Refused
from chaperone_evidence import canonical, entry, statement
from chaperone_evidence.revision import FILES, Revision


class Given(msgspec.Struct, frozen=True):
    """A revision whose notes were verified with the key that came with them, and a salt for each file."""

    found: Revision
    vkey: str
    salts: tuple[bytes, ...]


def admit(db: Connection, given: Given) -> int | None:
    """Whether it is by the operator of this cluster; the index of its entry if it is here already, else None.

    Serials need not come in order: what could not be sent at the time comes later, and its notes say when it was.

    Raises:
        Refused: 403, another key or cluster; 409, this serial has other content.
    """
    found = given.found
    population.admit_key(db, given.vkey, found.cluster)
    row = db.execute(
        "SELECT idx FROM policy_revision WHERE namespace = ? AND serial = ?", (found.namespace, found.serial)
    ).fetchone()
    if row is not None:
        kept = read_bodies(db, read_statement(db, int(row[0])))
        content = [getattr(found.files, name) for name in FILES]
        if [_digest(body[entry.SALT_BYTES :]) for body in kept] != [_digest(one) for one in content]:
            raise Refused(409, "Conflict", f"Serial {found.serial} of {found.namespace} is stored with other content.")
        return int(row[0])
    population.pin_key(db, given.vkey)
    return None


def keep(db: Connection, said: statement.PolicyRevision, idx: int) -> None:
    """Take over what an entry says; `idx` is its place in the log."""
    db.execute(
        "INSERT INTO policy_revision (idx, namespace, serial, revision) VALUES (?,?,?,?)",
        (idx, said.namespace, said.serial, said.revision),
    )


def read_statement(db: Connection, idx: int) -> statement.PolicyRevision:
    """What the entry of a revision says."""
    data = db.execute("SELECT bytes FROM entry WHERE idx = ?", (idx,)).fetchone()[0]
    return msgspec.json.decode(bytes(data)[entry.PREFIX_BYTES :], type=statement.PolicyRevision)


def read_bodies(db: Connection, said: statement.PolicyRevision) -> list[bytes]:
    """Salt and content of each file that is here, in their order; all of them, unless a restore found none."""
    found = []
    for name in FILES:
        commit = canonical.decode_base64(getattr(said, name).commit)
        row = db.execute("SELECT bytes FROM body WHERE hash = ?", (commit,)).fetchone()
        if row is not None:
            found.append(bytes(row[0]))
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
