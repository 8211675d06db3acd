"""opa-python-client over a Unix socket, without its other half.

The package imports its synchronous client beside the asynchronous one, and with that requests and urllib3: 4 MiB and
50 ms of every start, for what nothing here calls. An empty module stands in its place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import aiohttp

_UNUSED: Final = "opa_client.opa"

if _UNUSED not in sys.modules:
    sys.modules[_UNUSED] = ModuleType(_UNUSED)
    sys.modules[_UNUSED].OpaClient = None  # type: ignore[attr-defined]

from opa_client.opa_async import AsyncOpaClient  # noqa: E402 - after what stands in for the rest

OPA_HOST: Final = "opa"  # for the Host header; the connection is to the socket


class OpaClient(AsyncOpaClient):  # type: ignore[misc]
    """opa-python-client over a Unix socket, which its constructor has no way to ask for.

    Args:
        path: of the socket.
        timeout_s: of a question.
        limit: of questions under way at once.
    """

    def __init__(self, path: Path, timeout_s: float, limit: int) -> None:
        super().__init__(host=OPA_HOST, retries=0, timeout=timeout_s)
        self._path = path
        self._timeout_s = timeout_s
        self._limit = limit

    async def _init_session(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(self._path), limit=self._limit),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
        )
