"""Proofs that one keeps, and what a witness says to a log: forms, verification, and the order of its refusals."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import merkle, witness
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.cosignature import ED25519, ED25519_COSIGNATURE, MLDSA44, CheckpointSigner, sign_checkpoint
from chaperone_evidence.errors import BadProof, BadSignature, EvidenceError, Malformed
from chaperone_evidence.policy import Policy, open_checkpoint
from chaperone_evidence.proof import LogProof, parse_proof
from chaperone_evidence.witness import AddCheckpoint, Judgement, Seen, judge

ORIGIN = "chaperone.dev/log/3f1c"
TIME_S = 1_763_940_000
LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(40)]
LOG = CheckpointSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(bytes(32)), ED25519)
OTHER = CheckpointSigner(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"o" * 32), ED25519)
WITNESS = (
    CheckpointSigner("w.example/ü", MLDSA44PrivateKey.from_seed_bytes(bytes(32)), MLDSA44),
    CheckpointSigner("w.example/ü", Ed25519PrivateKey.from_private_bytes(b"w" * 32), ED25519_COSIGNATURE),
)
WITNESS_KEYS = tuple(one.key for one in WITNESS)
POLICY = Policy(ORIGIN, (LOG.key,))
WITNESSED = msgspec.structs.replace(POLICY, witnesses=WITNESS_KEYS, witness_quorum=1)


def read(nodes: Any) -> list[bytes]:
    return [merkle.root(LEAVES[node.index << node.level : (node.index + 1) << node.level]) for node in nodes]


def point(size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, merkle.root(LEAVES[:size]))


def signed(size: int) -> bytes:
    return sign_checkpoint(point(size), [LOG], TIME_S)


def proved(index: int, size: int, extra: bytes = b"") -> LogProof:
    return LogProof(index, tuple(merkle.inclusion_proof(index, size, read)), signed(size), extra)


@given(st.integers(1, 40), st.data(), st.binary(max_size=40))
def test_a_proof_is_read_as_written_and_verifies(size: int, data: st.DataObject, extra: bytes) -> None:
    index = data.draw(st.integers(0, size - 1))
    made = proved(index, size, extra)
    assert parse_proof(made.encode()) == made
    assert made.verify(LEAVES[index], POLICY).checkpoint == point(size)
    with pytest.raises(BadProof):
        made.verify(merkle.leaf_hash(b"another"), POLICY)


def test_a_proof_has_the_published_form() -> None:
    # c2sp.org/tlog-proof
    made = proved(5, 7, b"age-v1.2.1")
    head, *rest = made.encode().decode().split("\n")
    assert head == "c2sp.org/tlog-proof@v1"
    assert rest[:2] == ["extra YWdlLXYxLjIuMQ==", "index 5"]
    assert rest[2:6] == [*(base64.b64encode(one).decode() for one in made.hashes), ""]
    assert "\n".join(rest[6:]).encode() == signed(7)


def test_a_proof_shows_whether_a_witness_has_seen_the_log() -> None:
    made = proved(5, 7)
    with pytest.raises(BadSignature):
        made.verify(LEAVES[5], WITNESSED)
    lines = witness.cosign(point(7), WITNESS, TIME_S)
    cosigned = msgspec.structs.replace(made, checkpoint=made.checkpoint + lines.encode())
    assert parse_proof(cosigned.encode()).verify(LEAVES[5], WITNESSED).checkpoint.size == 7


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"tlog-proof@v1", b"tlog-proof@v2"), (b"index 5", b"index 05"), (b"index 5", b"index -5"),
        (b"index 5", b"index"), (b"index 5", b"index 5 "), (b"index 5", b"index 6"),
        (b"index 5", b"index 9223372036854775813"),
        (b"index 5", b"index " + b"5" * 5000), (b"index 5\n", b""), (b"extra eA==", b"extra "),
        (b"extra eA==", b"extra eB=="),
        (b"extra eA==", b"extra e"), (b"extra eA==", b"extra eA==\nextra eA=="), (b"extra eA==", b"extra  eA=="),
        (b"=\n\n", b"=\n"), (b"=\n\n", b"=\n\n\n"), (b"=\n\n", b"=\r\n\n"),
        (b"index 5\n", b"index 5\n" + b"A" * 43 + b"=\n"),
        (b"extra eA==", b"extra " + b"A" * (4 * (64 << 10) // 3 + 4)), (b"extra eA==", b"extra " + b"A" * (1 << 20)),
    ],
)  # fmt: skip
def test_a_proof_in_another_form_is_refused(old: bytes, new: bytes) -> None:
    sound = proved(5, 7, b"x").encode()
    assert old in sound
    with pytest.raises(EvidenceError):
        parse_proof(sound.replace(old, new, 1)).verify(LEAVES[5], POLICY)


def test_no_byte_of_a_proof_can_be_changed_and_no_part_cut() -> None:
    sound = proved(5, 7).encode()
    for position in range(len(sound)):
        changed = bytearray(sound)
        changed[position] ^= 1
        with pytest.raises(EvidenceError):
            parse_proof(bytes(changed)).verify(LEAVES[5], POLICY)
        with pytest.raises(EvidenceError):
            parse_proof(sound[:position]).verify(LEAVES[5], POLICY)


@given(
    st.binary(max_size=300) | st.binary(max_size=200).map(lambda data: b"c2sp.org/tlog-proof@v1\nindex 1\n\n" + data)
)
def test_arbitrary_bytes_are_a_proof_or_malformed(data: bytes) -> None:
    try:
        found = parse_proof(data)
    except Malformed:
        return
    assert found.encode() == data
    with pytest.raises(EvidenceError):
        found.verify(LEAVES[1], POLICY)


LOGS = {ORIGIN: (LOG.key,)}


def request(old: int, size: int, hashes: tuple[bytes, ...] | None = None) -> AddCheckpoint:
    return AddCheckpoint(
        old, tuple(merkle.consistency_proof(old, size, read)) if hashes is None else hashes, signed(size)
    )


def seen(size: int) -> dict[str, Seen]:
    return {ORIGIN: Seen(size, merkle.root(LEAVES[:size]))}


@given(st.integers(0, 40), st.integers(0, 40))
def test_a_witness_signs_what_continues_what_it_has_seen(old: int, size: int) -> None:
    if old > size:
        return
    asked = request(old, size)
    assert witness.parse_request(asked.encode()) == asked
    answer = judge(asked.encode(), LOGS, seen(old) if old else {})
    assert answer == Judgement(200, checkpoint=point(size))
    assert answer.seen == Seen(size, merkle.root(LEAVES[:size]))


def changed_root(size: int) -> Checkpoint:
    return Checkpoint(ORIGIN, size, LEAVES[0])


@pytest.mark.parametrize(
    ("data", "state", "status"),
    [
        (b"", {}, 400),
        (b"old 3\n\n", {}, 400),
        (b"old 03\n\n" + signed(7), {}, 400),
        (b"old -3\n\n" + signed(7), {}, 400),
        (b"old 3\n" + signed(7), {}, 400),
        (request(3, 7, (LEAVES[0],) * 64).encode(), seen(3), 400),
        (request(3, 7).encode() + b"x", seen(3), 400),
        (b"old 3\n\n" + signed(7).replace(b"=\n\n", b"=\nextension\n\n"), seen(3), 400),
        (request(9, 7, ()).encode(), seen(9), 400),
        (AddCheckpoint(3, (), sign_checkpoint(Checkpoint("x", 7, bytes(32)), [LOG], 0)).encode(), seen(3), 404),
        (AddCheckpoint(3, (), sign_checkpoint(point(7), [OTHER], 0)).encode(), seen(3), 403),
        (
            AddCheckpoint(3, (), sign_checkpoint(point(7), [LOG], 0) + LOG.sign(point(8), 0).encode()).encode(),
            seen(3),
            403,
        ),
        (AddCheckpoint(3, (), signed(7).replace(b"\n7\n", b"\n8\n")).encode(), seen(3), 403),
        (request(0, 7).encode(), seen(3), 409),
        (request(4, 7).encode(), seen(3), 409),
        (request(3, 7).encode(), {}, 409),
        (request(3, 7, ()).encode(), seen(3), 422),
        (request(3, 7, (LEAVES[0],)).encode(), seen(3), 422),
        (request(0, 7, (LEAVES[0],)).encode(), {}, 422),
        (request(7, 7, (LEAVES[0],)).encode(), seen(7), 422),
        (AddCheckpoint(7, (), sign_checkpoint(changed_root(7), [LOG], 0)).encode(), seen(7), 422),
        (AddCheckpoint(0, (), sign_checkpoint(changed_root(0), [LOG], 0)).encode(), {}, 422),
        (
            AddCheckpoint(3, request(3, 7).hashes, sign_checkpoint(changed_root(7), [LOG], 0)).encode(),
            seen(3),
            422,
        ),
        (request(3, 7).encode(), {ORIGIN: Seen(3, LEAVES[0])}, 422),
    ],
)
def test_a_witness_refuses_with_the_status_of_its_protocol(data: bytes, state: dict[str, Seen], status: int) -> None:
    answer = judge(data, LOGS, state)
    assert answer.status == status
    assert answer.why
    assert answer.seen is None
    assert answer.seen_size == ((state[ORIGIN].size if state else 0) if status == 409 else None)


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda data: b"old 3\n\n" + data))
def test_a_witness_answers_arbitrary_bytes_with_400(data: bytes) -> None:
    assert judge(data, LOGS, seen(3)).status == 400


def test_a_log_takes_the_lines_of_its_witness_and_no_others() -> None:
    made = witness.cosign(point(7), WITNESS, TIME_S)
    stranger = CheckpointSigner("s.example", Ed25519PrivateKey.generate(), ED25519_COSIGNATURE).sign(point(7), TIME_S)
    found = witness.parse_answer((stranger + made).encode(), point(7), WITNESS_KEYS)
    assert "".join(line for line, _ in found) == made
    assert [(one.key, one.time_s) for _, one in found] == [(key, TIME_S) for key in WITNESS_KEYS]
    whole = signed(7) + "".join(line for line, _ in found).encode()
    assert len(open_checkpoint(whole, WITNESSED).signatures) == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"\n", b"x\n", b"\xff\n", b"a" * (1 << 20), b"7\n",
        WITNESS[0].sign(point(7), TIME_S).encode()[:-1],
        WITNESS[0].sign(point(8), TIME_S).encode(),
        WITNESS[0].sign(point(7), 0).encode(),
        WITNESS[0].sign(point(7), TIME_S).encode() + WITNESS[1].sign(point(8), TIME_S).encode(),
        OTHER.sign(point(7), TIME_S).encode(),
        WITNESS[0].sign(point(7), TIME_S).encode() + b"\n",
    ],
)  # fmt: skip
def test_an_answer_that_proves_nothing_is_refused(answer: bytes) -> None:
    with pytest.raises(EvidenceError):
        witness.parse_answer(answer, point(7), WITNESS_KEYS)


def test_a_witness_signs_with_the_time() -> None:
    for signer, time_s in ((LOG, TIME_S), (WITNESS[0], 0), (WITNESS[1], -1)):
        with pytest.raises(Malformed):
            witness.cosign(point(7), [signer], time_s)


def test_the_size_that_a_witness_has_seen_is_read() -> None:
    assert witness.parse_size(b"0\n") == 0
    assert witness.parse_size(b"20852014\n") == 20_852_014
    for data in (b"", b"7", b"07\n", b"-7\n", b"7\n\n", b"9223372036854775808\n", b"7" * 5000 + b"\n", "٣\n".encode()):
        with pytest.raises(Malformed):
            witness.parse_size(data)
