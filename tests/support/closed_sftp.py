"""SFTP of the gateway on bytes instead of a channel, where the session does not open: for what its parser promises."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncssh

from chaperone_sidecar.errors import ChaperoneError


class Closed:
    """A conversation that does not open."""

    masks_all = False

    async def ready(self) -> asyncssh.SSHClientConnection:
        """Refuse."""
        raise ChaperoneError("The target cannot be used.")


class SftpReader:
    """Bytes of a client, in pieces."""

    def __init__(self, parts: list[bytes]) -> None:
        self._stream = asyncio.StreamReader()
        for part in parts:
            self._stream.feed_data(part)
        self._stream.feed_eof()
        self.logger = asyncssh.logging.logger

    async def readexactly(self, count: int) -> bytes:
        """As the library's."""
        return await self._stream.readexactly(count)

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        """Nothing is known of the client."""
        return default


class SftpChannel:
    """What is written to a client; the channel and its writer in one."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.channel = self
        self.logger = asyncssh.logging.logger

    def write(self, data: bytes) -> None:
        """Keep it."""
        self.written += data

    def write_stderr(self, _: bytes) -> None:
        """Words for people."""

    def exit(self, _: int) -> None:
        """The end."""

    def close(self) -> None:
        """The end."""

    def is_closing(self) -> bool:
        """Never, until it is over."""
        return False

    def get_connection(self) -> None:
        """There is none."""

    def get_environment(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def get_subsystem(self) -> str:
        """SFTP."""
        return "sftp"

    def get_extra_info(self, _: str, default: Any = None) -> Any:
        """Nothing."""
        return default
