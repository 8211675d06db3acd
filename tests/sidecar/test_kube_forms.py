"""Bodies in CBOR and YAML: read as Kubernetes itself reads them, and not at all where there are two ways."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from fix_interop import SOURCES, built
from hypothesis import given, settings
from hypothesis import strategies as st
from kube_cbor import BYTES, MAP, TAG, TEXT, encoded, head

from chaperone_sidecar.protocols.kubernetes import body, request
from chaperone_sidecar.protocols.kubernetes import yaml as yaml_reader
from chaperone_sidecar.protocols.kubernetes.body import Unread
from chaperone_sidecar.protocols.kubernetes.cbor import APPLY, SELF_DESCRIBED, to_object
from chaperone_sidecar.protocols.kubernetes.classify import APPLY_PATCH, JSON
from chaperone_sidecar.protocols.kubernetes.negotiation import YAML, NotTaken, content
from chaperone_tools import kubernetes_schema

pytestmark = pytest.mark.timeout(900)  # the first test that needs it builds the program
POST = request.read("POST", "/api/v1/namespaces/agents/configmaps")
PATCH = request.read("PATCH", "/api/v1/namespaces/agents/configmaps/app")
POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": ""}},
    "spec": {"containers": [{"name": "c", "image": "i", "args": ["-1", "1.5"]}], "hostPID": True, "priority": -7},
}  # fmt: skip
BREAKING = "\x85\u2028\u2029\ufeff"  # line breaks, or nothing, in some readers of YAML


class Forms:
    """Kubernetes' own readers and writers, in a process of their own."""

    def __init__(self, program: Path) -> None:
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, word: str, raw: bytes) -> bytes | None:
        """What they make of it; None where they do not read it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word} ".encode() + base64.b64encode(raw) + b"\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline().strip()
        assert line, "the program ended"
        return None if line == b"!" else base64.b64decode(line)


@pytest.fixture(scope="module")
def forms() -> Iterator[Forms]:
    """The program of tests/interop/forms."""
    found = Forms(built(SOURCES / "forms", "forms"))
    yield found
    found.process.kill()
    found.process.wait()


def texts(exclude: str = "") -> st.SearchStrategy[str]:
    """Of any characters but these."""
    return st.text(st.characters(codec="utf-8", exclude_characters=exclude), max_size=6)


def objects(text: st.SearchStrategy[str]) -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects."""
    numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    values = st.recursive(
        st.none() | st.booleans() | numbers | text,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
        max_leaves=5,
    )
    return st.dictionaries(text, values, max_size=3)


def is_same(read: Any, one: Any) -> bool:
    """Whether JSON of Go's is this: it writes whole floating-point numbers as integers."""
    if isinstance(one, dict):
        return read.keys() == one.keys() and all(is_same(read[key], one[key]) for key in one)
    if isinstance(one, list):
        return len(read) == len(one) and all(map(is_same, read, one))
    return float(read) == one if isinstance(one, float) else (read == one and type(read) is type(one))


def taken[T](way: Callable[[], T]) -> T | int:
    """What a way gives, or the status with which it is refused."""
    try:
        return way()
    except NotTaken as error:
        return error.status


# --- CBOR -------------------------------------------------------------------------------------------------------------


@given(objects(texts()), st.sampled_from((BYTES, TEXT)), st.sampled_from((b"", SELF_DESCRIBED)))
def test_what_is_written_in_cbor_is_read_the_same(one: dict[str, Any], text: int, prefix: bytes) -> None:
    assert to_object(prefix + encoded(one, text)) == one


def test_floating_point_numbers_of_all_lengths_and_bytes_are_read() -> None:
    numbers = b"\xa1Aa\x84\xf9\x3e\x00\xfa\x3f\xc0\x00\x00\xfb\x3f\xf8" + bytes(6) + b"\xf9\x80\x00"
    assert str(to_object(numbers)) == "{'a': [1.5, 1.5, 1.5, -0.0]}"
    assert to_object(encoded({"a": b"\0\1\xff", "b": b""})) == {"a": "AAH/", "b": ""}


A = encoded("a")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "ends within"), (SELF_DESCRIBED, "ends within"), (b"\xa1", "ends within"), (b"\xa1Aa", "ends within"),
        (encoded([]), "no object"), (encoded("a"), "no object"), (encoded(None), "no object"),
        (encoded({}) + b"\xf6", "something follows"), (SELF_DESCRIBED + encoded({}) + encoded({}), "something follows"),
        (SELF_DESCRIBED * 2 + encoded({}), "tag 55799"), (b"\xa1" + A + SELF_DESCRIBED + b"\xf6", "tag 55799"),
        (b"\xa2" + A + b"\1" + A + b"\1", "twice"), (b"\xa2" + A + b"\1" + encoded("a", TEXT) + b"\2", "twice"),
        (b"\xa1\x01\x01", "no text"), (b"\xa1\xf6\x01", "no text"), (b"\xa1\x80\x01", "no text"),
        (b"\xa1" + head(TAG, 22) + A + b"\1", "no text"),
        (b"\xbf" + A + b"\1\xff", "indefinite"), (b"\xa1" + A + b"\x9f\xff", "indefinite"),
        (b"\xa1" + A + b"\x5f" + A + b"\xff", "indefinite"), (b"\xa1" + A + b"\x7f\xff", "indefinite"),
        (b"\xa1\x5f" + A + b"\xff\1", "indefinite"), (b"\xff", "indefinite"), (b"\xa1" + A + b"\xff", "indefinite"),
        *((b"\xa1" + A + bytes((major << 5 | info,)) + bytes(8), "no CBOR") for major in range(8) for info in (28, 30)),
        (b"\xa1" + A + b"\x18\x17", "longer than it has"), (b"\xa1" + A + b"\x19\0\xff", "longer than it has"),
        (b"\xa1" + A + b"\x1a\0\0\xff\xff", "longer than it has"), (b"\xb8\1" + A + b"\1", "longer than it has"),
        (b"\xa1" + A + b"\x1b\0\0\0\0\xff\xff\xff\xff", "longer than it has"), (b"\xa1\x58\1a\1", "longer than it has"),
        (b"\xa1" + A + head(0, 1 << 63), "64 bits"), (b"\xa1" + A + head(1, 1 << 63), "64 bits"),
        (b"\xa1" + A + head(TAG, 2) + encoded("\1" * 9), "tag 2 "), (b"\xa1" + A + head(TAG, 3) + A, "tag 3 "),
        (b"\xa1" + A + head(TAG, 0) + encoded("2026-01-01T00:00:00Z"), "tag 0 "), (b"\xa1" + A + b"\xc1\1", "tag 1 "),
        (b"\xa1" + A + head(TAG, 22) + encoded("a", TEXT), "tag 22 "), (b"\xa1" + A + head(TAG, 22) + b"\1", "tag 22 "),
        (b"\xa1" + A + head(TAG, 23) + A, "tag 23 "), (b"\xa1" + A + head(TAG, 21) + A, "tag 21 "),
        (b"\xa1" + A + head(TAG, 1 << 40) + A, "is not used"), (b"\xa1" + A + head(TAG, 22) * 2 + A, "tag 22 "),
        (b"\xa1" + A + b"\xf7", "neither true"), (b"\xa1" + A + b"\xe0", "neither true"),
        (b"\xa1" + A + b"\xf8\x14", "neither true"), (b"\xa1" + A + b"\xf8\xff", "neither true"),
        (b"\xa1" + A + b"\xf9\x7e\0", "infinite"), (b"\xa1" + A + b"\xf9\x7c\0", "infinite"),
        (b"\xa1" + A + b"\xfa\xff\x80\0\0", "infinite"), (b"\xa1" + A + b"\xfb\x7f\xf0" + bytes(6), "infinite"),
        (b"\xa1" + A + b"\x41\xff", "UTF-8"), (b"\xa1" + A + b"\x61\xff", "UTF-8"), (b"\xa1\x41\xff\1", "UTF-8"),
        (b"\xa1" + A + b"\x43\xed\xa0\x80", "UTF-8"),
        (b"\xa1" + A + head(4, 1 << 40), "ends within"), (head(MAP, 1 << 60), "ends within"),
        (b"\xa1" + A + head(BYTES, 1 << 62), "ends within"), (b"\xa1" + A + head(TAG, 22) + b"\x44a", "ends within"),
        (b"\xa1" + A + b"\x81" * 63 + b"\xf6", "too deeply"), (b"\xa1" + A + b"\x81" * (1 << 20), "too deeply"),
        (encoded({"a": [None] * body.MAX_VALUES}), "50,000 values"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_cbor_that_is_none_or_has_another_form_is_not_read(raw: bytes, why: str) -> None:
    with pytest.raises(Unread, match=why):
        to_object(raw)


def test_cbor_is_as_deep_as_an_object_may_be() -> None:
    assert to_object(b"\xa1" + A + b"\x81" * 62 + b"\xf6")


@given(st.binary(max_size=300))
def test_any_bytes_in_cbor_are_an_object_or_not_read(raw: bytes) -> None:
    for one in (raw, SELF_DESCRIBED + raw, b"\xa1" + A + raw):
        try:
            assert to_object(SELF_DESCRIBED + encoded(to_object(one))) == to_object(one)
        except Unread as error:
            assert str(error)


@pytest.mark.peer
@settings(deadline=None)
@given(one=objects(texts()))
def test_kubernetes_reads_the_same_cbor(forms: Forms, one: dict[str, Any]) -> None:
    read = forms("cbor", SELF_DESCRIBED + encoded(one))
    assert read is not None
    assert is_same(json.loads(read), one)


@pytest.mark.peer
@settings(deadline=None)
@given(data=st.data())
def test_what_is_read_of_broken_cbor_kubernetes_reads_the_same(forms: Forms, data: st.DataObject) -> None:
    raw = bytearray(encoded(data.draw(st.sampled_from([POD, {"a": [b"x", 1.5, -9, 300, None]}]))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = to_object(bytes(raw))
    except Unread:
        return
    read = forms("cbor", bytes(raw))
    assert read is not None
    assert is_same(json.loads(read), found)


@pytest.mark.peer
def test_every_object_is_read_from_kubernetes_cbor_as_the_json_that_it_writes(forms: Forms) -> None:
    """Each field filled in, as typed clients write it."""
    folder = Path(kubernetes_schema.modules()["k8s.io/api"]["Dir"]) / "testdata" / "HEAD"
    found = [one for one in sorted(folder.glob("*.json")) if ".WatchEvent." not in one.name]  # which nobody sends
    assert len(found) > 100
    for one in found:
        written = forms("object", one.read_bytes())
        assert written is not None, one.name
        assert written.startswith(SELF_DESCRIBED)
        assert to_object(written) == json.loads(one.read_text()), one.name


# --- YAML -------------------------------------------------------------------------------------------------------------

MANIFEST = """\
# comment
apiVersion: v1
kind: ConfigMap
metadata:
  name: app  # another
  labels: {a: b, "c": 'd', e: ""}
  annotations:
    "no": "010"
data:
  list:
  - one
  - "two\\t\\u00fc"
  - 3
  - -4
  - 2.50
  - true
  - ~
  script: |
    #!/bin/sh
    \techo "$a: b"
  folded: >-
    a
    b

    c
  image: registry.example.com:5000/a/b:1.25
  quantity: 500m
  address: 10.0.0.1
  version: 1.2.3
  nothing:
  long word: a b
   c
"""


def test_a_manifest_is_read_as_people_and_the_api_server_do(forms: Forms) -> None:
    found = yaml_reader.to_object(MANIFEST)
    assert found == pyyaml.safe_load(MANIFEST)
    assert found["data"]["list"] == ["one", "two\tü", 3, -4, 2.5, True, None]
    read = forms("yaml", MANIFEST.encode())
    assert read is not None
    assert json.loads(read) == found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((f"a: {plain}", "two ways") for plain in (
            "y", "n", "Yes", "NO", "on", "Off", "=", "<<", "010", "0o10", "0x1F", "0b1", "1_000", "-_4", "0_x1f",
            "+1", "-0", "-010",
            "1e3", "1.5e3", "1E-3", ".5", "1.", "-.5", "00.5", ".inf", "-.INF", ".NaN", "Infinity", "nan", "1:30",
            "1:30:00", "190:20:30.15", "2026-01-01", "2026-1-1", "2026-01-01T00:00:00Z", "2026-01-01 00:00:00",
            "9223372036854775808", "-9223372036854775809", "99999999999999999999999", "0.1234567890123456789",
        )),
        ("on: 1", "two ways"), ("<<: {a: b}", "two ways"), ("1: a", "no text"), ("true: a", "no text"),
        ("null: a", "no text"), ("? [a]\n: b", "no text"), ("? {a: b}\n: c", "no text"), ("? \n: a", "no text"),
        ("a: 1\na: 2", "twice"), ("a: {b: 1, 'b': 2}", "twice"), ('"\\x61": 1\na: 2', "twice"),
        ("a: &x 1", "anchors"), ("a: &x 1\nb: *x", "anchors"), ("a: &x [*x]", "anchors"), ("&x a: 1", "anchors"),
        ("a: !!str 1", "tags"), ("a: ! x", "tags"), ("a: !!binary aGk=", "tags"), ("!!map {a: b}", "tags"),
        ("a: !<tag:yaml.org,2002:int> '1'", "tags"), ("!!python/object:os.system {}", "tags"), ("a: !x [1]", "tags"),
        ("%YAML 1.1\n---\na: b", "directives"), ("%TAG ! tag:x,2000:\n---\na: b", "directives"), ("", "no document"),
        ("# nothing", "no document"), ("a: b\n---\nc: d", "more than one"), ("a: b\n...\n---\n", "more than one"),
        ("a: {b:,}", "no value"), ("a: {b}", "no value"), ("a: {b: }", "no value"), ("a: [b: ]", "no value"),
        ("a: [", "no YAML"), ("a: b: c", "no YAML"), ("\ta: b", "no YAML"), ("a: 'b", "no YAML"), ("a: \0", "no YAML"),
        ('a: "\\z"', "no YAML"), ('a: "\\U00110000"', "no YAML"), ("a: `b", "no YAML"), ("a: @b", "no YAML"),
        ('a: "\\ud800"', "half of a character"), ('a: "\\ud83d\\ude00"', "half of a character"),
        ("a: " + "[" * 64 + "]" * 64, "too deeply"), ("[" * 30_000, "too deeply"), ("- " * 30_000, "too deeply"),
        ("a: " + "b" * yaml_reader.MAX_CHARACTERS, "64 KiB"), ("a: [" + "''," * 20_000 + "]", "too many values"),
    ],
)  # fmt: skip
def test_yaml_that_can_be_read_in_two_ways_is_not_read(text: str, why: str) -> None:
    with pytest.raises(Unread, match=why):
        yaml_reader.to_object(text)


def test_what_is_not_read_is_named_by_its_line_and_not_quoted() -> None:
    with pytest.raises(Unread, match="line 3 of the body") as error:
        yaml_reader.to_object("kind: Secret\nstringData:\n  pin: 47_11\n")
    assert "47" not in str(error.value)


PIECES = (
    "a", "b", ":,", ":[", ":{", "a:b", "{a: b}", "[a, b]", "_", ": ", ":", "- ", "\n", "\n  ", "\n    ", "\n- ", "[",
    "]", "{", "}", ", ", "'", '"', "#", " #", "|", ">", "|-", "\\", "? ", "1", "0", "-1", "1.5", "true", "null", "~",
    "no", "x: y", "\t", "  ", "---", "...", "&", "*", "!", "%", "<<", "ü", "\\n", "a: b", "''", "\n\n", "e",
    "2026-01-01", "@", "0x1", "_",
)  # fmt: skip


@pytest.mark.peer
@settings(deadline=None, max_examples=500)
@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map(lambda found: "a: " + "".join(found)))
def test_what_is_read_of_any_yaml_the_api_server_reads_the_same(forms: Forms, text: str) -> None:
    try:
        found = yaml_reader.to_object(text)
    except Unread:
        return
    read = forms("yaml", text.encode())
    if read is not None:
        assert is_same(json.loads(read), found)


@given(one=objects(texts(BREAKING)))
def test_what_is_written_in_yaml_is_read_the_same(one: dict[str, Any]) -> None:
    raw = pyyaml.safe_dump(one, allow_unicode=True)
    try:
        found = yaml_reader.to_object(raw)
    except Unread as error:
        assert "two ways" in str(error) or "no YAML" in str(error)  # numbers with exponents, long keys
        return
    assert found == one


@pytest.mark.peer
@settings(deadline=None)
@given(one=objects(texts()))
def test_json_that_is_sent_as_yaml_is_read_the_same_by_the_api_server(forms: Forms, one: dict[str, Any]) -> None:
    """What was decided on is what server-side apply makes of it."""
    read = forms("yaml", body.encode(one))
    assert read is not None
    assert is_same(json.loads(read), one)


# --- both -------------------------------------------------------------------------------------------------------------


def test_bodies_go_on_as_the_json_that_was_decided_on() -> None:
    as_json = json.dumps(POD, separators=(",", ":")).encode()
    as_yaml, as_cbor = pyyaml.safe_dump(POD, sort_keys=False).encode(), SELF_DESCRIBED + encoded(POD)
    for kind, raw in (
        (YAML, as_yaml),
        (YAML, as_json),
        (f"{YAML}; charset=UTF-8", as_yaml),
        ("application/cbor", as_cbor),
    ):
        assert content(kind, POST, raw) == (JSON, as_json)
    for kind, raw in ((APPLY_PATCH, as_yaml), (APPLY_PATCH, as_json), (APPLY, as_cbor)):
        assert content(kind, PATCH, raw) == (APPLY_PATCH, as_json)
    for kind, raw, asked in (
        (APPLY, as_cbor, POST), (APPLY_PATCH, as_yaml, POST), (YAML, as_yaml, PATCH),
        ("application/cbor", as_cbor, PATCH), ("application/cbor-seq", as_cbor, POST), ("text/yaml", as_yaml, POST),
        ("application/x-yaml", as_yaml, POST),
    ):  # fmt: skip
        assert taken(lambda kind=kind, raw=raw, asked=asked: content(kind, asked, raw)) == 415


@pytest.mark.parametrize(
    "raw",
    [b"a: 1\na: 2", b'{"a":1,"a":2}', b"[]", b"null", b"a", b'{"a":1e400}', b'{"a":NaN}', b"\xff\xfea\0",
     b'{"a":"\\ud800"}', *(f'{{"a":"b{one}c"}}'.encode() for one in BREAKING), "\ufeff{}".encode(),
     "a: |\n  b\x85  c".encode()],
)  # fmt: skip
def test_yaml_that_is_not_read_is_a_bad_request(raw: bytes) -> None:
    assert taken(lambda: content(YAML, POST, raw)) == 400
    assert taken(lambda: content(APPLY_PATCH, PATCH, raw)) == 400


def test_what_grows_too_long_as_json_is_a_bad_request() -> None:
    raw = encoded({"a": bytes(body.MAX_BODY_BYTES * 4 // 5)})
    assert taken(lambda: content("application/cbor", POST, raw)) == 400


@pytest.mark.parametrize("raw", [b'{"a":"\\ud800"}', b'{"\\udfff":1}', b'{"a":1e999}', b'{"a":-1e999}'])
def test_json_that_another_reader_would_change_is_not_read(raw: bytes) -> None:
    with pytest.raises(Unread, match="no JSON"):
        body.decode(raw)
    assert body.decode(b'{"a":"\\ud83d\\ude00"}') == {"a": "\U0001f600"}
