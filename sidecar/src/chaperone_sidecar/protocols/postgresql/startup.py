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

PINNED: Final = (("client_encoding", "UTF8"), ("search_path", "public"), ("standard_conforming_strings", "on"))

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
_UTF8: Final = frozenset({"utf8", "utf-8", "unicode", "'utf-8'", "'utf8'"})


class Wanted(msgspec.Struct, frozen=True):
    """What a client asked for, as far as it may."""

    user: str
    database: str
    application: str
    parameters: tuple[tuple[str, str], ...]  # for the backend, the pinned ones included
    negotiation: bytes  # to be sent to the client first, often empty


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
    options = tuple(sorted(name for name in given if name.startswith("_pq_.")))
    for name in options:
        del given[name]
    encoding = given.pop("client_encoding", "UTF8")
    if encoding.lower() not in _UTF8:
        raise ProtocolError(f'client_encoding "{encoding}" is not supported; use UTF8.')
    passed = []
    for name, value in given.items():
        if name not in _PASSED:
            raise ProtocolError(
                f'The startup parameter "{name}" is not allowed; leave it out of the connection string.'
            )
        passed.append((name, value))
    negotiation = answers.negotiate_version(options) if message.minor > 0 or options else b""
    application = given.get("application_name", "")
    return Wanted(user, database, application, tuple(passed) + PINNED, negotiation)
