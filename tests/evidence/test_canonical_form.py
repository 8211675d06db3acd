"""One record has one header: compared with another encoder, and over all types of records."""

from __future__ import annotations

import base64
import json
import typing

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_evidence import canonical, entry, record
from chaperone_evidence.chain import Chain, first_link, follows, next_link
from chaperone_evidence.errors import EvidenceError, Malformed, NotCanonical, Torn

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
INTEGER = st.integers(-canonical.MAX_INTEGER, canonical.MAX_INTEGER)
COMMITMENT = st.builds(record.Commitment, TEXT, INTEGER)
ACCESSES = st.lists(st.builds(record.AccessEntry, TEXT, TEXT), max_size=3).map(tuple)
DELEGATED = st.builds(record.Delegated, TEXT, TEXT, TEXT)
OPTIONAL = INTEGER | st.just(msgspec.UNSET)
USES = st.lists(st.builds(record.Use, TEXT, INTEGER), max_size=3).map(tuple)
CIRCUMSTANCES = st.builds(record.Circumstances, OPTIONAL, OPTIONAL, USES)
BY_TYPE: dict[object, st.SearchStrategy[object]] = {
    str: TEXT,
    bool: st.booleans(),
    record.Integer: INTEGER,
    tuple[record.AccessEntry, ...]: ACCESSES,
    record.Commitment: COMMITMENT,
    record.Commitment | msgspec.UnsetType: COMMITMENT | st.just(msgspec.UNSET),
    record.Circumstances | msgspec.UnsetType: CIRCUMSTANCES | st.just(msgspec.UNSET),
    record.Delegated | msgspec.UnsetType: DELEGATED | st.just(msgspec.UNSET),
}
KINDS: list[type[record.Record]] = [
    record.StreamOpen, record.StreamClose, record.SessionOpen, record.SessionClose, record.CommandIntent,
    record.CommandOutcome, record.ApprovalRequest, record.ApprovalOutcome, record.IdentitySuspension,
    record.EgressDenied, record.DnsDenied, record.RecordingChunk,
]  # fmt: skip


def _records(kind: type[record.Record]) -> st.SearchStrategy[record.Record]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{field.name: BY_TYPE[hints[field.name]] for field in msgspec.structs.fields(kind)})


RECORDS = st.one_of(*(_records(kind) for kind in KINDS))


def test_every_type_of_record_is_tried() -> None:
    assert {kind.__struct_config__.tag for kind in KINDS} == record.TYPES


@settings(max_examples=400)
@given(RECORDS)
def test_a_record_is_read_as_it_was_written_and_another_encoder_writes_the_same(one: record.Record) -> None:
    header = canonical.encode(one)
    assert record.decode(header) == one
    value = canonical.decode(header)
    assert json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == header
    assert None not in value.values()
    assert "" not in {key: item for key, item in value.items() if key in _optional(type(one))}.values()


def _optional(kind: type[record.Record]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(kind) if not field.required}


def test_control_characters_have_the_escapes_of_rfc_8785() -> None:
    every = "".join(map(chr, range(0x20))) + '"\\/\x7f\u2028é😀'
    assert canonical.encode({"a": every}) == (
        b'{"a":"\\u0000\\u0001\\u0002\\u0003\\u0004\\u0005\\u0006\\u0007\\b\\t\\n\\u000b\\f\\r\\u000e\\u000f'
        b"\\u0010\\u0011\\u0012\\u0013\\u0014\\u0015\\u0016\\u0017\\u0018\\u0019\\u001a\\u001b\\u001c\\u001d\\u001e\\u001f"
        b'\\"\\\\/\x7f\xe2\x80\xa8\xc3\xa9\xf0\x9f\x98\x80"}'
    )


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":-0}', b'{"a":1e2}', b'{"a":1E400}', b'{"a":' + b"1" * 5000 + b"}", b'{"a":-9007199254740992}',
        b'{"a":"\\u000A"}', b'{"a":"\\u000a"}', b'{"a":"\\/"}', b'{"a":"\\u001F"}', b'{"a":"\\ud800"}',
        b'{"a":"\\ud83d\\ude00"}', b'{"a":"\xed\xa0\x80"}', b'{"a":"\xc0\x80"}', b'{"a":"\x01"}',
        b"\xef\xbb\xbf{}", b"{} ", b" {}", b'{"a":1,}', b'{"\\u0061":1}', b'{"a b":1}', b'{"\xc3\xa9":1}', b'{"":1}',
        b'{"_a":1}', b'{"1":1}', b'{"a":{"B":1}}', b'{"a":[null]}', b'{"a":[1.0]}', b"null", b"", b"7", b'"a"',
        b"[" * 100_000, b'{"a":' * 50 + b"1" + b"}" * 50,
    ],
)  # fmt: skip
def test_a_twin_of_a_header_is_refused(header: bytes) -> None:
    with pytest.raises(NotCanonical):
        canonical.decode(header)
    with pytest.raises(NotCanonical):
        record.decode(header)


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_canonical_or_refused(header: bytes) -> None:
    for read in (canonical.decode, record.decode):
        try:
            read(header)
        except NotCanonical:
            continue


@given(st.binary(max_size=70))
def test_base64_is_read_as_written_and_in_no_other_form(data: bytes) -> None:
    text = base64.b64encode(data).decode()
    assert canonical.decode_base64(text) == data
    for other in (text + "\n", text + "=", " " + text, text.rstrip("=") + "é", "===="):
        with pytest.raises(NotCanonical):
            canonical.decode_base64(other)
    if "=" in text:
        last = text.rstrip("=")[-1]
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        twin = text.rstrip("=")[:-1] + alphabet[alphabet.index(last) + 1] + "=" * text.count("=")
        with pytest.raises(NotCanonical):
            canonical.decode_base64(twin)


@given(RECORDS, st.binary(min_size=32, max_size=32))
def test_entries_and_links_are_read_as_written(one: record.Record, before: bytes) -> None:
    header = canonical.encode(one)
    link = next_link(before, entry.CLASS_RECORD, header)
    data = entry.Entry(entry.CLASS_RECORD, link, header).encode()
    assert entry.decode(data) == entry.Entry(entry.CLASS_RECORD, link, header)
    assert follows(before, data)
    assert not follows(bytes(32) if before != bytes(32) else bytes(31) + b"1", data)
    assert list(entry.frames(entry.frame(data))) == [data]


def test_the_longest_entry_fits_and_one_byte_more_is_refused_and_changes_nothing() -> None:
    chain = Chain("c", "0" * 26)
    blank = len(canonical.encode(record.StreamClose(seq=0, wall_us=1, mono_us=1, reason="")))
    most = entry.MAX_ENTRY_BYTES - entry.PREFIX_BYTES - blank
    with pytest.raises(Malformed):
        chain.append_record(record.StreamClose(seq=0, wall_us=1, mono_us=1, reason="x" * (most + 1)))
    with pytest.raises(Malformed):
        chain.append_record(record.StreamClose(seq=0, wall_us=1, mono_us=1, reason="half a pair: \ud800"))
    assert (chain.count, chain.link) == (0, first_link("0" * 26))
    framed = chain.append_record(record.StreamClose(seq=0, wall_us=1, mono_us=1, reason="x" * most))
    (data,) = entry.frames(framed)
    assert len(data) == entry.MAX_ENTRY_BYTES
    assert entry.frame(data) == framed
    for wrong in (data + b"x", data[: entry.PREFIX_BYTES], b"\x02" + data[1:], b""):
        with pytest.raises(Malformed):
            entry.decode(wrong)
    with pytest.raises(Malformed):
        entry.frame(data + b"x")


def test_a_torn_frame_is_told_from_a_damaged_one() -> None:
    whole = entry.frame(b"first}") + entry.frame(b"second}")
    for cut in range(len(entry.frame(b"first}")) + 1, len(whole)):
        for torn in (whole[:cut], whole[:cut] + bytes(len(whole))):
            found = []
            try:
                for one in entry.frames(torn):
                    found.append(one)
            except Torn:
                pass
            assert found == [b"first}"]
    for damaged in (whole + b"\0\0x", whole[:-1] + b"\0\0\0x"):
        with pytest.raises(Malformed) as caught:
            list(entry.frames(damaged))
        assert not isinstance(caught.value, Torn)


def test_bodies_are_read_as_written_and_their_lengths_are_bounded() -> None:
    bodies = [bytes(32) + text for text in (b"", b"SELECT 1", b"ends in zero\0")]
    data = b"".join(entry.body_frame(body[:32], body[32:]) for body in bodies)
    assert list(entry.body_frames(data)) == bodies
    assert list(entry.body_frames(memoryview(data + bytes(100)))) == bodies
    assert len({entry.body_commit(body) for body in bodies}) == 3
    for wrong in (data + b"\0", data[:-1], data + bytes(4) + b"x", b"\0\0\0\x1f" + bytes(31), b"\xff" * 40):
        with pytest.raises(EvidenceError):
            list(entry.body_frames(wrong))
