"""A customer's API, as a program of its own: `python http_backend.py PORT CERTIFICATE KEY LOG` (no certificate: "")."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import sys
from pathlib import Path

from aiohttp import WSMsgType, web

ORDERS = [{"id": 1, "email": "jane.doe@example.com", "total": 12.5}, {"id": 2, "email": "n/a", "total": 3}]
LOG: Path | None = None


async def orders(_: web.Request) -> web.Response:
    """JSON with a value that detectors find."""
    return web.json_response(ORDERS, headers={"X-Owner": "owner@example.com", "Alt-Svc": 'h3=":443"'})


async def echo(request: web.Request) -> web.Response:
    """What came, credential included."""
    body = await request.read()
    return web.json_response(
        {
            "method": request.method,
            "path": request.raw_path,
            "headers": [[name, value] for name, value in request.headers.items()],
            "body": body.decode("latin-1"),
            "size": len(body),
        },
        headers={"X-Echo": request.headers.get("Authorization", "")},
    )


async def count(request: web.Request) -> web.Response:
    """How long a body was, read as it comes."""
    size = 0
    async for data in request.content.iter_any():
        size += len(data)
    return web.json_response({"size": size})


async def events(request: web.Request) -> web.StreamResponse:
    """Events, with a pause after the first so that a client can tell whether it came at once."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b'event: first\ndata: {"mail":"a\\u0040example.com"}\n\n')
    go = Path(request.query["go"])
    while not go.exists():  # noqa: ASYNC110, ASYNC240 - another process makes it
        await asyncio.sleep(0.02)
    await response.write(b"data: plain jane.doe@example.com\n\ndata: end\n\n")
    return response


async def big(request: web.Request) -> web.StreamResponse:
    """So many bytes of nothing in particular."""
    size = int(request.query["size"])
    kind = request.query.get("type", "application/octet-stream")
    response = web.StreamResponse(headers={"Content-Type": kind, "Content-Length": str(size)})
    await response.prepare(request)
    while size:
        piece = min(size, 1 << 16)
        await response.write(b"x" * piece)
        size -= piece
    return response


async def packed(_: web.Request) -> web.Response:
    """Compressed, though nobody asked for that."""
    return web.Response(
        body=gzip.compress(json.dumps(ORDERS).encode()), content_type="application/json",
        headers={"Content-Encoding": "gzip"},
    )  # fmt: skip


async def page(_: web.Request) -> web.Response:
    """A value behind an entity."""
    return web.Response(text="<p>jane.doe&#64;example.com</p>", content_type="text/html")


async def slow(_: web.Request) -> web.Response:
    """Never comes."""
    await asyncio.sleep(3600)
    return web.Response()


async def cut(request: web.Request) -> web.StreamResponse:
    """An answer that breaks off."""
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    await response.write(b"beginning")
    assert request.transport is not None
    request.transport.abort()
    return response


async def socket(request: web.Request) -> web.WebSocketResponse:
    """Says what it hears."""
    response = web.WebSocketResponse()
    await response.prepare(request)
    async for message in response:
        if message.type == WSMsgType.TEXT:
            await response.send_str(f"heard {message.data}")
        elif message.type == WSMsgType.BINARY:
            await response.send_bytes(message.data)
    return response


async def gone(request: web.Request) -> web.Response:
    """Nothing is left."""
    return web.Response(status=204)


@web.middleware
async def noted(request: web.Request, handler):  # type: ignore[no-untyped-def]
    """Note what reached the backend."""
    assert LOG is not None
    with LOG.open("a") as file:
        file.write(f"{request.method} {request.raw_path} {request.headers.get('Authorization', '-')}\n")
    return await handler(request)


def main() -> None:
    """Serve."""
    global LOG  # noqa: PLW0603 - a program of one file
    port, certificate, key, log = sys.argv[1:]
    LOG = Path(log)
    app = web.Application(middlewares=[noted], client_max_size=1 << 30)
    app.router.add_get("/v1/orders", orders)
    app.router.add_post("/v1/count", count)
    app.router.add_get("/events", events)
    app.router.add_get("/big", big)
    app.router.add_get("/packed", packed)
    app.router.add_get("/page", page)
    app.router.add_get("/slow", slow)
    app.router.add_get("/cut", cut)
    app.router.add_get("/socket", socket)
    app.router.add_delete("/v1/orders/{id}", gone)
    app.router.add_route("*", "/{tail:.*}", echo)
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate, key)
    web.run_app(app, host="127.0.0.1", port=int(port), ssl_context=context, print=None, keepalive_timeout=2)


if __name__ == "__main__":
    main()
