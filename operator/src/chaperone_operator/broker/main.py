"""`chaperone-broker`: starts the broker and ends it cleanly on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import ssl
import sys
from pathlib import Path
from typing import Final

from aiohttp import web

from chaperone_operator import kubeconfig
from chaperone_operator.approval import Request
from chaperone_operator.broker import ca, maskkey
from chaperone_operator.broker.approval import Approvals
from chaperone_operator.broker.condition import Conditions
from chaperone_operator.broker.deadline import Deadlines
from chaperone_operator.broker.enrolment import Enrolments
from chaperone_operator.broker.errors import CannotStart
from chaperone_operator.broker.http_header import HttpHeaders
from chaperone_operator.broker.issuer import Issuers
from chaperone_operator.broker.kubernetes_token import KubernetesTokens
from chaperone_operator.broker.lease import Leases
from chaperone_operator.broker.lease_ledger import LeaseLedger
from chaperone_operator.broker.ledger import Ledger
from chaperone_operator.broker.metrics import Metrics
from chaperone_operator.broker.notify import Notifier, Receiver
from chaperone_operator.broker.password import Passwords
from chaperone_operator.broker.postgresql_role import PostgresqlRoles
from chaperone_operator.broker.report import Reports
from chaperone_operator.broker.revocation import Revocations
from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.server import Broker
from chaperone_operator.broker.serving import Serving
from chaperone_operator.broker.snapshots import Snapshots
from chaperone_operator.broker.source import Source
from chaperone_operator.broker.ssh_certificate import SshCertificates
from chaperone_operator.broker.user import Users
from chaperone_operator.broker.vault import Vault, VaultDatabases, VaultKvs
from chaperone_operator.broker.verdict import RETENTION_S, Verdicts
from chaperone_operator.kube import NAMESPACES, ApiError, Client

DRAIN_S: Final = 3.0  # between "not ready" and the end of the listener, so that the Service sends nobody here any more
SHUTDOWN_S: Final = 5.0  # calls under way may end; long polls are cut, and the gateway polls again
PUBLISH_PERIOD_S: Final = 300.0  # the trust root is put back when somebody removes it
PUBLISH_RETRY_S: Final = 5.0

_log = logging.getLogger(__name__)


def main() -> None:
    """Entry point; exit status 1 with one line when the broker cannot start."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        asyncio.run(serve(arguments))
    except (CannotStart, kubeconfig.ConfigError) as error:
        sys.exit(f"chaperone-broker: {error}")


async def serve(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        CannotStart, ConfigError: something that the broker needs is missing.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    access = kubeconfig.find(arguments.kubeconfig, arguments.context)
    async with Client(access, agent="chaperone-broker") as client:
        authority = await ca.load(client, arguments.namespace)
        mask_keys = await maskkey.load(client, arguments.namespace)
        cluster = await _cluster(client)
        snapshots, secrets = Snapshots(client, arguments.namespace), Secrets(client, arguments.namespace)
        changed = asyncio.Event()
        leased, roles = LeaseLedger(client, arguments.namespace, changed.set), PostgresqlRoles(secrets)
        leases = Leases(_sources(client, arguments.namespace, secrets, roles), leased, Conditions(client))
        revocations = Revocations(client, leased, leases, snapshots, roles, changed)
        metrics, ledger, deadlines = Metrics(), Ledger(client), Deadlines()
        notifier = _notifier(arguments, metrics)

        def tell(request: Request) -> None:
            metrics.approvals.labels(request.status.state).inc()
            if notifier is not None:
                notifier.tell(request)

        approvals = Approvals(ledger, snapshots, deadlines, tell)
        verdicts = Verdicts(ledger, snapshots, deadlines, arguments.approval_retention, tell)
        reports = Reports(client)
        enrolments = Enrolments(client, authority, cluster)
        users = Users(Issuers(secrets))
        broker = Broker(client, enrolments, snapshots, leases, mask_keys, approvals, users, metrics, reports)
        serving = Serving(arguments.tls_cert, arguments.tls_key, authority.pem)
        async with contextlib.AsyncExitStack() as stack:
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            followers = [
                tasks.create_task(snapshots.run()),
                tasks.create_task(ledger.run()),
                tasks.create_task(leased.run()),
                tasks.create_task(revocations.run()),
                tasks.create_task(verdicts.run()),
                tasks.create_task(serving.run()),
                tasks.create_task(reports.run()),
                tasks.create_task(_publish(client, arguments.namespace, authority)),
            ]
            if notifier is not None:
                followers.append(tasks.create_task(notifier.run()))
            port = await _listen(stack, broker.application(), arguments.address, arguments.port, serving.context)
            watched = await _listen(stack, broker.observation(), arguments.address, arguments.metrics_port, None)
            _log.info("serving gateways on port %d, metrics on port %d", port, watched)
            await stop.wait()
            broker.stop()
            await asyncio.sleep(arguments.drain)
            for follower in followers:
                follower.cancel()


def _sources(client: Client, namespace: str, secrets: Secrets, roles: PostgresqlRoles) -> dict[str, Source]:
    """What leases each kind of credential."""
    vault = Vault(client, namespace, secrets)
    return {
        "secretRef": Passwords(secrets),
        "postgresqlRole": roles,
        "sshCertificate": SshCertificates(secrets),
        "kubernetesToken": KubernetesTokens(client, secrets),
        "httpHeader": HttpHeaders(secrets),
        "vaultKv": VaultKvs(vault, secrets),
        "vaultDatabase": VaultDatabases(vault, secrets),
    }


def _notifier(arguments: argparse.Namespace, metrics: Metrics) -> Notifier | None:
    if arguments.notify_dir is None:
        return None
    receiver = Receiver(arguments.notify_dir, arguments.notify_format, arguments.notify_text)
    return Notifier(receiver, lambda result: metrics.notifications.labels(result).inc())


async def _listen(
    stack: contextlib.AsyncExitStack, app: web.Application, address: str, port: int, context: ssl.SSLContext | None
) -> int:
    """Start a listener and give its port."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, address, port, ssl_context=context).start()
    bound: int = runner.addresses[0][1]
    return bound


async def _cluster(client: Client) -> str:
    try:
        found = await client.get(NAMESPACES, "kube-system")
    except ApiError as error:
        raise CannotStart(f"The cluster's identity cannot be read from Namespace kube-system: {error}") from error
    uid: str = found["metadata"]["uid"]
    return uid


async def _publish(client: Client, namespace: str, authority: ca.Authority) -> None:
    while True:
        try:
            await ca.publish(client, namespace, authority)
        except ApiError as error:
            _log.warning("the trust root was not published: %s", error)
            await asyncio.sleep(PUBLISH_RETRY_S)
        else:
            await asyncio.sleep(PUBLISH_PERIOD_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="chaperone-broker", description=__doc__)
    parser.add_argument("--namespace", default="chaperone-system", help="system namespace (Secrets, snapshots)")
    parser.add_argument("--address", default="", help="address to listen on; default: all")
    parser.add_argument("--port", type=int, default=8443, help="HTTPS port for gateways")
    parser.add_argument("--metrics-port", type=int, default=8080, help="HTTP port for /metrics, /healthz, /readyz")
    parser.add_argument("--tls-cert", type=Path, default=Path("/etc/chaperone-tls/tls.crt"), help="serving certificate")
    parser.add_argument("--tls-key", type=Path, default=Path("/etc/chaperone-tls/tls.key"), help="its key")
    parser.add_argument("--drain", type=float, default=DRAIN_S, help="seconds from not ready to the listener's end")
    parser.add_argument(
        "--approval-retention", type=float, default=RETENTION_S, help="seconds for which ended requests are kept"
    )
    parser.add_argument("--notify-dir", type=Path, default=None, help="folder with url and key of a webhook to notify")
    parser.add_argument("--notify-format", choices=("JSON", "Slack"), default="JSON", help="of notifications")
    parser.add_argument("--notify-text", action="store_true", help="notifications hold the masked text of commands")
    parser.add_argument("--kubeconfig", default=None, help="default: the pod's service account")
    parser.add_argument("--context", default=None, help="context of the kubeconfig")
    return parser
