"""TLS for the protocols whose library owns the transport: the standard library's layer, on any loop's TCP.

uvloop has a layer of its own, which throws away what it has not handed over yet when the peer closes while reading is
paused (uvloop 0.23: up to 200 KiB of an answer's end). The standard library's hands it over first, and costs no more.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from asyncio.sslproto import SSLProtocol
from typing import Final

HANDSHAKE_TIMEOUT_S: Final = 15
READ_BYTES: Final = 64 << 10  # of a connection's buffer, which it has for as long as it is open


class _Layer(SSLProtocol):
    max_size = READ_BYTES  # 256 KiB in the standard library


async def accept(
    protocol: asyncio.Protocol, connection: socket.socket, context: ssl.SSLContext | None
) -> asyncio.Transport:
    """Serve an accepted connection; the handshake is over when this returns. Without a context there is none.

    Raises:
        OSError, ssl.SSLError: the handshake failed, or took longer than `HANDSHAKE_TIMEOUT_S`.
    """
    loop = asyncio.get_running_loop()
    if context is None:
        return (await loop.connect_accepted_socket(lambda: protocol, connection))[0]
    layer, done = _layer(protocol, context, server_side=True, name=None)
    transport, _ = await loop.connect_accepted_socket(lambda: layer, connection)
    return await _shaken(layer, done, transport)


async def connect(
    protocol: asyncio.Protocol, connected: socket.socket, context: ssl.SSLContext | None, name: str
) -> asyncio.Transport:
    """Be the client on a connected socket; `name` is the one that the certificate has to be for.

    Raises:
        OSError, ssl.SSLError: as `accept`.
    """
    loop = asyncio.get_running_loop()
    if context is None:
        return (await loop.create_connection(lambda: protocol, sock=connected))[0]
    layer, done = _layer(protocol, context, server_side=False, name=name)
    transport, _ = await loop.create_connection(lambda: layer, sock=connected)
    return await _shaken(layer, done, transport)


def _layer(
    protocol: asyncio.Protocol, context: ssl.SSLContext, *, server_side: bool, name: str | None
) -> tuple[_Layer, asyncio.Future[None]]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    layer = _Layer(
        loop, protocol, context, done, server_side, name, ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S
    )  # fmt: skip
    return layer, done


async def _shaken(layer: _Layer, done: asyncio.Future[None], transport: asyncio.BaseTransport) -> asyncio.Transport:
    try:
        await done
    except BaseException:
        transport.close()
        raise
    secured: asyncio.Transport | None = layer._app_transport
    if secured is None:
        raise ConnectionResetError("The peer closed the connection once the handshake was done.")
    return secured
