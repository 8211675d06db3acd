"""A customer's API of HTTP/2, as a program of its own: `python http2_backend.py PORT CERTIFICATE KEY LOG`."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from http_backend import ORDERS
from hypercorn.asyncio import serve
from hypercorn.config import Config

LOG: Path | None = None
JSON = (b"content-type", b"application/json")


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer by the path."""
    if scope["type"] != "http":
        return
    assert LOG is not None
    path, fields = scope["path"], dict(scope["headers"])
    with LOG.open("a") as file:
        file.write(f"{scope['http_version']} {scope['method']} {path} {fields.get(b'authorization', b'-').decode()}\n")
    if path == "/slow":
        await asyncio.sleep(3600)
    body = b""
    while (await_more := await receive())["type"] == "http.request":
        body += await_more["body"]
        if not await_more["more_body"]:
            break
    if path == "/big":
        size = int(scope["query_string"].partition(b"=")[2])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"a/b")]})
        while size:
            piece = min(size, 1 << 16)
            await send({"type": "http.response.body", "body": b"x" * piece, "more_body": True})
            size -= piece
        await send({"type": "http.response.body", "body": b""})
        return
    if path == "/v1/orders":
        said: Any = ORDERS
    elif path == "/v1/count":
        said = {"size": len(body)}
    else:
        said = {
            "version": scope["http_version"], "method": scope["method"], "path": path, "body": body.decode("latin-1"),
            "headers": [[name.decode(), value.decode("latin-1")] for name, value in scope["headers"]],
        }  # fmt: skip
    raw = json.dumps(said).encode()
    fields_ = [JSON, (b"x-owner", b"owner@example.com"), (b"x-echo", fields.get(b"authorization", b""))]
    await send({"type": "http.response.start", "status": 200, "headers": fields_})
    await send({"type": "http.response.body", "body": raw})


def main() -> None:
    """Serve."""
    global LOG  # noqa: PLW0603 - a program of one file
    port, certificate, key, log = sys.argv[1:]
    LOG = Path(log)
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.errorlog = None
    config.h2_max_concurrent_streams = 100
    if certificate:
        config.certfile, config.keyfile = certificate, key
    asyncio.run(serve(app, config))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
