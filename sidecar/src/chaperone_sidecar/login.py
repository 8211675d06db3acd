"""Log-ins at backends, the same for the protocols whose codec is ours: lease, connect, and the steps on the link."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

from chaperone_sidecar.config import Target
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.errors import LeaseRefused, UpstreamUnavailable
from chaperone_sidecar.frontend import Dial, LeaseSource
from chaperone_sidecar.link import Link
from chaperone_sidecar.steps import BeginTls, Read, Send
from chaperone_sidecar.tls import upstream_context

_WRONG_CREDENTIAL: Final = frozenset({"28P01", "28000"})  # SQLSTATE, which MySQL has, too

type Other = Callable[[Any], Awaitable[object]]
"""Does a step that only one protocol has."""


class LogIns:
    """How backends are reached.

    Args:
        dial: connects to a host name or address; inside a pod with the mark, and never to a forbidden address.
        leases: gives the credential of a target.
    """

    def __init__(self, dial: Dial, leases: LeaseSource) -> None:
        self._dial = dial
        self._leases = leases

    async def open[T](self, target: Target, session: str, link: Link, log_in: Callable[[Lease], Awaitable[T]]) -> T:
        """Lease and log in. A credential that the backend refuses is asked for once more: it may be a new one.

        Raises:
            UpstreamUnavailable: with a text for the client.
        """
        lease = await self.lease(target, session)
        try:
            return await self._try(target, lease, log_in)
        except UpstreamUnavailable as error:
            if session or not _is_of_credential(error):
                raise
            fresh = await self.lease(target, session)
            if fresh.is_same_credential(lease):
                raise
        link.begin_again()
        return await self._try(target, fresh, log_in)

    async def lease(self, target: Target, session: str = "") -> Lease:
        """A password for the target.

        Raises:
            UpstreamUnavailable: there is none, or a credential of another kind.
        """
        try:
            lease = await self._leases.lease(target.name, session)
        except LeaseRefused as error:
            raise UpstreamUnavailable(f'Target "{target.name}" cannot be used: {error}', "28000") from error
        if lease.kind != "password":
            raise UpstreamUnavailable(f'Target "{target.name}" needs a password, not a {lease.kind}.', "28000")
        return lease

    async def connect(self, target: Target, link: Link) -> None:
        """Connect a link to a target.

        Raises:
            UpstreamUnavailable: it cannot be reached.
        """
        where = target.upstream
        try:
            connected = await self._dial(where.host, where.port)
            await asyncio.get_running_loop().create_connection(lambda: link, sock=connected)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UpstreamUnavailable(
                f'Target "{target.name}" cannot be reached at {where.host}:{where.port} ({reason}).'
            ) from error

    async def _try[T](self, target: Target, lease: Lease, log_in: Callable[[Lease], Awaitable[T]]) -> T:
        try:
            return await log_in(lease)
        except BaseException as error:
            if target.leased_per_session or _is_of_credential(error):
                self._leases.forget(lease)
            raise


async def perform[T](
    target: Target, link: Link, ca_pem: str, steps: Generator[Any, Any, T], other: Other | None = None
) -> T:
    """Run a log-in's generator on a link; `other` does steps that are none of `steps`.

    Raises:
        UpstreamUnavailable: the backend's certificate is not accepted, or it broke the connection; or what a step says.
    """
    answer: object = None
    try:
        while True:
            step = steps.send(answer)
            answer = None
            match step:
                case Send():
                    link.write(step.data)
                case Read():
                    answer = await link.read()
                case BeginTls():
                    context = upstream_context(target.tls, ca_pem)
                    layer = await link.begin_tls(context, target.tls.server_name or target.upstream.host)
                    answer = layer.end_point_binding()
                case _ if other is not None:
                    answer = await other(step)
    except StopIteration as stop:
        result: T = stop.value
        return result
    except ssl.SSLCertVerificationError as error:
        raise UpstreamUnavailable(
            f'Target "{target.name}" shows a certificate that is not accepted: {error.verify_message}. '
            "Check its certificate, tls.caSecretRef and tls.serverName."
        ) from error
    except (ssl.SSLError, ConnectionError) as error:
        raise UpstreamUnavailable(
            f'Target "{target.name}" broke the connection during the log-in ({type(error).__name__}).'
        ) from error


def _is_of_credential(error: BaseException) -> bool:
    """Whether a log-in failed for what a lease says; then a later lease may say something else."""
    return isinstance(error, UpstreamUnavailable) and (
        error.code in _WRONG_CREDENTIAL or isinstance(error.__cause__, ssl.SSLCertVerificationError)
    )
