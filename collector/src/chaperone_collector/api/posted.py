"""What the operator posts: read to its end, within a size and a time."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from chaperone_collector.api.status import ApiError

READ_TIMEOUT_S: Final = 20.0


async def read_posted(request: web.Request, most_bytes: int, what: str) -> bytes:
    """The body; other requests of this server have none, so that the application's own limit is one byte.

    Raises:
        ApiError: 413 for more bytes; 408 when it does not come to its end; `what` says what it is.
    """
    data = bytearray()
    try:
        async with asyncio.timeout(READ_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                data += chunk
                if len(data) > most_bytes:
                    raise ApiError(413, "RequestEntityTooLarge", f"a {what} has at most {most_bytes} bytes")
    except TimeoutError as error:
        raise ApiError(408, "Timeout", f"the {what} did not come to its end") from error
    return bytes(data)
