"""Backends of PostgreSQL sessions: lease, connect, log in, and the keys by which clients cancel.

The cancel key that a client gets is the gateway's own; it stands for the backend's real key and works only within this
gateway, so an agent can cancel nothing but what it runs itself.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import msgspec

from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.credentials.lease import User
from chaperone_sidecar.effects import Opened, OpenUpstream, Receipt
from chaperone_sidecar.errors import LeaseRefused, UpstreamUnavailable
from chaperone_sidecar.link import Link
from chaperone_sidecar.protocols.postgresql import messages, scram, upstream
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.tls import TlsLayer, upstream_context

NONCE_BYTES: Final = 18
CANCEL_TIMEOUT_S: Final = 10.0
_WRONG_CREDENTIAL: Final = frozenset({"28P01", "28000"})
MAX_CANCELS: Final = 16  # cancel requests under way at once

type Dial = Callable[[str, int], Awaitable[socket.socket]]


class LeaseSource(Protocol):
    """Gives the credentials of targets."""

    async def lease(self, target: str, session: str = "") -> Lease:
        """The credential of a target, or of one session there; or LeaseRefused."""
        ...

    def forget(self, lease: Lease) -> None:
        """The backend refused it, or it is not needed after all."""
        ...

    def use(self, lease: Lease, user: User) -> None:
        """A connection works with it; it is failed when the lease ends."""
        ...

    def let_go(self, user: User) -> None:
        """A connection is over."""
        ...


class _Key(msgspec.Struct, frozen=True):
    """Where a cancel request for a session has to go."""

    target: Target
    process_id: int
    secret: bytes
    ca_pem: str
    link: Link


def _is_of_credential(error: BaseException) -> bool:
    """Whether a log-in failed for what a lease says; then a later lease may say something else."""
    return isinstance(error, UpstreamUnavailable) and (
        error.code in _WRONG_CREDENTIAL or isinstance(error.__cause__, ssl.SSLCertVerificationError)
    )


def _check_reading(target: str, reported: dict[str, str]) -> None:
    """Refuse a backend that would read statements otherwise than the classifier does."""
    for name, expected in upstream.READING:
        found = reported.get(name, "")
        if found != expected:
            raise UpstreamUnavailable(
                f'Target "{target}" has {name} "{found}", which is not supported; it must be "{expected}".'
            )


class PostgresBackends:
    """Opens and cancels backends.

    Args:
        dial: connects to a host name or address; inside a pod with the mark, and never to a forbidden address.
        leases: gives the credential of a target.
    """

    def __init__(self, dial: Dial, leases: LeaseSource) -> None:
        self._dial = dial
        self._leases = leases
        self._keys: dict[tuple[int, bytes], _Key] = {}
        self._interrupts: dict[tuple[int, bytes], Callable[[], bool]] = {}
        self._cancels = asyncio.Semaphore(MAX_CANCELS)
        self._last: set[asyncio.Task[None]] = set()  # cancellations for sessions that are over

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """See `driver.Connector`. A credential that the backend refuses is asked for once more: it may be a new one."""
        session = (wanted.session or Ids().ulid()) if target.leased_per_session else ""
        lease = await self._lease(target, session)
        try:
            return await self._try(target, wanted, link, lease)
        except UpstreamUnavailable as error:
            if session or not _is_of_credential(error):
                raise
            fresh = await self._lease(target, session)
            if fresh.is_same_credential(lease):
                raise
        link.begin_again()
        return await self._try(target, wanted, link, fresh)

    async def _lease(self, target: Target, session: str) -> Lease:
        try:
            return await self._leases.lease(target.name, session)
        except LeaseRefused as error:
            raise UpstreamUnavailable(f'Target "{target.name}" cannot be used: {error}', "28000") from error

    async def _try(self, target: Target, wanted: OpenUpstream, link: Link, lease: Lease) -> tuple[Opened, bytes, str]:
        try:
            return await self._log_in(target, wanted, link, lease)
        except BaseException as error:
            if target.leased_per_session or _is_of_credential(error):
                self._leases.forget(lease)
            raise

    async def _log_in(
        self, target: Target, wanted: OpenUpstream, link: Link, lease: Lease
    ) -> tuple[Opened, bytes, str]:
        credential = upstream.Credential(lease.username, lease.password, os.urandom(NONCE_BYTES))
        database = target.upstream.database or wanted.database
        await self._connect(target, link)
        steps = upstream.log_in(
            target.name,
            credential,
            database,
            wanted.parameters,
            use_tls=target.tls.mode != "Disable",
            is_verified=target.tls.mode in ("VerifyCA", "VerifyFull"),
        )
        logged_in = await self._perform(target, link, lease.ca_pem, steps)
        _check_reading(target.name, dict(logged_in.parameters))
        backend = _Key(target, logged_in.process_id, logged_in.secret, lease.ca_pem, link)
        key = self._register(backend, wanted.secret_bytes)
        self._leases.use(lease, link)
        opened = Opened(Receipt(-1), logged_in.parameters, *key)
        return opened, logged_in.rest, link.peer

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """See `driver.Connector`."""
        key = self._keys.pop((opened.process_id, opened.secret), None)
        if key is not None:
            self._leases.let_go(key.link)
            if is_running:
                # A server looks for its client only when it has something to tell it.
                task = asyncio.get_running_loop().create_task(self._cancel(key))
                self._last.add(task)
                task.add_done_callback(self._last.discard)
        self._interrupts.pop((opened.process_id, opened.secret), None)

    def on_cancel(self, opened: Opened, interrupt: Callable[[], bool]) -> None:
        """See `driver.Connector`."""
        self._interrupts[opened.process_id, opened.secret] = interrupt

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """See `driver.Connector`. As the server does, it tells the asker nothing."""
        key, interrupt = self._keys.get((process_id, secret)), self._interrupts.get((process_id, secret))
        if key is None or (interrupt is not None and interrupt()):
            return
        await self._cancel(key)

    async def _cancel(self, key: _Key) -> None:
        link = Link(lambda _: None)
        try:
            async with self._cancels, asyncio.timeout(CANCEL_TIMEOUT_S):
                await self._connect(key.target, link)
                if key.target.tls.mode != "Disable":
                    await self._perform(key.target, link, key.ca_pem, upstream.request_tls(key.target.name))
                link.write(messages.encode_cancel(key.process_id, key.secret))
                # The server closes once it has sent the signal: from then on it meets no later command (54.2.9).
                while True:
                    await link.read()
        except (UpstreamUnavailable, OSError):  # gone, or not in time
            return
        finally:
            link.close()

    def _register(self, key: _Key, secret_bytes: int) -> tuple[int, bytes]:
        """Give out a key: the backend's process id, which clients compare with that of notifications; our secret."""
        while True:
            given = (key.process_id, secrets.token_bytes(secret_bytes))
            if given not in self._keys:  # another server's backend may have the same number
                self._keys[given] = key
                return given

    async def _connect(self, target: Target, link: Link) -> None:
        where = target.upstream
        try:
            connected = await self._dial(where.host, where.port)
            await asyncio.get_running_loop().create_connection(lambda: link, sock=connected)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UpstreamUnavailable(
                f'Target "{target.name}" cannot be reached at {where.host}:{where.port} ({reason}).'
            ) from error

    async def _perform[T](self, target: Target, link: Link, ca_pem: str, steps: upstream.Steps[T]) -> T:
        """Run a log-in's generator on a link."""
        answer: object = None
        try:
            while True:
                step = steps.send(answer)
                answer = None
                match step:
                    case upstream.Send():
                        link.write(step.data)
                    case upstream.Read():
                        answer = await link.read()
                    case upstream.BeginTls():
                        answer = (await self._begin_tls(target, link, ca_pem)).end_point_binding()
                    case upstream.Derive():
                        answer = await asyncio.to_thread(scram.derive, step.password, step.salt, step.iterations)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except ssl.SSLCertVerificationError as error:
            raise UpstreamUnavailable(
                f'Target "{target.name}" shows a certificate that is not accepted: {error.verify_message}. '
                "Check its certificate, tls.caSecretRef and tls.serverName."
            ) from error
        except (ssl.SSLError, ConnectionError) as error:
            raise UpstreamUnavailable(
                f'Target "{target.name}" broke the connection during the log-in ({type(error).__name__}).'
            ) from error

    async def _begin_tls(self, target: Target, link: Link, ca_pem: str) -> TlsLayer:
        context = upstream_context(target.tls, ca_pem)
        return await link.begin_tls(context, target.tls.server_name or target.upstream.host)
