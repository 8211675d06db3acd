"""Servers of MySQL sessions: lease, connect, log in, and the numbers by which clients end each other's statements.

The connection id that a client gets is the gateway's own; KILL QUERY of one works only for sessions of this gateway at
the same target, so an agent can end nothing but what it runs itself.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.effects import Opened, OpenUpstream, Receipt
from chaperone_sidecar.errors import UpstreamUnavailable
from chaperone_sidecar.frontend import Dial, LeaseSource
from chaperone_sidecar.link import Link
from chaperone_sidecar.login import LogIns, perform
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql import upstream
from chaperone_sidecar.protocols.mysql.kills import Kills
from chaperone_sidecar.recording.ids import Ids

PROBE_TIMEOUT_S: Final = 5.0  # for the version that a client is greeted with
KILL_TIMEOUT_S: Final = 10.0
MAX_KILLS: Final = 16  # under way at once


class _Key(msgspec.Struct, frozen=True):
    """A session's server, and where its statement can be ended."""

    target: Target
    connection_id: int  # the server's own
    lease: Lease
    link: Link


class MySqlBackends:
    """Opens servers, and ends their statements; see `connector.Connector`.

    Args:
        dial: connects to a host name or address; inside a pod with the mark, and never to a forbidden address.
        leases: gives the credential of a target.
    """

    def __init__(self, dial: Dial, leases: LeaseSource) -> None:
        self._log_ins = LogIns(dial, leases)
        self._leases = leases
        self._versions: dict[str, bytes] = {}
        self._keys: dict[int, _Key] = {}
        self._interrupts: dict[int, Callable[[], bool]] = {}
        self._kills: WeakValueDictionary[int, Kills] = WeakValueDictionary()
        self._room = asyncio.Semaphore(MAX_KILLS)
        self._last: set[asyncio.Task[None]] = set()

    def new_id(self) -> int:
        """A number for a new session, as a server's connection ids are."""
        while True:
            found = secrets.randbelow(2**31 - 1) + 1
            if found not in self._keys:
                return found

    def kills(self, connection_id: int) -> Kills:
        """Those of a new session with this number; forgotten with it."""
        made = self._kills[connection_id] = Kills()
        return made

    def is_own(self, target: Target, connection_id: int) -> bool:
        """Whether a number is that of a session at the target."""
        found = self._keys.get(connection_id)
        return found is not None and found.target.name == target.name

    async def version(self, target: Target) -> bytes:
        """What the server calls itself: clients look at that before they log in. b"" where it cannot be had.

        A connection is made for it once, and logged in, since servers count those that go away before.
        """
        if target.name not in self._versions and not target.leased_per_session:
            link = Link(lambda _: None)
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._log_in(target, OpenUpstream("", "", "", ()), link, await self._log_ins.lease(target))
                link.write(m.packet(0, bytes((m.COM_QUIT,))))
            except (UpstreamUnavailable, TimeoutError):
                pass  # the log-in that follows says why
            finally:
                link.close()
        return self._versions.get(target.name, b"")

    def follow(self, targets: tuple[Target, ...]) -> None:
        """Another configuration is in force."""
        self._versions.clear()

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """See `connector.Connector`. A credential that the server refuses is asked for once more: it may be new."""
        session = (wanted.session or Ids().ulid()) if target.leased_per_session else ""
        return await self._log_ins.open(target, session, link, lambda lease: self._opened(target, wanted, link, lease))

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """See `connector.Connector`."""
        key = self._keys.pop(opened.process_id, None)
        self._interrupts.pop(opened.process_id, None)
        if key is None:
            return
        self._leases.let_go(key.link)
        if is_running:
            self._start_kill(key, Kills())

    def on_cancel(self, opened: Opened, interrupt: Callable[[], bool]) -> None:
        """See `connector.Connector`."""
        self._interrupts[opened.process_id] = interrupt

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """See `connector.Connector`."""
        key, interrupt = self._keys.get(process_id), self._interrupts.get(process_id)
        if key is None or (interrupt is not None and interrupt()):
            return
        kills = self._kills.get(process_id)
        if kills is not None and kills.running() is not None:
            await asyncio.shield(self._start_kill(key, kills))  # who asked may go; what was sent is waited for

    def _start_kill(self, key: _Key, kills: Kills) -> asyncio.Task[None]:
        kills.begin()
        task = asyncio.get_running_loop().create_task(self._kill(key, kills))
        self._last.add(task)
        task.add_done_callback(self._last.discard)
        return task

    async def _kill(self, key: _Key, kills: Kills) -> None:
        link, is_open = Link(lambda _: None), False  # whether it was sent and not answered
        try:
            async with self._room, asyncio.timeout(KILL_TIMEOUT_S):
                await self._log_in(key.target, OpenUpstream("", "", "", ()), link, key.lease)
                is_open = True
                link.write(m.packet(0, bytes((m.COM_QUERY,)) + f"KILL QUERY {key.connection_id}".encode()))
                await link.read()
                is_open = False
        except (UpstreamUnavailable, OSError):  # gone, or not in time
            return
        finally:
            kills.end(is_lost=is_open)
            link.close()

    async def _opened(
        self, target: Target, wanted: OpenUpstream, link: Link, lease: Lease
    ) -> tuple[Opened, bytes, str]:
        logged_in = await self._log_in(target, wanted, link, lease)
        given = int(dict(wanted.parameters)["connection_id"])
        self._keys[given] = _Key(target, logged_in.connection_id, lease, link)
        self._leases.use(lease, link)
        told = (
            ("sql_mode", logged_in.sql_mode), ("database", logged_in.database),
            ("folds_tables", "1" if logged_in.folds_tables else "0"),
        )  # fmt: skip
        return Opened(Receipt(-1), told, given, b"", lease.username), b"", link.peer

    async def _log_in(self, target: Target, wanted: OpenUpstream, link: Link, lease: Lease) -> upstream.LoggedIn:
        await self._log_ins.connect(target, link)
        log_in = upstream.LogIn(
            target.name,
            upstream.Credential(lease.username, lease.password),
            target.upstream.database or wanted.database,
            int(dict(wanted.parameters).get("capabilities", "0")),
            use_tls=target.tls.mode != "Disable",
            is_verified=target.tls.mode in ("VerifyCA", "VerifyFull"),
        )
        logged_in = await perform(target, link, lease.ca_pem, log_in.steps())
        self._versions[target.name] = logged_in.version
        return logged_in
