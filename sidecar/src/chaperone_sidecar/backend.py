"""Backends of PostgreSQL sessions: lease, connect, log in, and the keys by which clients cancel.

The cancel key that a client gets is the gateway's own; it stands for the backend's real key and works only within this
gateway, so an agent can cancel nothing but what it runs itself.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.effects import Opened, OpenUpstream, Receipt
from chaperone_sidecar.errors import UpstreamUnavailable
from chaperone_sidecar.frontend import Dial, LeaseSource
from chaperone_sidecar.link import Link
from chaperone_sidecar.login import LogIns, perform
from chaperone_sidecar.protocols.postgresql import messages, scram, upstream
from chaperone_sidecar.recording.ids import Ids

NONCE_BYTES: Final = 18
CANCEL_TIMEOUT_S: Final = 10.0
MAX_CANCELS: Final = 16  # cancel requests under way at once


class _Key(msgspec.Struct, frozen=True):
    """Where a cancel request for a session has to go."""

    target: Target
    process_id: int
    secret: bytes
    ca_pem: str
    link: Link


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
        self._log_ins = LogIns(dial, leases)
        self._leases = leases
        self._keys: dict[tuple[int, bytes], _Key] = {}
        self._interrupts: dict[tuple[int, bytes], Callable[[], bool]] = {}
        self._cancels = asyncio.Semaphore(MAX_CANCELS)
        self._last: set[asyncio.Task[None]] = set()  # cancellations for sessions that are over

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """See `connector.Connector`. A credential that the backend refuses is asked for once more: it may be new."""
        session = (wanted.session or Ids().ulid()) if target.leased_per_session else ""
        return await self._log_ins.open(target, session, link, lambda lease: self._log_in(target, wanted, link, lease))

    async def _log_in(
        self, target: Target, wanted: OpenUpstream, link: Link, lease: Lease
    ) -> tuple[Opened, bytes, str]:
        credential = upstream.Credential(lease.username, lease.password, os.urandom(NONCE_BYTES))
        database = target.upstream.database or wanted.database
        await self._log_ins.connect(target, link)
        steps = upstream.log_in(
            target.name,
            credential,
            database,
            wanted.parameters,
            use_tls=target.tls.mode != "Disable",
            is_verified=target.tls.mode in ("VerifyCA", "VerifyFull"),
        )
        logged_in = await perform(target, link, lease.ca_pem, steps, _derive)
        _check_reading(target.name, dict(logged_in.parameters))
        backend = _Key(target, logged_in.process_id, logged_in.secret, lease.ca_pem, link)
        key = self._register(backend, wanted.secret_bytes)
        self._leases.use(lease, link)
        opened = Opened(Receipt(-1), logged_in.parameters, *key, lease.username)
        return opened, logged_in.rest, link.peer

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """See `connector.Connector`."""
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
        """See `connector.Connector`."""
        self._interrupts[opened.process_id, opened.secret] = interrupt

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """See `connector.Connector`. As the server does, it tells the asker nothing."""
        key, interrupt = self._keys.get((process_id, secret)), self._interrupts.get((process_id, secret))
        if key is None or (interrupt is not None and interrupt()):
            return
        await self._cancel(key)

    async def _cancel(self, key: _Key) -> None:
        link = Link(lambda _: None)
        try:
            async with self._cancels, asyncio.timeout(CANCEL_TIMEOUT_S):
                await self._log_ins.connect(key.target, link)
                if key.target.tls.mode != "Disable":
                    await perform(key.target, link, key.ca_pem, upstream.request_tls(key.target.name))
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


async def _derive(step: upstream.Derive) -> object:
    return await asyncio.to_thread(scram.derive, step.password, step.salt, step.iterations)
