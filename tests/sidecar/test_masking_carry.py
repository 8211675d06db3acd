"""Streams: however the bytes are cut, the result is the same, and memory is bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking.carry import Carry, escape, unescape
from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import ColumnClass, Masker, MaskRule

REDACT = Masker([MaskRule("Redact", detectors=tuple(BUILTIN))])
NULL = Masker([MaskRule("Null", detectors=tuple(BUILTIN))])
SECRETS = [b"123-45-6789", b"alice@example.com", b"4111 1111 1111 1111", b"\\\\x616c696365406578616d706c652e636f6d",
           b"YWxpY2VAZXhhbXBsZS5jb20=", b'{"a":"alice\\\\u0040example.com"}']  # fmt: skip
PIECE = st.one_of(
    st.sampled_from([*SECRETS, b"\t", b"\n", b"\\N", b"\\\\", b"\\n", b'"', b'""', b",", b" ", b"x" * 40]),
    st.binary(max_size=12),
)
STREAM = st.lists(PIECE, max_size=30).map(b"".join)


def run(carry: Carry, data: bytes, cuts=()) -> bytes:
    out = []
    place = 0
    for cut in [*sorted(cuts), len(data)]:
        out.append(carry.feed(data[place:cut]))
        place = cut
    return b"".join([*out, carry.finish()])


@given(STREAM, st.lists(st.integers(0, 400), max_size=12), st.booleans(), st.sampled_from([16, 64, 4096]))
@settings(max_examples=600, deadline=None)
def test_a_stream_gives_the_same_however_it_is_cut(data, cuts, is_csv, window):
    make = lambda: Carry(REDACT, is_csv=is_csv, window_bytes=window, tail_bytes=32)  # noqa: E731
    whole = run(make(), data)
    assert run(make(), data, [min(cut, len(data)) for cut in cuts]) == whole
    assert run(make(), data, range(len(data))) == whole


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("is_csv", [False, True])
def test_a_value_cut_at_any_byte_is_masked(secret, is_csv):
    data = b"1\tx\n2\tcall " + secret + b" now\t3\n4\ty\n"
    whole = run(Carry(REDACT, is_csv=is_csv), data)
    assert secret not in whole
    assert whole.startswith(b"1\tx\n2\t")
    assert whole.endswith(b"\n4\ty\n")
    for cut in range(len(data)):
        assert run(Carry(REDACT, is_csv=is_csv), data, [cut]) == whole


def test_fields_are_masked_as_values_and_escaped_again():
    data = b"1\tback\\\\slash\\ttab alice@example.com\\n\t\\N\n\\.\n"
    assert run(Carry(REDACT), data) == b"1\tback\\\\slash\\ttab [Email]\\n\t\\N\n\\.\n"
    assert run(Carry(NULL), data) == b"1\t\\N\t\\N\n\\.\n"


def test_columns_are_masked_whole_and_a_record_of_another_shape_is_masked_all_over():
    carry = Carry(REDACT, [None, ColumnClass("Email", "Redact")])
    assert run(carry, b"1\tanything\n2\t\\N\n3\n\\.\n") == b"1\t[Email]\n2\t\\N\n[Email]\n\\.\n"


def test_csv_records_may_have_newlines_between_quotes_and_no_null():
    key = b"-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----"
    data = b'id,key\n1,"' + key + b'"\n2,alice@example.com\n'
    assert run(Carry(NULL, is_csv=True), data) == b'id,key\n1,"[PrivateKey]"\n2,[Email]\n'
    with pytest.raises(ConfigError, match="CSV"):
        Carry(REDACT, [ColumnClass("Email", "Redact")], is_csv=True)


@pytest.mark.parametrize("filler", [b"x ", b"word\\n", b"x", b"00", b"QUJD", b"a,b;"])
@pytest.mark.parametrize("place", [*range(230, 300, 3), 20, 1000])
def test_a_value_in_a_record_longer_than_a_window_is_masked_wherever_it_stands(filler, place):
    secret = b" 4111 1111 1111 1111 "
    data = (filler * 1000)[:place] + secret + (filler * 1000)[:2000] + b"\nnext\n"
    masked = run(Carry(REDACT, window_bytes=256, tail_bytes=64), data)
    assert b"1111 1111" not in masked
    assert masked.endswith(b"\nnext\n")


def test_a_long_record_without_anything_found_is_untouched():
    data = b"\n".join([b"some words, and numbers 12 34 " * 2000, b"0123abcdef" * 9000, b"", b"x"])
    assert run(Carry(REDACT, window_bytes=1024, tail_bytes=256), data, range(0, len(data), 777)) == data


def test_a_word_longer_than_a_window_with_something_in_it_is_dropped_to_its_end():
    data = b"\\\\x" + b"00" * 300 + b"alice@example.com".hex().encode() + b"00" * 2000 + b"\tafter\nnext\n"
    masked = run(Carry(REDACT, window_bytes=1024, tail_bytes=256), data)
    assert b"616c696365" not in masked
    assert masked.endswith(b"\tafter\nnext\n")


def test_what_is_carried_is_bounded_by_a_window_and_its_tail():
    carry = Carry(REDACT, window_bytes=1024, tail_bytes=256)
    for _ in range(2000):
        carry.feed(b"word " * 20)
        assert len(carry._buffer) <= 1024 + 256


@given(st.binary(max_size=60))
def test_escape_and_unescape_are_each_others_inverse(value):
    assert unescape(escape(value)) == value
    assert not {0x09, 0x0A, 0x0D} & set(escape(value))
