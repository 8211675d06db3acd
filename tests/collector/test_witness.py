"""A collector and witnesses as processes: what they sign together, and what a witness will not sign."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_collector import Collector
from pki import Authority
from witnessed_log import Place, eventually, witnessing

from chaperone_cli.witness import Witness
from chaperone_collector import checkpoint
from chaperone_collector.schema import open_writer
from chaperone_evidence import merkle, policyfile, witness
from chaperone_evidence.cosignature import ED25519_COSIGNATURE, MLDSA44, CheckpointSigner, parse_key
from chaperone_evidence.errors import Malformed
from chaperone_evidence.policy import Policy, open_checkpoint
from chaperone_evidence.witness import AddCheckpoint

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]


@pytest.fixture
async def place(collector: Collector, gateway_ca: Authority, tmp_path: Path) -> Place:
    made = Place(collector, gateway_ca, tmp_path)
    await made.grow()
    return made


async def test_a_witness_signs_what_grows(place: Place) -> None:
    with witnessing(place, "witness.example/w1", place.folder / "w1") as lines:
        keys = tuple(parse_key(line.split()[2]) for line in lines)
        assert [key.kind for key in keys] == [ED25519_COSIGNATURE, MLDSA44]
        place.with_witnesses(*lines)
        for _ in range(3):
            await place.grow()
            size, note, _ = eventually(place.newest, lambda found: found[2] == 1, place.collector.log.read_text)
            policy = Policy(place.origin, place.policy().log, 2, keys, 1)
            opened = open_checkpoint(note, policy)
            assert opened.checkpoint.size == size
            assert {one.key for one in opened.signatures} == {*policy.log, *keys}
    assert await place.answers("signed")


async def test_a_log_that_was_taken_back_is_not_signed(place: Place) -> None:
    """An older copy of the disk, keys and all: the collector cannot know, and the witness does."""
    with witnessing(place, "witness.example/w1", place.folder / "w1") as lines:
        place.with_witnesses(*lines)
        eventually(place.newest, lambda found: found[2] == 1, place.collector.log.read_text)
        place.collector.stop()
        shutil.copytree(place.collector.data, place.folder / "older")
        place.collector.start()
        await place.grow(20)
        eventually(place.newest, lambda found: found[2] == 1, place.collector.log.read_text)
        place.collector.stop()
        shutil.rmtree(place.collector.data)
        shutil.copytree(place.folder / "older", place.collector.data)
        place.collector.start()
        other = Place(place.collector, place.collector.gateway_ca, place.folder)
        await other.grow(1)
        await place.until_answered("refused")
        assert place.newest()[2] == 0
        assert "entries were lost, or there is another log of this name" in place.collector.log.read_text()


async def test_a_witness_that_is_away_delays_nothing_and_is_asked_again(place: Place) -> None:
    directory = place.folder / "w1"
    with witnessing(place, "witness.example/w1", directory) as lines:
        pass
    place.with_witnesses(*lines)
    await place.grow()
    await place.until_answered("failed")
    assert place.newest()[2] == 0
    with witnessing(place, "witness.example/w1", directory) as later:  # another port, the same keys
        assert [line.split()[2] for line in later] == [line.split()[2] for line in lines]
        place.with_witnesses(*later)
        eventually(place.newest, lambda found: found[2] == 1, place.collector.log.read_text)


@pytest.mark.parametrize(
    ("change", "status"),
    [("nothing", 200), ("twice", 409), ("other log", 404), ("signature", 403), ("garbage", 400), ("root", 403)],
)
async def test_what_a_witness_says_to_a_request(place: Place, tmp_path: Path, change: str, status: int) -> None:
    logs: dict[str, Any] = {} if change == "other log" else {place.origin: place.policy().log}
    held = Witness(tmp_path / "held", "witness.example/w2", logs)
    _, note, _ = place.newest()
    request = AddCheckpoint(0, (), note).encode()
    if change == "signature":
        request = request[:-20] + (b"A" if request[-20:-19] != b"A" else b"B") + request[-19:]
    elif change == "garbage":
        request = b"old 0\n" + request
    elif change == "root":
        root = note.split(b"\n")[2]
        request = request.replace(root, base64.b64encode(bytes(32)))
    elif change == "twice":
        assert held.add(request)[0].status == 200
        held = Witness(tmp_path / "held", "witness.example/w2", logs)  # what it has seen is on disk
    judged, lines = held.add(request)
    assert judged.status == status, judged.why
    assert bool(lines) is (status == 200)
    if status == 200:
        assert judged.checkpoint is not None
        assert len(witness.parse_answer(lines.encode(), judged.checkpoint, held.keys)) == 2
    if change == "twice":
        assert judged.seen_size == place.newest()[0]


def test_old_checkpoints_are_thinned_to_one_an_hour_and_the_newest_stay(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db")
    hour_us, day_us = 3_600_000_000, 86_400_000_000
    now_us = 1_000 * day_us + hour_us // 2
    times = [now_us - 2 * day_us + number * 600_000_000 for number in range(6 * 48)]  # one in ten minutes, two days
    database.executemany(
        "INSERT INTO checkpoint (size, wall_us, root, note) VALUES (?,?,?,?)",
        [(size, wall_us, merkle.EMPTY_ROOT, b"") for size, wall_us in enumerate(times, 1)],
    )
    assert checkpoint.thin(database, now_us) > 100
    left = [row[0] for row in database.execute("SELECT wall_us FROM checkpoint ORDER BY size")]
    recent = [one for one in times if one >= now_us - day_us]
    assert left[-len(recent) :] == recent
    old = [one for one in left if one < now_us - day_us - hour_us]
    assert len({one // hour_us for one in old}) == len(old) == 23
    assert checkpoint.thin(database, now_us) == 0


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("witness w1", "Line 1"),
        ("witness w1 KEY ftp://x", "Line 1"),
        ("witness w1 nonsense https://x", "[Kk]ey"),
        ("witness w1 KEY https://x\nwitness w2 KEY https://y", "twice"),
    ],
)
def test_witnesses_that_cannot_be_asked_are_refused(place_less_key: str, text: str, fragment: str) -> None:
    with pytest.raises(Malformed, match=fragment):
        policyfile.parse_witnesses(text.replace("KEY", place_less_key))


@pytest.fixture
def place_less_key() -> str:
    return CheckpointSigner("witness.example/w1", Ed25519PrivateKey.generate(), ED25519_COSIGNATURE).key.vkey
