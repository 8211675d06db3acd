"""A small evidence directory in which everything is changed once: each change is found, at the right record.

Two streams of one pod: the first was killed, the second signed its end and was closed. Whatever may come after the
second stream's signed end is the one thing that a directory alone cannot know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from evidence_directory import write_stream
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_cli.evidence import CannotVerify, Directory
from chaperone_cli.verify import judge
from chaperone_evidence import entry, record
from chaperone_evidence.chain import Chain
from chaperone_evidence.verify import Verdict

SEGMENT_RECORDS = 5


class Files:
    """A directory in memory."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def names(self) -> list[str]:
        return sorted(self.files)

    def read(self, name: str, limit_bytes: int) -> bytes:
        return self.files[name][:limit_bytes]


class Scene(msgspec.Struct, frozen=True):
    """The directory, and whose it is."""

    ca: Authority
    pod: Pod
    killed: Stream
    closed: Stream
    files: dict[str, bytes]

    def judge(self, files: dict[str, bytes]) -> Verdict:
        return judge(Files(files), [self.ca.certificate])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    ca = Authority("gateway CA")
    pod = Pod(ca)
    killed = Stream(pod)
    killed.head()
    session = killed.open_session()
    killed.conclude(session, killed.intend(session, "SELECT 1"))
    killed.intend(session, "DROP TABLE orders", decision="Deny", rule="never")
    killed.head()
    killed.intend(session, "SELECT 2")
    pod = Pod(ca)  # a new process: another key in the same pod
    closed = Stream(pod, previous=killed)
    closed.head()
    session = closed.open_session()
    for number in range(3, 5):
        closed.conclude(session, closed.intend(session, f"SELECT {number}"))
    closed.close_session(session, 2)
    closed.close()
    folder = tmp_path_factory.mktemp("evidence")
    for stream in (killed, closed):
        write_stream(folder, stream, segment_records=SEGMENT_RECORDS)
    source = Directory(folder)
    files = {name: source.read(name, 1 << 20) for name in source.names()}
    return Scene(ca, pod, killed, closed, files)


def _segments(stream: str, frames: list[bytes]) -> dict[str, bytes]:
    return {
        f"streams/{stream}/{first:016d}.seg": b"".join(frames[first : first + SEGMENT_RECORDS])
        for first in range(0, max(len(frames), 1), SEGMENT_RECORDS)
    }


def _with(scene: Scene, stream: Stream, frames: list[bytes]) -> dict[str, bytes]:
    """The directory with other records in one stream."""
    kept = {name: data for name, data in scene.files.items() if not name.startswith(f"streams/{stream.id}/")}
    return kept | _segments(stream.id, frames)


def _first(verdict: Verdict) -> tuple[str, int]:
    assert verdict.problems
    return verdict.problems[0].stream, verdict.problems[0].seq


def _streams(scene: Scene) -> Iterator[Stream]:
    yield scene.killed
    yield scene.closed


def test_the_untouched_directory_holds(scene: Scene) -> None:
    verdict = scene.judge(scene.files)
    assert verdict.problems == []
    assert {report.stream: report.end for report in verdict.streams} == {
        scene.killed.id: "continued",
        scene.closed.id: "closed",
    }
    assert sum(report.bodies_checked for report in verdict.streams) == 5
    assert len(verdict.notes) == 1  # the command that ran when the process was killed


def _owner(scene: Scene, name: str, position: int) -> tuple[str, int]:
    """The record that a byte of a file belongs to; −1 for the room after the last frame."""
    family, stream, file = name.split("/")
    frames = entry.frames if family == "streams" else entry.body_frames
    prefix = 2 if family == "streams" else 4
    end = 0
    for number, one in enumerate(frames(scene.files[name])):
        end += prefix + len(one)
        if position < end:
            if family == "streams":
                return stream, int(file.removesuffix(".seg")) + number
            report = next(report for report in scene.judge(scene.files).streams if report.stream == stream)
            return stream, report.bodies[entry.body_commit(one)]
    return stream, -1


def test_every_flipped_byte_of_every_file_is_found_at_its_record(scene: Scene) -> None:
    for name, data in scene.files.items():
        for position in range(len(data)):
            changed = bytearray(data)
            changed[position] ^= 1
            verdict = scene.judge(scene.files | {name: bytes(changed)})
            stream, seq = _owner(scene, name, position)
            if seq >= 0:
                assert _first(verdict) == (stream, seq), (name, position)
            else:  # the room of a segment, after all records: what a crash tears is said, anything else is a problem
                assert verdict.problems or any("not written to its end" in remark for remark in verdict.notes)


def test_every_dropped_record_is_found(scene: Scene) -> None:
    for stream in _streams(scene):
        frames = stream.frames
        for index in range(len(frames)):
            verdict = scene.judge(_with(scene, stream, frames[:index] + frames[index + 1 :]))
            if (stream, index) == (scene.closed, len(frames) - 1):
                assert _first(verdict) == (stream.id, 2)  # the closing head: all since the one before is unsigned
            else:
                assert _first(verdict) == (stream.id, index)


def test_every_doubled_and_every_swapped_record_is_found(scene: Scene) -> None:
    for stream in _streams(scene):
        frames = stream.frames
        for index in range(len(frames)):
            doubled = [*frames[: index + 1], *frames[index:]]
            assert _first(scene.judge(_with(scene, stream, doubled))) == (stream.id, index + 1)
            for other in range(index):
                swapped = list(frames)
                swapped[index], swapped[other] = swapped[other], swapped[index]
                assert _first(scene.judge(_with(scene, stream, swapped))) == (stream.id, other)


def test_every_inserted_record_is_found(scene: Scene) -> None:
    foreign = [*scene.killed.frames[2:4], *scene.closed.frames[2:4]]
    for stream in _streams(scene):
        for index in range(len(stream.frames) + 1):
            for put in foreign:
                if put in stream.frames[index : index + 1]:
                    continue
                frames = [*stream.frames[:index], put, *stream.frames[index:]]
                assert _first(scene.judge(_with(scene, stream, frames))) == (stream.id, index)


def test_a_record_that_is_inserted_with_the_right_link_is_found_at_the_next_one(scene: Scene) -> None:
    for stream in _streams(scene):
        for index in range(1, len(stream.frames)):
            chain = Chain(stream.pod.cluster, stream.id)
            chain.count = index
            chain.link = entry.decode(next(entry.frames(stream.frames[index - 1]))).link
            forged = record.DnsDenied(seq=index, wall_us=stream.now_us, mono_us=1, name="a.example", qtype="A")
            frames = [*stream.frames[:index], chain.append_record(forged), *stream.frames[index:]]
            is_after_the_last = stream is scene.closed and index == len(stream.frames) - 1
            named = index if is_after_the_last else index + 1
            assert _first(scene.judge(_with(scene, stream, frames))) == (stream.id, named)


def test_every_cut_is_found_and_at_every_byte(scene: Scene) -> None:
    for stream in _streams(scene):
        whole = b"".join(stream.frames)
        ends = [sum(map(len, stream.frames[:count])) for count in range(len(stream.frames) + 1)]
        others = {name: data for name, data in scene.files.items() if not name.startswith(f"streams/{stream.id}/")}
        for cut in range(len(whole)):
            verdict = scene.judge(others | {f"streams/{stream.id}/{0:016d}.seg": whole[:cut]})
            count = next(number for number, end in enumerate(ends) if end > cut) - 1
            if (stream, cut) == (scene.closed, ends[2]):
                # Just after a head a stream may really end; that it is not closed is all that can be said.
                assert {report.end for report in verdict.streams} == {"continued", "open"}
                assert any("still open" in remark for remark in verdict.notes)
            elif (stream, cut) == (scene.closed, ends[1]):
                # Without a head the second stream proves nothing, not even the end of the first.
                found = {(problem.stream, problem.seq) for problem in verdict.problems}
                assert found == {(scene.killed.id, 7), (scene.closed.id, 0)}
            else:
                named, seq = _first(verdict)
                assert named == stream.id
                assert seq == count or (cut in ends and seq <= count)


def _rechained(stream: Stream, pod: Pod, *, change: Callable[[record.Record], record.Record]) -> list[bytes]:
    """The stream's records under a chain and heads of somebody else's."""
    chain = Chain(pod.cluster, stream.id)
    frames = []
    for data in entry.frames(b"".join(stream.frames)):
        one = entry.decode(data)
        if one.cls == entry.CLASS_HEAD:
            frames.append(chain.append_head(pod.signer, stream.now_us, "closed" if b"closed" in data else "open"))
            continue
        found = record.decode(one.header)
        assert isinstance(found, record.Record)
        frames.append(chain.append_record(change(found)))
    return frames


def test_a_stream_that_is_chained_anew_with_another_key_is_found(scene: Scene) -> None:
    def keep(one: record.Record) -> record.Record:
        return one

    thief = Pod(scene.ca)  # another process of the same pod: a good certificate for another key
    frames = _rechained(scene.closed, thief, change=keep)
    assert _first(scene.judge(_with(scene, scene.closed, frames))) == (scene.closed.id, 1)

    stranger = Pod(Authority("gateway CA"))  # a namesake of the CA

    def as_stranger(one: record.Record) -> record.Record:
        return stranger_open if isinstance(one, record.StreamOpen) else one

    opened = Stream(stranger).stream_open()
    stranger_open = msgspec.structs.replace(opened, stream=scene.closed.id, wall_us=scene.closed.now_us)
    frames = _rechained(scene.closed, stranger, change=as_stranger)
    verdict = scene.judge(_with(scene, scene.closed, frames))
    assert _first(verdict) == (scene.closed.id, 0)
    assert "not issued by the trusted gateway CA" in verdict.problems[0].what


def test_a_killed_stream_that_is_chained_anew_by_its_own_key_is_found_by_the_next(scene: Scene) -> None:
    """Who holds the old key can rewrite the old stream, but not what the new process signed of it."""

    def rewrite(one: record.Record) -> record.Record:
        is_refusal = isinstance(one, record.CommandIntent) and one.decision == "Deny"
        return msgspec.structs.replace(one, rule="another") if is_refusal else one

    frames = _rechained(scene.killed, scene.killed.pod, change=rewrite)
    verdict = scene.judge(_with(scene, scene.killed, frames))
    assert _first(verdict)[0] == scene.killed.id
    assert "its tail was cut or changed" in verdict.problems[0].what


def test_dropped_renamed_and_added_files_are_found(scene: Scene) -> None:
    for name in scene.files:
        family, stream, file = name.split("/")
        without = {other: data for other, data in scene.files.items() if other != name}
        verdict = scene.judge(without)
        if family == "streams":
            assert _first(verdict)[0] in (stream, scene.killed.id)
        else:
            assert any(remark.startswith(f"stream {stream}") and "not here" in remark for remark in verdict.notes)
        renamed = without | {f"{family}/{stream}/9{file[1:]}": scene.files[name]}
        if family == "streams":
            assert scene.judge(renamed).problems
    other = f"streams/{scene.killed.id[:-1]}{'0' if scene.killed.id[-1] != '0' else '1'}/{0:016d}.seg"
    copied = scene.files | {other: scene.files[f"streams/{scene.killed.id}/{0:016d}.seg"]}
    assert scene.judge(copied).problems
    alone = {name: data for name, data in scene.files.items() if not name.startswith("streams/")}
    assert {problem.what for problem in scene.judge(alone).problems} >= {"the stream is empty"}


@pytest.mark.parametrize(
    "name",
    ["streams/../../etc/passwd", "streams/x.seg", "/etc/passwd", "streams//0.seg", "readme.txt", "streams/short/0.seg"],
)
def test_a_name_outside_the_layout_cannot_be_verified(scene: Scene, name: str) -> None:
    with pytest.raises(CannotVerify, match="does not belong"):
        scene.judge(scene.files | {name: b""})


def test_where_segments_are_cut_does_not_matter(scene: Scene, tmp_path: Path) -> None:
    for size in (1, 3, 100):
        folder = tmp_path / str(size)
        for stream in _streams(scene):
            write_stream(folder, stream, segment_records=size)
        assert judge(Directory(folder), [scene.ca.certificate]).problems == []
