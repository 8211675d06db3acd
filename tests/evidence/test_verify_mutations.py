"""Every change to a stream is found offline, and the first bad record is named."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pki import Authority

from chaperone_evidence import chain, entry, note, record
from chaperone_evidence.certificate import subject_uri
from chaperone_evidence.verify import StreamReport, join, verify_stream

STREAM = "01j00000000000000000000000"
NEXT = "01j00000000000000000000001"


class Writer:
    """Writes a small stream of one session with three commands."""

    def __init__(self, authority: Authority, stream: str = STREAM, previous: tuple[str, bytes] | None = None) -> None:
        self.signer = note.Signer("dev/gateway/uid-1", Ed25519PrivateKey.generate())
        self.chain = chain.Chain("dev", stream)
        self.now_us = time.time_ns() // 1000
        uri = subject_uri("dev", "agents", "pod-1", "uid-1", "billing-agent")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = authority.gateway(uri, self.signer.verifier.vkey, key.public_key())
        self.entries: list[bytes] = []
        self.add(
            record.StreamOpen(
                **self.times(), stream=stream, cluster="dev", namespace="agents", pod="pod-1", pod_uid="uid-1",
                identity="billing-agent", vkey=self.signer.verifier.vkey,
                certificate=base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode(),
                previous=previous[0] if previous else "",
                previous_link=base64.b64encode(previous[1]).decode() if previous else "",
            )
        )  # fmt: skip
        self.head("open")

    def times(self) -> dict[str, int]:
        return {"seq": self.chain.count, "wall_us": self.now_us, "mono_us": 5}

    def add(self, one: record.Record) -> None:
        self.entries += entry.frames(self.chain.append_record(one))

    def head(self, state: chain.HeadState) -> None:
        self.entries += entry.frames(self.chain.append_head(self.signer, self.now_us, state))

    def session(self) -> None:
        self.add(record.SessionOpen(**self.times(), session="s", target="orders-db", protocol="PostgreSQL"))
        for number in range(3):
            intent = self.chain.count
            self.add(
                record.CommandIntent(
                    **self.times(), session="s", command=f"c{number}", target="orders-db", kind="query",
                    decision="Allow", sha256="0" * 64, size_bytes=1,
                )
            )  # fmt: skip
            self.add(record.CommandOutcome(**self.times(), session="s", command=f"c{number}", ref=intent, status="ok"))
        self.add(record.SessionClose(**self.times(), session="s", reason="done", commands=3))

    def close(self) -> None:
        self.add(record.StreamClose(**self.times(), reason="stopped"))
        self.head("closed")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("gateway CA")


@pytest.fixture(scope="module")
def written(authority: Authority) -> list[bytes]:
    writer = Writer(authority)
    writer.session()
    writer.close()
    return writer.entries


@pytest.fixture(scope="module")
def check(authority: Authority) -> Callable[[list[bytes]], StreamReport]:
    def run(entries: list[bytes]) -> StreamReport:
        (report,) = join([verify_stream(STREAM, entries, [authority.certificate])]).streams
        return report

    return run


type Check = Callable[[list[bytes]], StreamReport]


def test_an_untouched_stream_holds(check: Check, written: list[bytes]) -> None:
    report = check(written)
    assert not report.problems
    assert (report.end, report.commands, report.sessions, report.open_intents) == ("closed", 3, 1, 0)


@pytest.mark.parametrize(
    ("session", "numbers", "why"),
    [("s", (0, 2), "part 2 of its session's recording, which has 1"), ("s", (1,), "part 1 of"),
     ("s", (0, 0), "part 0 of"), ("x", (0,), "its session x is not open"), ("s", (0, 1), "")],
)  # fmt: skip
def test_parts_of_a_recording_follow_each_other_within_their_session(
    authority: Authority, check: Check, session: str, numbers: tuple[int, ...], why: str
) -> None:
    writer = Writer(authority)
    writer.add(record.SessionOpen(**writer.times(), session="s", target="orders-db", protocol="PostgreSQL"))
    body = record.Commitment("A" * 43 + "=", 0)
    for number in numbers:
        writer.add(record.RecordingChunk(**writer.times(), session=session, number=number, codec="zstd", body=body))
    writer.add(record.SessionClose(**writer.times(), session="s", reason="done"))
    writer.close()
    problems = check(writer.entries).problems
    assert bool(problems) is bool(why)
    assert why in str(problems[0]) if why else not problems


def test_every_flipped_byte_is_found_at_its_record(check: Check, written: list[bytes]) -> None:
    for index, one in enumerate(written):
        for position in range(0, len(one), 1 if len(one) < 400 else 7):
            changed = bytearray(one)
            changed[position] ^= 1
            report = check([*written[:index], bytes(changed), *written[index + 1 :]])
            assert report.problems, (index, position)
            assert report.problems[0].seq == index, (index, position)


def test_every_dropped_doubled_or_swapped_record_is_found(check: Check, written: list[bytes]) -> None:
    for index in range(len(written) - 1):
        assert check(written[:index] + written[index + 1 :]).problems[0].seq == index
        assert check([*written[: index + 1], *written[index:]]).problems[0].seq == index + 1
        swapped = [*written[:index], written[index + 1], written[index], *written[index + 2 :]]
        assert check(swapped).problems[0].seq == index


def test_every_cut_shows_as_a_problem_or_as_a_stream_that_is_not_closed(check: Check, written: list[bytes]) -> None:
    for end in range(len(written)):
        report = check(written[:end])
        assert report.problems or report.end == "open", end
        assert report.end != "closed"


def test_a_stream_rewritten_with_another_key_is_refused(check: Check, authority: Authority) -> None:
    forger = Writer(Authority("somebody else"))
    forger.session()
    forger.close()
    report = check(forger.entries)
    assert report.problems[0].seq == 0
    assert "not issued by the trusted gateway CA" in report.problems[0].what


def test_heads_of_another_key_are_refused(check: Check, authority: Authority) -> None:
    writer = Writer(authority)
    writer.signer = note.Signer("dev/gateway/uid-1", Ed25519PrivateKey.generate())
    writer.session()
    writer.close()
    assert check(writer.entries).problems[0].what.startswith("The note is not signed by")


def test_a_record_after_the_signed_end_is_refused(check: Check, authority: Authority) -> None:
    writer = Writer(authority)
    writer.session()
    writer.close()
    writer.add(record.StreamClose(**writer.times(), reason="again"))
    assert "signed end" in check(writer.entries).problems[0].what


def test_an_outcome_without_its_intent_is_refused(check: Check, authority: Authority) -> None:
    writer = Writer(authority)
    writer.add(record.SessionOpen(**writer.times(), session="s", target="t", protocol="PostgreSQL"))
    writer.add(record.CommandOutcome(**writer.times(), session="s", command="c", ref=1, status="ok"))
    writer.close()
    assert "no open intent" in check(writer.entries).problems[0].what


def test_a_certificate_for_another_pod_is_refused(check: Check, authority: Authority) -> None:
    writer = Writer(authority)
    opened = record.decode(entry.decode(writer.entries[0]).header)
    assert isinstance(opened, record.StreamOpen)
    assert x509.load_der_x509_certificate(base64.b64decode(opened.certificate))
    forged = chain.Chain("dev", STREAM)
    fields = {name: getattr(opened, name) for name in opened.__struct_fields__} | {"pod": "pod-2"}
    (framed,) = entry.frames(forged.append_record(record.StreamOpen(**fields)))
    assert "belongs to another pod" in check([framed]).problems[0].what


def test_the_next_stream_proves_the_end_of_one_that_was_killed(authority: Authority) -> None:
    first = Writer(authority)
    first.session()
    second = Writer(authority, NEXT, (STREAM, first.chain.link))
    second.close()

    def judge(entries: list[bytes]) -> list[str]:
        reports = [verify_stream(STREAM, entries, [authority.certificate])]
        reports.append(verify_stream(NEXT, second.entries, [authority.certificate]))
        return [problem.what for problem in join(reports).problems]

    assert judge(first.entries) == []
    for end in range(2, len(first.entries)):
        assert "tail was cut or changed" in judge(first.entries[:end])[0]
