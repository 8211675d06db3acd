"""WebSocket: the frames, and what agents may say and hear through the real `chaperone dev`."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from fix_http import NAME, Api, to_end
from hypothesis import given
from hypothesis import strategies as st
from manifests import rule
from programs import NODE, ran
from recordings import every_byte
from waiting import Person, eventually
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from chaperone_evidence import record
from chaperone_operator.kubeconfig import verifying
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import handshake, websocket
from chaperone_sidecar.protocols.http.messages import AnswerHead, NeedData, RequestHead
from chaperone_sidecar.protocols.http.websocket import Close, Codec, FrameError, Ping, Pong, Said

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # of RFC 6455, 1.3
TALK = [
    rule("read", "Allow", ["read"], ["path:/v1/*"]),
    rule("open", "Allow", ["session"], ["path:/socket"]),
    rule("talk", "Allow", ["create"], ["path:/socket"]),
]

# --- the frames -------------------------------------------------------------------------------------------------------

said = st.builds(Said, st.just("text"), st.text().map(str.encode)) | st.builds(Said, st.just("binary"), st.binary())
frames = (
    said | st.builds(Ping, st.binary(max_size=125)) | st.just(Pong()) | st.just(Close(1000, "done")) | st.just(Close())
)


def read(side: Any, pieces: list[bytes]) -> list[Any]:
    codec, found = Codec(side), []
    for piece in pieces:
        codec.feed(piece)
        while not isinstance(one := codec.next(), NeedData):
            found.append(one)
    return found


@given(st.lists(frames, max_size=5), st.booleans(), st.integers(1, 7))
def test_frames_are_the_same_however_they_are_cut(sent: list[Any], is_masked: bool, size: int) -> None:
    raw = b"".join(websocket.encode(one, is_masked=is_masked) for one in sent)
    side = "client" if is_masked else "upstream"
    assert read(side, [raw]) == sent
    assert read(side, [raw[at : at + size] for at in range(0, len(raw), size)]) == sent


@given(st.binary(max_size=300), st.sampled_from(["client", "upstream"]))
def test_arbitrary_bytes_end_in_frames_or_in_a_refusal(data: bytes, side: str) -> None:
    try:
        read(side, [data])
    except FrameError as error:
        assert error.side == side


def test_fragments_become_one_message_around_a_ping() -> None:
    assert read("upstream", [b"\x01\x03\xe2\x82\xac" b"\x89\x01p" b"\x00\x00" b"\x80\x01!"]) == [
        Ping(b"p"), Said("text", "\u20ac!".encode()),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xc1\x00", 1002), (b"\x83\x00", 1002), (b"\x8b\x00", 1002), (b"\x09\x00", 1002), (b"\x80\x00", 1002),
        (b"\x01\x00\x01\x00", 1002), (b"\x89\x7e\x00\x7e", 1002), (b"\x81\x7e\x00\x01a", 1002),
        (b"\x81\x7f" + b"\x00" * 7 + b"\x01a", 1002), (b"\x88\x01\x03", 1002), (b"\x88\x02\x03\xed", 1002),
        (b"\x88\x02\x03\xee", 1002), (b"\x81\x81abcd!", 1002), (b"\x81\x01\xff", 1007), (b"\x88\x03\x03\xe8\xff", 1007),
        (b"\x82\x7f" + (websocket.MAX_MESSAGE_BYTES + 1).to_bytes(8), 1009),
        (b"\x82\x7f\xff" + b"\x00" * 7, 1009),
        (b"\x02\x01a\x80\x7f" + websocket.MAX_MESSAGE_BYTES.to_bytes(8), 1009),
    ],
)  # fmt: skip
def test_what_is_no_websocket_is_refused_before_it_is_kept(raw: bytes, code: int) -> None:
    with pytest.raises(FrameError) as caught:
        read("upstream", [raw])
    assert caught.value.close_code == code


def test_a_client_that_masks_nothing_is_refused() -> None:
    with pytest.raises(FrameError):
        read("client", [b"\x81\x01a"])


def head(*fields: tuple[str, str], method: str = "GET") -> RequestHead:
    named = {"Upgrade": "websocket", "Connection": "keep-alive, Upgrade", "Sec-WebSocket-Version": "13",
             "Sec-WebSocket-Key": KEY}  # fmt: skip
    return RequestHead(method, "/socket", "api", tuple((named | dict(fields)).items()))


@pytest.mark.parametrize(
    "changed",
    [
        head(method="POST"), head(("Connection", "close")), head(("Sec-WebSocket-Version", "8")),
        head(("Sec-WebSocket-Key", "short")), head(("Content-Length", "1")), head(("Sec-WebSocket-Protocol", "a b")),
        head(("Upgrade", "websocket, h2c")), head(("Upgrade", "TLS/1.0")),
    ],
)  # fmt: skip
def test_a_handshake_that_is_none_is_refused(changed: RequestHead) -> None:
    with pytest.raises(ProtocolError):
        handshake.read(changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"Upgrade": "h2c"}, {"Connection": "close"}, {"Sec-WebSocket-Accept": websocket.accept("another")},
        {"Sec-WebSocket-Extensions": "permessage-deflate"}, {"Sec-WebSocket-Protocol": "other"},
    ],
)  # fmt: skip
def test_a_target_that_agrees_to_something_else_is_not_believed(changed: dict[str, str]) -> None:
    wanted = handshake.read(head(("Sec-WebSocket-Protocol", "chat")))
    assert wanted is not None
    told = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "Sec-WebSocket-Protocol": "chat"}  # fmt: skip
    agreed = dict(handshake.agreed(wanted, AnswerHead(101, tuple(told.items())), KEY))
    assert agreed["Sec-WebSocket-Accept"] == told["Sec-WebSocket-Accept"]
    with pytest.raises(ProtocolError):
        handshake.agreed(wanted, AnswerHead(101, tuple((told | changed).items())), KEY)


# --- through the gateway ----------------------------------------------------------------------------------------------


class Agent:
    """The package `websockets`, with its offer of compression.

    Its client for threads reads and writes one TLS object at the same time, which Python's ssl is not made for.
    """

    def __init__(self, api: Api, path: str = "/socket") -> None:
        self._runner = asyncio.Runner()
        self.connection: ClientConnection = self._runner.run(self._dialled(api, path))

    async def _dialled(self, api: Api, path: str) -> ClientConnection:
        return await connect(
            f"wss://{NAME}:{api.gateway.port}{path}", ssl=verifying(cadata=api.ca_pem), server_hostname=NAME,
            host="127.0.0.1", port=api.gateway.port, open_timeout=30, proxy=None,
        )  # fmt: skip

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.connection.close())
        self._runner.close()

    def send(self, said: Any) -> None:
        self._runner.run(self.connection.send(said))

    def recv(self) -> Any:
        return self._runner.run(asyncio.wait_for(self.connection.recv(), 30))

    def ping(self) -> None:
        async def answered() -> None:
            await asyncio.wait_for(await self.connection.ping(), 30)

        self._runner.run(answered())

    def go(self) -> None:
        """As a process does that is killed."""
        self.connection.transport.abort()
        self._runner.close()


def dial(api: Api, path: str = "/socket") -> Agent:
    return Agent(api, path)


def closed(connection: Agent) -> tuple[int, str]:
    """How the gateway ended it."""
    with pytest.raises(ConnectionClosed) as caught:
        connection.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


@pytest.fixture(scope="module")
def talking(api_with: Callable[..., Api]) -> Api:
    """A gateway that lets agents talk, and masks what they hear."""
    return api_with(rules=[*TALK], recording={"results": "Full"}, masks=[{"detectors": ["Email"], "method": "Redact"}])


def test_messages_are_commands_and_what_is_heard_is_masked(talking: Api) -> None:
    with dial(talking) as agent:
        assert not agent.connection.protocol.extensions
        for text in ("one", "jane.doe@example.com", '{"mail":"jane.doe\\u0040example.com"}', "x" * 200_000):
            agent.send(text)
            heard = agent.recv()
            assert "example.com" not in heard and "\\u0040" not in heard
        assert heard == "heard " + "x" * 200_000
        agent.ping()
    records = talking.gateway.records()
    intents = [one for one in records if isinstance(one, record.CommandIntent)]
    assert [one.kind for one in intents][:3] == ["websocket", "websocket.text", "websocket.text"]
    assert [(one.effect, one.object) for one in intents[1].accesses] == [("create", "path:/socket")]
    ended = {one.command: one.status for one in records if isinstance(one, record.CommandOutcome)}
    assert ended[intents[1].command] == "ok"
    kept = every_byte(talking.gateway.evidence)
    assert b"heard one" in kept and b"heard [Email]" in kept


def test_a_binary_message_cannot_be_masked(talking: Api) -> None:
    with dial(talking) as agent:
        agent.send(b"\x00\x01")
        code, reason = closed(agent)
    assert code == 1008
    assert "cannot be masked" in reason


def test_a_message_that_is_too_long_is_refused(talking: Api) -> None:
    with dial(talking) as agent:
        agent.send("x" * (websocket.MAX_MESSAGE_BYTES + 1))
        assert closed(agent)[0] == 1009


def test_who_may_read_a_path_may_not_open_it(talking: Api) -> None:
    before = talking.backend.heard()
    with pytest.raises(InvalidStatus) as caught:
        dial(talking, "/v1/orders")
    assert caught.value.response.status_code == 403
    assert json.loads(caught.value.response.body)["rule"] == "uncovered"
    assert talking.backend.heard() == before


def test_nodes_websocket(talking: Api) -> None:
    program = """
const socket = new WebSocket(process.argv[1] + "/socket"), said = [];
socket.onopen = () => socket.send("mail jane.doe@example.com");
socket.onmessage = event => { said.push(event.data); socket.close(1000, "done"); };
socket.onclose = event => console.log(JSON.stringify([...said, event.code]));
"""
    found = ran(NODE, "--eval", program, f"wss://{NAME}:{talking.gateway.port}", NODE_EXTRA_CA_CERTS=talking.ca)
    assert json.loads(found) == ["heard mail [Email]", 1000]


def test_a_target_that_does_not_want_it_answers_as_ever(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=[rule("all", "Allow", ["session", "create", "read"], ["path:*"])], credential={"path": "/x"})
    with pytest.raises(InvalidStatus) as caught:
        dial(api, "/v1/orders")
    assert caught.value.response.status_code == 200
    with dial(api) as agent:  # without masks binary messages pass
        agent.send([b"\x00", b"\x01"])
        assert agent.recv() == b"\x00\x01"


HELD = [
    rule("open", "Allow", ["session"], ["path:/socket"]),
    {"name": "say", "action": "RequireApproval", "match": {"effects": ["create"], "objects": ["path:/socket"]},
     "approval": {"groups": ["leads"], "wait": "30s", "validFor": "60s"}},
]  # fmt: skip


def test_a_held_message_waits_for_people_and_a_refused_one_ends_it(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=HELD)
    person = Person(api.gateway)
    with dial(api) as agent:
        agent.send("pay 7")
        ticket, shown = person.next(1)
        assert "pay 7" in str(shown["text"])
        agent.ping()  # it is answered while people are asked
        person.decide(ticket, "approve")
        assert agent.recv() == "heard pay 7"
        agent.send("pay 8")
        ticket, _ = person.next(2)
        person.decide(ticket, "deny")
        code, reason = closed(agent)
    assert code == 1008
    assert '"say"' in reason
    intents = [one for one in api.gateway.records() if isinstance(one, record.CommandIntent)]
    assert [one.kind for one in intents] == ["websocket", "websocket.text", "websocket.text"]


def test_limits_and_a_stop_end_it_with_a_reason(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=TALK, limits={"commandsPerMinute": 2, "bytesPerSession": "1Mi"})
    with dial(api) as agent:
        agent.send("one")
        assert agent.recv() == "heard one"
        agent.send("two")
        code, reason = closed(agent)
    assert code == 1013
    assert "limit:commandsPerMinute" in reason
    stopping = api_with(rules=TALK)
    with dial(stopping) as agent:
        ended: list[tuple[int, str]] = []
        listening = threading.Thread(target=lambda: ended.append(closed(agent)))
        listening.start()
        assert stopping.gateway.stop() == 0
        listening.join(30)
    assert ended[0][0] in (1008, 1013)
    assert stopping.gateway.verify().stdout.endswith("verify: OK\n")


def test_what_is_no_frame_ends_it_and_reaches_nothing(talking: Api) -> None:
    opened = (
        f"GET /socket HTTP/1.1\r\nHost: {NAME}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    ).encode()
    with talking.connect() as connection:
        connection.sendall(opened + b"\x81\x01a")  # not masked, and before the answer
        answer = to_end(connection)
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer
    assert b"\x03\xea" in answer  # 1002


def test_a_client_that_goes_leaves_nothing_open(talking: Api) -> None:
    agent = dial(talking)
    agent.go()
    eventually(lambda: any(
        isinstance(one, record.CommandOutcome) and one.status == "aborted" for one in talking.gateway.records()
    ))  # fmt: skip
