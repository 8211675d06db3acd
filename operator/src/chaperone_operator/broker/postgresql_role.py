"""`postgresqlRole`: a role of the database for one session, made by the broker and dropped after it.

The role is named for its session, `chp_<ULID>`, so the server's own log joins with the records. The server is sent a
SCRAM verifier and never the password. The role may do what the roles of `grants` may.

Taken back in two steps. First it may not log in any more, and its backends are ended: from then on it is worth nothing.
Then what it made goes to the first role of `grants`, and it is dropped. It must not go to the broker's own role: a
function with SECURITY DEFINER that an agent left behind would then run with the right to make roles. Where the second
step fails the role stays, unable to log in, and the step is tried again.

Roles that no ledger knows, after a loss of the cluster's state, are found by name and dropped when their time is up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from typing import Final

import asyncpg

from chaperone_operator.broker import postgresql_admin as admin
from chaperone_operator.broker import scram
from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Entry, Lease, NotRevoked, Order, Unready
from chaperone_operator.compile.credential import PostgresqlRole, Reference, duration_s

PREFIX: Final = "chp_"
FIELD: Final = "spec.credential.postgresqlRole.adminSecretRef"
MAX_TURNS: Final = 8  # at one target at once, each with a connection, and a second one to hand over what was made
END_TRIES: Final = 20
END_PAUSE_S: Final = 0.1  # a backend sees the signal between two steps of its work
ORPHAN_AFTER_S: Final = 120  # past its time before a role is taken for one that nobody looks after
_ROLE: Final = re.compile(r"chp_[0-7][0-9a-hjkmnp-tv-z]{25}")
_ATTRIBUTES: Final = "NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT LOGIN"
_FOREIGN: Final = asyncpg.UndefinedObjectError  # dropped by another replica meanwhile

_log = logging.getLogger(__name__)


class PostgresqlRoles:
    """Makes and drops roles.

    Args:
        secrets: where the administrators' credentials are.
    """

    is_recorded = True

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets
        self._turns: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MAX_TURNS))

    def life_s(self, reference: Reference) -> int:
        """See `Source`."""
        return duration_s(_spec(reference).valid_for) or 0

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`."""
        reference, spec, role = order.reference, _spec(order.reference), PREFIX + order.id
        password = secrets.token_urlsafe(32)
        ends = int(time.time()) + self.life_s(reference)
        statement = (
            f"CREATE ROLE {_quoted(role)} {_ATTRIBUTES} CONNECTION LIMIT {spec.connection_limit} "
            f"PASSWORD '{scram.verifier(password, secrets.token_bytes(scram.SALT_BYTES))}' "
            f"VALID UNTIL '{_moment(ends)}' IN ROLE {', '.join(map(_quoted, spec.grants))}"
        )
        authority = await self._secrets.authority(reference.ca_secret, order.target)
        try:
            async with self._turns[order.target], self._connected(reference, order.target) as connection:
                await connection.execute(statement)
        except admin.Unreachable as error:
            raise Unready(
                "AdminRefused", f"AccessTarget {order.target}: {error} Check host, TLS and {FIELD}."
            ) from None
        except asyncpg.PostgresError as error:
            # Its text is dropped: it may quote the statement.
            raise Unready(
                "RoleNotMade",
                f"AccessTarget {order.target}: the server makes no role (SQLSTATE {error.sqlstate}). The role of "
                f"{FIELD} needs CREATEROLE and each role of grants WITH ADMIN OPTION.",
            ) from None
        return Lease(order.id, "password", ends, authority, role, password), ""

    async def renew(self, entry: Entry) -> int:
        """See `Source`."""
        ends = int(time.time()) + self.life_s(entry.reference)
        try:
            async with self._turns[entry.target], self._connected(entry.reference, entry.target) as connection:
                await connection.execute(f"ALTER ROLE {_quoted(PREFIX + entry.id)} VALID UNTIL '{_moment(ends)}'")
        except admin.Unreachable as error:
            raise Unready("AdminRefused", str(error)) from None
        except asyncpg.PostgresError as error:
            raise Unready("RoleNotMade", f"The server does not renew the role (SQLSTATE {error.sqlstate}).") from None
        return ends

    async def revoke(self, entry: Entry) -> None:
        """See `Source`."""
        await self._drop(entry.reference, entry.target, PREFIX + entry.id)

    async def sweep(self, reference: Reference, target: str, known: Iterable[str]) -> int:
        """Drop roles of ours whose time is up and that stand for none of the `known` ids of leases; how many.

        Raises:
            NotRevoked: the server cannot be asked, or a role stays.
        """
        kept = {PREFIX + one for one in known}
        try:
            async with self._turns[target], self._connected(reference, target) as connection:
                rows = await connection.fetch(
                    "SELECT rolname FROM pg_roles WHERE starts_with(rolname, $1) "
                    "AND rolvaliduntil < now() - make_interval(secs => $2)",
                    PREFIX, ORPHAN_AFTER_S,
                )  # fmt: skip
        except (admin.Unreachable, asyncpg.PostgresError, OSError, Unready) as error:
            raise NotRevoked(f"the server cannot be asked for roles ({type(error).__name__})") from None
        orphans = [name for (name,) in rows if _ROLE.fullmatch(name) and name not in kept]
        for role in orphans:
            await self._drop(reference, target, role)
        return len(orphans)

    async def _drop(self, reference: Reference, target: str, role: str) -> None:
        try:
            async with self._turns[target], self._connected(reference, target) as connection:
                found = await connection.fetchval("SELECT oid FROM pg_roles WHERE rolname = $1", role)
                if found is None:
                    return
                await _disable(connection, role)
                for database in await _databases(connection, found):
                    await self._hand_over(reference, target, role, database)
                await connection.execute(f"DROP ROLE IF EXISTS {_quoted(role)}")
        except _FOREIGN:
            return
        except asyncpg.PostgresError as error:
            raise NotRevoked(f"the role {role} is not dropped yet (SQLSTATE {error.sqlstate})") from None
        except (admin.Unreachable, OSError, Unready, asyncpg.InterfaceError) as error:
            raise NotRevoked(f"the role {role} cannot be dropped now ({type(error).__name__})") from None

    async def _hand_over(self, reference: Reference, target: str, role: str, database: str) -> None:
        """What the role made in a database goes to the first of its grants; its rights go."""
        owner = _quoted(_spec(reference).grants[0])
        async with self._connected(reference, target, database) as connection, connection.transaction():
            await connection.execute(f"REASSIGN OWNED BY {_quoted(role)} TO {owner}")
            await connection.execute(f"DROP OWNED BY {_quoted(role)}")

    @contextlib.asynccontextmanager
    async def _connected(
        self, reference: Reference, target: str, database: str = ""
    ) -> AsyncIterator[admin.Connection]:
        place = reference.place
        if place is None:
            raise Unready("NoPlace", f"It is not known where AccessTarget {target} is.")
        login = await self._secrets.basic_auth(_spec(reference).admin_secret_ref.name, target, FIELD)
        authority = await self._secrets.authority(reference.ca_secret, target)
        async with admin.connected(place, login, authority, database) as connection:
            yield connection


async def _disable(connection: admin.Connection, role: str) -> None:
    """No log-in any more, and no backend: in this order, so that none is left between the two."""
    options = " WITH INHERIT TRUE, SET TRUE" if connection.get_server_version().major >= 16 else ""
    await connection.execute(f"ALTER ROLE {_quoted(role)} NOLOGIN")
    # As a member, the broker's role may end its backends and hand over what it owns.
    await connection.execute(f"GRANT {_quoted(role)} TO CURRENT_USER{options}")
    for _ in range(END_TRIES):
        ended = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1", role
        )
        if not ended:
            return
        await asyncio.sleep(END_PAUSE_S)
    raise asyncpg.ObjectInUseError("backends of the role do not end")


async def _databases(connection: admin.Connection, oid: int) -> list[str]:
    """Databases in which something hangs on the role."""
    rows = await connection.fetch(
        "SELECT DISTINCT d.datname FROM pg_shdepend s JOIN pg_database d ON d.oid = s.dbid "
        "WHERE s.refclassid = 'pg_authid'::regclass AND s.refobjid = $1",
        oid,
    )
    return [name for (name,) in rows]


def _spec(reference: Reference) -> PostgresqlRole:
    credential = reference.credential
    if credential is None or credential.postgresql_role is None:
        raise TypeError("the reference is none of a PostgreSQL role")
    return credential.postgresql_role


def _moment(at_unix: int) -> str:
    return f"{datetime.fromtimestamp(at_unix, UTC):%Y-%m-%d %H:%M:%S}+00"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
