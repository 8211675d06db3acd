"""Port-forward: connections within a request, each of which has to lead to a target of this agent.

Theory of operation. Nothing is forwarded by the API server: it is only asked, with the gateway's own credential, which
addresses the pod has. A connection to a port is let through where exactly one target's upstream has that port, and is,
or resolves to, addresses of that pod alone; then it is served by that target's protocol (`tunnel.py`), which decides,
masks and records each command as if the agent had dialled the target. Any other is refused on its stream for errors,
and that is recorded. The whole is one command with the effect `tunnel`; its end is that of the client's connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable
from functools import partial
from typing import Final, NoReturn

import msgspec
from aiohttp import web

from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.config import IPAddress, Target
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import Admit, Conclude, Intent, Receipt
from chaperone_sidecar.errors import ChaperoneError, LimitReached, UpstreamUnavailable
from chaperone_sidecar.frontend import Services
from chaperone_sidecar.protocols.kubernetes import channels, classify, pairs
from chaperone_sidecar.protocols.kubernetes.pairs import MAX_CONNECTIONS, Pairs
from chaperone_sidecar.protocols.kubernetes.request import Request
from chaperone_sidecar.protocols.kubernetes.server import bounded
from chaperone_sidecar.protocols.kubernetes.tunnel import Tunnel
from chaperone_sidecar.protocols.kubernetes.upstream import Login, Upstream
from chaperone_sidecar.protocols.kubernetes.wire import SpdyWire, WebSocketWire, Wire

logger = logging.getLogger(__name__)

NOT_COVERED: Final = "not-covered"
MAX_WAITING_BYTES: Final = 1 << 20  # of all connections, that targets have not taken; then nothing more is read
MAX_POD_BYTES: Final = 4 << 20  # etcd takes objects of 1.5 MiB
LAST_WORDS_S: Final = 0.5  # for sessions that are cut together with the port-forward to say why
PASS_ON_S: Final = 0.25  # for the client to pass that on: kubectl drops what it has in hand when the connection ends
UNAUTHORIZED: Final = 401


class _Address(msgspec.Struct):
    ip: str = ""


class _PodStatus(msgspec.Struct):
    phase: str = ""
    podIPs: list[_Address] = []  # noqa: N815 - the API's name


class _Pod(msgspec.Struct):
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class PortForward:
    """One.

    Args:
        http: the request.
        asked: the same, read.
        services: of the gateway.
        conduct: of the session.
        intent: the command's.
        upstream: the API server.
        fail: called when the credential ends while it runs, or a limit is reached.
        on_begun: called when the connection is no HTTP any more.
    """

    def __init__(
        self, http: web.BaseRequest, asked: Request, services: Services, conduct: Conduct, intent: Intent,
        upstream: Upstream, fail: Callable[[Exception], None], on_begun: Callable[[], None],
    ) -> None:  # fmt: skip
        self._http = http
        self._asked = asked
        self._conduct = conduct
        self._intent = intent
        self._upstream = upstream
        self._services = services
        self._fail = fail
        self._on_begun = on_begun
        self._tunnels: dict[int, Tunnel] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._is_over = asyncio.Event()
        self._count = self._size_bytes = 0

    async def run(self, protocol: str) -> web.StreamResponse:
        """Serve it to its end.

        Raises:
            UpstreamUnavailable, ProtocolError, LimitReached, SpoolFull: it ends before.
        """
        login = await self._upstream.login()
        with login.used(partial(self._fail)):  # its own, for the login tells users apart by it
            await self._addresses(login)  # of a pod that is not there the client hears in HTTP
            wire: Wire
            found: Pairs
            if protocol == channels.SPDY:
                wire, found = SpdyWire(self._http), pairs.SpdyPairs()
            else:
                wire = WebSocketWire(self._http, protocol)
                if protocol == pairs.TUNNELLED:
                    found = pairs.SpdyPairs()
                else:
                    found = pairs.ChannelPairs(pairs.ports(self._asked))
            self._on_begun()
            await wire.begin()
            try:
                await self._serve(wire, found, login)
            except asyncio.CancelledError:
                if self._is_gone:  # which is how clients end it
                    self._conclude()
                raise
            finally:
                await self._end()
            await self._conduct.told(self._conclude())
            await wire.close()
        return wire.response

    @property
    def _is_gone(self) -> bool:
        return self._http.transport is None or self._http.transport.is_closing()

    async def _serve(self, wire: Wire, found: Pairs, login: Login) -> None:
        """Until the client is gone, or nothing is left."""
        reading = asyncio.create_task(self._read(wire, found, login))
        over = asyncio.create_task(self._is_over.wait())
        try:
            await asyncio.wait((reading, over), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                await reading  # says what the client did wrong, where it did
        finally:
            for task in (reading, over):
                task.cancel()
            await asyncio.wait((reading, over))

    async def _read(self, wire: Wire, found: Pairs, login: Login) -> None:
        messages, events = found.begin()
        for message in messages:
            await wire.write(message)
        while True:
            for event in events:
                await self._on(event, wire, found, login)
            if owed := found.owed():
                await wire.write(owed)
            await self._has_room.wait()
            data = await wire.read()
            if not data:
                return
            events = found.feed(data)

    async def _on(self, event: pairs.Event, wire: Wire, found: Pairs, login: Login) -> None:
        match event:
            case pairs.Opened():
                self._open(event, wire, found, login)
            case pairs.Given():
                self._take(len(event.data))
                self._conduct.log.bytes_in += len(event.data)
                if event.number in self._tunnels:
                    self._tunnels[event.number].feed(event.data)
                    self._look_for_room()
            case pairs.Ended() if event.number in self._tunnels:
                self._tunnels[event.number].finish()
            case pairs.Dropped() if event.number in self._tunnels:
                self._tunnels[event.number].drop()
            case pairs.Excess():
                with contextlib.suppress(_Refused):  # there is no stream to say so on
                    await self._refuse(event.port, _TOO_MANY)

    def _open(self, opened: pairs.Opened, wire: Wire, found: Pairs, login: Login) -> None:
        async def deliver(data: bytes) -> None:
            self._take(len(data))
            self._conduct.log.bytes_out += len(data)
            await wire.write(found.data(opened.number, data))

        self._count += 1
        name = f"port-forward {self._conduct.log.id}/{self._count}"
        tunnel = self._tunnels[opened.number] = Tunnel(self._services, name, deliver, self._look_for_room)
        task = asyncio.create_task(self._connection(opened, tunnel, wire, found, login))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(
        self, opened: pairs.Opened, tunnel: Tunnel, wire: Wire, found: Pairs, login: Login
    ) -> None:  # fmt: skip
        why = ""
        try:
            await tunnel.run(await self._target(opened.port, login))
        except (_Refused, UpstreamUnavailable) as error:
            why = str(error)
        except OSError as error:
            why = f"the gateway cannot open the connection ({error.strerror or type(error).__name__})."
        except ChaperoneError as error:  # a limit, or what cannot be recorded
            self._fail(error)
            return
        except Exception as error:  # a defect; its text might quote what was sent
            logger.error("a forwarded connection failed: %s", type(error).__name__)
            self._fail(ChaperoneError(f"The gateway failed ({type(error).__name__})."))
            return
        del self._tunnels[opened.number]
        self._look_for_room()
        if last := found.close(opened.number, why):
            await wire.write(last)
        if found.is_over:
            self._is_over.set()

    # --- where a port leads -------------------------------------------------------------------------------------------

    async def _target(self, port: int, login: Login) -> Target:
        """The one target that a port of the pod is; a connection counts like a command.

        Raises:
            _Refused: there is none, or there are too many connections; recorded. UpstreamUnavailable: no pod is there.
        """
        counted = self._conduct.admit(Admit(classify.connection(self._asked, port), _ALLOWED))
        if counted.action is not Action.ALLOW:
            await self._refuse(port, counted)
        addresses = await self._addresses(login)
        targets = await self._services.targets_at(addresses, port)
        if len(targets) != 1:
            await self._refuse(port, _not_covered(_why(addresses, port, is_several=bool(targets))))
        return targets[0]

    async def _refuse(self, port: int, decision: Decision) -> NoReturn:
        await self._conduct.recorded(classify.connection(self._asked, port), decision)
        why = decision.message
        raise _Refused(f'Chaperone: port {port} of pod "{self._asked.name}" is not forwarded: {why}')

    async def _addresses(self, login: Login) -> frozenset[IPAddress]:
        """Of the pod as it is now.

        Raises:
            UpstreamUnavailable: it does not run, or is not shown.
        """
        named = f'pod "{self._asked.name}"'
        path = self._asked.path.removesuffix(f"/{classify.FORWARDING}")
        accept = {"Accept": classify.JSON}
        async with login.request("GET", path, accept, b"", self._fail, is_stream=False) as answer:
            raw = await bounded(answer.content, MAX_POD_BYTES)
        if raw is None:
            raise UpstreamUnavailable(f"The API server's answer about {named} is longer than any that is read.")
        if answer.status == UNAUTHORIZED:
            self._upstream.refused(login)
        if answer.status != web.HTTPOk.status_code:
            status = str(answer.status)
            raise UpstreamUnavailable(f"The API server does not show {named}: HTTP status {status}.", status)
        try:
            pod = msgspec.json.decode(raw, type=_Pod)
            found = frozenset(ipaddress.ip_address(one.ip) for one in pod.status.podIPs)
        except (msgspec.DecodeError, ValueError) as error:
            raise UpstreamUnavailable(f"The API server's answer about {named} cannot be read.") from error
        if pod.status.phase != "Running" or not found:
            raise UpstreamUnavailable(f"The {named} is not running, or has no address yet.", "400")
        return found

    # --- limits and the end -------------------------------------------------------------------------------------------

    def _take(self, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        reached = self._conduct.meter.take(0, size_bytes)
        if reached is not None:
            raise LimitReached(reached)

    def _look_for_room(self) -> None:
        if sum(one.waiting_bytes for one in self._tunnels.values()) > MAX_WAITING_BYTES:
            self._has_room.clear()
        else:
            self._has_room.set()

    async def _end(self) -> None:
        """End what is left."""
        tasks = tuple(self._tasks)
        if not tasks:
            return
        try:
            if not self._is_gone:
                await asyncio.wait(tasks, timeout=LAST_WORDS_S)
                await asyncio.sleep(PASS_ON_S)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks)

    def _conclude(self) -> Receipt:
        return self._conduct.conclude(Conclude(self._intent, "ok", "", 0, self._size_bytes))


class _Refused(ChaperoneError):
    """A connection that is not let through; recorded."""


def _why(addresses: frozenset[IPAddress], port: int, *, is_several: bool) -> str:
    """Why a port leads to no target; `is_several`: to more than one."""
    where = " or ".join(sorted(f"[{one}]:{port}" if one.version == 6 else f"{one}:{port}" for one in addresses))
    if is_several:
        return f"several AccessTargets of this agent lead to {where}, so nobody can say which is meant."
    return (
        f"no AccessTarget of this agent leads to {where} alone. Create one whose upstream is that address, or a name "
        "that resolves to nothing else (of a headless Service, not a ClusterIP), and allow it to this namespace."
    )


def _not_covered(why: str) -> Decision:
    return Decision(Action.DENY, "", NOT_COVERED, why, "")


_ALLOWED: Final = Decision(Action.ALLOW, "", "", "", "")  # as far as it is for the limits to say
_TOO_MANY: Final = _not_covered(f"{MAX_CONNECTIONS} connections are open in this port-forward.")
