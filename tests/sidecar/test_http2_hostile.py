"""HTTP/2 that is sent to do harm: refused in its own words, recorded, and never at the target."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path

from fix_http import NAME, Api
from hypothesis import given
from hypothesis import strategies as st
from raw_http2 import Frames, listen

from chaperone_evidence import record
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http.http2 import Link
from chaperone_sidecar.protocols.http.http2_exchange import Http2Exchange
from chaperone_sidecar.protocols.http.wire import Wire

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "http2_hostile.jsonl").read_text().splitlines()
]
RIGHT = [[":method", "POST"], [":scheme", "https"], [":authority", NAME], [":path", "/echo"]]


def test_what_is_hostile_is_refused_and_reaches_nothing(api: Api) -> None:
    before = api.backend.heard()
    wrong = []
    for case in CORPUS:
        frames = Frames()
        with api.connect(NAME, "h2") as connection:
            with suppress(ConnectionError):  # it has heard enough
                connection.sendall(frames.begin() + frames.script(case["steps"], RIGHT))
            heard = listen(connection, None if "status" not in case and "reset" not in case else 1)
        if "status" in case:
            is_right = heard.fields.get(1, {}).get(":status") == str(case["status"])
        elif "reset" in case:
            is_right = heard.resets.get(1) == case["reset"]
        else:
            code = heard.goaway.error_code if heard.goaway is not None else -1
            is_right = heard.has_closed and code == case.get("code", code) and code > 0
        if not is_right:
            wrong.append((case["name"], heard.fields, heard.resets, heard.goaway))
    assert wrong == []
    assert api.backend.heard() == before
    refused = [
        one for one in api.gateway.records() if isinstance(one, record.CommandIntent) and one.rule == "malformed"
    ]
    assert len(refused) >= len(CORPUS) - 4


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 255), st.integers(0, 9))
def test_any_bytes_are_requests_or_a_breach_of_the_rules(data: bytes, kind: int, flags: int, stream: int) -> None:
    frame = len(data).to_bytes(3) + bytes([kind % 12, flags]) + stream.to_bytes(4) + data
    right = Frames().head(1, RIGHT, is_whole=False)
    for sent in (data, Frames().begin() + data, Frames().begin() + right + frame + data):
        asyncio.run(hear(sent))


async def hear(data: bytes) -> None:
    """What the gateway's side makes of bytes that a client sends before it goes."""
    ours, theirs = socket.socketpair()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    wire = Wire()
    await asyncio.get_running_loop().create_connection(lambda: wire, sock=ours)
    link = Link(wire, is_client=False)
    with suppress(ProtocolError):
        link.begin()
        async for stream in link.requests():
            Http2Exchange(stream, "https")
    wire.abort()
    theirs.close()
