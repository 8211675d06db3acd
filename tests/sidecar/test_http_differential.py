"""Generated requests, straight to an API and through the gateway: both sides hear the same of each other.

Most go to a path that answers with what came, so that requests are compared, too. CHAPERONE_SESSIONS sets how many.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import socket
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import pytest
from fix_http import NAME, Api, parsed, to_end
from manifests import rule

from chaperone_operator.kubeconfig import verifying

pytestmark = pytest.mark.peer

SESSIONS: Final = int(os.environ.get("CHAPERONE_SESSIONS", "200"))
RULES: Final = [rule("all", "Allow", ["read", "create", "modify", "delete", "session", "execute_code"])]
OTHERWISE: Final = frozenset({"date", "server", "connection", "alt-svc", "transfer-encoding", "content-length"})
# What the gateway says for itself: its credential, which the answer shows masked, and that it wants nothing compressed.
ADDED: Final = (("authorization", "[credential]"), ("accept-encoding", "identity"))
METHODS: Final = ("GET", "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
FIELDS: Final = (
    ("Accept", "application/json, */*;q=0.1"), ("X-Request-Id", "a,b"),
    ("User-Agent", "agent/1.0 (\"quoted\"; x=y)"), ("If-None-Match", 'W/"1", "2"'),
    ("Cookie", "a=b; c=d"), ("X-Empty", ""), ("x-lower", "\t spaced "), ("Accept-Language", "de-CH, de;q=0.9"),
    ("Cache-Control", "no-cache"), ("Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)  # fmt: skip
BODIES: Final = (
    ("application/json", b'{"a": [1, 2.50, null, "\\u00e9"], "b": {"": false}}'),
    ("text/plain; charset=utf-8", "ü🙂".encode()),
    ("application/x-www-form-urlencoded", b"a=1&b=%20+&c"), ("application/octet-stream", bytes(range(256)) * 9),
    ("application/json", b"[]"), ("text/csv", b"a,b\r\n1,2\r\n" * 4000),
)  # fmt: skip
PATHS: Final = (
    "/echo", "/echo/a%20b", "/v1/orders", "/v1/orders/7", "/packed", "/page", "/big?size=300000", "/echo/~x,y=1", "/",
    "/echo/a+b", "/big?size=70000&type=text/plain", "/echo/%C3%BC", "/v1/none",
)  # fmt: skip


def request(rng: random.Random) -> bytes:
    """One, as it goes over the wire."""
    method, path = rng.choice(METHODS), rng.choice(PATHS)
    if rng.random() < 0.4:
        path += (
            "&" if "?" in path else "?"
        ) + f"q={quote(rng.choice(('a b', 'ü', '1&2', '', '[x]')))}&n={rng.random()}"
    fields = [("Host", NAME), ("Connection", "close"), *rng.sample(FIELDS, rng.randint(0, 5))]
    body = b""
    if method in ("POST", "PUT", "PATCH"):
        kind, body = rng.choice(BODIES)
        fields.append(("Content-Type", kind))
        if rng.random() < 0.3:
            fields.append(("Transfer-Encoding", "chunked"))
            body = chunked(body, rng.randint(1, 5000))
        else:
            fields.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def chunked(body: bytes, size: int) -> bytes:
    """In pieces."""
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in (*pieces, b""))


def heard(answer: bytes, *, is_head: bool) -> tuple[int, dict[str, str], Any]:
    """Status, fields and body; of what was echoed without the credential and what is of one connection alone."""
    status, fields, body = parsed(answer + (b"0\r\n\r\n" if is_head else b""))
    is_echo = fields.pop("x-echo", None) is not None  # which says the credential that came
    fields = {name: value for name, value in fields.items() if name not in OTHERWISE}
    if fields.pop("content-encoding", "") == "gzip" and not is_head:
        body = gzip.decompress(body)  # the gateway has to read it, for a value of the credential could be in it
    if is_echo and not is_head:
        said = json.loads(body)
        said["headers"] = sorted(
            [name.lower(), value] for name, value in said["headers"]
            if name.lower() not in OTHERWISE | {"host"} and (name.lower(), value) not in ADDED
        )  # fmt: skip
        return status, fields, said
    return status, fields, b"" if is_head else body


def test_an_api_and_its_client_hear_of_each_other_as_without_the_gateway(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=RULES)
    authority = api.backend.authority
    assert authority is not None
    context = verifying(cadata=authority.pem)
    for number in range(SESSIONS):
        raw = request(random.Random(number))  # noqa: S311 - it has to be the same again
        with (
            socket.create_connection(("127.0.0.1", api.backend.port), timeout=20) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as wrapped,
        ):
            wrapped.sendall(raw)
            direct = to_end(wrapped)
        is_head = raw.startswith(b"HEAD ")
        assert heard(api.raw(raw), is_head=is_head) == heard(direct, is_head=is_head), (number, raw)
