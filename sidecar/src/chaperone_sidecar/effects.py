"""What a protocol session asks of the driver.

A session is two generators (one a direction) that yield these and are sent the answers. They say what is to be done and
in which order; sockets, clocks, the spool and OPA are the driver's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from typing import Any, Literal

import msgspec

from chaperone_sidecar.command import Command
from chaperone_sidecar.decision import Decision

type Side = Literal["client", "upstream"]


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Proof that a record is in the spool; made by the recorder alone."""

    seq: int


class Ask(msgspec.Struct, frozen=True, gc=False):
    """Decide on a command. Answered with a `Decision`.

    `is_approved`: people have allowed it, and it is to run now.
    """

    command: Command
    is_approved: bool = False


class Admit(msgspec.Struct, frozen=True, gc=False):
    """Count an allowed command against the limits. Answered with the `Decision` that stands: this one, or a Deny."""

    command: Command
    decision: Decision


class Intend(msgspec.Struct, frozen=True, gc=False):
    """Record what is about to happen, or what was refused.

    Answered with an `Intent` once it is as sure as the identity asks; raises `SpoolFull` or `Unwitnessed`.
    """

    command: Command
    decision: Decision


class Intent(msgspec.Struct, frozen=True, gc=False):
    """A recorded intent: what an outcome refers to."""

    command_id: str
    receipt: Receipt
    started_us: int  # monotonic


class Conclude(msgspec.Struct, frozen=True, gc=False):
    """Record how a command ended. Answered with a `Receipt`."""

    intent: Intent
    status: Literal["ok", "error", "refused", "aborted"]
    code: str = ""
    rows: int = 0
    size_bytes: int = 0


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Wait for a human. Answered with the `Decision` that stands at the end of the wait; an Allow is admitted already.

    `shown` is all that people see of the command, its parameters included; masked.
    """

    command: Command
    decision: Decision
    shown: str


class ToUpstream(msgspec.Struct, frozen=True, gc=False):
    """Bytes for the backend, and the record that covers them."""

    data: bytes | bytearray | memoryview
    receipt: Receipt


class ToClient(msgspec.Struct, frozen=True, gc=False):
    """Bytes for the client. Everything from the backend in them has passed the mask."""

    data: bytes | bytearray | memoryview


class StartTls(msgspec.Struct, frozen=True, gc=False):
    """Begin TLS on the client's side as its server; later bytes of `from_client` are plaintext.

    `received` is what came of the handshake already; `alpn` the protocol that the client must name in it, if any.
    """

    received: bytes = b""
    alpn: str = ""


class Identify(msgspec.Struct, frozen=True, gc=False):
    """Say who is behind the session: the token that the client gave, empty for none. Before `OpenUpstream`.

    Answered when it is known, or need not be; raises `UserRefused`.
    """

    token: bytes

    def __repr__(self) -> str:
        return "Identify()"


class OpenUpstream(msgspec.Struct, frozen=True, gc=False):
    """Record the session, lease the credential, connect and log in at the backend.

    Answered with an `Opened`, after which `from_upstream` sees what the backend says; raises `UpstreamUnavailable` or
    `SpoolFull`.
    """

    user: str
    database: str
    application: str
    parameters: tuple[tuple[str, str], ...]
    secret_bytes: int = 4  # of the cancel key that the client can take
    session: str = ""  # ULID, of the driver; "" for a connection that is no session


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A backend is logged in for this session.

    `process_id` is the backend's and `secret` the gateway's own, for the client's later cancel request.
    """

    receipt: Receipt
    parameters: tuple[tuple[str, str], ...]
    process_id: int
    secret: bytes
    role: str = ""  # the backend's user


class CancelUpstream(msgspec.Struct, frozen=True, gc=False):
    """Ask the backend to cancel what the session with this key is running.

    Answered when the backend has been told, so that what is sent to it afterwards is not what gets cancelled.
    """

    process_id: int
    secret: bytes


class Close(msgspec.Struct, frozen=True, gc=False):
    """End the session after what was written is flushed."""

    reason: str


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Let this direction rest until the other one has made `is_over` true."""

    is_over: Callable[[], bool]


class Offload(msgspec.Struct, frozen=True, gc=False):
    """Work too long for the event loop, or that waits for the world. Answered with the result."""

    work: Callable[[], Future[Any] | Awaitable[Any]]


type SessionEffect = (
    Ask
    | Admit
    | Intend
    | Conclude
    | Hold
    | ToUpstream
    | ToClient
    | StartTls
    | Identify
    | OpenUpstream
    | CancelUpstream
    | Close
    | Wait
    | Offload
)

type Effects[T] = Generator[SessionEffect, Any, T]
"""A step of a session: yields what is to be done, is sent the answers, and returns a T."""
