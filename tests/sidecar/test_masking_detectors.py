"""Each detector against what it must find and what it must leave alone; keys are put together here, not written out."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking import engine
from chaperone_sidecar.masking.detectors import BUILTIN, Span
from chaperone_sidecar.masking.engine import Scanner

SCANNERS = {kind: Scanner([detector]) for kind, detector in BUILTIN.items()}
EVERYTHING = Scanner(list(BUILTIN.values()))


def _lines(text: str) -> list[str]:
    return text.strip("\n").split("\n")


# Between « and » is what must be found, all of it and nothing else.
CARDS = _lines("""
«4111111111111111»
«4111 1111 1111 1111»
«4111-1111-1111-1111»
«4111.1111.1111.1111»
«4111_1111_1111_1111»
«4111/1111/1111/1111»
«4111 - 1111 - 1111 - 1111»
«4222 222 222 222»
«5555555555554444»
«5105 1051 0510 5100»
«2223003122003222»
«378282246310005»
«3782 822463 10005»
«371449635398431»
«30569309025904»
«3056 930902 5904»
«6011111111111117»
«3530111333300000»
«6250941006528599»
card=«4012888888881881»;
PAN«4111111111111111»
{"pan":"«4111111111111111»","cvv":"1"}
{«4111111111111111»,«5555555555554444»}
12 4000 «4111 1111 1111 1111» 12/27
«4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1»
«4111111111111111».00
«4111 1111 1111 1111» 2025 12
«4111 1111 1111 1111» 123
<pan>«4012888888881881»</pan>
""")
NOT_CARDS = _lines("""
4111111111111112
4111 1111 1111 1112
1763940000000000
1234567890123456
41111111111111111
04111111111111111
0.4111111111111111
3.4111111111111111
4111111111111111.25
0000000000000000
4444444444444444
9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
a4111111111111111bcdef0123456789abcdef
4111-1111-1111-11111
2025-11-25 02:35:16.123456
978-3-16-148410-0
20251125103000
4111,1111,1111,1111
7992739871300000
123e4567-e89b-12d3-a456-426614174000
411111111111
4222222222222
4111111111111111110
+491711234567
""")

IBANS = _lines("""
«DE89370400440532013000»
«DE89 3704 0044 0532 0130 00»
«de89370400440532013000»
«DE89-3704-0044-0532-0130-00»
«GB82WEST12345698765432»
«GB82 WEST 1234 5698 7654 32»
«gb82 west 1234 5698 7654 32»
«FR1420041010050500013M02606»
«NL91ABNA0417164300»
«BE68539007547034»
«CH9300762011623852957»
«ES9121000418450200051332»
«IT60X0542811101000000123456»
«NO9386011117947»
«SE4550000000058398257466»
«PL61109010140000071219812874»
«AT611904300234573201»
«MT84MALT011000012345MTLCAST001S»
«AD1200012030200359100100»
IBAN: «DK5000400440116243», BIC
{«FI2112345600000785»,x}
{"iban":"«PT50000201231234567890154»"}
«SA0380000000608010167519» paid
""")
NOT_IBANS = _lines("""
DE89370400440532013001
DE8937040044053201300
DE893704004405320130000
XDE89370400440532013000
ZZ89370400440532013000
GB82WEST12345698765431
GB82 WEST 1234 5698 7654
de305d54-75b4-431b-adb2-eb6b9e546014
ae10b4c2-1234-4567-8901-123456789012
FR00 0000 0000
NO93
the be16 and de22 lengths
AT-2024-000123456789
BE68-ORDER-539007547
SE45500000000583982574
INV-DE-2024-0001-0002-0003
ee20 4567 8901 2345 6789 more
NL91ABNA0417164301
CH93 0076 2011 6238 5295 8
PT12 34
LU28 order of 12 May
""")

SSNS = _lines("""
«123-45-6789»
«123 45 6789»
«123.45.6789»
SSN «219-09-9999» on file
ssn: «457555462»
"ssn": "«457555462»"
SSN=«457555462»
("«001-01-0001»",x)
{«123-45-6789»,«219-09-9999»}
[«899-99-9999»]
a=«665-12-3456»;
<ssn>«667-12-3456»</ssn>
«772-99-0001»,
#«123-45-6789»
id:«123-45-6789»
x «123-45-6789» y
'«123-45-6789»'
«123-45-6789».
_«123-45-6789»
ssn -> «123456789»
line\\n«123-45-6789»
""")
NOT_SSNS = _lines("""
000-12-3456
666-12-3456
900-12-3456
999-99-9999
123-00-4567
123-45-0000
123-45.6789
123 45-6789
1123-45-6789
123-45-67890
123-45-6789-1
9-123-45-6789
123456789
2024-11-25
555-0187
12-345-6789
123-456-789
1.123.45.6789
123-45-6789A
A123-45-6789
session 123456789
""")

EMAILS = _lines("""
«alice@example.com»
«Alice.B+tag@mail.example.co.uk»
mailto:«bob@example.org»
<«carol@example.net»>
"«dave_1@example.io»",
{«a@b.co»,«c@d.de»}
«x.y-z%w@sub.domain.example»
to «o'neil@example.com».
(«me@example.museum»)
u=«first.last@example.travel»;
«ALICE@EXAMPLE.COM»
«alice(at)example.com»
«alice [at] example.com»
«alice{at}example.com»
«alice at example.com»
«jörg@example.de»
«info@müller.de»
postgres://u:«pw@db.example.com»:5432/x
{"email":"«alice@example.com»"}
<a>«z@zz.zz»</a>
«1234@example.com»
""")
NOT_EMAILS = _lines("""
alice
alice@
@example.com
alice@localhost
icon@2x.png
logo@3x.svg
@decorator
a @ b.com
alice at home
we met at example.com yesterday
foo@bar
package@1.2.3
user@host:22
1@2.3
SELECT '@>' FROM t
x@y.z
{"a":"b@c"}
sprite@2x.webp
me[at]home
price @ 3.50
arrived at noon.
""")

PHONES = _lines("""
«+14155552671»
«+1 415 555 2671»
«+1 (415) 555-2671»
«+1-415-555-2671»
«+49 30 901820»
«+49 (0)30 901820»
«+442079460958»
«+44 20 7946 0958»
«+33 1 23 45 67 89»
«+81 3-1234-5678»
«+1 415 555 2671» 20251125
{"tel":"«2678333154»"}
«212-555-0187x123»
a\\n«212-555-0187»
«+91 98765 43210»
«+5511987654321»
«(212) 555-0187»
«(212)555-0187»
«212-555-0187»
«212.555.0187»
«0049 30 9018200»
«01 23 45 67 89»
«06.12.34.56.78»
«020 7946 0958»
«(020) 7946 0958»
«030 / 9018200»
tel:«+14155552671»,
{"phone":"«+1 415 555 2671»"}
{«+14155552671»,«212-555-0187»}
""")
NOT_PHONES = _lines("""
4155552671
2025-11-25 02:35:16+00
2025-11-25T02:35:16+01:00
+1234567
+1234567890123456
123-4567
112-555-0187
212-155-0187
1212-555-0187
212-555-01877
212-555-0187-9
SKU-212-555-0187
12+4155552671
ORD-2024-000123
00012345678
10.1.2.3
192.168.100.200
978-3-16-148410-0
1,234,567.89
1.50.123.4567
001-002-003
v212.555.0187
7d444840-9dc0-11d1-b245-5ffdce74fad2
""")

IPV4S = _lines("""
«10.1.2.3»
«192.168.0.1»
«8.8.8.8»
«255.255.255.255»
«1.1.1.1»:443
http://«172.16.254.1»/x
«203.0.113.9»/32
[«203.0.113.9»]
{«10.0.0.1»,«10.0.0.2»}
ip=«198.51.100.7»;
"«198.51.100.7»"
from «100.64.0.1» to «100.64.0.2»
(«9.9.9.9»)
«224.0.0.1»
«169.254.169.254»
<ip>«10.10.10.10»</ip>
{"ip":"«10.1.2.3»"}
«10.1.2.3».
«10.1.2.3», then
addr:«52.95.110.1»
""")
NOT_IPV4S = _lines("""
127.0.0.1
0.0.0.0
256.1.1.1
1.2.3
1.2.3.4.5
10.1.2.300
01.02.03.04
1.2.3.1234
v1.2.3.4
a10.1.2.3
1.234.567,89
10,1,2,3
2025.11.25
10.1.2.
10..2.3
10.1.2.x
1.2.3.4.5.6
999.999.999.999
12.5
127.1.2.3
1.50
""")

IPV6S = _lines("""
«2001:db8::1»
«2001:db8:0:0:0:0:0:1»
«2001:0db8:0000:0000:0000:ff00:0042:8329»
«fe80::1»
«FE80::1FF:FE23:4567:890A»
[«2001:db8::2»]:443
«2001:db8::»
«::ffff:10.1.2.3»
«2001:db8::1»/64
{«2001:db8::1»,«2001:db8::3»}
ip=«2a00:1450:4001:81b::200e»;
"«2606:4700:4700::1111»"
(«2001:4860:4860::8888»)
{"ip":"«2001:db8::1»"}
x «fd63:6861:7065::7» y
«64:ff9b::192.0.2.33»
«2001:db8:1:2:3:4:5:6»
«1::2»
<a>«2001:db8::1»</a>
«2001:DB8::A»,
«ff02::1:ff00:1»
ad:ad:ad:ad:ad:ad:ad:«ad:2001:db8:1:2:3::1»
src:«2001:db8::1»
""")
NOT_IPV6S = _lines("""
::1
::
02:35:16
02:35:16.123456
aa:bb:cc:dd:ee:ff
a::text
x::int
SELECT a::bytea
std::vec
12::text
1:2:3:4
2001:db8
2001:db8:::1
2001::db8::1
zz1::yy2
'2024'::date
foo::2001
a:b:c:d:e:f:g:h
1:2:3:4:5:6:7:8:9:10
00:11:22:33:44:55
key::
""")


def _jwt(header: bytes, payload: bytes = b'{"sub":"1234567890"}', signature: str = "c2lnbmF0dXJlc2ln") -> str:
    return ".".join([*(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (header, payload)), signature])


_TOKEN = _jwt(b'{"alg":"HS256","typ":"JWT"}')
_FRAMES = ["{}", "x {} y", '"{}"', "Bearer {}", "token={};", "[{}]", "({})", "<t>{}</t>", '{{"jwt":"{}"}}', "a,{},b"]
JWTS = [frame.format(f"«{_TOKEN}»") for frame in _FRAMES] + [
    f"«{token}»"
    for token in (
        _jwt(b'{"alg":"none"}', signature=""),
        _jwt(b'{"alg":"RS256","kid":"1"}'),
        _jwt(b'{"typ":"JWT","alg":"ES256"}'),
        _jwt(b'{"alg":"RS256"}', b'{"a":1}'),
        _jwt(b'{"alg":"EdDSA"}', b'{"sub":"x","iat":1763940000}'),
        _jwt(b'{"alg":"PS512"}', b"{}", "A" * 342),
        _jwt(b'{"alg":"dir","enc":"A128GCM"}') + ".AAAA.BBBB",
        _jwt(b'{"alg":"HS256"}', b'{"' + b"x" * 3000 + b'":1}'),
        _jwt(b'{"alg":"HS512","typ":"at+jwt"}'),
        _jwt(b'{"alg":"HS256"}').rstrip("."),
    )
]
NOT_JWTS = [
    "eyJ", "eyJhbGci", "eyJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiJ9.", "a.b.c", "x.y", "eyJhbGciOiJIUzI1NiJ9 . x . y",
    _jwt(b'{"typ":"JWT"}'), _jwt(b'{"foo":"bar"}'), "abc" + _TOKEN[3:], _TOKEN.replace(".", ","), "eyJ.eyJ.x",
    "www.example.com", "1.2.3", "eyJust.a.word", "EYJHBGCIOIJIUZI1NIJ9.EYJ.X", _TOKEN.replace(".", ":"),
    "eyJ!hbGci.a.b",
    "eye.jay.kay", "hey.eyJ.x", "e.y.J",
]  # fmt: skip

_AWS = ["AKIA" + "IOSFODNN7EXAMPLE", "ASIA" + "Z2Y3X4W5V6U7T2S3", "ABIA" + "A" * 16, "ACCA" + "B2" * 8]
AWS = [frame.format(f"«{key}»") for key in _AWS for frame in ("{}", "id={};", '{{"k":"{}"}}', "x {} y", "_{}_")]
NOT_AWS = [
    "AKIA", "AKIA" + "A" * 15, "AKIA" + "A" * 17, "XAKIA" + "A" * 16, "akia" + "a" * 16, "AKIA" + "0" * 16,
    "AKIA" + "a" * 16, "AKIB" + "A" * 16, "ASIA", "AKIA-" + "A" * 16, "AKIA" + "1" * 16, "AROA" + "A" * 16,
    "1AKIA" + "A" * 16, "AKIA" + "A" * 16 + "x", "ASIA PACIFIC REGION TWO", "AKIA " + "A" * 16, "AIDA" + "A" * 16,
    "AKIA" + "A" * 8 + " " + "A" * 8, "A" * 20, "AKIA" + "8" * 16, "ACCABLE",
]  # fmt: skip

_KEYS = [
    "AIza" + "SyA-1234567890abcdefghijklmnopqrstu", "ya29." + "a" * 40, "ghp_" + "a1B2" * 9, "gho_" + "x" * 36,
    "ghs_" + "Z" * 40, "github_" + "pat_" + "A1_" * 10, "glpat-" + "x" * 20, "xoxb-" + "123456789012-abcdef",
    "xoxp-" + "1" * 20, "sk_" + "live_" + "a" * 24, "rk_" + "test_" + "b" * 16, "sk-" + "a" * 48,
    "sk-ant-" + "api03-" + "x" * 40, "sk-proj-" + "y" * 40, "SG." + "a" * 22 + "." + "b" * 43, "hf_" + "a" * 34,
    "npm_" + "a" * 36, "AccountKey=" + "a" * 86 + "==", "aws_secret_access_key = " + "a/" * 20,
    "SecretAccessKey: " + "b+" * 20, "aws_secretaccesskey=" + "c1" * 20,
]  # fmt: skip
KEYS = [
    f"x «{key}» y" if "ccess" not in key and "Account" not in key else key.replace("aws_", "aws_«").rstrip() + "»"
    for key in _KEYS
    if not key.startswith(("Secret", "Account"))
] + [f"«{key}»" for key in _KEYS if key.startswith(("Secret", "Account"))]
NOT_KEYS = [
    "AIza", "AIza" + "a" * 34, "ghp_short", "ghx_" + "a" * 36, "github_pat_x", "glpat-abc", "xoxb-1",
    "xoxz-" + "1" * 20,
    "sk_live_abc", "sk_prod_" + "a" * 24, "sk-12345", "sku-0123456789", "SG.a.b", "hf_model", "npm_config_cache",
    "AccountKey=", "secret_access_key", "task-" + "a" * 40, "xAIza" + "a" * 35, "disk-" + "b" * 40, "SKU-12345678",
]  # fmt: skip

_PEM = "-----BEGIN {0}PRIVATE KEY-----\n{1}\n-----END {0}PRIVATE KEY-----"
_TYPES = ["", "RSA ", "EC ", "DSA ", "OPENSSH ", "ENCRYPTED ", "ANY "]
PEMS = (
    [f"«{_PEM.format(name, 'MIIEvQ' * 20)}»" for name in _TYPES]
    + [f"a «{_PEM.format(name, 'MIIE' * 9)}» z" for name in _TYPES]
    + [
        "«" + _PEM.format("", r"MIIE\nMIIE").replace("\n", r"\n") + "»",
        "«-----BEGIN RSA PRIVATE KEY-----\nMIIE",
        "«-----BEGIN PGP PRIVATE KEY BLOCK-----\nx\n-----END PGP PRIVATE KEY BLOCK-----»",
        "«" + _PEM.format("RSA ", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nMIIE") + "»",
        "«AGE-SECRET-" + "KEY-1" + "Q" * 58 + "»",
        "x «" + _PEM.format("", "A") + "»\n«" + _PEM.format("EC ", "B") + "»",
    ]
)
PEMS = [case if case.endswith("»") or "»" in case else case + "»" for case in PEMS]
NOT_PEMS = [
    "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----", "-----BEGIN PUBLIC KEY-----",
    "-----BEGIN RSA PUBLIC KEY-----", "BEGIN PRIVATE KEY", "-----END PRIVATE KEY-----", "PRIVATE KEY",
    "-----BEGIN PRIVATE", "----BEGIN PRIVATE KEY----", "-----begin private key-----", "-----BEGIN\nPRIVATE KEY-----",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA", "-----BEGIN CERTIFICATE REQUEST-----", "BEGIN", "-----", "a private key",
    "AGE-SECRET-KEY-", "age1qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", "-----BEGIN PGP PUBLIC KEY BLOCK-----",
    "-----BEGIN X509 CRL-----", "-----BEGIN DH PARAMETERS-----", "-----BEGIN PGP MESSAGE-----",
]  # fmt: skip

CASES = {
    "PaymentCard": (CARDS, NOT_CARDS), "IBAN": (IBANS, NOT_IBANS), "USSocialSecurity": (SSNS, NOT_SSNS),
    "Email": (EMAILS, NOT_EMAILS), "Phone": (PHONES, NOT_PHONES), "IPv4": (IPV4S, NOT_IPV4S),
    "IPv6": (IPV6S, NOT_IPV6S), "JWT": (JWTS, NOT_JWTS), "AwsAccessKey": (AWS, NOT_AWS), "CloudKey": (KEYS, NOT_KEYS),
    "PrivateKey": (PEMS, NOT_PEMS),
}  # fmt: skip


def found(kind: str, text: str) -> str:
    """The text with what was found between the signs."""
    data = text.encode()
    for span in reversed(SCANNERS[kind].scan(data)):
        data = data[: span.start] + "«".encode() + data[span.start : span.end] + "»".encode() + data[span.end :]
    return data.decode()


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, (true, _) in CASES.items() for case in true])
def test_what_a_detector_is_for_is_found_and_nothing_around_it(kind, case):
    assert found(kind, case.replace("«", "").replace("»", "")) == case


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, (_, false) in CASES.items() for case in false])
def test_what_only_looks_like_it_is_left_alone(kind, case):
    assert found(kind, case) == case


def test_every_detector_has_twenty_cases_of_either_sort():
    assert CASES.keys() == BUILTIN.keys()
    assert all(len(set(true)) >= 20 and len(set(false)) >= 20 for true, false in CASES.values())


def test_overlapping_kinds_do_not_hide_each_other():
    assert EVERYTHING.scan(b"postgres://u:4111111111111111@db.example.com") == [Span(13, 44, "Email")]
    assert [s.kind for s in EVERYTHING.scan(b"123-45-6789 alice@example.com 10.1.2.3")] == [
        "USSocialSecurity", "Email", "IPv4",
    ]  # fmt: skip


@given(st.lists(st.sampled_from([case for true, false in CASES.values() for case in (*true, *false)]), max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_batch_hits_wherever_one_of_its_values_does(cases):
    cells = [case.replace("«", "").replace("»", "").encode() for case in cases]
    hits = set(EVERYTHING.hit_cells(cells))
    assert hits >= {index for index, cell in enumerate(cells) if EVERYTHING.scan(cell)}
    assert hits == {index for index, cell in enumerate(cells) if EVERYTHING.may_hit(cell)}


@given(before=st.binary(max_size=8), after=st.binary(max_size=8), data=st.data())
@settings(max_examples=200, deadline=None)
def test_raw_frames_that_hold_a_value_are_never_called_clean(before, after, data):
    case = data.draw(st.sampled_from([case for true, _ in CASES.values() for case in true if case != "«"]))
    cell = case.replace("«", "").replace("»", "").encode()
    assert EVERYTHING.may_hit(before + len(cell).to_bytes(4) + cell + after)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_bytes_can_be_scanned_and_spans_are_in_order(data):
    end = 0
    for span in EVERYTHING.scan(data):
        assert end <= span.start < span.end <= len(data)
        end = span.end


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?<=a)b", "Look-around"), (r"(a)\1", "back-references"), (r"a(?=b)", "Look-around"), ("(", "RE2 refuses"),
        ("^a", "no meaning"), ("a$", "no meaning"), (r"\Aa", "no meaning"), ("a*", "empty text"), ("|a", "empty text"),
        ("(a{1,30}){1,30}" * 3, "too large"), ("a" * 1001, "more than 1000"),
    ],
)  # fmt: skip
def test_a_pattern_that_cannot_be_obeyed_is_refused_with_its_reason(pattern, said):
    with pytest.raises(ConfigError, match=said):
        engine.custom("OrderNumber", pattern)


@pytest.mark.parametrize("pattern", [r"CUST-\d+", r"[^\s$]{3}\$", r"[]^]x", r"[[:alpha:]^]{2}\d", r"\^x", "ö+"])
def test_signs_that_are_no_anchors_are_no_reason_to_refuse(pattern):
    assert engine.custom("OrderNumber", pattern).family == "custom"


def test_a_custom_pattern_finds_its_values_in_batches_too():
    scanner = Scanner([engine.custom("Customer", r"CUST-\d{4}"), engine.custom("Any", r"[^a]z")])
    assert scanner.scan(b"see CUST-1234.") == [Span(4, 13, "Customer")]
    assert scanner.hit_cells([b"x", b"CUST-1234", b"", b"y", b"bz"]) == [1, 4]


def test_many_matches_of_a_custom_pattern_end_in_one_span():
    scanner = Scanner([engine.custom("Slow", "a.*b|c")])
    data = b"ac" * 20_000
    spans = scanner.scan(data)
    assert len(spans) == engine.MAX_CUSTOM_SPANS + 1
    assert spans[-1].end == len(data)


@pytest.mark.parametrize("pattern", [r"\Qabc", "a)|(?:b"])
def test_a_custom_pattern_that_only_compiles_alone_or_only_in_brackets_is_refused(pattern):
    with pytest.raises(ConfigError, match="RE2 refuses the pattern"):
        engine.custom("Own", pattern)


@pytest.mark.parametrize("pattern", [r"\b", r"\b|\bx", r"a*\b"])
def test_a_search_for_a_pattern_that_may_be_empty_ends(pattern):
    assert Scanner([engine.custom("Own", pattern)]).scan(b"abc a") is not None
