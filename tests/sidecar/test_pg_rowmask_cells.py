"""Rows in runs are masked as each value by itself would be, whatever stands beside it in the frames."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import Masker, MaskRule
from chaperone_sidecar.masking.rule import ColumnClass, Pattern
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.rowmask import RowMask
from chaperone_sidecar.protocols.postgresql.shape import Shape

TEXT, FLOAT8, JSON = 25, 701, 114
OIDS = (TEXT, FLOAT8, TEXT, JSON, TEXT)
ALL = Masker([MaskRule("Redact", detectors=tuple(BUILTIN))])
WORDS = Pattern("Customer", r"\bCU-\d{4}\b")
NEIGHBOURS = Pattern("Ticket", r"[^a]T\d{4}")
CUSTOM = Masker([MaskRule("Redact", detectors=("Email", WORDS, NEIGHBOURS))])
COLUMNS = Masker([MaskRule("Partial", detectors=("Email", "PaymentCard"))])
CLASSES = (None, None, ColumnClass("PaymentCard", "Partial"), None, ColumnClass("name", "Null"))

type Row = Sequence[bytes | None]


def shape(oids: Sequence[int], formats: Sequence[int] = ()) -> Shape:
    fields = b"".join(b"c\0" + struct.pack(">IhIhih", 0, 0, oid, -1, -1, 0) for oid in oids)
    return Shape(m.frame(m.ROW_DESCRIPTION, struct.pack(">h", len(oids)) + fields), formats)


def framed(row: Row) -> bytes:
    cells = (b"\xff\xff\xff\xff" if value is None else struct.pack(">i", len(value)) + value for value in row)
    return m.frame(m.DATA_ROW, struct.pack(">h", len(row)) + b"".join(cells))


def run(rows: Sequence[Row]) -> bytes:
    return b"".join(map(framed, rows))


def mask_of(masker: Masker, oids: Sequence[int] = OIDS, classes: Sequence[ColumnClass | None] = ()) -> RowMask:
    return RowMask(masker, shape(oids), classes, lambda _: None)


SEEDS = (
    b"jane@example.org", b"4111 1111 1111 1111", b"0.14285714285714285", b"+49 30 1234567", b"CU-1234",
    b"T1234", b" T1234", b"plain", b"amFuZS5yb2VAZXhhbXBsZS5vcmc=", b"\\x6a616e65406578616d706c652e6f7267",
    b"4.111111111111111e+15", b"1" * 48, b"A" * 65, b"DE89370400440532013000", b"\xc2\xad",
    b"j\xc2\xadane@example.org", b'{"a": "x@example.org"}',
)  # fmt: skip
VALUES = st.none() | st.lists(st.sampled_from(SEEDS), max_size=3).map(b" ".join) | st.binary(max_size=80)
ROWS = st.lists(st.tuples(*[VALUES] * len(OIDS)), max_size=12)


@pytest.mark.parametrize(("masker", "classes"), [(ALL, ()), (CUSTOM, ()), (COLUMNS, CLASSES), (CUSTOM, CLASSES)])
@given(rows=ROWS)
@settings(max_examples=150, deadline=None)
def test_a_run_is_masked_as_its_values_are_one_by_one(
    masker: Masker, classes: Sequence[ColumnClass | None], rows: list[Row]
) -> None:
    mask = mask_of(masker, OIDS, classes)
    expected = run([[None if v is None else mask._columns[i].mask(v) for i, v in enumerate(row)] for row in rows])
    assert bytes(mask.rows(run(rows))) == expected


# A value of 48 to 57 or 65 to 90 bytes has a digit or a letter for the last byte of its length; the row that follows
# begins with D.
@pytest.mark.parametrize("row", [[b"CU-1234" + b" " * 41], [b"CU-1234" + b" " * 58], [b"so CU-1234"]])
def test_a_word_of_a_pattern_ends_where_its_value_does(row: Row) -> None:
    masked = bytes(mask_of(CUSTOM, [TEXT]).rows(run([row, row])))
    assert masked == run([[row[0].replace(b"CU-1234", b"[Customer]")]] * 2)  # type: ignore[union-attr]


def test_rows_without_a_value_are_given_back_as_they_are() -> None:
    data = run([[b"shipped", b"1.5", None, b'{"a": 1}', b""]] * 3)
    assert mask_of(ALL).rows(data) is data


@pytest.mark.parametrize(
    "row",
    [
        m.frame(m.DATA_ROW, b"\0\1\0\0\0\20jane@example.org"),  # fewer columns
        m.frame(m.DATA_ROW, b"\0\5\0\0\0\20jane@example.org"),  # cells are missing
        m.frame(m.DATA_ROW, b"\0\5\0\0\0\20jane@example.org\xff\xff\xff\xfe" + b"\xff" * 12),
        framed([b"jane@example.org", None, None, None, None])[:-1],
        m.frame(m.DATA_ROW, b"\0\5\0\0\0\20jane@example.org" + b"\xff" * 16 + b"more"),
        b"X" + framed([b"jane@example.org", None, None, None, None])[1:],
    ],
)
@pytest.mark.parametrize(("masker", "classes"), [(ALL, ()), (CUSTOM, CLASSES)])
def test_a_row_that_has_a_value_and_is_not_well_formed_is_refused(
    masker: Masker, classes: Sequence[ColumnClass | None], row: bytes
) -> None:
    with pytest.raises(ProtocolError):
        mask_of(masker, OIDS, classes).rows(row)


@pytest.mark.parametrize("rest", [b"", b"\xff\xff\xff\xff" * 2, b"\xff" * 12 + b"more", b"\0\0\0\x09abc" + b"\xff" * 8])
def test_a_row_is_read_to_its_end_where_a_column_is_cut_out(rest: bytes) -> None:
    row = m.frame(m.DATA_ROW, b"\0\5" + b"\0\0\0\3abc" + b"\0\0\0\1x" + rest)
    with pytest.raises(ProtocolError):
        mask_of(COLUMNS, OIDS, (None, ColumnClass("name", "Null"), None, None, None)).rows(row)
