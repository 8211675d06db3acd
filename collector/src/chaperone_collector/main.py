"""`chaperone-collector`: the process. Two TLS listeners, a plain one for metrics, one store."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp import web

from chaperone_collector import migrate, place
from chaperone_collector.api import token
from chaperone_collector.api.authorize import Authorizer
from chaperone_collector.api.figures import keep_reports
from chaperone_collector.api.frontproxy import FrontProxy
from chaperone_collector.api.kubernetes import Kubernetes
from chaperone_collector.api.server import Api
from chaperone_collector.archive import options as archive_options
from chaperone_collector.archive.options import ArchiveOptions
from chaperone_collector.erasing import keep_retention
from chaperone_collector.errors import StoreUnusable
from chaperone_collector.ingest import Ingest
from chaperone_collector.metrics import CONTENT_TYPE, Metrics
from chaperone_collector.peer import GatewayCa, Peers
from chaperone_collector.store import Store
from chaperone_collector.tls import ServerTls
from chaperone_collector.witnessing import Witnessing
from chaperone_evidence import policyfile
from chaperone_evidence.errors import Malformed
from chaperone_evidence.policyfile import Quorum, Witness

if TYPE_CHECKING:
    from chaperone_collector.following import Following

log = logging.getLogger("chaperone_collector")

SHUTDOWN_TIMEOUT_S: Final = 10.0  # for requests that are being answered; kubelet waits 30 s by default
KEEPALIVE_S: Final = 75.0
MAX_HEADERS: Final = 2048  # one per group of a user; directories give people hundreds
MAX_LINE_BYTES: Final = 32 << 10  # two selectors and a token, encoded
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; 0 when ended in order, 1 when the collector cannot start or its disk failed.

    With the name of a command (`migrate`, `new-log-key`; of the archive `drill`, `restore`, `export-keys`) as first
    argument: that.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given and given[0] in migrate.COMMANDS:
        return migrate.command(given)
    if given and not given[0].startswith("-"):
        from chaperone_collector.archive.commands import command  # noqa: PLC0415 - its client takes a second to load

        return command(given)
    options = _options(given)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    try:
        return asyncio.run(_run(options))
    except StoreUnusable as error:
        log.critical("%s", error)
        return 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("chaperone-collector", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    place.add_options(parser)
    add("--tls-dir", type=Path, required=True, help="directory with tls.crt and tls.key of both TLS listeners")
    add("--gateway-ca", type=Path, required=True, help="PEM file of the CA that issues gateways' certificates")
    add("--bind", default="", help="address to listen on; default: all")
    add("--ingest-port", type=int, default=8443, help="port for gateways")
    add("--api-port", type=int, default=6443, help="port for kube-apiserver's aggregation layer; −1: no API")
    add("--metrics-port", type=int, default=9090, help="port of /metrics, plain HTTP")
    add(
        "--witnesses",
        type=Path,
        help="C2SP tlog-policy file: witnesses with a URL are asked to sign the log, too; receipts wait for its quorum",
    )
    add("--witness-ca", type=Path, help="PEM file of the CA of https witnesses; default: those of the system")
    add("--min-retention", type=int, default=365, metavar="DAYS", help="texts are kept so long at least; default: 365")
    add("--archive", type=Path, help="YAML file: the bucket with Object Lock that holds the log's second copy")
    add("--kubernetes", default=_in_cluster(), help="URL of the Kubernetes API; default: that of the pod's cluster")
    add("--kubernetes-ca", type=Path, default=_SERVICE_ACCOUNT / "ca.crt", help="PEM file of its CA")
    add("--kubernetes-token", type=Path, default=_SERVICE_ACCOUNT / "token", help="file of the service account's token")
    return parser.parse_args(arguments)


def _in_cluster() -> str:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}" if host else ""


def _now_us() -> int:
    return time.time_ns() // 1000


async def _run(options: argparse.Namespace) -> int:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    metrics = Metrics()
    witnesses, quorum = _witnesses(options.witnesses)
    witness_tls = _client_tls(options.witness_ca)
    archive = archive_options.load(options.archive) if options.archive is not None else None
    store = Store(place.open_place(options), metrics, _now_us, witnesses, quorum)
    following = _follow(store)
    runners: list[web.AppRunner] = []
    tasks: list[asyncio.Task[None]] = []
    kubernetes = None
    api = None
    try:
        ca = GatewayCa(options.gateway_ca)
        pair = (options.tls_dir / "tls.crt", options.tls_dir / "tls.key")
        tls = ServerTls(*pair, ca.read, ssl.CERT_REQUIRED)
        tasks.append(asyncio.create_task(tls.run()))
        if options.api_port >= 0:
            if not options.kubernetes:
                raise StoreUnusable("Give --kubernetes, or run in a pod; --api-port -1 runs without the API.")
            kubernetes = Kubernetes(options.kubernetes, options.kubernetes_ca, options.kubernetes_token)
            front = await FrontProxy.load(kubernetes)
            api_tls = ServerTls(*pair, lambda: front.trust.ca_pem, ssl.CERT_OPTIONAL, ssl.TLSVersion.TLSv1_2)
            tasks += [asyncio.create_task(api_tls.run()), asyncio.create_task(front.run(api_tls.reload))]
            key = await store.write(lambda tx: tx.secret("continue-key", os.urandom(token.KEY_BYTES)))
            api = Api(
                store=store, front=front, authorizer=Authorizer(kubernetes), is_current=api_tls.is_current, key=key,
                metrics=metrics, now_us=_now_us,
            )  # fmt: skip
            await _listen(runners, api.application(), options, options.api_port, api_tls.outer)
        for work in (
            store.keep_checkpoints, store.keep_watch, lambda: keep_reports(store, _now_us),
            lambda: keep_retention(store, options.min_retention),
            lambda: Witnessing(store, witnesses, metrics, witness_tls).run(), lambda: _ship(store, archive, metrics),
        ):  # fmt: skip
            tasks.append(asyncio.create_task(store.lead.keep(work)))
        ingest = Ingest(store, ca, Peers(ca, tls.is_current), metrics)
        await _listen(runners, ingest.application(), options, options.ingest_port, tls.outer)
        await _listen(runners, _metrics_application(metrics, store), options, options.metrics_port, None)
        log.info("ready, %d entries in the log", store.size)
        await _until(stopping, store.failed)
        return 1 if store.failed.is_set() else 0
    finally:
        if api is not None:
            api.stop()
        for runner in runners:
            await runner.cleanup()
        for task in tasks:
            task.cancel()
        if kubernetes is not None:
            await kubernetes.close()
        if following is not None:
            await asyncio.to_thread(following.close)
        await store.close()


def _follow(store: Store) -> Following | None:
    """Hear of the collectors that share the log, where others may."""
    if not store.database.is_shared:
        return None
    from chaperone_collector.following import Following  # noqa: PLC0415 - only where there is a server
    from chaperone_collector.postgresql import Server  # noqa: PLC0415

    return Following(store, store.database) if isinstance(store.database, Server) else None


async def _ship(store: Store, archive: ArchiveOptions | None, metrics: Metrics) -> None:
    if archive is None:
        return
    # Loaded where it is needed: the client of buckets takes a second and 40 MiB.
    from chaperone_collector.archive.shipping import Shipping  # noqa: PLC0415

    await Shipping(store, archive, metrics, _now_us).run()


def _witnesses(path: Path | None) -> tuple[tuple[Witness, ...], Quorum]:
    try:
        text = path.read_text() if path is not None else ""
        return policyfile.parse_witnesses(text), policyfile.parse_quorum(text)
    except (OSError, UnicodeDecodeError, Malformed) as error:
        raise StoreUnusable(f"The witnesses in {path} cannot be read: {error}") from error


def _client_tls(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:  # ssl.SSLError is one
        raise StoreUnusable(f"The CA of the witnesses in {authority} cannot be read: {error}.") from error


async def _listen(
    runners: list[web.AppRunner],
    application: web.Application,
    options: argparse.Namespace,
    port: int,
    tls: ssl.SSLContext | None,
) -> None:
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, keepalive_timeout=KEEPALIVE_S,
        handler_cancellation=False, max_headers=MAX_HEADERS, max_line_size=MAX_LINE_BYTES,
    )  # fmt: skip
    runners.append(runner)
    await runner.setup()
    try:
        await web.TCPSite(runner, options.bind or None, port, ssl_context=tls).start()
    except OSError as error:
        raise StoreUnusable(f"Port {port} cannot be listened on: {error.strerror}.") from error
    log.info("listening on %s", runner.addresses)


def _metrics_application(metrics: Metrics, store: Store) -> web.Application:
    async def show(_request: web.Request) -> web.Response:
        metrics.size.set(store.size)
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    async def ready(_request: web.Request) -> web.Response:
        return web.Response(text="ok") if store.failure is None else web.Response(status=503, text=store.failure)

    application = web.Application(client_max_size=1)
    application.add_routes([web.get("/metrics", show), web.get("/readyz", ready), web.get("/livez", ready)])
    return application


async def _until(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


if __name__ == "__main__":
    sys.exit(main())
