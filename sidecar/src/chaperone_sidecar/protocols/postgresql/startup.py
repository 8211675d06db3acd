"""Which startup parameters a client may send, and what the gateway sends in their place.

Anything that changes how later statements are read (search_path, role, options, replication, …) is refused by name: the
classifier relies on the values pinned here.
"""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import answers
from chaperone_sidecar.protocols.postgresql.messages import StartupMessage

NEWEST_MINOR: Final = 2  # 3.1 was never used; 3.2 differs from 3.0 in the length of the cancel key alone
SHORT_SECRET_BYTES: Final = 4  # what protocol 3.0 has room for
LONG_SECRET_BYTES: Final = 32  # as the server does it since PostgreSQL 18

PINNED: Final = (("client_encoding", "UTF8"), ("search_path", "public"), ("standard_conforming_strings", "on"))

NOBODY: Final = b"none"  # as a password: on nobody's behalf; libpq cannot send an empty one

_PASSED: Final = frozenset(
    {
        "application_name",
        "bytea_output",
        "client_min_messages",
        "datestyle",
        "default_transaction_isolation",
        "default_transaction_read_only",
        "extra_float_digits",
        "geqo",
        "idle_in_transaction_session_timeout",
        "intervalstyle",
        "jit",
        "lock_timeout",
        "statement_timeout",
        "timezone",
    }
)
_UTF8: Final = frozenset({"utf8", "unicode"})  # less what the server overlooks in a name: all but letters and digits


class Wanted(msgspec.Struct, frozen=True):
    """What a client asked for, as far as it may."""

    user: str
    database: str
    application: str
    parameters: tuple[tuple[str, str], ...]  # for the backend, the pinned ones included
    negotiation: bytes  # to be sent to the client first, often empty
    secret_bytes: int  # of the cancel key that the client can take


def token(password: bytes) -> bytes:
    """The token of a person that a client gave as its password; empty when it gave none."""
    return b"" if password == NOBODY else password


def check(message: StartupMessage) -> Wanted:
    """Check a StartupMessage.

    Raises:
        ProtocolError: side=client; names the parameter and what to do.
    """
    given = {name.lower() if not name.startswith("_pq_.") else name: value for name, value in message.parameters}
    user = given.pop("user", "")
    if not user:
        raise ProtocolError("The startup message names no user; any name will do.")
    database = given.pop("database", user)
    options = tuple(name for name in given if name.startswith("_pq_."))
    for name in options:
        del given[name]
    encoding = given.pop("client_encoding", "UTF8")
    if "".join(filter(str.isalnum, encoding.lower())) not in _UTF8:
        raise ProtocolError(f'client_encoding "{encoding}" is not supported; use UTF8.')
    passed = []
    for name, value in given.items():
        if name not in _PASSED:
            raise ProtocolError(
                f'The startup parameter "{name}" is not allowed; leave it out of the connection string.'
            )
        passed.append((name, value))
    minor = min(message.minor, NEWEST_MINOR)
    negotiation = answers.negotiate_version(minor, options) if message.minor > NEWEST_MINOR or options else b""
    secret_bytes = LONG_SECRET_BYTES if minor >= NEWEST_MINOR else SHORT_SECRET_BYTES
    application = given.get("application_name", "")
    return Wanted(user, database, application, tuple(passed) + PINNED, negotiation, secret_bytes)
