"""aiohttp's server of one connection: how it is bounded, and what a request asks of the connection itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from aiohttp import StreamReader, web

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import channels, classify, pairs
from chaperone_sidecar.protocols.kubernetes.request import Request

KEEP_S: Final = 90.0  # an idle connection of the agent's; Go's clients close theirs after 90 s
MAX_LINE_BYTES: Final = 16 << 10
MAX_HEADER_BYTES: Final = 16 << 10
NOT_COVERED: Final = {
    "portforward": "only ports of pods are forwarded.",
    "proxy": "requests through the API server to something behind it are not let through; declare it as a target.",
}
_PROTOCOLS: Final = (
    (channels.PROTOCOLS, channels.SPDY_PROTOCOL),  # of a program, over WebSocket and over SPDY
    (pairs.PROTOCOLS, pairs.PROTOCOL),  # of forwarded ports
)
RELEASES: Final = (
    "values of Secrets are masked, so helm cannot read back what it keeps of its releases there, and would take them "
    "for absent; set HELM_DRIVER=configmap."
)


def not_covered(asked: Request, raw: bytes) -> str:
    """Why a request is refused whatever policy says; "" where it is not."""
    if classify.is_forwarding(asked):
        return ""
    return NOT_COVERED.get(asked.subresource, "") or (RELEASES if classify.is_of_release(asked, raw) else "")


class _Handler(web.RequestHandler):
    """aiohttp's side of one connection; what it cannot read is answered, and recorded, by the conversation."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, **options: Any) -> None:  # noqa: ANN401
        super().__init__(server, loop=loop, **options)
        self._unreadable = server.on_unreadable

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no HTTP; aiohttp's own answer would quote it."""
        return self._unreadable(status)


class Server(web.Server):
    """aiohttp's server of one connection."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Any], on_lost: Callable[[], None],
        on_unreadable: Callable[[int], web.StreamResponse],
    ) -> None:  # fmt: skip
        super().__init__(
            handler, handler_cancellation=True, access_log=None, keepalive_timeout=KEEP_S, auto_decompress=False,
            max_line_size=MAX_LINE_BYTES, max_field_size=MAX_HEADER_BYTES, lingering_time=0.0,
        )  # fmt: skip
        self._on_lost = on_lost
        self.on_unreadable = on_unreadable

    def __call__(self) -> web.RequestHandler:
        """The protocol of the connection."""
        return _Handler(self, self._loop, **self._kwargs)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:  # noqa: ANN401
        """The client is gone."""
        super().connection_lost(handler, exc)
        self._on_lost()


async def bounded(content: StreamReader, limit_bytes: int) -> bytes | None:
    """All of a body; None where it is longer."""
    parts, size = [], 0
    async for part in content.iter_any():
        size += len(part)
        if size > limit_bytes:
            return None
        parts.append(part)
    return b"".join(parts)


def bearer(http: web.BaseRequest) -> bytes:
    """The token that a request shows, b"" for none."""
    scheme, _, token = http.headers.get("Authorization", "").partition(" ")
    return token.strip().encode() if scheme.lower() == "bearer" else b""


def upgraded_to(http: web.BaseRequest, asked: Request) -> str:
    """The protocol that the connection is to become: WebSocket or SPDY, for a program's streams or forwarded ports.

    Raises:
        ProtocolError: another one, for something else, or a program without streams.
    """
    wanted = http.headers.get("Upgrade", "").strip()
    is_execution, is_forwarding = asked.subresource in classify.EXECUTING, classify.is_forwarding(asked)
    if asked.subresource in NOT_COVERED and not is_forwarding:
        return ""
    if not wanted:
        if is_execution or is_forwarding:
            raise ProtocolError(f"{asked.subresource} needs an upgrade of the connection.")
        return ""
    if not is_execution and not is_forwarding:
        raise ProtocolError("Only exec, attach and port-forward upgrade a connection.")
    if is_execution:
        channels.wanted(asked)
    over_websocket, over_spdy = _PROTOCOLS[is_forwarding]
    if wanted.lower() == "websocket" and http.method == "GET":
        offered = _offered(http, "Sec-WebSocket-Protocol")
        found = next((one for one in over_websocket if one in offered), "")
    elif wanted.upper() == channels.SPDY and http.method in ("GET", "POST"):
        found = channels.SPDY if over_spdy in _offered(http, "X-Stream-Protocol-Version") else ""
    else:
        found = ""
    if not found:
        raise ProtocolError(f"The client names none of the protocols {', '.join(over_websocket)}.")
    if found == channels.V4 and is_forwarding:
        pairs.ports(asked)
    return found


def _offered(http: web.BaseRequest, header: str) -> frozenset[str]:
    return frozenset(one.strip() for one in ",".join(http.headers.getall(header, ())).split(","))
