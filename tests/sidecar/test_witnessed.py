"""Durability `Witnessed`: no command runs before the collector's log has signed its record, and no receipt is taken
on trust."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from evidence_directory import read_records
from fix_broker import Broker
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres
from gateway_stream import Pod
from pod_gateway import compiled, connect, install, running, until
from psycopg import errors
from spooled import begin, work
from witnessed_log import Place
from witnessed_log import witnessing as serving

from chaperone_collector.tree import read_root
from chaperone_evidence import note, policyfile, record
from chaperone_evidence.checkpoint import Checkpoint, parse_body
from chaperone_evidence.cosignature import ED25519, CheckpointSigner, sign_checkpoint
from chaperone_evidence.policy import open_checkpoint
from chaperone_evidence.proof import LogProof, parse_proof
from chaperone_sidecar.errors import Unwitnessed
from chaperone_sidecar.recording.receipts import Receipts
from chaperone_sidecar.recording.shipper import Shipper

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

type Lie = Callable[[bytes], bytes]


def same_ports(collector: Collector) -> None:
    """The next start listens where the last one did."""
    collector.more = ("--api-port", "-1", "--ingest-port", str(collector.ports[-2]))


def paid(postgres: Postgres, number: int) -> bool:
    with postgres.admin() as owner:
        row = owner.execute("SELECT paid FROM invoices WHERE id = %s", (number,)).fetchone()
    assert row is not None
    return bool(row[0])


async def test_nothing_runs_while_the_collector_is_away_and_the_client_hears_why(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot = compiled(broker, postgres, "read", "modify", durability="Witnessed")
    await broker.put_snapshot(snapshot)
    opa, pay = opa_with(snapshot.bundle), "UPDATE invoices SET paid = true WHERE id = %s"
    async with running(broker, collector, opa, tmp_path, "witnessed") as (_, port, _), await connect(port) as agent:
        await until(lambda: stored(collector) > 0)
        await agent.execute(pay, (21,))
        (receipt,) = (tmp_path / "spool" / "receipts").glob("*.tlog-proof")
        policy = policyfile.parse((tmp_path / "spool" / "log-policy").read_text())
        assert open_checkpoint(parse_proof(receipt.read_bytes()).checkpoint, policy).checkpoint.size > 0
        collector.kill()
        for prepare in (False, True):
            with pytest.raises(errors.SystemError, match=r"no receipt of the evidence log .* collector") as refused:
                await agent.execute(pay, (22,), prepare=prepare)
            assert "Nothing was executed" in str(refused.value.diag.message_hint)
        assert not paid(postgres, 22)
        before = stored(collector)
        same_ports(collector)
        collector.start()
        # The gateway tries again with growing pauses, which are longer in the end than a command waits.
        await until(lambda: stored(collector) > before)
        await agent.execute(pay, (23,))
    assert [paid(postgres, number) for number in (21, 22, 23)] == [True, False, True]
    codes = [one.status for one in outcomes(tmp_path / "spool") if one.code == "unwitnessed"]
    assert codes == ["refused", "refused"]


def stored(collector: Collector) -> int:
    """Entries that the collector holds."""
    return int(collector.rows("SELECT count(*) FROM entry")[0][0])


def outcomes(spool: Path) -> list[record.CommandOutcome]:
    return [one for one in read_records(spool) if isinstance(one, record.CommandOutcome)]


class Liar:
    """Stands between a gateway and a real collector, and changes what the collector says of its log."""

    def __init__(self, collector: Collector, http: aiohttp.ClientSession) -> None:
        self._collector = collector
        self._http = http
        self.receipt: Lie = bytes
        self.policy: Lie = bytes
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        async with self._http.get(self._collector.ingest + request.path_qs) as answer:
            body = await answer.read()
        if answer.status == 200:
            body = self.policy(body) if request.path.endswith("/policy") else self.receipt(body)
        return web.Response(status=answer.status, body=body)

    async def other(self, path: str) -> bytes:
        async with self._http.get(self._collector.ingest + path) as answer:
            return await answer.read()


@asynccontextmanager
async def witnessing(collector: Collector, root: Path) -> AsyncIterator[tuple[Receipts, Liar, Shipper]]:
    """A stream whose records are shipped to the collector and whose receipts come through the liar."""
    pod = Pod(collector.gateway_ca)
    recorder, spool = begin(pod, root)
    work(recorder, 20)
    connector = aiohttp.TCPConnector(ssl=pod.client_tls(collector.service_ca.pem))
    async with aiohttp.ClientSession(connector=connector) as http, aiohttp.ClientSession() as plain:
        liar = Liar(collector, http)
        application = web.Application()
        application.add_routes([web.get("/{path:.*}", liar.answer)])
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        liar.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        shipper = Shipper(root, spool, collector.ingest, lambda: http)
        receipts = Receipts(root, spool.stream, pod.cluster, liar.url, lambda: plain, shipper)
        tasks = [asyncio.create_task(shipper.run()), asyncio.create_task(receipts.run())]
        try:
            yield receipts, liar, shipper
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()


def resigned(data: bytes, change: Callable[[Checkpoint], Checkpoint]) -> bytes:
    """The proof with another checkpoint, signed by somebody in the log's name."""
    found = parse_proof(data)
    said = change(parse_body(note.parse(found.checkpoint).body))
    signer = CheckpointSigner(said.origin, Ed25519PrivateKey.generate(), ED25519)
    return LogProof(found.index, found.hashes, sign_checkpoint(said, (signer,), 1)).encode()


def wrong_root(data: bytes) -> bytes:
    """A hash of the proof is another one: it leads to another root."""
    found = parse_proof(data)
    return LogProof(found.index, (bytes(32), *found.hashes[1:]), found.checkpoint).encode()


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (lambda data: resigned(data, lambda said: said), "keys of the log have signed"),
        (lambda data: resigned(data, lambda said: msgspec.structs.replace(said, root=bytes(32))), "have signed"),
        (wrong_root, "does not hold"),
        (lambda data: data[: len(data) // 2], "does not hold"),
    ],
    ids=["key", "signed root", "root", "cut"],
)
async def test_a_forged_receipt_is_refused(
    collector_with: Callable[..., Collector], tmp_path: Path, lie: Lie, why: str
) -> None:
    async with witnessing(collector_with(), tmp_path) as (receipts, liar, shipper):
        await shipper.beyond(3)
        liar.receipt = lie
        with pytest.raises(Unwitnessed, match=why):
            await receipts.reach(3)
        assert receipts.witnessed_seq == -1
        liar.receipt = bytes
        await reached(receipts, 3)


async def test_the_receipt_of_another_record_is_refused(
    collector_with: Callable[..., Collector], tmp_path: Path
) -> None:
    async with witnessing(collector_with(), tmp_path) as (receipts, liar, shipper):
        await shipper.beyond(5)
        stream = next((tmp_path / "streams").iterdir()).name
        other = b""
        while not other.startswith(b"c2sp"):
            other = await liar.other(f"/v1/streams/{stream}/receipt?seq=2")
        liar.receipt = lambda _: other
        with pytest.raises(Unwitnessed, match="does not hold"):
            await receipts.reach(5)


async def test_a_log_with_other_keys_than_the_pod_saw_first_is_refused(
    collector_with: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = collector_with()
    async with witnessing(collector, tmp_path / "first") as (receipts, _, _):
        await reached(receipts, 3)
    (tmp_path / "next").mkdir()
    shutil.copy(tmp_path / "first" / "log-policy", tmp_path / "next")
    async with witnessing(collector, tmp_path / "next") as (receipts, liar, shipper):
        await shipper.beyond(3)
        key = CheckpointSigner("other", Ed25519PrivateKey.generate(), ED25519).key
        liar.policy = lambda _: f"log {key.vkey}\nquorum none\n".encode()
        with pytest.raises(Unwitnessed, match="not those that this pod saw first"):
            await receipts.reach(3)


async def test_a_collector_that_lost_a_record_is_shown_up_by_the_receipt(
    collector_with: Callable[..., Collector], tmp_path: Path
) -> None:
    collector = collector_with()
    async with witnessing(collector, tmp_path / "early") as (receipts, _, _):
        await reached(receipts, 3)
    collector.stop()
    backup = shutil.copytree(collector.data, tmp_path / "backup")
    same_ports(collector)
    collector.start()
    async with witnessing(collector, tmp_path / "lost") as (receipts, _, _):
        await reached(receipts, 3)
    (kept,) = (tmp_path / "lost" / "receipts").iterdir()
    collector.stop()
    shutil.rmtree(collector.data)
    shutil.copytree(backup, collector.data)
    collector.start()
    policy = policyfile.parse((tmp_path / "early" / "log-policy").read_text())
    signed = open_checkpoint(parse_proof(kept.read_bytes()).checkpoint, policy).checkpoint
    async with witnessing(collector, tmp_path / "later") as (receipts, _, _):
        await reached(receipts, 3)
        newest = parse_proof(next((tmp_path / "later" / "receipts").iterdir()).read_bytes())
    assert open_checkpoint(newest.checkpoint, policy).checkpoint.size >= signed.size
    with contextlib.closing(sqlite3.connect(collector.data / "evidence.db")) as db:
        root = read_root(db, signed.size)  # what the log says now that its first entries are
    assert root != signed.root, "two trees of one size, both signed with the log's keys"


async def reached(receipts: Receipts, seq: int) -> None:
    """A collector that has just started, or whose witnesses have, may take longer than a command would wait."""
    for _ in range(5):
        with contextlib.suppress(Unwitnessed):
            await receipts.reach(seq)
            return
    await receipts.reach(seq)


async def test_a_receipt_waits_for_the_quorum_of_witnesses(collector: Collector, tmp_path: Path) -> None:
    """Two of two sign; without the second no command would run, and once it is back, with the same keys, they do."""
    place = Place(collector, collector.gateway_ca, tmp_path)
    await place.grow()
    names = ("witness.example/w1", "witness.example/w2")
    folders = [tmp_path / name.rpartition("/")[2] for name in names]
    group = ["group both all witness.example-w1-04 witness.example-w2-04", "quorum both"]
    with serving(place, names[0], folders[0]) as one:
        with serving(place, names[1], folders[1]) as two:
            place.with_witnesses(one[0], two[0], *group)
            async with witnessing(collector, tmp_path / "met") as (receipts, _, _):
                await reached(receipts, 3)
        (kept,) = (tmp_path / "met" / "receipts").iterdir()
        policy = policyfile.parse((tmp_path / "met" / "log-policy").read_text())
        assert policy.witness_quorum == 2
        signed = {one.key.name for one in open_checkpoint(parse_proof(kept.read_bytes()).checkpoint, policy).signatures}
        assert signed == {place.origin, *names}
        async with witnessing(collector, tmp_path / "away") as (receipts, _, shipper):
            await shipper.beyond(3)
            with pytest.raises(Unwitnessed, match="fewer than 2 of the log's witnesses have signed"):
                await receipts.reach(3)
            with serving(place, names[1], folders[1]) as two:  # at another port
                same_ports(collector)
                place.with_witnesses(one[0], two[0], *group, at=collector.more)
                await reached(receipts, 3)
