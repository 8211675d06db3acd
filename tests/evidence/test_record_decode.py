"""The fast way to read a header accepts exactly what the canonical profile accepts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_evidence import canonical, record
from chaperone_evidence.errors import NotCanonical

_INTENT = record.CommandIntent(
    seq=5, wall_us=1763940000000000, mono_us=123456789, session="01jd" + "a" * 22, command="01jd" + "b" * 22,
    target="orders-db", kind="query", decision="Allow", sha256="ab" * 32, size_bytes=45,
    accesses=(record.AccessEntry("read", "public.ördérs\n"),), rule="read-orders",
    body=record.Commitment("q" * 43 + "=", 45),
)  # fmt: skip
_HEADER = canonical.encode(_INTENT)


def _is_canonical(header: bytes) -> bool:
    try:
        canonical.decode(header)
    except NotCanonical:
        return False
    return True


def test_a_header_reads_as_what_was_written() -> None:
    assert record.decode(_HEADER) == _INTENT


@settings(max_examples=500)
@given(
    at=st.integers(0, len(_HEADER) - 1),
    cut=st.integers(0, 3),
    put=st.sampled_from(
        [b"", b" ", b'"', b",", b"1", b"0", b".0", b"e1", b"-", b"\\u00f6", b"\\/", b"null", b"\xff", b"A"]
    ),
)
def test_no_change_makes_a_header_pass_that_is_not_canonical(at: int, cut: int, put: bytes) -> None:
    changed = _HEADER[:at] + put + _HEADER[at + cut :]
    try:
        record.decode(changed)
    except NotCanonical:
        return
    assert _is_canonical(changed)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"seq":5', b'"seq":5.0'),
        (b'"seq":5', b'"seq":9007199254740992'),
        (b'"seq":5', b'"seq":-9007199254740992'),
        (b'"seq":5', b'"seq":5,"seq":5'),
        (b'"seq":5', b'"seq": 5'),
        (b'"seq":5', b'"Seq":5'),
        (b'"rule":"read-orders"', b'"rule":null'),
        (b'"rule":"read-orders"', b'"rule":"read\\u002dorders"'),
        (b'"body":{', b'"body":{"ALG":1,'),
    ],
)
def test_what_is_outside_the_profile_is_refused(old: bytes, new: bytes) -> None:
    assert old in _HEADER
    with pytest.raises(NotCanonical):
        record.decode(_HEADER.replace(old, new))


@pytest.mark.parametrize("extra", [b'"code":"",', b'"bytes":0,'])
def test_a_default_that_is_written_out_and_an_unknown_field_are_canonical_too(extra: bytes) -> None:
    outcome = canonical.encode(
        record.CommandOutcome(seq=6, wall_us=1, mono_us=1, session="s", command="c", ref=5, status="ok")
    )
    written = outcome.replace(b"{", b"{" + extra, 1)
    assert _is_canonical(written)
    assert isinstance(record.decode(written), record.CommandOutcome)
    unknown = outcome.replace(b"{", b'{"added":[1],', 1)
    assert isinstance(record.decode(unknown), record.CommandOutcome)
    assert record.decode(b'{"mono_us":1,"seq":0,"type":"later.kind","wall_us":1}') == record.Unknown("later.kind", 0)
