"""Frames of recordings: written in one way, read strictly, and never larger than they may be."""

from __future__ import annotations

import base64
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import canonical, frames, record
from chaperone_evidence.errors import EvidenceError, Malformed, NotCanonical
from chaperone_evidence.frames import zstd

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIME = st.integers(0, canonical.MAX_INTEGER)
RAW = st.binary(max_size=20)
CELL = st.one_of(st.none(), RAW.map(frames.cell), RAW.map(lambda raw: frames.cell(raw, is_text=False)))
DATA = RAW.map(frames.cell)
FRAME: st.SearchStrategy[frames.Known] = st.one_of(
    st.builds(
        frames.Columns,
        t_us=TIME,
        columns=st.lists(st.builds(frames.Column, TEXT, TEXT, st.booleans()), max_size=3).map(tuple),
    ),
    st.builds(frames.Rows, t_us=TIME, rows=st.lists(st.lists(CELL, max_size=3).map(tuple), max_size=3).map(tuple)),
    st.builds(
        frames.Data, t_us=TIME, data=DATA, direction=st.sampled_from(["in", "out"]),
        part_of=st.sampled_from(["copy", "row"]),
    ),
    st.builds(frames.Message, t_us=TIME, severity=TEXT, text=TEXT, code=TEXT, detail=TEXT, hint=TEXT),
    st.builds(
        frames.Cut, t_us=TIME, why=st.sampled_from(["maxResultBytes", "maxMessageBytes"]), kept_bytes=st.integers(0, 99)
    ),
    st.builds(frames.Output, t_us=TIME, data=DATA),
    st.builds(frames.Input, t_us=TIME, data=DATA),
    st.builds(frames.Resize, t_us=TIME, width=st.integers(0, 65535), height=st.integers(0, 65535)),
)  # fmt: skip


def said(found: list[frames.Known], **changed: Any) -> record.RecordingChunk:
    times = [frame.t_us for frame in found] or [0]
    fields: dict[str, Any] = {"frames": len(found), "first_us": times[0], "last_us": times[-1], "codec": "zstd"}
    body = record.Commitment("", 0)
    return record.RecordingChunk(seq=1, wall_us=1, mono_us=1, session="s", body=body, **(fields | changed))


def body_of(found: list[frames.Known]) -> bytes:
    return frames.pack(b"".join(map(frames.encode, found)))


@given(st.lists(FRAME, max_size=5))
def test_what_is_written_is_read_again(found: list[frames.Known]) -> None:
    found.sort(key=lambda frame: frame.t_us)
    assert frames.read(body_of(found), said(found)) == found


@given(FRAME, st.data())
def test_one_changed_byte_is_refused_or_is_another_frame_in_its_only_form(frame: frames.Known, data: Any) -> None:
    line = frames.encode(frame)[:-1]
    place = data.draw(st.integers(0, len(line) - 1))
    changed = line[:place] + bytes([data.draw(st.integers(0, 255))]) + line[place + 1 :]
    try:
        found = frames.decode(changed)
    except NotCanonical:
        return
    assert frames.encode(found) == changed + b"\n"


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    for attempt in (body, frames.pack(body)):
        try:
            frames.read(attempt, said([]))
        except EvidenceError:
            continue
        assert frames.unpack(attempt) == b""


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind":"rows","rows":[["a"]],"t_us":1,"t_us":1}',
        b'{"kind":"rows","t_us":1,"rows":[["a"]]}',
        b'{"kind":"rows","rows":[["\\u0061"]],"t_us":1}',
        b'{"kind":"rows","rows":[[1]],"t_us":1}',
        b'{"kind":"rows","rows":[[{"base64":"YQ"}]],"t_us":1}',
        b'{"kind":"rows","rows":[[{"base64":"YR=="}]],"t_us":1}',
        b'{"kind":"rows","rows":[[{"base64":"YQ==","x":1}]],"t_us":1}',
        b'{"kind":"rows","rows":[["a"]],"t_us":-1}',
        b'{"kind":"rows","rows":[["a"]],"t_us":1.0}',
        b'{"kind":"rows","rows":[["a"]],"t_us":1} ',
        b'{"kind":"dance","t_us":1}',
        b'{"data":"x","direction":"out","kind":"data","t_us":1}',
        b'{"data":"\xff","kind":"output","t_us":1}',
        b"[" * 5000,
        b"",
    ],
)
def test_other_forms_are_refused(line: bytes) -> None:
    with pytest.raises(NotCanonical):
        frames.decode(line)


def test_a_bomb_is_not_inflated() -> None:
    bomb = zstd.compress(bytes(1 << 30), 19)
    assert len(bomb) < frames.MAX_PACKED_BYTES
    with pytest.raises(Malformed):
        frames.unpack(bomb)


def test_a_window_larger_than_a_chunk_is_not_given() -> None:
    noise = random.Random(1).randbytes(64 << 10)  # noqa: S311 - the same noise each time
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    writer = zstd.ZstdCompressor(options=options)
    with pytest.raises(Malformed):
        frames.unpack(writer.compress(noise) + writer.flush())


def test_a_chunk_of_noise_is_still_small_enough() -> None:
    noise = random.Random(2).randbytes(frames.MAX_CHUNK_BYTES)  # noqa: S311 - the same noise each time
    assert frames.unpack(frames.pack(noise)) == noise
    with pytest.raises(Malformed):
        frames.unpack(frames.pack(noise + b"x"))


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b + b, lambda b: b""])
def test_a_chunk_that_is_cut_or_followed_by_something_is_refused(spoil: Any) -> None:
    with pytest.raises(Malformed):
        frames.unpack(spoil(frames.pack(b"line\n")))


ROW = frames.Rows(t_us=5, rows=(("a",),))


@pytest.mark.parametrize(
    ("found", "changed"),
    [
        ([ROW], {"frames": 2}),
        ([ROW], {"first_us": 4}),
        ([ROW], {"last_us": 6}),
        ([msgspec.structs.replace(ROW, t_us=7), ROW], {}),
        ([ROW], {"codec": "gzip"}),
    ],
)
def test_frames_that_are_not_what_the_record_says_are_refused(found: list[frames.Known], changed: Any) -> None:
    with pytest.raises(Malformed):
        frames.read(body_of(found), said(found, **changed))


def test_bytes_are_text_where_they_are_and_base64_where_not() -> None:
    assert frames.cell(b"caf\xc3\xa9") == "café"
    for raw, is_text in ((b"caf\xe9", True), (b"\0\0\0\1", False)):
        value = frames.cell(raw, is_text=is_text)
        assert isinstance(value, frames.Bytes)
        assert (value.raw, value.base64) == (raw, base64.b64encode(raw).decode())
