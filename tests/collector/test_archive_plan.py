"""Which entries go into which segment, what is encrypted with which key, and what no archive can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chaperone_collector import checkpoint, datakeys
from chaperone_collector.archive import keyfile, options, pack, plan, segment
from chaperone_collector.checkpoint import LogKeys
from chaperone_collector.errors import KeyDestroyed, RestoreRefused, StoreUnusable
from chaperone_collector.schema import open_writer
from chaperone_collector.transaction import Transaction, Unnamed
from chaperone_evidence.statement import EvidenceRead

PLACE = "https://s3.example.com/evidence/"
ORIGIN = "chaperone.dev/log/cluster"


class Log:
    """A database with entries of the collector's own, signed by hand."""

    def __init__(self, folder: Path) -> None:
        self.now_us = 1_000_000
        self.db = open_writer(folder / "evidence.db")
        self.db.execute(
            "INSERT INTO stream (name, cluster, namespace, pod, pod_uid, identity, owner, node, service_account, vkey, "
            "revision, previous, opened_us, count, link, seen_us) "
            "VALUES ('s', 'cluster', 'agents', '', '', 'a', '', '', '', '', '', '', 0, 0, x'', 0)"
        )
        self.transaction = Transaction(self.db, Unnamed(self.db), lambda: self.now_us)
        self.keys = LogKeys(folder, may_make=True)

    def add(self, count: int, *, is_signed: bool = True) -> None:
        self.now_us += 1_000_000
        self.transaction.begin()
        for number in range(count):
            self.transaction.say(
                EvidenceRead(wall_us=self.now_us, user=f"user-{number}", verb="get", resource="sessions", rows=1)
            )
        if is_signed:
            self.transaction.sign(self.keys)
        self.transaction.commit()

    def next(self, most_bytes: int, older_than_us: int) -> plan.Draft | None:
        """Decide the next segment."""
        draft = plan.next_draft(self.db, PLACE, most_bytes, older_than_us)
        if draft is not None:
            plan.decide(self.db, PLACE, draft, b"digest", self.now_us)
        return draft


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def test_a_segment_waits_until_it_is_old_or_full(log: Log) -> None:
    log.add(10)
    assert log.next(1 << 20, log.now_us - 1) is None
    assert log.next(1000, log.now_us - 1) is not None
    log.add(10)
    assert log.next(1 << 20, log.now_us) is not None


def test_a_segment_ends_where_a_checkpoint_does_and_no_entry_is_left_out(log: Log) -> None:
    for count in (7, 3, 20):
        log.add(count)
    log.add(5, is_signed=False)
    ends, has_note = [], []
    while (draft := log.next(2000, log.now_us)) is not None:
        assert draft.segment.first == (ends[-1] if ends else 0)
        ends.append(draft.segment.end)
        has_note.append(bool(draft.note))
        again, _ = plan.decided(log.db, draft.segment.first, len(draft.segment.entries))
        assert segment.encode(again, ORIGIN) == segment.encode(draft.segment, ORIGIN)
        assert segment.decode(segment.encode(again, ORIGIN), ORIGIN) == again
    assert ends[0] == 10  # the last checkpoint that the bytes reach; the one at 7 is older
    assert ends[-1] == 30  # what is not signed waits
    assert has_note == [end in (10, 30) for end in ends]
    assert len(ends) > 2


def test_a_checkpoint_that_witnesses_signed_is_taken_before_a_newer_one(log: Log) -> None:
    log.add(7)
    log.transaction.cosign(7, "— witness x\n")
    log.add(3)
    draft = log.next(1 << 20, log.now_us)
    assert draft is not None
    assert draft.segment.end == 7
    assert b"witness" in draft.note


def test_another_place_begins_with_the_first_entry(log: Log) -> None:
    log.add(3)
    assert log.next(1 << 20, log.now_us) is not None
    assert plan.archived(log.db, PLACE) == 3
    assert plan.archived(log.db, PLACE + "other") == 0
    assert plan.lag(log.db, PLACE, log.now_us + 5) == (3, 5)
    plan.note_done(log.db, PLACE, 0, log.now_us)
    assert plan.lag(log.db, PLACE, log.now_us + 5) == (0, 0)


def test_a_pack_is_the_same_each_time_and_only_its_key_opens_it(log: Log) -> None:
    number, key = datakeys.key_for(log.db, "agents", "a", 3)
    assert datakeys.key_for(log.db, "agents", "a", 3) == (number, key)
    other, other_key = datakeys.key_for(log.db, "agents", "a", 4)
    assert number != other
    one = pack.seal(number, key, b"c" * 32, b"body")
    assert one == pack.seal(number, key, b"c" * 32, b"body")
    data = pack.encode(9, [one], ORIGIN)
    assert [pack.unseal(found, key) for found in pack.decode(data, 9, ORIGIN)] == [b"body"]
    for changed in (
        pack.Sealed(number, b"d" * 32, one.data), pack.Sealed(other, one.commit, one.data),
        pack.Sealed(number, one.commit, one.data[:-1] + bytes((one.data[-1] ^ 1,))),
    ):  # fmt: skip
        with pytest.raises(RestoreRefused):
            pack.unseal(changed, key)
    with pytest.raises(RestoreRefused):
        pack.unseal(one, other_key)
    for wrong in (data[:-1], data[:60], b"", b"x" + data[1:]):
        with pytest.raises(RestoreRefused):
            list(pack.decode(wrong, 9, ORIGIN))
    with pytest.raises(RestoreRefused):
        list(pack.decode(data, 8, ORIGIN))


def test_a_destroyed_key_is_not_made_anew(log: Log) -> None:
    datakeys.key_for(log.db, "agents", "a", 3)
    datakeys.key_for(log.db, "agents", "b", 3)
    assert datakeys.destroy(log.db, "agents", "a", 3, 12) == 1
    assert datakeys.destroy(log.db, "agents", "a", 3, 13) == 0
    with pytest.raises(KeyDestroyed):
        datakeys.key_for(log.db, "agents", "a", 3)
    datakeys.key_for(log.db, "agents", "b", 3)
    assert log.db.execute("SELECT destroyed_idx FROM datakey WHERE key IS NULL").fetchall() == [(12,)]


@pytest.mark.parametrize("cut", [0, 1, 40, 88, 92, 100, -1])
def test_a_segment_that_is_cut_is_refused(log: Log, cut: int) -> None:
    log.add(3)
    draft = log.next(1 << 20, log.now_us)
    assert draft is not None
    data = segment.encode(draft.segment, ORIGIN)
    with pytest.raises(RestoreRefused):
        segment.decode(data[:cut], ORIGIN)
    with pytest.raises(RestoreRefused):
        segment.decode(data, ORIGIN + "2")


@pytest.mark.parametrize(
    "change",
    [
        {"endpoint": "http://s3.example.com"}, {"endpoint": "https://user:secret@s3.example.com"},
        {"endpoint": "https://s3.example.com/path"}, {"endpoint": "https://s3.example.com?x=1"}, {"endpoint": "s3"},
        {"bucket": "UPPER"}, {"bucket": ""}, {"prefix": "/begins"}, {"mode": "SOMETIMES"}, {"retentionDays": 0},
        {"retentionDays": "7"}, {"segmentBytes": 1}, {"segmentBytes": 1 << 30}, {"segmentSeconds": 0},
        {"secretKey": "x"},
    ],
)  # fmt: skip
def test_what_no_archive_can_be_is_refused_at_the_start(tmp_path: Path, change: dict[str, Any]) -> None:
    said = {"endpoint": "https://s3.example.com", "bucket": "evidence", "credentials": "/etc/pair"}
    path = tmp_path / "archive.yaml"
    path.write_text("".join(f"{name}: {value!r}\n" for name, value in said.items()))
    assert options.load(path).mode == "COMPLIANCE"
    path.write_text("".join(f"{name}: {value!r}\n" for name, value in (said | change).items()))
    with pytest.raises(StoreUnusable):
        options.load(path)


def test_a_file_of_keys_that_others_may_read_is_refused(log: Log, tmp_path: Path) -> None:
    datakeys.key_for(log.db, "agents", "a", 3)
    found, path = keyfile.collect(log.db, checkpoint.read_origin(log.db)), tmp_path / "keys.json"
    keyfile.write(path, found)
    assert path.stat().st_mode & 0o777 == 0o600
    assert keyfile.read(path, ORIGIN) == found
    assert found.keys[0].key.hex() not in repr(found)
    with pytest.raises(RestoreRefused, match="cannot be written"):
        keyfile.write(path, found)
    with pytest.raises(RestoreRefused, match="holds the keys of"):
        keyfile.read(path, "chaperone.dev/log/another")
    path.chmod(0o640)
    with pytest.raises(RestoreRefused, match="Others may read"):
        keyfile.read(path, ORIGIN)
