"""Revisions of policy in the archive: their files are packed, and a log that comes again has them as it had."""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway_stream import Stream
from manifests import rule
from pki import Authority
from revised import Decided, operator, revised
from sealed_bundle import seal

from chaperone_collector.archive import plan
from chaperone_collector.archive.replay import Replay
from chaperone_collector.metrics import Metrics
from chaperone_collector.population import KEY
from chaperone_collector.revision import read_bodies, read_statement
from chaperone_collector.schema import open_writer
from chaperone_collector.store import Store
from chaperone_evidence.entry import SALT_BYTES
from chaperone_evidence.revision import FILES

MADE = revised([rule("read-orders", "Allow", ["read"])])


async def _keep(folder: Path) -> None:
    store = Store(folder, Metrics())
    try:
        for _ in range(2):  # it comes again until it is acknowledged
            await store.write(lambda tx: tx.revise(MADE.given(operator())))
        await store.write(lambda tx: tx.sign(store._keys))
    finally:
        await store.close()


def test_a_log_that_comes_again_has_its_revisions_and_their_files(tmp_path: Path) -> None:
    ca, folder = Authority("gateway CA"), tmp_path / "store"
    folder.mkdir()
    asyncio.run(_keep(folder))
    decided = Decided(ca)
    decided.intend(MADE.revision)
    stream: Stream = decided.end()
    seal(folder, ca, [stream], {})
    db = open_writer(folder / "evidence.db")
    entries = db.execute("SELECT stream, bytes FROM entry ORDER BY idx").fetchall()
    segment, named = plan.decided(db, 0, len(entries))
    assert segment.beside.population_key == operator().vkey
    packed = {one.commit for one in plan.sealed_bodies(db, named) if one.key == 0}
    assert len(packed) == len(FILES)
    again = open_writer(tmp_path / "again.db")
    replay = Replay(again)
    replay.population_key = segment.beside.population_key
    replay.put_bodies(dict(db.execute("SELECT hash, bytes FROM body").fetchall()))
    replay.store(1, [(number, bytes(data)) for number, data in entries])
    rows = "SELECT idx, namespace, serial, revision FROM policy_revision"
    assert again.execute(rows).fetchall() == db.execute(rows).fetchall() == [(0, "agents", 1000, MADE.revision)]
    assert (
        bytes(again.execute("SELECT value FROM meta WHERE key = ?", (KEY,)).fetchone()[0]) == operator().vkey.encode()
    )
    kept = read_bodies(again, read_statement(again, 0))
    assert [one[SALT_BYTES:] for one in kept] == [getattr(MADE.files, name) for name in FILES]
    again.close()
    db.close()
