"""The services of one gateway process, and what becomes of an accepted connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from chaperone_sidecar import metrics
from chaperone_sidecar.approval.desk import Desk
from chaperone_sidecar.approval.hold import Holds
from chaperone_sidecar.backend import PostgresBackends
from chaperone_sidecar.catalog import Catalogs
from chaperone_sidecar.config import GatewayConfig, Suspension, Target
from chaperone_sidecar.credentials.users import Check, Users
from chaperone_sidecar.driver import Driver
from chaperone_sidecar.effects import Opened, OpenUpstream
from chaperone_sidecar.errors import ChaperoneError, ConfigError, SpoolFull, Suspended, UserRefused
from chaperone_sidecar.limits import MAX_SESSIONS
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.link import Link
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.protocols.postgresql.answers import fatal
from chaperone_sidecar.protocols.postgresql.messages import ALPN
from chaperone_sidecar.protocols.postgresql.session import Session
from chaperone_sidecar.readers import Readers
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
        recorder, decider, backends, ca: the services.
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
        backends: PostgresBackends,
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
        self._recorder = recorder
        self._decider = decider
        self._backends = backends
        self._ca = ca
        self._holds = Holds(desk, recorder, lambda: self.config.revision, lambda: self.mask_key)
        self.catalogs = Catalogs(backends)
        self._readers = Readers(self.catalogs)
        self._quotas = {target.name: Quota(target.limits) for target in config.targets}
        self._check = check
        self._users = self._users_of(config)
        self._drivers: set[Driver] = set()
        self._denied_egress: dict[tuple[str, str, int, str], int] = {}
        self._denied_names: dict[tuple[str, str], int] = {}
        self._noted: Suspension | None = None
        self._note_suspension(config)

    @property
    def next_seq(self) -> int:
        """Number that the stream's next record gets."""
        return self._recorder.next_seq

    @property
    def ca_pem(self) -> str:
        """Certificate of the pod's CA."""
        return self._ca.pem

    def accept(self, target: Target) -> Link:
        """The protocol of a connection that was accepted for a target."""
        if len(self._drivers) >= MAX_SESSIONS:
            return _turned_away(f"{MAX_SESSIONS} sessions are open in this pod; close some of them.")
        suspended = self.config.suspended
        if suspended is not None:
            self.deny_egress("tcp", target.name, target.port, "suspended")
        names = tuple(host.name for host in target.hosts) or (target.upstream.host,)
        addresses = tuple(address for host in target.hosts for address in (host.ipv4, host.ipv6))
        meter = Meter(self._quotas.setdefault(target.name, Quota(target.limits)))
        users = self._users if suspended is None else None  # nothing is opened then, so nobody need be known
        driver = Driver(
            target,
            Session(
                lambda database: self._readers.of(target, database, self.mask_key), meter, asks_user=users is not None
            ),
            meter,
            self._backends if suspended is None else _Closed(suspended),
            self._recorder,
            self._decider,
            self._holds,
            lambda: self._ca.server_context((*names, *addresses), ALPN),
            self._over,
            lambda name: self._readers.shown_client(target, name, self.mask_key),
            lambda database, command: self.catalogs.of(target, database).estimate(command),
            users,
            lambda: self.deny_egress("tcp", target.name, target.port, "no user"),
            self.config.identity.max_result_bytes,
        )
        self._drivers.add(driver)
        metrics.SESSIONS.set(len(self._drivers))
        return driver.client

    def reconfigure(self, config: GatewayConfig, mask_key: bytes = b"") -> None:
        """Another configuration is in force: sessions follow its limits, and end where the target is not as it was."""
        suspended = config.suspended
        self._note_suspension(config)
        is_other_delegation = config.delegation != self.config.delegation
        is_other_recording = config.identity.max_result_bytes != self.config.identity.max_result_bytes
        self._recorder.assure(config.identity.durability, self._witness)
        self.config = config
        self.mask_key = mask_key
        if suspended is not None:  # before anything that may fail
            for driver in tuple(self._drivers):
                driver.cut(suspended)
        if is_other_delegation:
            self._users = self._users_of(config)
            for driver in tuple(self._drivers):
                driver.cut(UserRefused("Another delegation of the agent's identity is in force; connect again."))
        if is_other_recording:
            for driver in tuple(self._drivers):
                driver.cut(ChaperoneError("Results are recorded in another way from now on; connect again."))
        current = {target.name: target for target in config.targets}
        self.catalogs.follow(config.targets)
        self._readers.clear()
        self._quotas = {name: self._quotas.get(name) or Quota() for name in current}
        for name, target in current.items():
            self._quotas[name].use(target.limits)
        for driver in tuple(self._drivers):
            found = current.get(driver.target.name)
            if found is None or not found.is_same_place(driver.target):
                driver.cut(ChaperoneError(f'Target "{driver.target.name}" is no longer as it was; connect again.'))
            else:
                driver.follow_limits()

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
            self._recorder.deny_egress(network, address, port, reason, count)
            del self._denied_egress[(network, address, port, reason)]
        while self._denied_names:
            (name, qtype), count = next(iter(self._denied_names.items()))
            self._recorder.deny_dns(name, qtype, count)
            del self._denied_names[(name, qtype)]
        self._recorder.tick()

    def close(self, reason: str) -> None:
        """Cut every session with a native last word and end the stream."""
        for driver in tuple(self._drivers):
            driver.cut(ChaperoneError(reason), is_stopping=True)
        self.catalogs.close()
        if self._recorder.is_closed:
            return
        try:
            self.write_head()
            self._recorder.close(reason)
        except SpoolFull as error:
            logger.error("the stream's end cannot be recorded: %s", error)

    def _note_suspension(self, config: GatewayConfig) -> None:
        """Record that everything is taken away, or given again, before it is; without room it happens all the same."""
        if config.suspension == self._noted:
            return
        self._noted = config.suspension
        try:
            self._recorder.note_suspension(config.suspension, config.revision, len(self._drivers))
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

    def _over(self, driver: Driver) -> None:
        self._drivers.discard(driver)
        metrics.SESSIONS.set(len(self._drivers))


class _Closed:
    """The `driver.Connector` of a suspended agent: every session hears in its own protocol why none is opened."""

    def __init__(self, why: Suspended) -> None:
        self._why = why

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        raise self._why

    async def cancel(self, process_id: int, secret: bytes) -> None:
        """There is nothing to cancel."""

    def on_cancel(self, opened: Opened, interrupt: Callable[[], bool]) -> None:
        """Nothing was opened."""

    def forget(self, opened: Opened, *, is_running: bool = False) -> None:
        """Nothing was opened."""


def _turned_away(why: str) -> Link:
    """A connection that hears why and is closed."""

    def tell() -> None:
        link.write(fatal(ChaperoneError(why)))
        link.close()

    link = Link(lambda _: None, tell)
    return link
