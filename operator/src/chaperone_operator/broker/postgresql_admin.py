"""Connections of the broker to PostgreSQL servers, as the role that makes other roles.

TLS is as the target says. The name that a certificate must carry may be another one than that which is dialled.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any, Final

import asyncpg

from chaperone_operator.compile.credential import Place

CONNECT_TIMEOUT_S: Final = 8.0  # the gateway waits 10 s for a lease
COMMAND_TIMEOUT_S: Final = 10.0  # creating a role takes milliseconds; dropping one waits for locks on what it owns
FALLBACK_DATABASE: Final = "postgres"  # where the target names none: roles are the same in all of them

type Connection = asyncpg.Connection[asyncpg.Record]


class Unreachable(Exception):
    """No connection; the text says why and holds nothing that the server said."""


class _Named(ssl.SSLContext):
    """A context that asks for a certificate of a name of its own, whatever host is dialled."""

    name: str | None = None

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:  # noqa: ANN401 - as ssl.SSLContext has it
        """See `ssl.SSLContext.wrap_bio`."""
        return super().wrap_bio(*arguments, **(named | {"server_hostname": self.name}))


@contextlib.asynccontextmanager
async def connected(place: Place, login: tuple[str, str], ca_pem: str, database: str = "") -> AsyncIterator[Connection]:
    """A connection for a while.

    Raises:
        Unreachable: there is none.
    """
    user, password = login
    where = f"{place.host}:{place.port}"
    try:
        connection: Connection = await asyncpg.connect(
            host=place.host,
            port=place.port,
            user=user,
            password=password,
            database=database or place.database or FALLBACK_DATABASE,
            ssl=_context(place, ca_pem),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            statement_cache_size=0,
            server_settings={"application_name": "chaperone-broker", "search_path": "pg_catalog"},
        )
    except asyncpg.PostgresError as error:
        raise Unreachable(f"The server at {where} refuses the log-in (SQLSTATE {error.sqlstate}).") from None
    except ssl.SSLCertVerificationError as error:
        raise Unreachable(
            f"The server at {where} shows no certificate that is accepted: {error.verify_message}."
        ) from None
    except (OSError, ValueError, asyncpg.InterfaceError) as error:  # a time-out is an OSError
        raise Unreachable(f"The server at {where} cannot be reached ({type(error).__name__}).") from None
    try:
        yield connection
    finally:
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=1)


def _context(place: Place, ca_pem: str) -> ssl.SSLContext | bool:
    if place.tls_mode == "Disable":
        return False
    context = _Named(ssl.PROTOCOL_TLS_CLIENT)
    context.name = place.server_name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = place.tls_mode == "VerifyFull"
    # Require is the platform engineer's word for TLS with whoever answers, as libpq has it; gateways do the same there.
    context.verify_mode = ssl.CERT_NONE if place.tls_mode == "Require" else ssl.CERT_REQUIRED
    if ca_pem:
        context.load_verify_locations(cadata=ca_pem)
    else:
        context.load_default_certs()
    return context
