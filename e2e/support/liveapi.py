"""An API that goes on talking, by events and over WebSocket, which wants a token, and the target that leads to it."""

from __future__ import annotations

from typing import Final

from webapi import Api, make_server

from chaperone_tools.kubectl import Kubectl

SPACE: Final = "e2e-live"
LIVE: Final = f"live.{SPACE}.svc"
TARGET: Final = "e2e-live"

_SERVER: Final = """
import asyncio, json, pathlib
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

given = pathlib.Path("/run/secrets/api")
token, goes_on, heard = "Bearer " + (given / "token").read_text(), asyncio.Event(), []

def is_known(asked):
    return asked.headers.getlist("authorization") == [token]

async def events(request):
    async def said():
        yield f'event: order\\ndata: {{"known": {json.dumps(is_known(request))}, "of": "ada.king@example.org"}}\\n\\n'
        await goes_on.wait()
        yield "data: the last one, for ada.king@example.org\\n\\n"
    return StreamingResponse(said(), media_type="text/event-stream")

async def go(request):
    goes_on.set()
    return JSONResponse({"heard": heard})

async def talk(socket):
    await socket.accept()
    await socket.send_text(f"known: {is_known(socket)}, ada.king@example.org")
    async for text in socket.iter_text():
        heard.append(text)
        await socket.send_text(f"heard {text}")

app = Starlette(routes=[
    Route("/v1/events", events), Route("/v1/go", go),
    WebSocketRoute("/v1/live", talk), WebSocketRoute("/v1/news", talk),
])
uvicorn.run(app, host="0.0.0.0", port=8443, ssl_certfile=given / "tls.crt", ssl_keyfile=given / "tls.key",
            log_level="error")
"""


def make_live(kubectl: Kubectl, image: str, system_namespace: str) -> Api:
    """The API in a namespace of the tests, and its target."""
    return make_server(kubectl, image, system_namespace, "live", _SERVER, "HTTP", "/v1")
