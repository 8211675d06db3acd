"""A gateway in its pod: enrolled at the broker, configured by it, recording to the collector.

Theory of operation. Start: a stream key is made, the pod's token is exchanged for a certificate that binds it, the
configuration (with the key that its masks need) and the policy bundle are fetched, the stream begins. From then on
five loops run for the life of the process: the configuration is followed (a new revision counts once the operator's
signature holds and OPA has loaded it, a suspension before OPA), the certificate is renewed, the spool is shipped, heads
are signed, leases in use are renewed. When a peer is away the last good state holds, and what needs the peer (a new
session's lease) is refused with its reason; only a lease that ends before it could be renewed takes its sessions with
it.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from chaperone_evidence import record
from chaperone_sidecar.approval.broker_desk import BrokerDesk
from chaperone_sidecar.config import GatewayConfig, decode
from chaperone_sidecar.credentials.broker import LONG_POLL_S, Broker
from chaperone_sidecar.credentials.lease import Leases
from chaperone_sidecar.errors import BrokerUnavailable, ChaperoneError, ConfigError
from chaperone_sidecar.frontend import Dial, Resolve
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.policy.provenance import Provenance, Statement
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.receipts import Receipts
from chaperone_sidecar.recording.shipper import Shipper, ShippingRefused
from chaperone_sidecar.recording.stream import begin_stream, make_signer
from chaperone_sidecar.tls import PodCa

logger = logging.getLogger(__name__)

RETRY_FIRST_S: Final = 0.5
RETRY_LONGEST_S: Final = 15.0
OPA_TIMEOUT_S: Final = 30.0  # OPA loads a bundle in well under a second once it runs
APPLYING_POLL_S: Final = 5  # between a policy's coming and its being in force, so that the broker hears of that soon
DRAIN_POLL_S: Final = 0.05
RENEW_AT: Final = 2 / 3  # of a certificate's life, so that a broker may be away for a third of it


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the pod's environment says; `policy_key` is the operator's public key, as a note verifier key."""

    broker_url: str
    collector_url: str
    ca_pem: str
    cluster: str
    namespace: str
    pod: str
    pod_uid: str
    identity: str
    policy_key: str
    node: str = ""
    service_account: str = ""
    token_path: Path
    spool: Path
    spool_bytes: int
    bundle: Path  # where OPA reads it
    opa: Path  # the socket at which it listens


class Edges(msgspec.Struct, frozen=True):
    """How this gateway reaches the world; inside a pod every socket of these carries the mark."""

    dial: Dial
    resolve: Resolve
    connector: Callable[[ssl.SSLContext], aiohttp.TCPConnector]


class Policy(msgspec.Struct, frozen=True):
    """A configuration that the operator signed, with the key that its masks need."""

    config: GatewayConfig
    mask_key: bytes
    statement: Statement


class Runtime:
    """Builds a `Gateway` and keeps it current.

    Args:
        settings: the pod.
        edges: the way out.
    """

    def __init__(self, settings: Settings, edges: Edges) -> None:
        self._settings = settings
        self._edges = edges
        self._on_config: Callable[[GatewayConfig], None] = lambda _: None
        self._signer = make_signer(settings.cluster, settings.pod_uid)
        self._broker = Broker(settings.broker_url, settings.ca_pem, settings.token_path, edges.connector)
        self._provenance = Provenance(settings.policy_key, settings.namespace, settings.identity, settings.spool)
        self._decider = Decider(settings.identity, settings.opa)
        self._leases = Leases(self._broker)
        self._collector: aiohttp.ClientSession | None = None
        self._gateway: Gateway | None = None
        self._enrolled_at = 0.0

    async def start(self) -> Gateway:
        """Do everything up to the first session; waits for the broker as long as it takes.

        Raises:
            ConfigError: the configuration cannot be understood. SpoolFull: there is no room for a stream.
        """
        await patiently("the broker gives no certificate yet", self._enroll)
        policy = await patiently("the broker gives no policy yet", self._first_policy)
        config = policy.config
        await self._decider.start()
        settings = self._settings
        opened = record.StreamOpen(
            seq=0, wall_us=0, mono_us=0, stream="", cluster=settings.cluster, namespace=settings.namespace,
            pod=settings.pod, pod_uid=settings.pod_uid, identity=settings.identity, vkey="", node=settings.node,
            certificate=base64.b64encode(self._broker.certificate_der).decode(),
            service_account=settings.service_account, identity_uid=config.identity.uid,
            owner=config.identity.owner.name, durability=config.identity.durability, revision=config.revision,
            policy_serial=policy.statement.serial,
        )  # fmt: skip
        recorder, self._spool = begin_stream(settings.spool, settings.spool_bytes, self._signer, opened, Ids())
        self._shipper = Shipper(settings.spool, self._spool, settings.collector_url, self._collector_session)
        self._receipts = Receipts(
            settings.spool, self._spool.stream, settings.cluster, settings.collector_url, self._collector_session,
            self._shipper,
        )  # fmt: skip
        self._gateway = Gateway(
            config, recorder, self._decider, self._edges.dial, self._edges.resolve, self._leases, PodCa(settings.pod),
            policy.mask_key, BrokerDesk(self._broker), self._broker.identify, self._receipts,
        )  # fmt: skip
        return self._gateway

    def follow(self, on_config: Callable[[GatewayConfig], None]) -> None:
        """Tell the configuration in force now, and each one that comes: DNS and listener go by it."""
        self._on_config = on_config
        on_config(self._started().config)

    async def run(self) -> None:
        """Keep the gateway current until cancelled."""
        gateway = self._started()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_config())
                group.create_task(self._renew())
                group.create_task(self._ship())
                group.create_task(self._receipts.run())
                group.create_task(gateway.keep_heads())
                group.create_task(self._leases.keep())
        finally:
            await self._leases.stop()
            await self._broker.stop()
            await self._decider.stop()
            if self._collector is not None:
                await self._collector.close()

    async def drain(self, timeout_s: float) -> None:
        """Wait until the collector has what was recorded, or for `timeout_s`; `run` must be running."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._shipper.acked_seq < self._started().next_seq - 1:  # noqa: ASYNC110 - rare
                    await asyncio.sleep(DRAIN_POLL_S)
        except TimeoutError:
            logger.warning("the collector does not have every record yet; the rest stays in the spool")

    def _started(self) -> Gateway:
        if self._gateway is None:
            raise ChaperoneError("The gateway has not started.")
        return self._gateway

    async def _enroll(self) -> None:
        await self._broker.enroll(self._signer.verifier.vkey)
        self._enrolled_at = time.time()
        if self._collector is not None:
            await self._collector.close()
        self._collector = aiohttp.ClientSession(connector=self._edges.connector(self._broker.context))

    async def _first_policy(self) -> Policy:
        # Asked for together: between the two the policy may change, and then neither goes with the other.
        found = await self._next_policy("")
        if found is None:
            raise BrokerUnavailable("The broker has no configuration for this pod yet.")
        await self._fetch_bundle(found.statement)
        return found

    async def _next_policy(self, revision: str) -> Policy | None:
        """The configuration after `revision`, with the key that its masks need.

        They are asked for together: were a key waited for alone, a later revision that suspends the agent would wait.

        Raises:
            BrokerUnavailable: it cannot be had. PolicyUntrusted: the operator did not make it for this agent.
            ConfigError: the operator did, and this gateway cannot read it.
        """
        in_force, wait_s = "", 0
        if self._gateway is not None:
            in_force = self._gateway.config.revision
            wait_s = LONG_POLL_S if in_force == revision else APPLYING_POLL_S
        given = await self._broker.config(revision, in_force, wait_s)
        if given is None:
            return None
        statement = self._provenance.check(given.config, given.note)
        config = decode(given.config)
        return Policy(config, await self._broker.mask_key() if config.is_masked else b"", statement)

    async def _fetch_bundle(self, statement: Statement) -> None:
        bundle = await self._broker.bundle(statement.revision)
        self._provenance.check_bundle(bundle, statement)
        fresh = self._settings.bundle.with_suffix(".new")
        # In memory, and at most a megabyte: a thread would outlive a policy that is given up, and write over the next.
        fresh.write_bytes(bundle)
        fresh.replace(self._settings.bundle)

    async def _follow_config(self) -> None:
        """Ask for what comes after the newest configuration, for ever.

        What takes everything away counts at once; what grants anything counts once OPA has loaded it, and is given up
        for whatever comes meanwhile. So neither OPA nor a policy on its way delays the kill switch.
        """
        gateway = self._started()
        newest = gateway.config.revision
        async with asyncio.TaskGroup() as group:
            applying = group.create_task(self._apply_first(newest))
            while True:
                asked = partial(self._next_policy, newest)
                try:
                    found = await patiently("the broker does not give the next policy; the last one stays", asked)
                except ConfigError as error:
                    # What it says is not known, so neither is what it forbids or masks: nothing is served until one
                    # comes that can be read. It is asked for without a revision, for it may be one that was in force.
                    logger.error("the next policy cannot be understood, so nothing is served: %s", error)
                    applying.cancel()
                    newest = ""
                    self._put_in_force(msgspec.structs.replace(gateway.config, revision="", targets=()))
                    await asyncio.sleep(RETRY_LONGEST_S)
                    continue
                if found is None:
                    continue
                applying.cancel()
                newest = found.config.revision
                if found.config.suspension is not None:
                    self._put_in_force(found.config)
                else:
                    applying = group.create_task(self._apply(found))

    async def _apply_first(self, revision: str) -> None:
        """OPA loads the bundle that the gateway started with; until then every command is refused."""
        await self._decider.wait_for_revision(revision, OPA_TIMEOUT_S)

    async def _apply(self, policy: Policy) -> None:
        """Put a configuration in force once OPA decides by it."""
        config = policy.config
        while True:
            await patiently("the broker gives no policy bundle", partial(self._fetch_bundle, policy.statement))
            if await self._decider.wait_for_revision(config.revision, OPA_TIMEOUT_S):
                self._put_in_force(config, policy.mask_key)
                return
            logger.error("OPA did not load revision %s; the one before stays in force", config.revision)
            await asyncio.sleep(RETRY_LONGEST_S)

    def _put_in_force(self, config: GatewayConfig, mask_key: bytes = b"") -> None:
        self._leases.clear()
        self._started().reconfigure(config, mask_key)
        self._on_config(config)
        logger.info("policy revision %s is in force", config.revision)

    async def _renew(self) -> None:
        while True:
            life_s = self._broker.expires_at_unix - self._enrolled_at
            await asyncio.sleep(max(1.0, life_s * RENEW_AT - (time.time() - self._enrolled_at)))
            await patiently("the certificate cannot be renewed", self._enroll)

    async def _ship(self) -> None:
        try:
            await self._shipper.run()
        except ShippingRefused as error:
            # Records go on being kept until the spool is full, and then commands are refused: nothing is lost unseen.
            logger.error("the collector refuses this stream: %s", error)

    def _collector_session(self) -> aiohttp.ClientSession:
        if self._collector is None:
            raise ChaperoneError("The gateway is not enrolled.")
        return self._collector


async def patiently[T](what: str, work: Callable[[], Awaitable[T]]) -> T:
    """Try until the broker answers, each time a little later."""
    pause = RETRY_FIRST_S
    while True:
        try:
            return await work()
        except BrokerUnavailable as error:
            logger.warning("%s: %s", what, error)
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - spreads restarts of many pods
        pause = min(pause * 2, RETRY_LONGEST_S)
