"""kopf, used for what it is best at: watches that go on. Its low-level event handlers feed the world, nothing else.

kopf runs on a loop and thread of its own, because it takes every task of its loop for its own when it stops; events
cross over one by one. It keeps nothing in the cluster: no annotations, no finalizers, no peering, no events.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import kopf

from chaperone_operator.kube import PODS, Object, Resource
from chaperone_operator.kubeconfig import Access
from chaperone_operator.reconcile.world import KINDS

SERVER_TIMEOUT_S: Final = 300  # the API server ends a watch after this, and a new one is opened
CLIENT_TIMEOUT_S: Final = 330  # past this the API server has forgotten to
CONNECT_TIMEOUT_S: Final = 10
SILENCE_S: Final = 75.0  # bookmarks come each minute; past this a connection is taken for dead
WORKERS: Final = 64  # objects handled at once; a handler only hands its event over
LOGIN_LIFE: Final = timedelta(minutes=10)  # then the token is read again; the kubelet renews it at 80 % of its life
LAST_BACKOFF_S: Final = 10.0  # between tries while the API server is away
STOP_S: Final = 10.0

IDENTITY: Final = "chaperone-operator"  # unset, kopf asks for the user's name, and a container's user has none

type OnEvent = Callable[[Resource, Object, bool], None]
"""Called with kind, object and whether it is gone."""

_log = logging.getLogger(__name__)


class Watches:
    """Watches of all kinds, in a thread.

    Args:
        access: to the API server, shared with our own client.
        on_event: called on the loop on which `run` runs.
        silence_s: how long a watch may be silent.
    """

    def __init__(self, access: Access, on_event: OnEvent, silence_s: float = SILENCE_S) -> None:
        self._access = access
        self._on_event = on_event
        self._silence_s = silence_s
        self._stop = threading.Event()

    async def run(self) -> None:
        """Watch until cancelled.

        Raises:
            RuntimeError: kopf ended by itself; without watches the operator is blind, so the process must end.
        """
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        thread = threading.Thread(target=self._thread, args=(loop, ended), name="watches", daemon=True)
        thread.start()
        try:
            raise RuntimeError(f"The watches ended: {await asyncio.shield(ended)}")
        finally:
            self._stop.set()
            await asyncio.to_thread(thread.join, STOP_S)

    def _thread(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[str]) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=self._registry(loop),
                    settings=_settings(self._silence_s),
                    standalone=True,
                    identity=IDENTITY,  # type: ignore[arg-type]  # a str; its name in kopf is not public
                    clusterwide=True,
                    stop_flag=self._stop,
                )
            )
            why = "kopf stopped"
        except Exception as error:  # whatever it is, `run` tells it and the process ends
            _log.exception("kopf failed")
            why = str(error) or type(error).__name__
        if not loop.is_closed():
            loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(why))

    def _registry(self, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()

        @kopf.on.login(registry=registry)
        async def login(**_: object) -> kopf.ConnectionInfo:
            return _connection(self._access)

        for resource in (*KINDS, PODS):
            self._follow(registry, loop, resource)
        return registry

    def _follow(self, registry: kopf.OperatorRegistry, loop: asyncio.AbstractEventLoop, resource: Resource) -> None:
        @kopf.on.event(
            resource.group, resource.version, resource.plural, id=f"take-{resource.plural}", registry=registry
        )
        async def take(event: kopf.RawEvent, **_: object) -> None:
            loop.call_soon_threadsafe(self._on_event, resource, dict(event["object"]), event["type"] == "DELETED")


@dataclass(frozen=True, kw_only=True)
class _Connection(kopf.ConnectionInfo):
    """The same access as our own client's; kopf would make a stricter TLS context, which many clusters' CAs fail."""

    tls: ssl.SSLContext

    def as_ssl_context(self) -> ssl.SSLContext:
        """The context of the access."""
        return self.tls


def _connection(access: Access) -> _Connection:
    # A token is read again before it ends; a client certificate lasts as long as the process.
    end = datetime.now(UTC) + LOGIN_LIFE if access.token_path is not None else None
    return _Connection(server=access.url, token=access.bearer() or None, expiration=end, tls=access.context)


def _settings(silence_s: float) -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # all kinds are there before we start, and the right to list CRDs is not needed
    settings.posting.enabled = False
    settings.watching.server_timeout = SERVER_TIMEOUT_S
    settings.watching.client_timeout = CLIENT_TIMEOUT_S
    settings.watching.connect_timeout = CONNECT_TIMEOUT_S
    settings.watching.inactivity_timeout = silence_s
    settings.networking.connect_timeout = CONNECT_TIMEOUT_S
    settings.networking.error_backoffs = _Backoffs()
    settings.queueing.worker_limit = WORKERS
    settings.execution.max_workers = 1  # every handler is a coroutine
    settings.process.ultimate_exiting_timeout = None  # would kill the whole process from a thread
    settings.persistence.progress_storage = kopf.StatusProgressStorage()
    settings.persistence.diffbase_storage = kopf.StatusDiffBaseStorage()
    return settings


class _Backoffs:
    """Pauses between tries, without an end: an API server may be away for longer than any list."""

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1.0, 1.0, 2.0, 3.0, 5.0, 8.0), itertools.repeat(LAST_BACKOFF_S))
