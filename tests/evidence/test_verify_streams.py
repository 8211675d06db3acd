"""Streams judged together, and what is worth knowing though nothing is wrong."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable

import msgspec
import pytest
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import canonical, entry, record, ulid
from chaperone_evidence.chain import Chain
from chaperone_evidence.verify import StreamReport, Verdict, join, verify_stream


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("gateway CA")


@pytest.fixture
def pod(ca: Authority) -> Pod:
    return Pod(ca)


def _check(ca: Authority, stream: Stream, *, data: bytes | None = None, bodies: Iterable[bytes] = ()) -> StreamReport:
    raw = b"".join(stream.frames) if data is None else data
    return verify_stream(stream.id, entry.frames(raw), [ca.certificate], bodies)


def _judge(ca: Authority, *streams: Stream) -> Verdict:
    return join([_check(ca, stream, bodies=stream.bodies.values()) for stream in streams])


def _killed(pod: Pod) -> Stream:
    """A stream whose process was killed in the middle of a command."""
    stream = Stream(pod)
    stream.head()
    session = stream.open_session()
    stream.conclude(session, stream.intend(session, "SELECT 1"))
    stream.intend(session, "DROP TABLE orders", decision="Deny", rule="never")
    stream.intend(session, "SELECT 'running when it was killed'")
    return stream


def _following(pod: Pod, before: Stream) -> Stream:
    stream = Stream(pod, previous=before)
    stream.head()
    stream.close()
    return stream


def test_a_closed_stream_is_told_in_numbers(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    session = stream.open_session()
    intents = [stream.intend(session, f"SELECT {number}") for number in range(3)]
    stream.intend(session, "DROP TABLE orders", decision="Deny")
    for intent in reversed(intents):
        stream.conclude(session, intent)
    stream.close_session(session, 4, 1)
    stream.close()
    verdict = _judge(ca, stream)
    assert (verdict.problems, verdict.notes) == ([], [])
    report = verdict.streams[0]
    assert (report.entries, report.signed, report.link) == (stream.chain.count, stream.chain.count, stream.chain.link)
    assert (report.sessions, report.commands, report.denied, report.open_intents) == (1, 4, 1, 0)
    assert (report.bodies_checked, report.bodies_missing, report.end) == (4, 0, "closed")


def test_the_end_of_a_killed_stream_is_unproved_until_the_next_one_signs_it(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    (problem,) = _judge(ca, killed).problems
    assert (problem.stream, problem.seq) == (killed.id, 2)
    assert "under no signature" in problem.what
    verdict = _judge(ca, killed, _following(pod, killed))
    assert verdict.problems == []
    assert [report.end for report in verdict.streams] == ["continued", "closed"]
    assert verdict.streams[0].signed == killed.chain.count
    assert verdict.notes == [f"stream {killed.id}: 1 allowed commands have no outcome here (records 6)"]


def test_a_following_stream_that_is_not_signed_itself_proves_nothing(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    following = Stream(pod, previous=killed)
    problems = _judge(ca, killed, following).problems
    assert {problem.stream for problem in problems} == {killed.id, following.id}


def test_a_stream_of_another_pod_cannot_follow(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    stranger = _following(Pod(ca, pod_uid="another"), killed)
    problems = {problem.stream: problem for problem in _judge(ca, killed, stranger).problems}
    assert "the stream of another pod" in problems[stranger.id].what
    assert "under no signature" in problems[killed.id].what


def test_two_streams_that_follow_one_are_a_fork(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    first, second = sorted((_following(pod, killed), _following(pod, killed)), key=lambda stream: stream.id)
    (problem,) = _judge(ca, killed, first, second).problems
    assert (problem.stream, problem.seq) == (second.id, 0)
    assert first.id in problem.what


def test_a_bad_record_is_named_before_the_end_that_is_unproved_because_of_it(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    following = _following(pod, killed)
    following.frames[0] = following.frames[0].replace(b"node-1", b"node-2")
    problems = _judge(ca, killed, following).problems
    assert [(problem.stream, problem.seq) for problem in problems] == [(following.id, 0), (killed.id, 2)]


def test_a_stream_whose_predecessor_is_elsewhere_is_noted(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    following = _following(pod, killed)
    verdict = _judge(ca, following)
    assert verdict.problems == []
    assert verdict.notes == [f"stream {following.id} follows {killed.id}, which is not here"]


def test_an_open_stream_says_that_more_may_have_come(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    stream.head()
    verdict = _judge(ca, stream)
    assert verdict.problems == []
    assert "still open" in verdict.notes[0]


def test_a_last_record_that_a_crash_tore_is_noted_when_the_next_stream_signed_the_one_before(
    ca: Authority, pod: Pod
) -> None:
    killed = _killed(pod)
    following = _following(pod, killed)
    torn = Stream(pod)  # some record that did not get to the disk whole
    half = torn.frames[0][: len(torn.frames[0]) // 2] + bytes(4096)
    reports = [_check(ca, killed, data=b"".join(killed.frames) + half), _check(ca, following)]
    verdict = join(reports)
    assert verdict.problems == []
    assert any("was not written to its end" in remark for remark in verdict.notes)
    (problem,) = join([_check(ca, killed, data=b"".join(killed.frames) + half)]).problems
    assert problem.seq == killed.chain.count
    whole = join([_check(ca, killed, data=b"".join([*killed.frames, torn.frames[0]])), _check(ca, following)])
    assert [(problem.stream, problem.seq) for problem in whole.problems] == [(killed.id, killed.chain.count)]


def test_a_set_clock_and_a_silence_are_noted(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    stream.head()
    stream.now_us += 90_000_000
    stream.head()
    session = stream.open_session()
    seq = stream.chain.count
    late = record.SessionClose(
        seq=seq, wall_us=stream.now_us + 3_600_000_000, mono_us=stream.now_us - 10**15, session=session, reason="x"
    )
    stream.frames.append(stream.chain.append_record(late))
    stream.head()
    verdict = _judge(ca, stream)
    assert verdict.problems == []
    assert f"stream {stream.id}: record 2: no head was signed for 90 s before this one" in verdict.notes
    assert f"stream {stream.id}: record {seq}: the gateway's clock was set by +3600.0 s" in verdict.notes


def test_records_of_later_versions_are_counted_and_chained(ca: Authority, pod: Pod) -> None:
    class Later(record.Record, frozen=True, kw_only=True, tag="approval.granted"):
        by: str

    stream = Stream(pod)
    stream.add(Later(seq=0, wall_us=0, mono_us=0, by="approver-1"))
    stream.close()
    verdict = _judge(ca, stream)
    assert verdict.problems == []
    assert verdict.notes == [f"stream {stream.id}: 1 records are of types that this program does not know"]
    changed = b"".join(stream.frames).replace(b"approver-1", b"approver-2")
    assert _check(ca, stream, data=changed).problems[0].seq == 1


def _wrong(pod: Pod, case: str) -> Stream:
    stream = Stream(pod)
    session = stream.open_session()
    intent = stream.intend(session)
    match case:
        case "its session":
            stream.intend(ulid.encode(1, os.urandom(10)))
        case "is opened twice":
            stream.add(record.SessionOpen(seq=0, wall_us=0, mono_us=0, session=session, target="t", protocol="p"))
        case "no open intent of its own":
            stream.conclude(session, (intent[0], ulid.encode(1, os.urandom(10))))
        case "is the outcome of record 3, which is no open intent":
            refused = stream.intend(session, "DROP TABLE orders", decision="Deny")
            stream.conclude(session, refused)
        case "which is no open intent":
            stream.conclude(session, intent)
            stream.conclude(session, intent)
        case "says it is the last":
            stream.add(record.StreamClose(seq=0, wall_us=0, mono_us=0, reason="x"))
            stream.close_session(session, 1)
        case "opens a stream that is open":
            stream.add(stream.stream_open())
        case "it says it is number":
            seq = stream.chain.count + 1
            stream.frames.append(
                stream.chain.append_record(record.StreamClose(seq=seq, wall_us=1, mono_us=1, reason="x"))
            )
        case "not base64":
            commitment = record.Commitment("not base64", 1)
            opened = record.decode(entry.decode(next(entry.frames(stream.frames[2]))).header)
            assert isinstance(opened, record.CommandIntent)
            stream.add(msgspec.structs.replace(opened, body=commitment))
    return stream


@pytest.mark.parametrize(
    "case",
    [
        "its session", "is opened twice", "no open intent of its own", "which is no open intent",
        "is the outcome of record 3, which is no open intent", "says it is the last", "opens a stream that is open",
        "it says it is number", "not base64",
    ],
)  # fmt: skip
def test_records_that_contradict_each_other_are_named(ca: Authority, pod: Pod, case: str) -> None:
    stream = _wrong(pod, case)
    report = _check(ca, stream)
    (problem,) = report.problems
    assert case in problem.what
    assert problem.seq == stream.chain.count - 1
    assert report.end == "broken"


def test_a_clock_that_is_set_back_is_a_remark_and_order_is_the_chains(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    stream.head()
    stream.now_us -= 3_600_000_000
    stream.head()
    report = _check(ca, stream)
    assert (report.problems, report.end) == ([], "open")
    assert report.remarks == ["record 2: the time of this head is 3600.0 s before that of the last one"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"pod": "billing-1"}, "belongs to another pod"),
        ({"namespace": "elsewhere"}, "belongs to another pod"),
        ({"identity": "admin-agent"}, "belongs to another pod"),
        ({"cluster": "another"}, "belongs to another pod"),
        ({"certificate": "é"}, "not base64"),
        ({"certificate": ""}, "cannot be read"),
        ({"wall_us": 1}, "was not valid at"),
    ],
)
def test_the_first_record_says_what_its_certificate_says(
    ca: Authority, pod: Pod, changes: dict[str, object], what: str
) -> None:
    honest = Stream(pod)
    opened = msgspec.structs.replace(honest.stream_open(), **{"wall_us": honest.now_us, **changes})
    chain = Chain(pod.cluster, honest.id)
    (problem,) = _check(ca, honest, data=chain.append_record(opened)).problems
    assert problem.seq == 0
    assert what in problem.what


def test_a_key_of_another_certificate_cannot_sign_this_stream(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    stream.head(signer=Pod(ca).signer)
    (problem,) = _check(ca, stream).problems
    assert (problem.seq, "not signed by" in problem.what) == (1, True)


def test_a_stream_under_another_name_is_refused(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    other = ulid.encode(1, bytes(10))
    (problem,) = verify_stream(other, entry.frames(b"".join(stream.frames)), [ca.certificate]).problems
    assert (problem.stream, problem.seq) == (other, 0)


def _bodies(pod: Pod) -> Stream:
    stream = Stream(pod)
    session = stream.open_session()
    for number in range(4):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.close_session(session, 4)
    stream.close()
    return stream


def test_a_missing_text_is_listed_by_its_record(ca: Authority, pod: Pod) -> None:
    stream = _bodies(pod)
    verdict = join([_check(ca, stream, bodies=list(stream.bodies.values())[1:])])
    assert verdict.problems == []
    assert verdict.notes == [f"stream {stream.id}: 1 texts that records name are not here (records 2)"]


@pytest.mark.parametrize("number", range(4))
def test_a_changed_text_is_a_problem_of_its_record(ca: Authority, pod: Pod, number: int) -> None:
    stream = _bodies(pod)
    bodies = list(stream.bodies.values())
    bodies[number] = bodies[number][:-1] + b"9"
    (problem,) = join([_check(ca, stream, bodies=bodies)]).problems
    assert problem.seq == 2 + 2 * number
    swapped = [*bodies[:number], bytes(32) + b"SELECT 'put in'", *list(stream.bodies.values())[number:]]
    (problem,) = join([_check(ca, stream, bodies=swapped)]).problems
    assert "no record names" in problem.what


def test_a_text_that_is_not_the_one_hashed_in_its_record_is_a_problem(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    session = stream.open_session()
    stream.intend(session, "SELECT 1")
    intent = record.decode(entry.decode(next(entry.frames(stream.frames[2]))).header)
    assert isinstance(intent, record.CommandIntent)
    lie = bytes(32) + b"SELECT 2"
    commitment = record.Commitment(base64.b64encode(entry.body_commit(lie)).decode(), 8)
    stream.add(msgspec.structs.replace(intent, body=commitment))
    stream.close()
    (problem,) = join([_check(ca, stream, bodies=[*stream.bodies.values(), lie])]).problems
    assert (problem.seq, "not that of the text" in problem.what) == (3, True)


def test_a_text_whose_record_a_crash_took_is_noted(ca: Authority, pod: Pod) -> None:
    killed = _killed(pod)
    following = _following(pod, killed)
    bodies = [*killed.bodies.values(), bytes(32) + b"SELECT 'never recorded'"]
    verdict = join([_check(ca, killed, bodies=bodies), _check(ca, following)])
    assert verdict.problems == []
    assert any("1 texts are here whose records were not written" in remark for remark in verdict.notes)


def test_a_command_that_has_no_text_is_no_problem(ca: Authority, pod: Pod) -> None:
    stream = Stream(pod)
    session = stream.open_session()
    header = canonical.encode(
        record.CommandIntent(
            seq=2, wall_us=stream.now_us, mono_us=stream.now_us - 10**15, session=session, command="c", target="t",
            kind="query", decision="Allow", sha256="", size_bytes=0,
        )
    )  # fmt: skip
    assert b"body" not in header
    found = record.decode(header)
    assert isinstance(found, record.CommandIntent)
    stream.add(found)
    stream.close()
    assert _judge(ca, stream).problems == []
