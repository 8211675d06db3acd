"""The services of one gateway process, and what becomes of an accepted connection."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
from typing import Final

from chaperone_sidecar import metrics
from chaperone_sidecar.approval.desk import Desk
from chaperone_sidecar.approval.hold import Holds
from chaperone_sidecar.conduct import Conduct, Estimate
from chaperone_sidecar.config import GatewayConfig, IPAddress, Suspension, Target
from chaperone_sidecar.credentials.users import Check, Users
from chaperone_sidecar.errors import ChaperoneError, ConfigError, SpoolFull, Suspended, UserRefused
from chaperone_sidecar.frontend import Conversation, Dial, Frontend, LeaseSource, Resolve, load
from chaperone_sidecar.hostkey import HostKey
from chaperone_sidecar.limits import MAX_SESSIONS
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.recording.assurance import Witness
from chaperone_sidecar.recording.recorder import Recorder
from chaperone_sidecar.tls import PodCa

logger = logging.getLogger(__name__)

HEAD_INTERVAL_S: Final = 10.0  # a stream is signed at least this often, so that silence is attested too
MAX_DENIED: Final = 1000  # different refused destinations or names between two heads; more are counted as one


class Gateway:
    """Everything that sessions share.

    Args:
        config: what the broker says of this pod; replaced by `reconfigure`.
        recorder, decider, ca: the services.
        dial: the way out.
        resolve: where names lead there.
        leases: gives the credentials of targets.
        mask_key: of the namespace, where `config` masks; never logged, never shown.
        desk: where people are asked for approvals; None where nobody can be.
        check: checks tokens of persons; None where nobody can.
        witness: knows what the collector's log has signed; None where there is no collector.

    Raises:
        ConfigError: the configuration asks for what cannot be had here.
    """

    def __init__(
        self,
        config: GatewayConfig,
        recorder: Recorder,
        decider: Decider,
        dial: Dial,
        resolve: Resolve,
        leases: LeaseSource,
        ca: PodCa,
        mask_key: bytes = b"",
        desk: Desk | None = None,
        check: Check | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._witness = witness
        recorder.assure(config.identity.durability, witness)
        self.config = config
        self.mask_key = mask_key
        self.recorder = recorder
        self.dial = dial
        self._resolve = resolve
        self._forwarded: set[asyncio.Task[None]] = set()
        self.leases = leases
        self.ssh_host_key = HostKey()
        self._decider = decider
        self._ca = ca
        self._holds = Holds(desk, recorder, lambda: self.config.revision, lambda: self.mask_key)
        self._frontends: dict[str, Frontend] = {}
        self._quotas = {target.name: Quota(target.limits) for target in config.targets}
        self._check = check
        self._users = self._users_of(config)
        self._conversations: set[Conversation] = set()
        self._denied_egress: dict[tuple[str, str, int, str], int] = {}
        self._denied_names: dict[tuple[str, str], int] = {}
        self._noted: Suspension | None = None
        self._note_suspension(config)

    @property
    def next_seq(self) -> int:
        """Number that the stream's next record gets."""
        return self.recorder.next_seq

    @property
    def ca_pem(self) -> str:
        """Certificate of the pod's CA."""
        return self._ca.pem

    @property
    def suspended(self) -> Suspended | None:
        """Why nothing may be opened now, when nothing may."""
        return self.config.suspended

    async def take(self, connection: socket.socket, target: Target) -> None:
        """Serve a connection that was accepted for a target.

        Raises:
            OSError: it is gone. ConfigError: the target's protocol is not spoken here.
        """
        frontend = self._frontend(target.protocol)
        if len(self._conversations) >= MAX_SESSIONS:
            full = f"{MAX_SESSIONS} sessions are open in this pod; close some of them."
            await frontend.turn_away(connection, target, ChaperoneError(full))
            return
        if self.suspended is not None:
            self.deny_egress("tcp", target.name, target.port, "suspended")
        conversation = frontend.begin(target)
        self._conversations.add(conversation)
        metrics.SESSIONS.set(len(self._conversations))
        try:
            await conversation.take(connection)
        except OSError:
            self.over(conversation)
            raise

    def conduct(self, target: Target, estimate: Estimate | None = None) -> Conduct:
        """See `frontend.Services`."""
        more = {} if estimate is None else {"estimate": estimate}
        return Conduct(
            target,
            Meter(self._quotas.setdefault(target.name, Quota(target.limits))),
            self.recorder,
            self._decider,
            self._holds,
            self._users if self.suspended is None else None,  # nothing is opened then, so nobody need be known
            lambda: self.deny_egress("tcp", target.name, target.port, "no user"),
            self.config.identity.max_result_bytes,
            **more,
        )

    def server_context(self, target: Target, *alpn: str) -> ssl.SSLContext:
        """See `frontend.Services`."""
        names = tuple(host.name for host in target.hosts) or (target.upstream.host,)
        addresses = tuple(address for host in target.hosts for address in (host.ipv4, host.ipv6))
        networks = map(ipaddress.ip_network, target.addresses)
        single = tuple(str(one.network_address) for one in networks if one.num_addresses == 1)
        return self._ca.server_context((*names, *addresses, *single), *alpn)

    def over(self, conversation: Conversation) -> None:
        """See `frontend.Services`."""
        self._conversations.discard(conversation)
        metrics.SESSIONS.set(len(self._conversations))

    async def targets_at(self, addresses: frozenset[IPAddress], port: int) -> tuple[Target, ...]:
        """See `frontend.Services`."""
        asked = [target for target in self.config.targets if target.upstream.port == port]
        found = [target for target in asked if await self._is_at(target, addresses)]
        return tuple(found)

    def forward(self, connection: socket.socket, target: Target) -> None:
        """See `frontend.Services`."""
        task = asyncio.get_running_loop().create_task(self._forward(connection, target))
        self._forwarded.add(task)
        task.add_done_callback(self._forwarded.discard)

    def reconfigure(self, config: GatewayConfig, mask_key: bytes = b"") -> None:
        """Another configuration is in force: sessions follow its limits, and end where the target is not as it was."""
        suspended = config.suspended
        self._note_suspension(config)
        is_other_delegation = config.delegation != self.config.delegation
        is_other_recording = config.identity.max_result_bytes != self.config.identity.max_result_bytes
        self.recorder.assure(config.identity.durability, self._witness)
        self.config = config
        self.mask_key = mask_key
        if suspended is not None:  # before anything that may fail
            for one in tuple(self._conversations):
                one.cut(suspended)
        if is_other_delegation:
            self._users = self._users_of(config)
            for one in tuple(self._conversations):
                one.cut(UserRefused("Another delegation of the agent's identity is in force; connect again."))
        if is_other_recording:
            for one in tuple(self._conversations):
                one.cut(ChaperoneError("Results are recorded in another way from now on; connect again."))
        current = {target.name: target for target in config.targets}
        for frontend in self._frontends.values():
            frontend.follow(config.targets)
        self._quotas = {name: self._quotas.get(name) or Quota() for name in current}
        for name, target in current.items():
            self._quotas[name].use(target.limits)
        for one in tuple(self._conversations):
            found = current.get(one.target.name)
            if found is None or not found.is_same_place(one.target):
                one.cut(ChaperoneError(f'Target "{one.target.name}" is no longer as it was; connect again.'))
            else:
                one.follow_limits()

    def deny_egress(self, network: str, address: str, port: int, reason: str) -> None:
        """Note a connection to an undeclared destination; recorded with the next head."""
        key = (network, address, port, reason)
        if key not in self._denied_egress and len(self._denied_egress) >= MAX_DENIED:
            key = (network, "", 0, "many different destinations")
        self._denied_egress[key] = self._denied_egress.get(key, 0) + 1

    def deny_name(self, name: str, qtype: str) -> None:
        """Note a question for an undeclared name; recorded with the next head."""
        key = (name, qtype)
        if key not in self._denied_names and len(self._denied_names) >= MAX_DENIED:
            key = ("", qtype)
        self._denied_names[key] = self._denied_names.get(key, 0) + 1

    async def keep_heads(self, interval_s: float = HEAD_INTERVAL_S) -> None:
        """Record what was noted and sign the stream, at fixed intervals, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                self.write_head()
            except SpoolFull as error:
                logger.error("the stream cannot be signed: %s", error)

    def write_head(self) -> None:
        """Record what was noted since the last head, then sign.

        Raises:
            SpoolFull: no room.
        """
        while self._denied_egress:  # what is not in the spool yet stays noted, for a time when there is room
            (network, address, port, reason), count = next(iter(self._denied_egress.items()))
            self.recorder.deny_egress(network, address, port, reason, count)
            del self._denied_egress[(network, address, port, reason)]
        while self._denied_names:
            (name, qtype), count = next(iter(self._denied_names.items()))
            self.recorder.deny_dns(name, qtype, count)
            del self._denied_names[(name, qtype)]
        self.recorder.tick()

    def close(self, reason: str) -> None:
        """Cut every session with a native last word and end the stream."""
        for one in tuple(self._conversations):
            one.cut(ChaperoneError(reason), is_stopping=True)
        for frontend in self._frontends.values():
            frontend.close()
        if self.recorder.is_closed:
            return
        try:
            self.write_head()
            self.recorder.close(reason)
        except SpoolFull as error:
            logger.error("the stream's end cannot be recorded: %s", error)

    async def _is_at(self, target: Target, addresses: frozenset[IPAddress]) -> bool:
        try:
            found = await self._resolve(target.upstream.host)
        except OSError:
            return False
        return bool(found) and addresses.issuperset(found)

    async def _forward(self, connection: socket.socket, target: Target) -> None:
        # Nothing is awaited between this look and the conversation's beginning, which the next policy finds and cuts.
        current = next((one for one in self.config.targets if one.name == target.name), None)
        if current is None or not current.is_same_place(target):
            connection.close()
            return
        try:
            await self.take(connection, current)
        except (OSError, ConfigError) as error:
            connection.close()
            if isinstance(error, ConfigError):
                logger.error("a forwarded connection is refused: %s", error)

    def _note_suspension(self, config: GatewayConfig) -> None:
        """Record that everything is taken away, or given again, before it is; without room it happens all the same."""
        if config.suspension == self._noted:
            return
        self._noted = config.suspension
        try:
            self.recorder.note_suspension(config.suspension, config.revision, len(self._conversations))
        except SpoolFull as error:
            logger.error("a suspension cannot be recorded: %s", error)

    def _users_of(self, config: GatewayConfig) -> Users | None:
        """Who says on whose behalf a session is; None where nobody is asked.

        Raises:
            ConfigError: nobody can say it here.
        """
        if config.delegation is None:
            return None
        if self._check is None:
            raise ConfigError("Tokens of persons cannot be checked here: spec.delegation needs a broker.")
        return Users(config.identity.name, config.delegation, self._check)

    def _frontend(self, protocol: str) -> Frontend:
        found = self._frontends.get(protocol)
        if found is None:
            found = self._frontends[protocol] = load(protocol, self)
        return found
