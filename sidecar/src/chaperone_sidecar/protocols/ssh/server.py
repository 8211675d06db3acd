"""The library's side of a client's connection: what it is let do, and refusals of all the rest."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.stream import SSHServerStreamSession

from chaperone_sidecar.protocols.ssh.far import is_old_scp
from chaperone_sidecar.protocols.ssh.files import Files
from chaperone_sidecar.protocols.ssh.pace import Paced
from chaperone_sidecar.protocols.ssh.shell import Unclear, parse

if TYPE_CHECKING:
    from chaperone_sidecar.protocols.ssh.conversation import Conversation

MAX_EVENTS: Final = 256  # signals, breaks and sizes of one channel that wait until its command reads them
MAX_CHANNELS: Final = 32  # of one connection at once; OpenSSH's own MaxSessions is 10
SFTP_VERSION: Final = 3


class Session(SSHServerStreamSession[bytes]):
    """One session channel: SFTP and the old scp are played here, the rest is run at the target."""

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(conversation.serve, lambda channel: Files(channel, conversation), SFTP_VERSION)
        self._conversation = conversation
        self._events = 0
        conversation.channels += 1

    def exception_received(self, exc: Exception) -> None:
        """Keep a signal, break or size for who reads the channel.

        Raises:
            asyncssh.ProtocolError: it does not keep up.
        """
        self._events += 1
        if self._events > MAX_EVENTS:
            raise asyncssh.ProtocolError("Too many signals and sizes wait")
        super().exception_received(exc)

    async def read(self, datatype: int | None, n: int, exact: bool) -> bytes:
        """What the client sent; SFTP, which alone asks for an exact number, waits for its own answers to go first."""
        if exact:
            await self.drain(None)
        try:
            return await super().read(datatype, n, exact)
        except (asyncssh.SignalReceived, asyncssh.BreakReceived, asyncssh.TerminalSizeChanged):
            self._events -= 1
            raise

    async def drain(self, datatype: int | None) -> None:
        """Wait until what was written has gone: into the client's window, and into the network."""
        await super().drain(datatype)
        if isinstance(self._conn, Paced):
            await self._conn.taken()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is gone."""
        self._conversation.channels -= 1
        super().connection_lost(exc)

    def exec_requested(self, command: str) -> bool:
        """Any command may be asked for; what runs is decided later, where a refusal can say why."""
        try:
            commands = parse(command)
        except Unclear:
            commands = ()
        # Not by its first letters, as the library would: what only begins like it goes the way of every command.
        self._allow_scp = command.startswith("scp ") and len(commands) == 1 and is_old_scp(commands[0].words)
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """SFTP: `doors.py` lets no other come here."""
        return subsystem == "sftp"


class Server(asyncssh.SSHServer):
    """Says no to everything that is not written here: the library's own answers are refusals."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._conversation.end("client closed the connection")

    def begin_auth(self, username: str) -> bool:
        """Whether the client has to show anything: the token of a person, where one is asked for."""
        self._conversation.logged_in_as(username, b"")
        return self._conversation.asks_token

    def password_auth_supported(self) -> bool:
        """For tokens."""
        return True

    def validate_password(self, username: str, password: str) -> bool:
        """Take the token."""
        # The token is checked when the session opens, where a refusal can be told in words.
        self._conversation.logged_in_as(username, password.encode())
        return True

    def session_requested(self) -> Any:  # noqa: ANN401 - the library's union
        """A channel for a command, a shell or SFTP."""
        if self._conversation.channels >= MAX_CHANNELS:
            raise asyncssh.ChannelOpenError(
                asyncssh.OPEN_RESOURCE_SHORTAGE, f"chaperone: {MAX_CHANNELS} channels are open on this connection."
            )
        return Session(self._conversation)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:  # noqa: ANN401
        """Refuse a connection to somewhere else."""
        return self._conversation.forwards("direct-tcpip", f"{dest_host}:{dest_port}")

    def unix_connection_requested(self, dest_path: str) -> Any:  # noqa: ANN401 - the library's union
        """Refuse a connection to a socket."""
        return self._conversation.forwards("direct-streamlocal", dest_path)

    def tun_requested(self, unit: int | None) -> Any:  # noqa: ANN401 - the library's union
        """Refuse a tunnel of packets."""
        return self._conversation.forwards("tun", "" if unit is None else str(unit))

    def tap_requested(self, unit: int | None) -> Any:  # noqa: ANN401 - the library's union
        """Refuse a tunnel of frames."""
        return self._conversation.forwards("tap", "" if unit is None else str(unit))

    async def server_requested(self, listen_host: str, listen_port: int) -> bool:
        """Refuse to listen."""
        return await self._refused("tcpip-forward", f"{listen_host}:{listen_port}")

    async def unix_server_requested(self, listen_path: str) -> bool:
        """Refuse to listen at a socket."""
        return await self._refused("streamlocal-forward", listen_path)

    async def _refused(self, kind: str, to: str) -> bool:
        with contextlib.suppress(asyncssh.ChannelOpenError):
            await self._conversation.forwards(kind, to)
        return False
