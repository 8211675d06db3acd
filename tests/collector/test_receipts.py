"""Receipts as gateways ask for them: of their own streams alone, signed without the usual pause, with the quorum."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from pathlib import Path

import pytest
from fix_collector import Collector, Sender
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_cli.witness import Witness
from chaperone_collector import checkpoint
from chaperone_collector.checkpoint import KEPT_HURRIED_US, thin
from chaperone_collector.schema import open_writer
from chaperone_evidence import entry, policyfile
from chaperone_evidence.merkle import leaf_hash
from chaperone_evidence.proof import parse_proof

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]

LIMIT_S = 60.0


async def get(sender: Sender, path: str) -> tuple[int, bytes]:
    async with sender.http.get(sender.base + path) as answer:
        return answer.status, await answer.read()


async def get_signed(sender: Sender, path: str) -> tuple[int, bytes]:
    """The same, asked for again while the log has not signed, as gateways do: a busy machine may take that long."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            status, text = await get(sender, path)
            if status != 503 or b"has not signed a checkpoint over the record yet" not in text:
                return status, text


def worked(stream: Stream, commands: int = 3) -> list[bytes]:
    """A session; the frames that it added."""
    before = len(stream.frames)
    session = stream.open_session()
    for number in range(commands):
        stream.intend(session, f"SELECT {number}")
    return stream.frames[before:]


async def test_each_record_is_proved_to_be_in_a_log_of_the_policy(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    worked(stream)
    frames = list(stream.frames)
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
        status, text = await get(sender, "/v1/log/policy")
        assert status == 200
        policy = policyfile.parse(text.decode())
        assert policy.log_quorum == 2
        for seq, frame in enumerate(frames):
            status, proof = await get_signed(sender, f"/v1/streams/{stream.id}/receipt?seq={seq}")
            assert status == 200, proof
            parse_proof(proof).verify(leaf_hash(next(entry.frames(frame))), policy)


async def test_while_somebody_waits_the_log_is_signed_more_often(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    async with Sender(collector, pod) as sender:
        first: list[int] = []
        for _ in range(6):
            worked(stream, 1)
            await sender.ship(stream)
            path = f"/v1/streams/{stream.id}/receipt?seq={stream.chain.count - 1}"
            first.append((await get(sender, path))[0])
            assert (await get_signed(sender, path))[0] == 200
        # With the usual pause, which is longer than a request waits, none but the first would be 200 at once; one
        # that a busy machine keeps waiting is told so.
        assert set(first) <= {200, 503}
        assert first.count(200) > 3
    times = [row[0] for row in collector.rows("SELECT wall_us FROM checkpoint ORDER BY size")]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert min(pauses) > checkpoint.HURRIED_INTERVAL_S * 900_000


async def test_a_gateway_gets_no_receipts_of_another_pods_stream_nor_of_what_is_not_stored(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod, other = Pod(gateway_ca), Pod(gateway_ca, pod_uid="6f1f0a52-0000-4000-8000-000000000002")
    stream = Stream(pod)
    async with Sender(collector, pod) as sender, Sender(collector, other) as thief:
        await sender.ship(stream)
        assert (await get(thief, f"/v1/streams/{stream.id}/receipt?seq=0"))[0] == 403
        assert (await get(sender, f"/v1/streams/{stream.id}/receipt?seq=7"))[0] == 404
        assert (await get(sender, f"/v1/streams/{stream.id}/receipt?seq=x"))[0] == 400
        assert (await get(sender, f"/v1/streams/{stream.id.upper()}/receipt?seq=0"))[0] == 400


async def test_without_the_quorum_of_witnesses_there_is_no_receipt_and_it_says_so(
    collector: Collector, gateway_ca: Authority, tmp_path: Path
) -> None:
    witness = Witness(tmp_path / "witness", "witness.example/w1", {})
    named = [f"witness w{number} {key.vkey} http://127.0.0.1:9/" for number, key in enumerate(witness.keys)]
    (tmp_path / "witnesses").write_text("\n".join([*named, "group all any w0 w1", "quorum all", ""]))
    collector.stop()
    collector.more = ("--api-port", "-1", "--witnesses", str(tmp_path / "witnesses"))
    collector.start()
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
        status, text = await get_signed(sender, f"/v1/streams/{stream.id}/receipt?seq=0")
        assert (status, b"fewer than 1 of the log's witnesses" in text) == (503, True)
        policy = policyfile.parse((await get(sender, "/v1/log/policy"))[1].decode())
        assert policy.witness_quorum == 1


async def test_one_pod_cannot_take_all_places_of_those_who_wait(
    collector: Collector, gateway_ca: Authority, tmp_path: Path
) -> None:
    witness = Witness(tmp_path / "witness", "witness.example/w1", {})
    line = f"witness w {witness.keys[0].vkey} http://127.0.0.1:9/"
    (tmp_path / "witnesses").write_text(f"{line}\nquorum w\n")
    collector.stop()
    collector.more = ("--api-port", "-1", "--witnesses", str(tmp_path / "witnesses"))
    collector.start()
    stream = Stream(Pod(gateway_ca))
    async with Sender(collector, stream.pod) as sender:
        await sender.ship(stream)
        # Their connections are there before, so that all have come when the first one's time is over.
        await asyncio.gather(*(sender.acked(stream.id) for _ in range(8)))
        asked = [get(sender, f"/v1/streams/{stream.id}/receipt?seq=0") for _ in range(8)]
        answers = sorted(status for status, _ in await asyncio.gather(*asked))
    assert answers == [429] * 4 + [503] * 4


def test_of_checkpoints_signed_in_a_hurry_the_one_that_most_have_signed_is_kept(tmp_path: Path) -> None:
    db = open_writer(tmp_path / "evidence.db")
    now_us = (time.time_ns() // 1000) // 5_000_000 * 5_000_000
    old_us = now_us - KEPT_HURRIED_US - 10_000_000
    rows = [(1, old_us, 0), (2, old_us + 200_000, 1), (3, old_us + 400_000, 0), (4, old_us + 5_000_000, 0),
            (5, now_us - 200_000, 0), (6, now_us - 100_000, 0)]  # fmt: skip
    db.executemany("INSERT INTO checkpoint (size, wall_us, root, note, witnesses) VALUES (?,?,x'00',x'00',?)", rows)
    assert thin(db, now_us) == 2
    assert [row[0] for row in db.execute("SELECT size FROM checkpoint ORDER BY size")] == [2, 4, 5, 6]
    db.close()
