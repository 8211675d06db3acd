"""What a client may ask of its connection and channels, by list; all else is recorded, then refused, in its turn.

The library answers by itself what it does not do, so nobody would know of it. Its answers come in the order of what was
asked; a refusal waits here until it is recorded, and what was asked later waits behind it.

The packet handlers and the queue of requests are the library's own business; `test_ssh_doors.py` holds that they are
what is assumed here.

Spec: RFC 4254, sections 4 to 7; OpenSSH's PROTOCOL, section 2.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import asyncssh
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_CHANNEL_REQUEST, MSG_GLOBAL_REQUEST
from asyncssh.packet import SSHPacket

from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution, unknown
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.protocols.ssh import answers
from chaperone_sidecar.protocols.ssh.classify import forward
from chaperone_sidecar.protocols.ssh.pace import Paced, start

if TYPE_CHECKING:
    import socket

    from chaperone_sidecar.protocols.ssh.conversation import Conversation

WINDOW_BYTES: Final = 2 << 20  # of a channel: what a client may send before it is read; the library's own number
PACKET_BYTES: Final = 32 << 10  # as RFC 4253 has it: what everybody has to take
MAX_ASKED: Final = 256  # requests of one channel, or of the connection, that wait for the answer to an earlier one
MAX_NAME: Final = 64  # characters of a name in a record

OPENED: Final = frozenset({"session", "direct-tcpip", "direct-streamlocal@openssh.com", "tun@openssh.com"})
"""Kinds of channels that the library asks us about; we refuse all but the first."""
_START: Final = frozenset({"shell", "exec", "subsystem"})
_SERVED: Final = frozenset({"pty-req", "window-change", "signal", "break"}) | _START
# Nothing of these is worth a record: they ask for nothing, and the answer is no.
_IDLE: Final = frozenset({"keepalive@openssh.com", "eow@openssh.com", "xon-xoff", "winadj@putty.projects.tartarus.org"})


class Channel(asyncssh.SSHServerChannel[bytes]):
    """A session channel."""

    def __init__(self, conversation: Conversation, connection: asyncssh.SSHServerConnection) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(
            connection, loop, allow_pty=True, line_editor=False, line_echo=False, line_history=0, max_line_length=0,
            encoding=None, errors="strict", window=WINDOW_BYTES, max_pktsize=PACKET_BYTES,
        )  # fmt: skip
        self._conversation = conversation

    def _take_request(self, kind: int, number: int, packet: SSHPacket) -> None:
        if len(self._request_queue) >= MAX_ASKED:
            raise asyncssh.ProtocolError("Too many requests wait for an answer")
        self._process_request(kind, number, packet)

    def _service_next_request(self) -> None:
        name, packet, _ = self._request_queue[0]
        refused = _refused(name, SSHPacket(packet.get_remaining_payload()), has_started=self._session_started)
        if refused is not None:
            self._conversation.spawn(self._refuse(*refused))
        elif name in _SERVED:
            super()._service_next_request()
        else:
            self._report_response(False)

    async def _refuse(self, command: Command, decision: Decision) -> None:
        with contextlib.suppress(ChaperoneError):
            await self._conversation.note(command, decision)
        if self._request_queue:  # else the channel has ended
            self._report_response(False)

    _packet_handlers = asyncssh.SSHServerChannel._packet_handlers | {MSG_CHANNEL_REQUEST: _take_request}


class Connection(Paced, asyncssh.SSHServerConnection):
    """The client's connection."""

    def __init__(
        self, conversation: Conversation, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions
    ) -> None:
        super().__init__(loop, options, wait="auth")
        self._conversation = conversation

    def create_server_channel(self, *_: Any, **__: Any) -> Channel:  # noqa: ANN401 - as the library has it
        """A channel that records what it refuses."""
        return Channel(self._conversation, self)

    def _take_open(self, kind: int, number: int, packet: SSHPacket) -> None:
        seen = SSHPacket(packet.get_remaining_payload())
        name = seen.get_string().decode("ascii", "replace")
        if name in OPENED:
            self._process_channel_open(kind, number, packet)
        else:
            self._conversation.spawn(self._refuse(name, seen.get_uint32()))

    def _take_asked(self, kind: int, number: int, packet: SSHPacket) -> None:
        if len(self._global_request_queue) >= MAX_ASKED:
            raise asyncssh.ProtocolError("Too many requests wait for an answer")
        self._process_global_request(kind, number, packet)

    async def _refuse(self, name: str, channel: int) -> None:
        with contextlib.suppress(ChaperoneError):
            await self._conversation.note(*_of_kind("channel", name, "There are no channels of that kind here."))
        self.send_channel_open_failure(
            channel, asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE, "chaperone: there are no channels of that kind here.", "en"
        )

    _packet_handlers = asyncssh.SSHServerConnection._packet_handlers | {
        MSG_CHANNEL_OPEN: _take_open, MSG_GLOBAL_REQUEST: _take_asked,
    }  # fmt: skip


async def serve(conversation: Conversation, connection: socket.socket, **options: Any) -> Connection:  # noqa: ANN401 - the library's
    """Begin to serve an accepted connection; returns once the client has logged in.

    Raises:
        asyncssh.Error, OSError: it did not.
    """
    made = await asyncssh.SSHServerConnectionOptions.construct(None, **options)
    return await start(connection, made, lambda loop: Connection(conversation, loop, made))


def _refused(name: str, packet: SSHPacket, *, has_started: bool) -> tuple[Command, Decision] | None:
    """What a request would be that is recorded and refused; None of those that are served, or idle."""
    if name in _START and has_started:
        return _of_kind("request", name, "One command runs on a channel; open another one.")
    match name:
        case "env":
            variable = _plain(packet.get_string())
            if variable == "LANG" or variable.startswith("LC_"):  # they only say a language: dropped without a record
                return None
            why = "Variables of the client are not passed on; set them at the target."
            return _command("env", variable, Effect.SESSION, f"env:{variable}", why)
        case "subsystem" if (subsystem := packet.get_string()) != b"sftp":
            subsystem_name = _plain(subsystem)
            why = "The only subsystem here is sftp."
            return _command("subsystem", subsystem_name, Effect.EXECUTE_CODE, f"subsystem:{subsystem_name}", why)
        case "exec":
            return _unreadable(packet.get_string())
        case "auth-agent-req@openssh.com":
            return _door("auth-agent", "Keys are not passed on; the gateway logs in at each target by itself.")
        case "x11-req":
            return _door("x11", "Windows are not passed on.")
        case _ if name not in _SERVED | _IDLE:
            return _of_kind("request", name, "It is not served here.")
        case _:
            return None


def _unreadable(text: bytes) -> tuple[Command, Decision] | None:
    try:
        text.decode()
    except UnicodeDecodeError:
        why = "The command is no UTF-8."
        return Command("exec", text, unknown(why)), answers.not_covered(why)
    return None


def _door(kind: str, why: str) -> tuple[Command, Decision]:
    return Command("forward", kind.encode(), forward(kind, "")), answers.not_covered(why)


def _of_kind(kind: str, name: str, why: str) -> tuple[Command, Decision]:
    plain = _plain(name.encode())
    return _command(kind, plain, Effect.UNKNOWN, f"{kind}:{plain}", why)


def _command(kind: str, text: str, effect: Effect, what: str, why: str) -> tuple[Command, Decision]:
    facts = Facts((Access(effect, what),), Resolution.SYNTACTIC, why if effect is Effect.UNKNOWN else "")
    return Command(kind, text.encode(), facts), answers.not_covered(why)


def _plain(name: bytes) -> str:
    """A name of the client as policy and records have it."""
    text = name.decode("utf-8", "replace")
    return "".join(one if one.isalnum() or one in "_-.@" else "?" for one in text)[:MAX_NAME]
