"""`chaperone-gateway run`: the process in its pod, from the environment to the ready file and the last record.

Order of a start: enrolled and configured (`runtime`), trust published, DNS and listener up, the fence proved from
inside, and only then the ready file, for which kubelet holds every other container back. The fence is proved again for
as long as the process lives; when that fails the process ends, because it must not vouch for what it cannot see.

End: sessions get a native last word, the stream is closed and signed, and what is in the spool is shipped while there
is time. What is not stays on the volume for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Final, Literal

import uvloop

from chaperone_sidecar import fence, trust
from chaperone_sidecar.config import GatewayConfig
from chaperone_sidecar.dial import Dialer, marked_socket
from chaperone_sidecar.dns import DnsServer
from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.listener import Listener
from chaperone_sidecar.resolver import RESOLV_CONF, Resolver, read_conf
from chaperone_sidecar.runtime import Edges, Runtime, Settings

logger = logging.getLogger(__name__)

TOKEN: Final = Path("/var/run/chaperone/token/token")
SPOOL: Final = Path("/var/lib/chaperone")
BUNDLE: Final = Path("/run/chaperone-bundle/bundle.tar.gz")
OPA: Final = Path("/run/chaperone-opa/opa.sock")
PROVE_EVERY_S: Final = 30.0
LAST_SHIPPING_S: Final = 8.0  # kubelet gives a pod 30 s by default, and sidecars end last
PROBE_PORTS: Final = range(20_000, 60_000)  # where probes of the fence knock outside


def run(ready: Path) -> None:
    """Run until SIGTERM.

    Args:
        ready: exists while the gateway serves.

    Raises:
        ChaperoneError: the gateway cannot go on; the text says why.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    ready.unlink(missing_ok=True)
    uvloop.run(_run(_settings(os.environ), ready))


def _settings(environment: Mapping[str, str]) -> Settings:
    try:
        return Settings(
            broker_url=environment["CHAPERONE_BROKER"],
            collector_url=environment["CHAPERONE_COLLECTOR"],
            ca_pem=environment["CHAPERONE_CA"],
            cluster=environment["CHAPERONE_CLUSTER"],
            namespace=environment["POD_NAMESPACE"],
            pod=environment["POD_NAME"],
            pod_uid=environment["POD_UID"],
            identity=environment["CHAPERONE_IDENTITY"],
            policy_key=environment["CHAPERONE_POLICY_KEY"],
            node=environment.get("NODE_NAME", ""),
            service_account=environment.get("SERVICE_ACCOUNT", ""),
            token_path=TOKEN,
            spool=SPOOL,
            spool_bytes=int(environment["CHAPERONE_SPOOL_BYTES"]),
            bundle=BUNDLE,
            opa=OPA,
        )
    except KeyError as error:
        raise ConfigError(f"The variable {error} is not set; was this container made by Chaperone?") from error
    except ValueError as error:
        raise ConfigError("CHAPERONE_SPOOL_BYTES is not a number.") from error


async def _run(settings: Settings, ready: Path) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    conf = read_conf(RESOLV_CONF.read_text())
    resolver = Resolver(conf, marked_socket)
    dialer = Dialer(resolver)
    runtime = Runtime(settings, Edges(dialer.dial, resolver.addresses, dialer.connector))
    stopped = asyncio.create_task(stop.wait())
    gateway = await _first(runtime.start(), stopped)
    if gateway is None:
        return
    dns, listener = DnsServer(conf, gateway.deny_name), Listener(gateway.take, gateway.deny_egress)

    def follow(config: GatewayConfig) -> None:
        dns.use(config.declared)
        listener.use(config.declared)

    runtime.follow(follow)
    known_hosts = gateway.ssh_host_key.known_hosts(gateway.config.declared)
    trust.publish(gateway.ca_pem, known_hosts, settings.namespace)
    await dns.start(fence.DNS_PORT)
    listener.start(fence.TCP_PORT)
    await _prove(listener)
    ready.touch()  # noqa: ASYNC240 - memory
    logger.info("ready: revision %s is in force", gateway.config.revision)
    work = [asyncio.ensure_future(part) for part in (runtime.run(), _keep_proving(listener))]
    try:
        await asyncio.wait((*work, stopped), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ready.unlink(missing_ok=True)  # noqa: ASYNC240 - memory
        gateway.close("the pod ends" if stop.is_set() else "the gateway failed")
        await runtime.drain(LAST_SHIPPING_S)
        for task in work:
            task.cancel()
        found = await asyncio.gather(*work, return_exceptions=True)
    for error in found:
        if isinstance(error, Exception):
            raise error


async def _first[T](work: Coroutine[None, None, T], stopped: asyncio.Task[Literal[True]]) -> T | None:
    """What `work` gives, or None when the pod ends before."""
    task = asyncio.ensure_future(work)
    await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None


async def _keep_proving(listener: Listener) -> None:
    while True:
        await asyncio.sleep(PROVE_EVERY_S)
        await _prove(listener)


async def _prove(listener: Listener) -> None:
    """Prove the fence in a thread, at a port that nobody can foresee.

    Raises:
        FenceBroken: something left the pod.
    """
    listener.probe_port = PROBE_PORTS.start + secrets.randbelow(len(PROBE_PORTS))
    try:
        await asyncio.to_thread(fence.prove, listener.probe_port)
    finally:
        listener.probe_port = 0
