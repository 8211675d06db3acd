"""The store on a PostgreSQL server: what it does not rely on, what it survives, and that it says what SQLite's says."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fix_evidence_server import EvidenceServer, Place
from fix_postgres import PASSWORD, Postgres
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector import checkpoint, datakeys, migrate, place, postgresql, tree
from chaperone_collector.api import proof
from chaperone_collector.api.commands import Commands
from chaperone_collector.api.flow import Flows
from chaperone_collector.api.question import Range, read_question
from chaperone_collector.api.sessions import Sessions
from chaperone_collector.archive import keyfile
from chaperone_collector.archive.commands import command
from chaperone_collector.checkpoint import LogKeys
from chaperone_collector.database import Connection, ServerFault
from chaperone_collector.errors import ChainBroken, Refused, StoreBusy, StoreUnusable
from chaperone_collector.following import Following
from chaperone_collector.metrics import Metrics
from chaperone_collector.schema import open_reader, open_writer
from chaperone_collector.schema_server import TABLES
from chaperone_collector.store import Store
from chaperone_collector.stream import Extension, extend, unknown
from chaperone_collector.transaction import Transaction
from chaperone_evidence import merkle
from chaperone_evidence.statement import EvidenceRead

LIMIT_S = 60.0
NOW_US = 2_000_000_000_000_000
HOSTILE = "nul \x00, its escape \x1a0, " + os.urandom(1800).hex()  # an index takes 2704 bytes


@pytest.fixture
def log(evidence_server: EvidenceServer) -> Place:
    return evidence_server.place()


@asynccontextmanager
async def opened(log: Place) -> AsyncIterator[Store]:
    store = Store(log.server, Metrics())
    try:
        yield store
    finally:
        await store.close()


def worked(authority: Authority, *, commands: int = 300, name: str = "orders-db", uid: str = "pod-1") -> Stream:
    stream = Stream(Pod(authority, pod_uid=uid))
    session = stream.open_session(name)
    for number in range(commands):
        intent = stream.intend(
            session, f"SELECT {number}", rule=name, effects=("read", "delete"), subject=name, approval=name
        )
        stream.conclude(session, intent)
    stream.close_session(session, commands)
    stream.close()
    return stream


def extension(stream: Stream) -> Extension:
    return extend(unknown(stream.id), [frame[2:] for frame in stream.frames], stream.pod.subject(), None)


async def fill(store: Store, stream: Stream, keys: LogKeys) -> None:
    await store.write(lambda tx: tx.put_bodies(stream.bodies, stream.pod.pod_uid))
    await store.write(lambda tx: tx.append(extension(stream)))
    await store.write(lambda tx: tx.say(read()))
    await store.write(lambda tx: tx.sign(keys))


def read() -> EvidenceRead:
    return EvidenceRead(wall_us=1, user="u", verb="get", resource="sessions", namespace="agents", name="x", rows=1)


def root(db: Connection) -> tuple[int, bytes]:
    """The root over all entries, hashed anew; entries follow each other without a gap."""
    rows = db.execute("SELECT idx, bytes FROM entry ORDER BY idx").fetchall()
    assert [idx for idx, _ in rows] == list(range(len(rows)))
    return len(rows), merkle.root(merkle.leaf_hash(data) for _, data in rows)


SELECTORS = (
    "", "spec.effect!=read", "spec.effect=destroy", "spec.rule=nothing", "spec.rule!=nothing", "spec.decision!=Allow",
    "spec.decision=Allow,spec.effect=read", "spec.session!=nothing", "spec.session=nothing", "spec.subject=ada",
    "spec.approval=,spec.subject!=ada", "spec.identity=billing-agent,spec.rule!=nothing",
    "metadata.name!=c-0000000000003",
)  # fmt: skip


def answers(db: Connection) -> list[object]:
    """What the API says of all sessions, and of commands by each selector."""
    size, flows = root(db)[0], Flows()
    found: list[object] = []
    readers = {"sessions": Sessions(flows, lambda: NOW_US, 0), "commands": Commands(flows, lambda: NOW_US)}
    questions = [read_question("commands", "", "", {"fieldSelector": text}) for text in SELECTORS]
    for question in (read_question("sessions", "", "", {}), *questions):
        page = readers[question.resource].page(db, question, Range(size, -1, 10_000))
        found += [(one.idx, one.changed, one.value, one.cells) for one in page.found]
    return found


def test_both_schemas_have_the_same_tables_and_columns(log: Place, tmp_path: Path) -> None:
    log.server.open_writer().close()
    ours = open_writer(tmp_path / "evidence.db")
    for table in TABLES:
        columns = {(row[1], bool(row[3] or row[5])) for row in ours.execute(f"PRAGMA table_info({table})")}
        server = log.rows(
            "SELECT column_name, is_nullable = 'NO' FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = ?",
            table,
        )
        assert set(server) == columns, table
    known = ours.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'").fetchall()
    assert {name for (name,) in known} - {"access"} == set(TABLES)  # reads of before, which no server ever had
    theirs = log.rows("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    assert {name for (name,) in theirs} - {"chaperone_log"} == set(TABLES)
    ours.close()


async def test_whatever_gateways_say_is_stored_as_on_sqlite(log: Place, tmp_path: Path) -> None:
    """NUL, texts longer than an index takes: a log that refused them would have a gateway send them for ever."""
    authority = Authority("gateway CA")
    honest, hostile = worked(authority), worked(authority, commands=5, name=HOSTILE, uid="pod-2")
    async with opened(log) as store:
        ours = Store(tmp_path, Metrics())
        for one in (store, ours):
            for stream in (honest, hostile):
                await fill(one, stream, LogKeys(one.database.key_path, may_make=False))
        said, expected = await store.read(answers), await ours.read(answers)
        assert len(said) > 300
        assert said == expected
        assert await store.read(root) == await ours.read(root)
        await ours.close()


async def test_a_job_that_is_refused_or_fails_takes_no_other_with_it(log: Place) -> None:
    def refuse(_tx: Transaction) -> None:
        raise Refused(429, "no", "no")

    def fail(tx: Transaction) -> None:
        tx.say(read())
        tx.on(lambda db: db.execute("INSERT INTO entry (idx, stream, seq, class, bytes) SELECT * FROM entry"))

    def hide(tx: Transaction) -> int:
        try:
            fail(tx)
        except ServerFault:
            return 0  # what would be taken for done, were the answer to COMMIT not looked at
        return 1

    def say(tx: Transaction) -> int:
        return tx.say(read())

    async with opened(log) as store:
        jobs = [say, refuse, fail, say, hide, say]
        given = await asyncio.gather(*(store.write(job) for job in jobs), return_exceptions=True)
        assert [type(answer) for answer in given] == [int, Refused, StoreBusy, int, StoreBusy, int]
        assert store.size == 3
        assert await store.read(root) == (3, await store.read(lambda db: tree.read_root(db, 3)))


async def test_a_connection_that_is_lost_costs_a_try_and_no_entry(log: Place) -> None:
    others = "usename = current_user AND pid <> pg_backend_pid()"
    end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}"
    async with opened(log) as store:
        assert await store.write(lambda tx: tx.say(read())) == 0
        with pytest.raises(StoreBusy):
            await store.write(lambda tx: tx.on(lambda db: db.execute("SELECT pg_terminate_backend(pg_backend_pid())")))
        assert await store.write(lambda tx: tx.say(read())) == 1
        await store.read(root)
        log.rows(end)
        with pytest.raises(StoreBusy):
            await store.write(lambda tx: tx.say(read()))
        assert await store.write(lambda tx: tx.say(read())) == 2
        assert (await _again(store))[0] == 3


async def _again(store: Store) -> tuple[int, bytes]:
    """Read, on the second try if each thread's connection was lost."""
    for _ in range(5):
        try:
            return await store.read(root)
        except StoreBusy:
            continue
    raise AssertionError("it cannot be read again")


async def test_what_another_collector_wrote_is_read_before_anything_is_added(log: Place) -> None:
    authority = Authority("gateway CA")
    keys = LogKeys(log.key_path, may_make=False)
    async with opened(log) as one, opened(log) as other:
        first, second = worked(authority, uid="pod-1"), worked(authority, uid="pod-2")
        await fill(one, first, keys)
        await fill(other, second, keys)
        with pytest.raises(ChainBroken, match="meanwhile"):
            await other.write(lambda tx: tx.append(extension(first)))
        for number in range(60):
            await (one, other)[number % 2].write(lambda tx: tx.say(read()))
        size = await one.write(lambda tx: tx.sign(keys))
        assert await other.read(root) == (size, await other.read(lambda db: tree.read_root(db, size)))


async def test_collectors_hear_of_each_other_and_one_leads(log: Place) -> None:
    keys = LogKeys(log.key_path, may_make=False)
    async with opened(log) as one, opened(log) as other:
        following = [Following(store, log.server) for store in (one, other)]
        await fill(one, worked(Authority("gateway CA"), commands=3), keys)
        assert await other.grown(one.size - 1, LIMIT_S) == one.size
        signed = other.signed
        assert other.signed_size == one.size or await other.until(signed, LIMIT_S)
        assert other.signed_size == one.size
        leader, second = _leads(one), _leads(other)
        done, _ = await asyncio.wait((leader, second), timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        number = 0 if leader in done else 1
        await asyncio.to_thread(following[number].close)
        await asyncio.wait_for((second, leader)[number], LIMIT_S)
        await asyncio.to_thread(following[1 - number].close)


def _leads(store: Store) -> asyncio.Task[None]:
    async def nothing() -> None:
        return

    return asyncio.create_task(store.lead.keep(nothing))


async def test_tables_of_a_newer_version_end_the_collector(log: Place) -> None:
    async with opened(log) as store:
        log.rows("UPDATE chaperone_log SET version = version + 1 RETURNING version")
        with pytest.raises(StoreUnusable, match="another version"):
            await store.write(lambda tx: tx.say(read()))
        assert store.failed.is_set()
    with pytest.raises(StoreUnusable, match="newer collector"):
        Store(log.server, Metrics())


async def test_a_server_that_lost_what_it_had_committed_is_not_gone_on_with(log: Place) -> None:
    async with opened(log) as store:
        for _ in range(3):
            await store.write(lambda tx: tx.say(read()))
        log.rows("DELETE FROM entry WHERE idx = 2 RETURNING idx")
        log.rows("UPDATE chaperone_log SET turn = turn + 1 RETURNING turn")  # a standby that became the server
        with pytest.raises(StoreUnusable, match="has lost"):
            await store.write(lambda tx: tx.say(read()))


def test_a_server_that_does_not_keep_what_it_commits_is_refused(postgres: Postgres, log: Place) -> None:
    info = f"host=127.0.0.1 port={postgres.port} user=postgres password={PASSWORD} dbname=postgres"
    with pytest.raises(StoreUnusable, match="fsync off"):
        postgresql.Server(info, log.key_path).open_writer()


def test_a_database_of_another_program_is_refused(log: Place) -> None:
    with log.connect() as connection:
        connection.execute("CREATE TABLE theirs (a int)")
    with pytest.raises(StoreUnusable, match="another program"):
        log.server.open_writer()


def test_commits_are_durable_and_readers_cannot_write(log: Place) -> None:
    info = log.info.replace("options=", "options=-csynchronous_commit%3Doff%20")
    server = postgresql.Server(info, log.key_path)
    writer, reader = server.open_writer(), server.open_reader()
    assert writer.execute("SHOW synchronous_commit").fetchone() == ("on",)
    reader.begin_read()
    assert reader.execute("SHOW transaction_isolation").fetchone() == ("repeatable read",)
    with pytest.raises(ServerFault, match="read-only"):
        reader.execute("INSERT INTO rule (name) VALUES ('x')")
    reader.execute("ROLLBACK")
    for connection in (writer, reader):
        assert connection.execute("SHOW tcp_keepalives_idle").fetchone() == ("10",)
        connection.close()


def test_a_password_stands_in_no_command_line(log: Place, tmp_path: Path) -> None:
    options = migrate.argparse.Namespace(data=None, database=log.info, database_file=None, log_key=log.key_path)
    with pytest.raises(StoreUnusable, match="--database-file"):
        place.open_place(options)
    for wrong in ({"data": tmp_path}, {"database": "", "database_file": log.info_path, "log_key": None}):
        with pytest.raises(StoreUnusable):
            place.open_place(migrate.argparse.Namespace(**{**vars(options), **wrong}))


async def test_a_log_moves_there_and_back_and_says_the_same(log: Place, tmp_path: Path) -> None:
    authority, old, new = Authority("gateway CA"), tmp_path / "old", tmp_path / "new"
    store = Store(old, Metrics())
    for stream in (worked(authority), worked(authority, commands=5, name=HOSTILE, uid="pod-2")):
        await fill(store, stream, LogKeys(old, may_make=False))
    expected, before, note = await store.read(answers), await store.read(root), await store.read(_note)
    await store.close()
    file = ("--to-database-file", str(log.info_path))
    assert migrate.command(["migrate", "--from", str(old), *file]) == 0
    assert migrate.command(["migrate", "--from", str(old), *file]) == 1  # not empty any more
    moved = Place(log.port, log.name, log.info_path, old / "log.key")
    async with opened(moved) as there:
        assert (await there.read(answers), await there.read(root), await there.read(_note)) == (expected, before, note)
        await fill(there, worked(authority, commands=300, uid="pod-3"), LogKeys(old, may_make=False))
        expected, before, note = await there.read(answers), await there.read(root), await there.read(_note)
    back = ("migrate", "--from-database-file", str(log.info_path), "--to", str(new))
    assert migrate.command(back) == 0
    assert migrate.command(back) == 1
    (new / "log.key").write_bytes((old / "log.key").read_bytes())
    again = Store(new, Metrics())
    assert (await again.read(answers), await again.read(root), await again.read(_note)) == (expected, before, note)
    await fill(again, worked(authority, commands=3, uid="pod-4"), LogKeys(new, may_make=False))
    await again.close()
    database = open_reader(new / "evidence.db")
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def _note(db: Connection) -> bytes:
    return bytes(db.execute("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()[0])


async def test_a_log_that_was_changed_is_not_moved(log: Place, tmp_path: Path) -> None:
    store = Store(tmp_path, Metrics())
    await fill(store, worked(Authority("gateway CA")), LogKeys(tmp_path, may_make=False))
    await store.close()
    database = open_writer(tmp_path / "evidence.db")
    database.execute("UPDATE entry SET bytes = ? WHERE idx = 5", (b"\x01\x01 another",))
    database.close()
    assert migrate.command(["migrate", "--from", str(tmp_path), "--to-database-file", str(log.info_path)]) == 1
    assert log.rows("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()") == [(0,)]


async def test_a_log_is_not_gone_on_with_other_keys(log: Place, tmp_path: Path) -> None:
    async with opened(log) as store:
        await fill(store, worked(Authority("gateway CA"), commands=1), LogKeys(log.key_path, may_make=False))
    assert migrate.command(["new-log-key", str(tmp_path / "other.key")]) == 0
    assert migrate.command(["new-log-key", str(tmp_path / "other.key")]) == 1  # one that is there stays
    with pytest.raises(StoreUnusable, match="other keys"):
        Store(postgresql.Server(log.info, tmp_path / "other.key"), Metrics())
    async with opened(log) as store:
        assert store.signed_size == store.size


async def test_keys_of_archived_bodies_are_exported_from_a_server(log: Place, tmp_path: Path) -> None:
    async with opened(log) as store:
        await fill(store, worked(Authority("gateway CA"), commands=1), LogKeys(log.key_path, may_make=False))
        number, key = await store.write(lambda tx: tx.on(lambda db: datakeys.key_for(db, "agents", "billing", 20_000)))
        origin = await store.read(checkpoint.read_origin)
    out = tmp_path / "keys"
    assert command(["export-keys", "--database-file", str(log.info_path), "--out", str(out)]) == 0
    assert [(one.id, one.key) for one in keyfile.read(out, origin).keys] == [(number, key)]


async def test_a_bundle_of_a_log_on_a_server_verifies(log: Place, tmp_path: Path) -> None:
    authority = Authority("gateway CA")
    stream = worked(authority)
    async with opened(log) as store:
        await fill(store, stream, LogKeys(log.key_path, may_make=False))
        (name,) = await store.read(lambda db: db.execute("SELECT name FROM session").fetchone())
        pieces = await proof.bundle(store, "agents", name, stream.now_us)
        assert pieces is not None
        data = b"".join([piece async for piece in pieces])
        (tmp_path / "log.policy").write_bytes(await store.read(store.policy))
    with tarfile.open(fileobj=io.BytesIO(data)) as files:
        assert f"log/{stream.id}.tlog-proof" in files.getnames()
    (tmp_path / "bundle.tar").write_bytes(data)
    (tmp_path / "trust.pem").write_text(authority.pem)
    trust = ("--trust", "trust.pem", "--log-policy", "log.policy")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", "verify", "bundle.tar", *trust], cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout.endswith("verify: OK\n"), done.stdout + done.stderr
