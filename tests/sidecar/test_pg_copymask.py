"""COPY's data, cut anywhere: the same bytes give the same records, and no value is left in any of them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError, Unmaskable
from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import ColumnClass, MaskRule
from chaperone_sidecar.protocols.postgresql import copymask
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.copyform import CopyForm, copy_form, escape, unescape
from chaperone_sidecar.protocols.postgresql.copymask import CopyMask

MASKER = Masker([MaskRule("Redact", detectors=tuple(BUILTIN))])
SECRETS = [b"123-45-6789", b"alice@example.com", b"4111 1111 1111 1111", b"YWxpY2VAZXhhbXBsZS5jb20="]
PERSON = ColumnClass("person", "Redact")
FORMS = {
    "text": CopyForm(),
    "csv": CopyForm("csv", b",", b"", has_header=True),
    "bars": CopyForm("text", b"|"),
    "binary": CopyForm("binary"),
}
VALUE = st.one_of(
    st.none(),
    st.sampled_from(
        [*SECRETS, b"call alice@example.com now", b"", b"\\N", b'a "quoted" word', b"two\nlines", b"a,b|c\td"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8).map(str.encode),
)
TABLE = st.lists(st.tuples(VALUE, VALUE, VALUE), max_size=5)


def written(kind: str, rows: list[tuple[bytes | None, ...]]) -> list[bytes]:
    """The rows as the server writes them, one record each."""
    form = FORMS[kind]
    if kind == "binary":
        cells = [
            b"".join(b"\xff\xff\xff\xff" if v is None else struct.pack(">i", len(v)) + v for v in row) for row in rows
        ]
        head = b"PGCOPY\n\xff\r\n\0" + bytes(8)
        records = [struct.pack(">h", 3) + cell for cell in cells] + [struct.pack(">h", -1)]
        return [head + records[0], *records[1:]]
    if kind == "csv":
        quoted = [[b"" if v is None else b'"' + v.replace(b'"', b'""') + b'"' for v in row] for row in rows]
        return [b"a,b,c\n"] + [b",".join(row) + b"\n" for row in quoted]
    sign = form.delimiter

    def field(value: bytes | None) -> bytes:
        if value is None:
            return b"\\N"
        return escape(value) if sign == b"\t" else escape(value).replace(sign, b"\\" + sign)

    return [sign.join(map(field, row)) + b"\n" for row in rows]


def mask_of(kind: str, classes: tuple[ColumnClass | None, ...] = (), *, is_typed: bool = True) -> CopyMask:
    form = FORMS[kind]
    response = m.frame(m.COPY_OUT_RESPONSE, bytes([kind == "binary"]) + struct.pack(">h", 3) + bytes(6))
    return CopyMask(MASKER, response, form, classes, lambda _: None, [25, 25, 25] if is_typed else None)


def run(mask: CopyMask, data: bytes, cuts: list[int]) -> bytes:
    """The records that come out, without their frames."""
    out, place = b"", 0
    for cut in [*sorted(cuts), len(data)]:
        out += bytes(mask.rows(data[place:cut]))
        place = cut
    out += mask.finish()
    records = b""
    while out:
        size = 1 + int.from_bytes(out[1:5], "big")
        assert out[0] == m.COPY_DATA
        records, out = records + out[5:size], out[size:]
    return records


def framed(records: list[bytes]) -> bytes:
    return b"".join(m.frame(m.COPY_DATA, record) for record in records)


@pytest.mark.parametrize("kind", FORMS)
@given(rows=TABLE, cuts=st.lists(st.integers(0, 600), max_size=8), has_class=st.booleans())
@settings(max_examples=150, deadline=None)
def test_however_it_is_cut_the_records_are_the_same(
    kind: str, rows: list[tuple[bytes | None, ...]], cuts: list[int], has_class: bool
) -> None:
    classes = (None, PERSON, None) if has_class else ()
    data = framed(written(kind, rows))
    whole = run(mask_of(kind, classes), data, [])
    assert run(mask_of(kind, classes), data, [min(cut, len(data)) for cut in cuts]) == whole
    assert run(mask_of(kind, classes), data, list(range(len(data)))) == whole
    assert not any(secret in whole for secret in SECRETS)
    assert run(mask_of(kind, classes), framed([whole]), []) == whole, "masked data is masked already"


@pytest.mark.parametrize("kind", FORMS)
def test_a_classified_column_is_masked_and_null_stays_null(kind: str) -> None:
    data = framed(written(kind, [(b"1", b"Zyx, of\nOz", b"x"), (b"2", None, b"y")]))
    out = run(mask_of(kind, (None, PERSON, None)), data, [])
    assert b"Zyx" not in out
    assert out.count(b"[person]") == 1
    assert b"x" in out
    assert b"y" in out


@given(st.binary(max_size=80), st.sampled_from(sorted(FORMS)), st.booleans())
def test_nonsense_ends_in_an_error_of_its_own(data: bytes, kind: str, has_class: bool) -> None:
    mask = mask_of(kind, (None, PERSON, None) if has_class else ())
    try:
        mask.rows(m.frame(m.COPY_DATA, data))
        mask.finish()
    except (ProtocolError, Unmaskable):
        pass


def test_a_record_that_is_too_long_is_refused_and_not_kept() -> None:
    mask = mask_of("text", (PERSON, None, None))
    part = m.frame(m.COPY_DATA, b"x" * (1 << 20))
    with pytest.raises(Unmaskable, match="MiB"):
        for _ in range(2 + (copymask.MAX_RECORD_BYTES >> 20)):
            mask.rows(part)


@pytest.mark.parametrize(
    "options",
    [{"delimiter": "a"}, {"null": "Quorbly"}, {"format": "parquet"}, {"encoding": "LATIN1"}, {"delimiter": "\\"}],
)
def test_forms_in_which_values_cannot_be_told_are_refused(options: dict[str, str]) -> None:
    tree = [{"DefElem": {"defname": name, "arg": {"String": {"sval": value}}}} for name, value in options.items()]
    with pytest.raises(Unmaskable):
        copy_form(tree)


@given(st.binary())
def test_escapes_are_undone_by_their_opposite(value: bytes) -> None:
    assert unescape(escape(value)) == value


@pytest.mark.parametrize("value", [b"phone:\t4155551234", b"two\nlines, phone\t\t4155551234"])
def test_a_value_is_found_through_the_escapes_that_copy_writes(value: bytes) -> None:
    [record] = written("text", [(value, None, b"x")])
    masked = run(mask_of("text"), m.frame(m.COPY_DATA, record), [])
    assert masked == written("text", [(MASKER.mask_value(value), None, b"x")])[0]
    assert b"4155551234" not in masked
