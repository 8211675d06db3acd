"""HTTP/1.1 on the wire: what is read one way however it is cut, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import classify, codec
from chaperone_sidecar.protocols.http import target as targets
from chaperone_sidecar.protocols.http.codec import Codec
from chaperone_sidecar.protocols.http.coding import plain
from chaperone_sidecar.protocols.http.messages import AnswerHead, Data, End, Message, NeedData, RequestHead

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "http_smuggling.jsonl").read_text().splitlines()
]
type Side = Literal["client", "upstream"]


def read(side: Side, pieces: list[bytes], methods: tuple[str, ...] = (), *, is_over: bool = False) -> list[Message]:
    """All messages, bodies joined."""
    found: list[Message] = []
    reader = Codec(side)
    for method in methods:
        reader.expect(method)
    for piece in [*pieces, None]:
        if piece is not None:
            reader.feed(piece)
        elif is_over:
            reader.end()
        while not isinstance(message := reader.next(), NeedData):
            if isinstance(message, Data) and found and isinstance(last := found[-1], Data):
                found[-1] = Data(last.data + message.data)
            else:
                found.append(message)
    return found


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({min(one, len(data)) for one in at} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


REQUESTS = (
    b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nX-A:  b \t\r\nEmpty:\r\n\r\nhello"
    b"PUT /b HTTP/1.1\r\nHost: h\r\ntransfer-encoding: Chunked\r\n\r\n"
    b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-T: u\r\n\r\n"
    b"GET /c HTTP/1.1\r\nHost: h\r\n\r\n"
)
ANSWERS = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
    b"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nde\r\n0\r\ngrpc-status: 0\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"
    b"HTTP/1.0 200 OK\r\n\r\nto the end"
)
METHODS = ("GET", "GET", "HEAD", "GET", "GET")


@given(st.lists(st.integers(0, len(REQUESTS)), max_size=12))
def test_requests_are_the_same_however_they_are_cut(at: list[int]) -> None:
    assert read("client", cut(REQUESTS, at)) == [
        RequestHead(
            "POST", "/a?b=c", "h", (("Host", "h"), ("Content-Length", "5"), ("X-A", "b"), ("Empty", ""))
        ),
        Data(b"hello"),
        End(),
        RequestHead("PUT", "/b", "h", (("Host", "h"), ("transfer-encoding", "Chunked"))),
        Data(b"abc0123456789"),
        End((("X-T", "u"),)),
        RequestHead("GET", "/c", "h", (("Host", "h"),)),
        End(),
    ]  # fmt: skip


@given(st.lists(st.integers(0, len(ANSWERS)), max_size=12))
def test_answers_are_the_same_however_they_are_cut(at: list[int]) -> None:
    found = read("upstream", cut(ANSWERS, at), METHODS, is_over=True)
    heads = [(one.status, one.size_bytes) for one in found if isinstance(one, AnswerHead)]
    assert heads == [(200, 3), (200, None), (200, 7), (304, 9), (200, None)]
    assert [one.data for one in found if isinstance(one, Data)] == [b"abc", b"de", b"to the end"]
    assert End((("grpc-status", "0"),)) in found


@given(st.binary(max_size=400), st.sampled_from(["client", "upstream"]), st.booleans())
def test_any_bytes_are_messages_or_an_error_of_the_protocol(data: bytes, side: Side, is_over: bool) -> None:
    try:
        read(side, [data], ("GET",) * 9, is_over=is_over)
    except ProtocolError as error:
        assert error.side == side


@given(st.data())
def test_a_request_with_something_changed_is_read_or_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(REQUESTS) - 1))
    put = data.draw(st.binary(max_size=3))
    try:
        read("client", [REQUESTS[:at] + put + REQUESTS[at + 1 :]])
    except ProtocolError as error:
        assert error.side == "client"


@pytest.mark.parametrize("case", CORPUS, ids=[case["name"] for case in CORPUS])
def test_what_could_be_read_in_two_ways_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        for message in read("client", [case["raw"].encode("latin-1")], is_over=True):
            if isinstance(message, RequestHead):
                classify.read(message)
                plain(message, b"x")
                host, port = targets.authority(message.authority)
                if host != "api.data.svc" or port not in (None, 443):
                    raise ProtocolError("misdirected")
                if "Upgrade" in dict(message.fields):
                    raise ProtocolError("upgrade")
                if message.method in classify.NEVER:
                    raise ProtocolError("never")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\na",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
    ],
)
def test_an_answer_that_is_none_or_ends_early_is_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        read("upstream", [raw], ("GET",), is_over=True)
    assert caught.value.side == "upstream"


@pytest.mark.parametrize(("name", "value"), [("X-A", "b\r\nX-B: c"), ("X A", "b"), ("X-A", "b\0"), ("X:A", "b")])
def test_a_line_end_in_a_field_never_reaches_the_wire(name: str, value: str) -> None:
    with pytest.raises(ProtocolError):
        codec.encode_request("GET", "/", ((name, value),))


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("/v1/%7Eme/a%2db", "/v1/~me/a-b"),
        ("/v1/caf%c3%a9", "/v1/caf%C3%A9"),
        ("/a/", "/a/"),
        ("/a%20b?x=[1]&y=%2f..//", "/a%20b?x=[1]&y=%2f..//"),
        ("/a?", "/a?"),
        ("/100%25", "/100%25"),
        ("/@scope%2fname", "/@scope%2Fname"),
    ],
)
def test_paths_have_one_normal_form(raw: str, normal: str) -> None:
    assert targets.read(raw).raw == normal


@given(st.text("/.%2eEfF5cC;a\\?#0", max_size=12))
def test_a_normal_form_is_its_own_normal_form(text: str) -> None:
    try:
        found = targets.read("/" + text)
    except ProtocolError:
        return
    assert targets.read(found.raw) == found
    for path in found.readings:
        assert not {"", ".", ".."} & set(path.split("/")[1:-1])
    assert found.readings[0] == found.path
    assert "%2F" not in found.readings[-1]
