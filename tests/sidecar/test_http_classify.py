"""What requests count as."""

from __future__ import annotations

import base64
import contextlib
import gzip
import itertools
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_operator.broker import source
from chaperone_sidecar.credentials.broker import Header, Lease
from chaperone_sidecar.errors import ProtocolError, Unmaskable
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import MaskRule
from chaperone_sidecar.protocols.http import classify, graphql, grpc
from chaperone_sidecar.protocols.http.coding import plain
from chaperone_sidecar.protocols.http.mask import Form, Redactor, Units, masked
from chaperone_sidecar.protocols.http.messages import RequestHead

MASKER = Masker((MaskRule(detectors=("Email",), method="Redact"),), (), b"k" * 32)


def facts(method: str, path: str, body: bytes | None = b"", **fields: str) -> list[str]:
    named = tuple((name.replace("_", "-"), value) for name, value in fields.items())
    asked = classify.read(RequestHead(method, path, "api", (("Host", "api"), *named)))
    found = classify.classify(asked, body)
    return [f"{one.effect} {one.object}" for one in found.facts.accesses]


@pytest.mark.parametrize(
    ("method", "effect"),
    [
        ("GET", "read"), ("HEAD", "read"), ("OPTIONS", "read"), ("POST", "create"), ("PUT", "modify"),
        ("PATCH", "modify"), ("DELETE", "delete"), ("PROPFIND", "unknown"), ("QUERY", "unknown"),
    ],
)  # fmt: skip
def test_methods_have_effects(method: str, effect: str) -> None:
    assert facts(method, "/a%2Db?c") == [f"{effect} path:/a-b"]


GRPC = "application/grpc+proto"


def test_a_call_of_grpc_counts_beside_its_path() -> None:
    called = ["execute_code grpc:shop.v1.Orders.Get", "create path:/shop.v1.Orders/Get"]
    assert facts("POST", "/shop.v1.Orders/Get", None, Content_Type=GRPC) == called
    for method, path, effect in (
        ("POST", "/shop.v1.Orders", "create"), ("POST", "/a/b/c", "create"), ("POST", "/a-b/c", "create"),
        ("POST", "/a/b?c", "create"), ("GET", "/a/b", "read"), ("POST", "/.a/b", "create"),
    ):  # fmt: skip
        where = path.partition("?")[0]
        assert facts(method, path, Content_Type=GRPC) == [f"unknown path:{where}", f"{effect} path:{where}"]
    assert facts("POST", "/a/b", Content_Type="application/grpc-web") == ["create path:/a/b"]
    with pytest.raises(ProtocolError, match="compressed"):
        facts("POST", "/a/b", Content_Type=GRPC, grpc_encoding="gzip")


@given(st.lists(st.binary(max_size=9), max_size=4), st.integers(1, 9))
def test_messages_of_grpc_end_where_they_end(bodies: list[bytes], size: int) -> None:
    ends, data, messages = {0}, b"", grpc.Messages()
    for body in bodies:
        data += b"\0" + len(body).to_bytes(4) + body
        ends.add(len(data))
    for at in range(0, len(data), size):
        piece = data[at : at + size]
        assert messages.feed(piece) is (at + len(piece) in ends)
    with pytest.raises(Unmaskable, match="compressed"):
        grpc.Messages().feed(b"\1\0\0\0\0")


def test_a_credential_in_a_message_leaves_its_length_true() -> None:
    redactor = Redactor("Bearer a-long-token", keeps_length=True)
    data = b"\0\0\0\0\x17 <Bearer a-long-token> "
    found = redactor.feed(data) + redactor.end()
    assert b"a-long-token" not in found
    assert len(found) == len(data)


def test_a_path_with_an_escaped_slash_is_all_that_a_server_may_take_it_for() -> None:
    assert facts("GET", "/@scope%2fname") == ["read path:/@scope%2Fname", "read path:/@scope/name"]
    assert facts("GET", "/a%2Fb%2Fc") == [
        "read path:/a%2Fb%2Fc", "read path:/a%2Fb/c", "read path:/a/b%2Fc", "read path:/a/b/c",
    ]  # fmt: skip
    hidden = b'{"query":"mutation { drop }"}'
    found = facts("POST", "/api%2Fgraphql", hidden, Content_Type="application/json")
    assert "modify graphql:mutation.drop" in found


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("br", b"x"),
        ("gzip, gzip", gzip.compress(b"x", mtime=0)),
        ("gzip", b"x"),
        ("gzip", gzip.compress(b"x", mtime=0)[:-1]),
        ("gzip", gzip.compress(b"x", mtime=0) + b"y"),
        ("gzip", gzip.compress(b"x", mtime=0) * 2),
        ("gzip", gzip.compress(bytes(classify.MAX_BODY_BYTES + 1), mtime=0)),
        ("gzip", None),
    ],
)
def test_a_body_that_is_not_one_gzip_of_a_bounded_length_is_refused(coding: str, body: bytes | None) -> None:
    with pytest.raises(ProtocolError):
        plain(RequestHead("POST", "/", "api", (("Content-Encoding", coding),)), body)


@given(st.binary(max_size=3000))
def test_a_compressed_body_is_decided_as_it_was(body: bytes) -> None:
    assert plain(RequestHead("POST", "/", "api", (("content-encoding", "x-GZIP"),)), gzip.compress(body)) == body


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/a", b"", {"X_HTTP_Method_Override": "delete"}),
        ("/a", b"", {"X_HTTP_Method": "DELETE"}),
        ("/a", b"", {"X_Method_Override": "DELETE"}),
        ("/a?_METHOD=DELETE", b"", {}),
        ("/a?x=1;_method=DELETE", b"", {}),
        ("/a?%5fmethod=DELETE", b"", {}),
        ("/a", b"_method=DELETE", {"Content_Type": "application/x-www-form-urlencoded; charset=utf-8"}),
        ("/a", b'{"_method": "delete"}', {"Content_Type": "application/vnd.api+json"}),
        # As PHP reads it: a type ends at a comma or a blank, a name at a NUL, and a dot in one is an underscore.
        ("/a", b"_method=DELETE", {"Content_Type": "application/x-www-form-urlencoded, text/plain"}),
        ("/a", b"_method=DELETE", {"Content_Type": "application/x-www-form-urlencoded text/plain"}),
        ("/a", b"_method%00x=DELETE", {"Content_Type": "application/x-www-form-urlencoded"}),
        ("/a", b".method=DELETE", {"Content_Type": "application/x-www-form-urlencoded"}),
        ("/a?.method=DELETE", b"", {}),
        ("/a", b"_method=DELETE", {}),  # as Rack reads it
        ("/a", b'{"_method": "delete"}', {}),
        ("/a", b'{"_method": "delete"}', {"Content_Type": "text/json"}),
        ("/a", b'{"_method": "delete"}', {"Content_Type": "text/plain; a=/json"}),  # as Laravel reads it
    ],
)
def test_a_method_in_place_of_another_counts_beside_it(path: str, body: bytes, fields: dict[str, str]) -> None:
    assert facts("POST", path, body, **fields) == ["create path:/a", "delete path:/a"]


def test_what_cannot_be_looked_through_is_unknown() -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="_method"\r\n\r\nDELETE\r\n--b--'
    assert "unknown path:/a" in facts("POST", "/a", form, Content_Type="multipart/form-data; boundary=b")
    assert "unknown path:/a" in facts("POST", "/a", None, Content_Type="multipart/form-data; boundary=b")
    assert "unknown path:/a" in facts("POST", "/a", None, Content_Type="application/x-www-form-urlencoded")
    assert facts("POST", "/a", None) == ["create path:/a"]  # no server takes it for a form; see below
    assert facts("POST", "/a", None, Content_Type="application/octet-stream") == ["create path:/a"]
    assert facts("PUT", "/a", None) == ["modify path:/a"]
    quoted = form.replace(b"_method", b"_me\\thod")
    assert "unknown path:/a" in facts("POST", "/a", quoted, Content_Type="multipart/form-data; boundary=b")
    encoded = form.replace(b'name="_method"', b"name*=utf-8''_%6dethod")
    assert "unknown path:/a" in facts("POST", "/a", encoded, Content_Type="multipart/form-data; boundary=b")
    upload = form.replace(b'name="_method"', b"name=\"a\"; filename*=utf-8''b")
    assert facts("POST", "/a", upload, Content_Type="multipart/form-data; boundary=b") == ["create path:/a"]


def test_a_body_that_is_not_looked_through_is_one_of_octets_unless_it_says_more() -> None:
    for fields in ((), (("content-type", ""),)):
        asked = classify.read(RequestHead("POST", "/a", "api", (("Host", "api"), *fields)))
        assert classify.settled(asked, None).fields == (("Content-Type", "application/octet-stream"),)
        assert classify.settled(asked, b"x") is asked
    asked = classify.read(RequestHead("POST", "/a", "api", (("Host", "api"), ("Content-Type", "a/b"))))
    assert classify.settled(asked, None) is asked


@pytest.mark.parametrize(
    ("body", "is_known"),
    [
        (b'{"a": 1, "a": 2, "_method": "DELETE"}', False),
        (b'{"a": 1, "a": 2, "\\u005fmethod": "DELETE"}', False),
        (b'{"_method": "DELETE"} x', False),
        (b'{"a": "\xff", "_METHOD": "DELETE"}', False),
        (b'{"index": {}}\n{"a": 1}\n', True),
        (b'{"a": 1, "a": 2}', True),
    ],
)
def test_a_method_in_a_body_that_only_others_can_read_is_unknown(body: bytes, *, is_known: bool) -> None:
    found = facts("POST", "/a", body, Content_Type="application/json")
    assert ("unknown path:/a" not in found) is is_known


@pytest.mark.parametrize("key", ["Query", "QUERY"])
def test_a_document_that_only_some_parsers_find_is_unknown(key: str) -> None:
    body = json.dumps({"query": "{ viewer { login } }", key: "mutation { drop }"}).encode()
    assert "unknown path:/graphql" in facts("POST", "/graphql", body, Content_Type="application/json")


@pytest.mark.parametrize("name", ["Content_Type", "Content.Encoding", "X.HTTP.Method.Override", "X-Http-Host-Override"])
def test_a_field_that_a_server_may_take_for_another_is_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        classify.read(RequestHead("GET", "/a", "api", (("Host", "api"), (name, "x"))))


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ("{ viewer { login } }", ["query viewer"]),
        ("query q($a: [Int!] = [1]) @d(x: {y: 2}) { a: repo(id: $a) { x } b }", ["query repo", "query b"]),
        ('mutation { create(text: "} mutation { x }") { id } }', ["mutation create"]),
        ('query { a } mutation M { del(x: """ " } """) }', ["query a", "mutation del"]),
        ("subscription { news } # { x }", ["subscription news"]),
        ("fragment F on Q { secret } query { a { ...F } }", ["query a"]),
    ],
)
def test_graphql_is_its_operations(document: str, found: list[str]) -> None:
    assert [f"{kind} {field}" for kind, field in graphql.operations(document)] == found


@pytest.mark.parametrize(
    "document",
    ["", "{ ...F } fragment F on Mutation { x }", "{ ... on Q { x } }", "{ a", "query", "{ a } }", "type Q { a: Int }",
     "query { a(x: [) ] }", "\0", '{ a(x: "', "{ a: }"],
)  # fmt: skip
def test_graphql_that_is_not_understood_is_unread(document: str) -> None:
    with pytest.raises(graphql.Unread):
        graphql.operations(document)


@given(st.text('{}()[]:,.$!@#"\\ \nabquerymutation', max_size=60))
def test_any_text_is_operations_or_unread(document: str) -> None:
    with contextlib.suppress(graphql.Unread):
        assert graphql.operations(document)


def test_graphql_requests_count_by_fields_and_batches_by_all() -> None:
    json = {"Content_Type": "application/json"}
    assert facts("POST", "/graphql", b'{"query":"{ me }"}', **json) == ["read path:/graphql", "read graphql:query.me"]
    assert facts("POST", "/api/graphql", b'[{"query":"{ me }"},{"query":"mutation { kill }"}]', **json) == [
        "read path:/api/graphql", "read graphql:query.me", "modify path:/api/graphql", "modify graphql:mutation.kill",
    ]  # fmt: skip
    assert facts("GET", "/graphql?query=mutation%7Bkill%7D")[1] == "modify graphql:mutation.kill"
    for body in (b"{}", b"[]", b'{"query": 1}', b'{"query":"{ a }","query":"mutation { b }"}', b"no", None):
        assert "unknown path:/graphql" in facts("POST", "/graphql", body, **json)
    assert facts("POST", "/search", b'{"query":"{ me }"}', **json) == ["create path:/search"]


@given(st.lists(st.integers(0, 60), max_size=6))
def test_a_credential_is_taken_out_however_it_is_cut(at: list[int]) -> None:
    data = b'x tok/en-123456 y Bearer tok/en-123456 {"a":"tok\\/en-123456"} tok%2Fen-123456 tok/en-12345'
    redactor = Redactor("Bearer tok/en-123456")
    places = sorted({*at, 0, len(data)})
    found = b"".join(redactor.feed(data[a:b]) for a, b in itertools.pairwise(places)) + redactor.end()
    assert b"en-123456" not in found
    assert found.endswith(b"tok/en-12345")


def test_what_basic_hides_is_taken_out_and_nothing_is_kept_back() -> None:
    redactor = Redactor("Basic " + base64.b64encode(b"user:pass-word").decode())
    assert b"pass-word" not in redactor.feed(b"so: pass-word.")
    assert redactor.feed(b"data: whole event\n\n").endswith(b"event\n\n")


def test_json_is_masked_by_value_and_key_and_stays_json() -> None:
    raw = (
        b'{"a@b.example.com":1,"x":["\\u0061@example.com",1.50,12345678901234567890123,null,true],"x":"c@example.com"}'
    )
    found = masked(MASKER, Form("application/json"), raw)
    assert b"example.com" not in found
    assert b"12345678901234567890123" in found
    with pytest.raises(Unmaskable):
        masked(MASKER, Form("application/problem+json"), b"{'a': 1}")
    assert not Form("text/plain; charset=utf-16").is_maskable
    assert not Form("image/png").is_maskable


def test_text_hides_no_value_in_escapes_and_json_is_read_whatever_it_is_called() -> None:
    text = Form("text/plain")
    assert masked(MASKER, text, b'{"a":"x\\u0040example.com"}') == b'{"a":"[Email]"}'
    for raw in (b'x = "x\\u0040example.com"', b'x = "x\\x40example.com"', b'{"a":"x\\u0040example.com"'):
        with contextlib.suppress(Unmaskable):
            assert b"example.com" not in masked(MASKER, text, raw)
    assert masked(MASKER, text, b"C:\\users x@example.com") == b"C:\\users [Email]"


@given(st.lists(st.integers(0, 80), max_size=6))
def test_events_are_masked_however_they_are_cut(at: list[int]) -> None:
    data = (
        b': c\r\ndata: {"m":"a\\u0040example.com"}\r\n\r\n'
        b"event: e\ndata: a@\ndata: example.com b@example.com\n\ndata: x"
    )
    units = Units(MASKER, Form("text/event-stream"))
    places = sorted({*at, 0, len(data)})
    found = b"".join(units.feed(data[a:b]) for a, b in itertools.pairwise(places)) + units.end()
    assert b"\\u0040" not in found
    assert b"b@example.com" not in found
    assert found.endswith(b"\n\ndata: x")
    assert found.count(b"\n\n") == 2


@pytest.mark.parametrize(
    "name", ["X-Forwarded-Host", "x_original_url", "Forwarded", "Content_Length", "X_HTTP_Method_Override"]
)
def test_fields_that_steer_are_refused(name: str) -> None:
    with pytest.raises(ProtocolError):
        classify.read(RequestHead("GET", "/", "api", (("Host", "api"), (name, "a"))))


def test_a_lease_of_the_broker_is_one_of_the_gateway() -> None:
    header = source.Header("X-Token", "secret-value", "https", "api", 443, "/v1")
    lease = msgspec.json.decode(msgspec.json.encode(source.Lease("l-1", "header", 7, "pem", header=header)), type=Lease)
    assert (lease.kind, lease.ca_pem, lease.header) == (
        "header",
        "pem",
        Header("X-Token", "secret-value", "https", "api", 443, "/v1"),
    )
    assert "secret-value" not in repr(lease) + repr(lease.header)
