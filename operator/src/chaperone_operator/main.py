"""`chaperone-operator run`: webhooks, certificates and reconciliation in one process, ended cleanly by SIGTERM.

Every replica answers webhooks from its own mirror and looks after the certificates; the holder of the Lease reconciles.
Order of a start: certificates, mirror of the identities, listener, then everything else. If any part ends by itself the
process ends with status 1, and the kubelet starts it anew.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import ssl
import sys
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any, Final

import msgspec
from aiohttp import web

from chaperone_operator import kubeconfig, pki, policykey
from chaperone_operator.admission.identities import Identities
from chaperone_operator.admission.inject import Settings
from chaperone_operator.admission.server import Webhooks
from chaperone_operator.certs import Certificates
from chaperone_operator.kube import NAMESPACES, PODS, ApiError, Client, Object, Resource
from chaperone_operator.metrics import CONTENT_TYPE, Metrics
from chaperone_operator.reconcile.backlog import Backlog
from chaperone_operator.reconcile.leadership import Leadership
from chaperone_operator.reconcile.loop import Reconciler
from chaperone_operator.reconcile.populate import Populating
from chaperone_operator.reconcile.publish import Publishing
from chaperone_operator.reconcile.resync import Resync
from chaperone_operator.reconcile.snapshot import Declared
from chaperone_operator.reconcile.tally import Tallying
from chaperone_operator.reconcile.watch import Watches
from chaperone_operator.reconcile.world import Change, World
from chaperone_operator.signing import Signer

SHUTDOWN_S: Final = 5.0  # admission requests under way may end; the API server gives them 5 s itself
DRAIN_S: Final = 3.0  # between "not ready" and the end of the listener, so that Services send nobody here any more
START_RETRY_S: Final = 3.0
START_TIMEOUT_S: Final = 120.0  # for the API server to answer and the CRDs to be there; then the kubelet tries again

_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The operator has not what it needs; the text says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; 1 when the operator cannot start or a part of it failed."""
    options = _options(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it has a line for every event of every pod
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # would lament that signals are ours
    try:
        asyncio.run(Operator(options).run())
    except (kubeconfig.ConfigError, CannotStart) as error:
        _log.critical("%s", error)
        return 1
    except ExceptionGroup:
        _log.exception("a part of the operator failed")
        return 1
    return 0


class Operator:
    """One replica."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._access = kubeconfig.find(options.kubeconfig, options.context)
        self._client = Client(self._access, agent="chaperone-operator")
        self._metrics = Metrics()
        self._instance = f"{os.environ.get('POD_NAME') or os.uname().nodename}_{secrets.token_hex(4)}"
        self._backlog = Backlog()
        self._leadership = Leadership(self._client, options.namespace, self._instance)
        self._world = World(self._changed)
        self._reconciler = Reconciler(
            self._client, self._world, self._leadership, self._backlog, self._metrics, options.namespace, self._instance
        )
        self._resync = Resync(self._client, self._world, self._reconciler)
        self._tallying = Tallying(self._client, self._world, self._leadership)
        self._populating = Populating(self._client, self._world, self._leadership)
        self._publishing = Publishing(self._client, self._leadership)
        self._reconciler.on_stored = self._publishing.in_force
        self._identities = Identities(self._client)
        self._certificates = Certificates(self._client, options.namespace, on_bundle=self._new_bundle)
        self._webhooks: Webhooks | None = None
        self._is_stopping = False

    async def run(self) -> None:
        """Run until SIGTERM or SIGINT.

        Raises:
            CannotStart: see the text. ExceptionGroup: a part failed.
        """
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with self._client:
            cluster, signer = await self._started()
            self._webhooks = Webhooks(
                self._client, self._identities, self._settings(cluster, signer.vkey), declares=self._declared,
                metrics=self._metrics, instance=self._instance,
            )  # fmt: skip
            async with AsyncExitStack() as stack:
                tasks = await stack.enter_async_context(asyncio.TaskGroup())
                parts: list[Coroutine[Any, Any, None]] = [
                    self._certificates.run(),
                    self._identities.run(),
                    self._resync.run(),
                    self._leadership.run(),
                    Watches(self._access, self._take).run(),
                    self._tally(),
                    self._populate(signer, cluster),
                    self._publishing.run(signer),
                    self._reconcile(signer),
                ]
                running = [tasks.create_task(part) for part in parts]
                options = self._options
                await self._listen(stack, self._observation(), options.metrics_port, None)
                await self._listen(stack, self._webhooks.application(), options.port, self._certificates.context)
                await stop.wait()
                _log.info("stopping")
                self._is_stopping = self._webhooks.is_stopping = True
                running[-1].cancel()
                await asyncio.sleep(options.drain)
                for task in running:
                    task.cancel()

    async def _started(self) -> tuple[str, Signer]:
        """Wait for what everything else needs; gives the cluster's uid and the key that signs policy."""
        why = "the API server does not answer."
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while True:
                    try:
                        await self._certificates.ensure()
                        await self._identities.mirror.client.list(self._identities.mirror.resource)
                        uid: str = (await self._client.get(NAMESPACES, "kube-system"))["metadata"]["uid"]
                        signer = await policykey.load(self._client, self._options.namespace, uid)
                    except (ApiError, pki.Unusable, policykey.Unusable) as error:
                        why = str(error)
                        _log.warning("not started yet: %s", why)
                        await asyncio.sleep(START_RETRY_S)
                    else:
                        return uid, signer
        except TimeoutError:
            raise CannotStart(f"Not started after {START_TIMEOUT_S:.0f} s: {why}") from None

    async def _reconcile(self, signer: Signer) -> None:
        await self._resync.synced.wait()  # an empty world would look like one in which everything was deleted
        await self._reconciler.run(signer)

    async def _tally(self) -> None:
        await self._resync.synced.wait()
        await self._tallying.run()

    async def _populate(self, signer: Signer, cluster: str) -> None:
        await self._resync.synced.wait()
        await self._populating.run(signer, cluster)

    async def _listen(
        self, stack: AsyncExitStack, app: web.Application, port: int, context: ssl.SSLContext | None
    ) -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, self._options.address, port, ssl_context=context).start()
        except OSError as error:
            raise CannotStart(f"Port {port} cannot be listened on: {error.strerror}.") from error
        _log.info("%s on port %d", "webhooks" if context else "health and metrics", runner.addresses[0][1])

    def _settings(self, cluster: str, policy_key: str) -> Settings:
        options = self._options
        return Settings(
            version=options.version,
            gateway_image=options.gateway_image,
            opa_image=options.opa_image,
            cluster=cluster,
            service_ca=self._certificates.bundle,
            policy_key=policy_key,
            seal=self._certificates.seal,
            system_namespace=options.namespace,
            pull_policy=options.pull_policy,
            spool_bytes=options.spool_bytes,
            runtime_classes=frozenset(filter(None, options.runtime_classes.split(","))),
        )

    def _new_bundle(self, bundle: str) -> None:
        if self._webhooks is not None:
            self._webhooks.settings = msgspec.structs.replace(
                self._webhooks.settings, service_ca=bundle, seal=self._certificates.seal
            )

    def _changed(self, change: Change, namespace: str) -> None:
        self._reconciler.changed(change, namespace)
        self._populating.changed(change, namespace)

    def _take(self, resource: Resource, item: Object, is_gone: bool) -> None:
        if resource == PODS:
            self._world.take_pod(item, is_gone=is_gone)
        else:
            self._world.take(resource, item, is_gone=is_gone)

    def _declared(self, namespace: str) -> Declared | None:
        return self._world.declared(namespace) if self._resync.synced.is_set() else None

    def _observation(self) -> web.Application:
        async def show(_: web.Request) -> web.Response:
            self._metrics.is_leading.set(self._leadership.is_held)
            return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

        async def live(_: web.Request) -> web.Response:
            return web.Response(text="ok")

        async def ready(_: web.Request) -> web.Response:
            if self._is_stopping:
                return web.Response(status=503, text="stopping")
            if not self._identities.mirror.synced.is_set():
                return web.Response(status=503, text="The AgentIdentities have not been read yet.")
            return web.Response(text="ok")

        app = web.Application(client_max_size=1)
        app.add_routes([web.get("/metrics", show), web.get("/healthz", live), web.get("/readyz", ready)])
        return app


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("chaperone-operator", description=__doc__, allow_abbrev=False)
    run = parser.add_subparsers(dest="command", required=True).add_parser("run", help="run one replica")
    add = run.add_argument
    told = os.environ.get
    add("--namespace", default=told("CHAPERONE_NAMESPACE", "chaperone-system"), help="system namespace")
    add("--gateway-image", default=told("CHAPERONE_GATEWAY_IMAGE"), help="image of fence and gateway")
    add("--opa-image", default=told("CHAPERONE_OPA_IMAGE"), help="image of OPA")
    add("--pull-policy", default=told("CHAPERONE_PULL_POLICY", "IfNotPresent"), help="of the injected images")
    add("--version", default=told("CHAPERONE_VERSION", version("chaperone-operator")), help="noted on injected pods")
    add("--spool-bytes", type=int, default=int(told("CHAPERONE_SPOOL_BYTES", str(256 << 20))), help="of each gateway")
    add(
        "--runtime-classes", default=told("CHAPERONE_RUNTIME_CLASSES", ""),
        help="RuntimeClasses that are known to run the fence, separated by commas",
    )  # fmt: skip
    add("--address", default="", help="address to listen on; default: all")
    add("--port", type=int, default=8443, help="HTTPS port of the webhooks")
    add("--metrics-port", type=int, default=8080, help="HTTP port of /metrics, /healthz and /readyz")
    add("--drain", type=float, default=DRAIN_S, help="seconds between being not ready and the end of the listener")
    add("--kubeconfig", default=None, help="default: the pod's service account")
    add("--context", default=None, help="context of the kubeconfig")
    options = parser.parse_args(arguments)
    for name in ("gateway_image", "opa_image"):
        if not getattr(options, name):
            parser.error(f"--{name.replace('_', '-')} is needed")
    return options


if __name__ == "__main__":
    sys.exit(main())
