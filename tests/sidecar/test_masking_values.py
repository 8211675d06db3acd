"""Values as they come out of a database that somebody asks cleverly, and what holds always.

The evasions are those of a list of 35 that concern values. The others are for lineage (split, reversed or translated
values, oracles, writes elsewhere), for a protocol (binary formats, cursors, function calls) or for protocols that are
not there yet; `masking/README.md` says which.
"""

import base64
import json
import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import Classified, ColumnClass, Masker, MaskRule, Pattern
from chaperone_sidecar.masking.methods import MAX_REPLACEMENT_BYTES, STRICTNESS, replacement

ALL = tuple(BUILTIN)
KEY = b"tenant-key-of-sixteen-bytes-or-more"
SECRETS = [
    b"123-45-6789", b"alice@example.com", b"4111111111111111", b"4111 1111 1111 1111", b"DE89370400440532013000",
    b"+14155552671", b"198.51.100.7", b"2001:db8::1:2",
]  # fmt: skip


def masker(method="Redact", detectors=ALL, **more):
    return Masker([MaskRule(method, detectors=detectors)], key=KEY, **more)


MASKERS = {method: masker(method) for method in STRICTNESS}
REDACT = MASKERS["Redact"]
each_secret = pytest.mark.parametrize("secret", SECRETS, ids=bytes.decode)


def shows(masked: bytes | None, secret: bytes) -> bool:
    """Whether the secret can be read off the masked value, whichever way it is unwrapped."""
    texts = [masked or b""]
    for text in texts[:]:
        texts.append(bytes.fromhex(text.removeprefix(b"\\x").decode()) if text.startswith(b"\\x") else b"")
        texts.append(base64.b64decode(text + b"=" * (-len(text) % 4), validate=False) if text.isalnum() else b"")
    return any(secret in text or secret.hex().encode() in text for text in texts)


@each_secret
def test_1_plain_value(secret):
    masked = REDACT.mask_value(secret)
    assert masked is not None
    assert masked[:1] + masked[-1:] == b"[]"


@each_secret
def test_2_and_3_alias_and_expression_do_not_matter_to_a_value(secret):
    assert not shows(REDACT.mask_value(secret.upper()), secret.upper())
    assert not shows(REDACT.mask_value(b"value: " + secret + b" (upper)"), secret)


@each_secret
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("line", [0, 76])
def test_6_hexadecimal_and_base64(secret, upper, line):
    digits = secret.hex().upper().encode() if upper else secret.hex().encode()
    masked = REDACT.mask_value(digits)
    assert masked != digits
    assert not shows(masked, secret)
    text = base64.b64encode(b"a longer text that has more than one line of base64: " + secret + b", and ends")
    text = b"\n".join(text[i : i + line] for i in range(0, len(text), line)) if line else text
    assert REDACT.mask_value(text) != text
    assert REDACT.mask_value(base64.urlsafe_b64encode(secret)) != base64.urlsafe_b64encode(secret)
    nested = base64.b64encode(base64.b64encode(secret)).hex().encode()
    assert REDACT.mask_value(nested) != nested


@each_secret
def test_7_bytea_is_masked_as_a_whole_and_stays_bytea(secret):
    value = b"\\x" + b"\x00\x01".hex().encode() + secret.hex().encode() + b"ff"
    masked = REDACT.mask_value(value)
    assert masked is not None
    assert masked.startswith(b"\\x")
    assert bytes.fromhex(masked[2:].decode()).startswith(b"[")
    wide = b"\\x" + secret.decode().encode("utf-16-le").hex().encode()
    assert REDACT.mask_value(wide) != wide


@pytest.mark.parametrize("value", [
    b"123 45 6789", b"123.45.6789", b"4111-1111-1111-1111", b"4111_1111_1111_1111", b"4111 - 1111 - 1111 - 1111",
    b"4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", b"alice at example.com", b"alice(at)example.com",
    b"de89 3704 0044 0532 0130 00",
    b"1.415.555.2671".replace(b"1.", b"+1.", 1),
])  # fmt: skip
def test_8_separators_that_were_changed(value):
    assert (REDACT.mask_value(value) or b"").startswith(b"[")


@each_secret
def test_10_json_stays_json_and_hstore_and_xml_are_seen_through(secret):
    text = json.dumps({"a": secret.decode(), secret.decode(): [1, {"b": "x " + secret.decode()}]}).encode()
    masked = REDACT.mask_value(text)
    assert not shows(masked, secret)
    assert json.loads(masked)["a"][0] == "["
    for value in (b'"k"=>"%s"' % secret, b"<a k='%s'>%s</a>" % (secret, secret)):
        assert not shows(REDACT.mask_value(value), secret)


def test_10_a_number_in_json_becomes_a_string():
    masked = REDACT.mask_value(b'{"card": 4111111111111111, "cards":[4111111111111111,5555555555554444]}')
    assert json.loads(masked or b"") == {"card": "[PaymentCard]", "cards": ["[PaymentCard]", "[PaymentCard]"]}


@each_secret
def test_10_json_escapes_are_undone(secret):
    escaped = "".join(f"\\u{ord(char):04x}" for char in secret.decode())
    masked = REDACT.mask_value(f'{{"k": "say \\"{escaped}\\"", "n": 1}}'.encode())
    assert json.loads(masked or b"")["n"] == 1
    assert not shows(json.dumps(json.loads(masked or b"")).encode(), secret)


@each_secret
def test_11_arrays_composites_and_records(secret):
    for value in (
        b"{%s,x}" % secret,
        b'{"%s"}' % secret,
        b'{"(1,\\"%s\\",t)"}' % secret,
        b'(7,"%s",2025-11-25)' % secret,
    ):
        masked = REDACT.mask_value(value)
        assert not shows(masked, secret)
        assert (masked or b"")[-1:] == value[-1:]


@each_secret
def test_12_string_aggregates(secret):
    masked = REDACT.mask_value(b", ".join([secret] * 5))
    assert masked is not None
    assert not shows(masked, secret)
    assert masked.count(b"[") == 5


@each_secret
def test_14_to_16_server_messages(secret):
    masked = MASKERS["Null"].mask_text(b'invalid input syntax for type integer: "%s"' % secret)
    assert masked.startswith(b'invalid input syntax for type integer: "[')
    assert not shows(masked, secret)


def test_18_a_number_that_is_a_card_becomes_null_where_text_cannot_stand():
    assert REDACT.mask_value(b"4111111111111111", is_text=False) is None
    assert REDACT.mask_value(b"4111111111111112", is_text=False) == b"4111111111111112"


@pytest.mark.parametrize("value", [
    "４１１１１１１１１１１１１１１１", "٤١١١١١١١١١١١١١١١", "4111\u200b1111\u200b1111\u200b1111",
    "4111\u00a01111\u00a01111\u00a01111",
    "4111–1111–1111–1111", "alice＠example.com", "alice@\u200bexample.com", "ali\u00adce@exam\u00adple.com",
    "𝟒𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏𝟏", "123‑45‑6789", "123−45−6789", "１２３-45-6789",
    "4\u20601\u20601\u206011\u206011111111111", "①②③-④⑤-⑥⑦⑧⑨",
])  # fmt: skip
def test_27_digits_of_other_alphabets_and_characters_of_no_width(value):
    masked = REDACT.mask_value(value.encode())
    assert masked is not None
    assert masked.startswith(b"[")


@each_secret
def test_29_and_30_texts_of_commands_and_metadata(secret):
    for text in (
        b"SELECT * FROM c WHERE k = '%s'" % secret,
        b"Filter: (k = '%s'::text)" % secret,
        b"{%s,bob}" % secret,
    ):
        assert not shows(REDACT.mask_text(text), secret)


@pytest.mark.parametrize("value", [
    b"alice%40example.com", b"u=4111%201111%201111%201111", b"alice&#64;example.com", b"alice&#x40;example.com",
    b"alice&commat;example.com", b"mailto:%61lice%40example%2Ecom",
])  # fmt: skip
def test_32_percent_signs_and_entities(value):
    assert REDACT.mask_value(value) != value
    assert b"[" in (REDACT.mask_value(value) or b"")


TEXT = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(str.encode),
    st.sampled_from(
        [*SECRETS, b"\\x", b'"', b"{", b"}", b",", b"\\u0040", b"%40", b"9", b"4", b"a", b" ", b"-", b".", b"@"]
    ),
    st.sampled_from(SECRETS).map(base64.b64encode),
    st.sampled_from(SECRETS).map(lambda s: s.hex().encode()),
)
VALUE = st.lists(TEXT, max_size=12).map(b"".join)


@given(VALUE, st.sampled_from(STRICTNESS))
@example(b"1" * 30 + b"4111111111111111", "Redact")
@settings(max_examples=600, deadline=None)
def test_nothing_that_a_detector_finds_is_left_and_masking_again_changes_nothing(value, method):
    masked = MASKERS[method].mask_value(value)
    if masked is None:
        assert method == "Null"
        return
    assert MASKERS[method].scan(masked) == []
    again = MASKERS[method].mask_value(masked)
    assert again == masked


@given(VALUE)
@settings(max_examples=200, deadline=None)
def test_a_row_is_masked_as_its_values_are(value):
    cells = [value, None, b"", value[:10], b"4111111111111111", value[3:]]
    assert REDACT.mask_row(cells) == [None if cell is None else REDACT.mask_value(cell) for cell in cells]


@given(st.binary(max_size=200), st.sampled_from([*ALL, "other"]), st.sampled_from(STRICTNESS))
@settings(max_examples=300, deadline=None)
def test_replacements_are_short_and_clean_whatever_stood_there(value, kind, method):
    said = replacement(method, kind, value, KEY)
    if said is not None:
        assert 0 < len(said) <= MAX_REPLACEMENT_BYTES
        if method != "Partial":
            assert REDACT.scan(said) == []


@pytest.mark.parametrize(
    "unit", [b"4 5 ", b"1.", b"1::", b"eyJ", b"a@b.", b"%41", b"00", b"MTIzLTQ1LTY3ODkK\n", b"DE89 ", b'"']
)
def test_work_grows_with_the_length_of_a_hostile_value_and_not_with_its_square(unit):
    """Calls are counted, not seconds: a machine that is busy makes no more of them."""

    def calls(size: int) -> int:
        counted = 0

        def count(_frame: object, event: str, _argument: object) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        value = (unit * size)[:size]
        sys.setprofile(count)
        try:
            REDACT.mask_value(value)
        finally:
            sys.setprofile(None)
        return counted

    calls(1 << 10)  # fills the caches
    assert calls(1 << 16) < 16 * 3 * max(calls(1 << 12), 100)


def test_partial_keeps_what_its_class_may_keep():
    seen = {kind: replacement("Partial", kind, value) for kind, value in (
        ("PaymentCard", b"4111-1111-1111-1234"), ("IBAN", b"DE89 3704 0044 0532 0130 00"),
        ("Phone", b"+1 415 555 2671"),
        ("Email", b"alice@example.com"), ("IPv4", b"10.1.2.3"), ("USSocialSecurity", b"123-45-6789"), ("JWT", b"eyJ"),
    )}  # fmt: skip
    assert seen == {
        "PaymentCard": b"**** **** **** 1234", "IBAN": b"DE** **** **** 00", "Phone": b"*** *** **71",
        "Email": b"a***@example.com", "IPv4": b"10.1.*.*", "USSocialSecurity": b"[USSocialSecurity]", "JWT": b"[JWT]",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    "value", [b"1234", b"secret", b"***@secret", b"**** **** **** 1234", b"a.b.secret", b"[x]", b""]
)
def test_partial_shows_nothing_of_a_value_it_does_not_know_the_shape_of(kind, value):
    assert replacement("Partial", kind, value) == b"[%s]" % kind.encode()


def test_hashes_are_stable_per_tenant_and_blind_to_separators():
    one, other = masker("Hash"), Masker([MaskRule("Hash", detectors=ALL)], key=b"another tenant's key")
    assert one.mask_value(b"4111 1111 1111 1111") == one.mask_value(b"4111111111111111")
    assert one.mask_value(b"Alice@example.com") == one.mask_value(b"alice@example.com")
    assert one.mask_value(b"alice@example.com") != one.mask_value(b"bob@example.com")
    assert one.mask_value(b"alice@example.com") != other.mask_value(b"alice@example.com")


def test_classified_columns_are_masked_whole_by_the_strictest_rule():
    subject = Masker(
        [MaskRule("Partial", columns=("public.customers.email",)), MaskRule("Hash", columns=("*.customers.*",))],
        [Classified(("public.customers.email", "crm.public.staff.salary"), "email")],
        KEY,
    )
    assert subject.column_class("shop.public.customers.email") == ColumnClass("Email", "Hash")
    assert subject.column_class("public.customers.note") == ColumnClass("masked", "Hash")
    assert subject.column_class("public.staff.salary") == ColumnClass("Email", "Redact")
    assert subject.column_class("other.public.staff.salary") is None
    assert subject.column_class("public.orders.email") is None
    classes = [ColumnClass("Email", "Null"), ColumnClass("Email", "Redact"), None]
    assert subject.mask_row([b"secret", None, b"x"], classes) == [None, None, b"x"]


def test_a_derived_column_shows_no_part():
    subject = Masker([MaskRule("Partial", columns=("public.c.email",))], [Classified(("public.c.email",), "Email")])
    assert subject.mask_value(b"a@secret", subject.column_class("public.c.email", is_derived=True)) == b"[Email]"


def test_without_rules_nothing_is_looked_at():
    assert Masker().is_idle
    assert Masker().mask_row([b"123-45-6789", None]) == [b"123-45-6789", None]
    assert not Masker([], [Classified(("a.b.c",), "x")]).is_idle
    assert not REDACT.is_idle


@pytest.mark.parametrize(("rule", "said"), [
    (MaskRule("Tokenize", detectors=("Email",)), "not supported yet"),
    (MaskRule("Blur", detectors=("Email",)), "no method"),
    (MaskRule("Redact"), "masks nothing"), (MaskRule("Redact", detectors=("Name",)), "no detector Name"),
    (MaskRule("Hash", detectors=("Email",)), "tenant's key"),
    (MaskRule("Redact", columns=("email",)), "names no column"),
    (MaskRule("Redact", detectors=(Pattern("Email", "x"),)), "no detector's name"),
    (MaskRule("Redact", detectors=(Pattern("Mine", "(?=x)"),)), "RE2 refuses"),
    (MaskRule("Redact", detectors=(Pattern("Mine", "x"), Pattern("Mine", "y"))), "rename one"),
])  # fmt: skip
def test_rules_that_cannot_be_obeyed_are_refused(rule, said):
    with pytest.raises(ConfigError, match=said):
        Masker([rule])


def test_the_gateway_does_not_load_re2_before_it_has_masks():
    code = "import sys, chaperone_sidecar.main, chaperone_sidecar.gateway; sys.exit('re2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


GROUPED = "4716892311450065"


@pytest.mark.parametrize("sign", [",", ".", " ", "'", "\u00a0", "\u2009", "\u202f", "\u2019"])
@pytest.mark.parametrize("frame", ["${}.00", "{},00 EUR", "costs {} now", '{{"${}.00"}}', "-{}"])
def test_a_card_is_found_between_the_signs_of_thousands(sign, frame):
    digits = sign.join([GROUPED[:1], *(GROUPED[i : i + 3] for i in range(1, 16, 3))])
    masked = REDACT.mask_value(frame.format(digits).encode())
    assert b"[PaymentCard]" in masked
    assert b"065" not in masked
    assert REDACT.may_hit(frame.format(digits).encode())


def test_lists_of_numbers_and_amounts_are_left_alone():
    for text in (b"{4,716,892,311,450,065}", b"[4,716,892,311,450,065]", b"1,234,567.89", b"4716892311450065.5"):
        assert REDACT.mask_value(text) == text
    assert REDACT.mask_value(b"4716892311450065.000") == b"[PaymentCard]"


@pytest.mark.parametrize("shift", range(8))
def test_a_text_of_bits_is_read(shift):
    bits = "1" * shift + "".join(f"{byte:08b}" for byte in b"mail alice@example.com") + "1"
    masked = REDACT.mask_value(b"bits " + bits.encode())
    assert masked.startswith(b"bits ")
    assert b"".join(b"%c" % int(masked[i : i + 8], 2) for i in range(5, len(masked), 8)) == b"[Email]"
