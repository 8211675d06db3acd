"""The tape by itself: whatever a server sends in whatever pieces, what is kept is what was shown."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gateway_stream import Pod
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import Authority
from recordings import read_frames, read_parts, read_rows

from chaperone_evidence import frames, record
from chaperone_sidecar.effects import Intent, Receipt
from chaperone_sidecar.errors import SpoolFull
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.flight import Step
from chaperone_sidecar.protocols.postgresql.tape import Tape
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.results import ResultLog
from chaperone_sidecar.recording.stream import begin_stream

POD = Pod(Authority("gateway CA"))
CELLS = st.lists(st.lists(st.none() | st.binary(max_size=30), max_size=4), max_size=12)
few = settings(max_examples=40, deadline=None)


class Scene:
    """A tape, and the spool behind it."""

    def __init__(self, root: Path, max_bytes: int, spool_bytes: int) -> None:
        opened = record.StreamOpen(
            seq=0, wall_us=0, mono_us=0, stream="", cluster=POD.cluster, namespace=POD.namespace, pod=POD.pod,
            pod_uid=POD.pod_uid, identity=POD.identity, vkey="", certificate="",
        )  # fmt: skip
        self.root = root
        recorder, self.spool = begin_stream(root, spool_bytes, POD.signer, opened, Ids())
        session = recorder.new_session("orders-db")
        recorder.open_session(
            session, protocol="PostgreSQL", client="", upstream="", user="", database="", application=""
        )
        self.log = ResultLog(recorder, session, max_bytes)
        self.tape = Tape(self.log)

    def show(self, data: bytes, step: Step | None = None, place: int = 0) -> None:
        self.tape.at(place, step)
        self.tape.release()
        self.tape.show(data)
        self.log.flush()


@contextmanager
def scene(max_bytes: int = 1 << 20, spool_bytes: int = 64 << 20) -> Iterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        one = Scene(Path(folder), max_bytes, spool_bytes)
        yield one
        one.spool.close()


def step(command: str = "c", kind: str = "query") -> Step:
    return Step(kind, 0, intent=Intent(command, Receipt(1), 0))  # type: ignore[arg-type]


def row(cells: list[bytes | None]) -> bytes:
    body = b"".join(b"\xff" * 4 if one is None else len(one).to_bytes(4, "big") + one for one in cells)
    return m.frame(m.DATA_ROW, len(cells).to_bytes(2, "big") + body)


@few
@given(CELLS, st.data())
def test_rows_are_kept_as_they_were_shown_in_whatever_runs_they_came(
    rows: list[list[bytes | None]], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(rows)))
    with scene() as one:
        of = step()
        for part in (rows[:cut], rows[cut:]):
            one.show(b"".join(map(row, part)), of)
        kept = read_rows(one.root)
    assert kept == [tuple(None if cell is None else frames.cell(cell) for cell in cells) for cells in rows]


@few
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_rows_that_are_not_well_formed_are_kept_as_bytes(bodies: list[bytes]) -> None:
    with scene() as one:
        one.show(b"".join(m.frame(m.DATA_ROW, body) for body in bodies), step())
        kept = b""
        for frame in read_frames(one.root):
            if isinstance(frame, frames.Data):
                kept += frame.data.raw if isinstance(frame.data, frames.Bytes) else frame.data.encode()
            elif isinstance(frame, frames.Rows):
                for cells in frame.rows:
                    kept += row([raw(cell) for cell in cells])[5:]
    assert kept == b"".join(bodies)


def raw(cell: frames.Cell) -> bytes | None:
    return cell.raw if isinstance(cell, frames.Bytes) else None if cell is None else cell.encode()


@few
@given(st.lists(st.sampled_from(b"TDCENSAHdcGZsI123nt"), max_size=8), st.data())
def test_a_server_that_sends_nonsense_is_recorded_all_the_same(kinds: list[int], data: st.DataObject) -> None:
    with scene() as one:
        for kind in kinds:
            one.show(m.frame(kind, data.draw(st.binary(max_size=60))), data.draw(st.sampled_from([step(), None])))
        read_parts(one.root)


@few
@given(st.integers(1, 200_000), st.data())
def test_a_long_row_is_kept_whole_in_pieces(size: int, data: st.DataObject) -> None:
    whole = row([bytes(i % 251 for i in range(size))])
    cut = data.draw(st.integers(5, len(whole)))
    with scene() as one:
        of = step()
        one.show(whole[:cut], of)
        if cut < len(whole):
            one.show(whole[cut:], of)
        found = read_frames(one.root)
        kept = b"".join(
            raw(frame.data) or b"" if isinstance(frame, frames.Data) else row([raw(frame.rows[0][0])])[5:]
            for frame in found
            if isinstance(frame, frames.Data | frames.Rows)
        )
    assert kept == whole[5:]


@few
@given(st.integers(1024, 5000), st.lists(st.binary(min_size=1, max_size=300), max_size=40))
def test_no_more_is_kept_of_a_command_than_the_identity_says(limit: int, cells: list[bytes]) -> None:
    with scene(limit) as one:
        for number, cell in enumerate(cells):
            one.show(
                row([cell]) + m.frame(m.NOTICE_RESPONSE, b"SNOTICE\0M" + cell.hex().encode() + b"\0\0"),
                step(str(number // 20)),
            )
        parts = read_parts(one.root)
    for command in {part.command for part, _ in parts}:
        found = [frame for part, shown in parts if part.command == command for frame in shown]
        size = sum(
            len(row([raw(cell) for cell in cells])) - 5
            for frame in found
            if isinstance(frame, frames.Rows)
            for cells in frame.rows
        )
        size += sum(len(frame.text) for frame in found if isinstance(frame, frames.Message))
        assert size <= limit
        assert sum(isinstance(frame, frames.Cut) for frame in found) <= 1


def test_parts_of_two_commands_are_two_chunks() -> None:
    with scene() as one:
        first, second = row([b"one"]), row([b"two"])
        one.tape.at(0, step("a"))
        one.tape.at(len(first), step("b"))
        one.show(first + second + m.frame(m.COMMAND_COMPLETE, b"SELECT 1\0"), None, len(first + second))
        told = [(part.command, [type(frame).__name__ for frame in shown]) for part, shown in read_parts(one.root)]
    assert told == [("a", ["Rows"]), ("b", ["Rows"]), ("", ["Message"])]


def test_what_finds_no_room_is_not_said_to_be_kept() -> None:
    with scene(64 << 20, 5 << 20) as one, pytest.raises(SpoolFull):
        for number in range(10_000):
            one.show(row([hex(number**90).encode() * 40]), step())


def test_a_columns_frame_of_a_hostile_server_fits_into_a_chunk() -> None:
    fields = b"".join(b"\x01" * 250 + b"\0" + bytes(18) for _ in range(1600))
    with scene() as one:
        one.show(m.frame(m.ROW_DESCRIPTION, (1600).to_bytes(2, "big") + fields) + row([b"x"]), step())
        (columns,) = [frame for frame in read_frames(one.root) if isinstance(frame, frames.Columns)]
    assert columns.columns == ()
