"""What calling a function counts as.

A function of the server that only computes or reads the catalog is no effect of its own. Every other one runs code
that the text does not show: `execute_code` on its name. A few of the server's have an effect with a better name.

An unqualified name is looked up in `pg_catalog` first. Sad path: the server picks among equally named functions of both
schemas by argument types, so a function in `public` that overloads a safe name can run unseen; so can one whose name is
that of a safe function of newer servers only. Whoever could create one
needs `schema` and `execute_code`; one that exists already was put there by the database's owner.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.postgresql import settings
from chaperone_sidecar.protocols.postgresql.relations import CATALOG, Ambiguous, from_literal, join, words

_EXTERNAL_PREFIXES: Final = ("lo_", "dblink", "pg_ls_", "pg_read_", "pg_file_", "postgres_fdw_")
_EXTERNAL: Final = frozenset({"loread", "lowrite", "pg_stat_file", "pg_logdir_ls", "file_fdw_handler"})
_SENSITIVE: Final = words(
    """pg_stat_get_activity pg_stat_get_backend_activity pg_stat_get_backend_activity_start
    pg_stat_get_backend_client_addr pg_stat_get_backend_client_port pg_stat_get_backend_userid
    pg_stat_get_wal_receiver pg_stat_get_wal_senders pg_stat_statements"""
)
# Functions of one argument that have effects, besides those with the prefix; `t.f` and `(t).f` may call them.
_AS_ATTRIBUTE: Final = words("nextval ts_stat brin_summarize_new_values gin_clean_pending_list")
_AS_ATTRIBUTE_PREFIXES: Final = ("pg_", "lo_", "binary_upgrade_")  # of the server's own; a column may begin so, too
_TRANSACTION_ID: Final = frozenset({"txid_current", "pg_current_xact_id"})  # spend a number, change nothing else
_TEXT_TYPES: Final = frozenset({"text", "varchar", "name", "regclass", "cstring", "bpchar"})


def call(path: Sequence[str], arguments: Sequence[dict[str, Any]]) -> tuple[Access, ...]:
    """The effects of a call, apart from those of its arguments.

    Args:
        path: the function's name as written, with schema (and database) if given.
        arguments: the argument nodes.

    Raises:
        Ambiguous: what it touches is named by an argument that is no literal.
    """
    name = path[-1]
    if len(path) == 1:
        if name in CATALOG.safe_functions:
            return ()
        return _unqualified(name, arguments)
    schema = path[-2]
    if schema == "pg_catalog":
        return () if name in CATALOG.safe_functions else _of_catalog(name, arguments)
    if schema == "information_schema" and name in CATALOG.safe_information_schema:
        return ()
    return (Access(_foreign_effect(name), join(schema, name)),)


def attribute(name: str) -> tuple[Access, ...]:
    """The effects of `x.name`, where that may call a function: the server looks for one if it finds no such column.

    Only functions of the server with effects, and those that reach out, are told from columns by their names.

    Raises:
        Ambiguous: it would call `nextval`.
    """
    is_of_server = name in _AS_ATTRIBUTE or name.startswith(_AS_ATTRIBUTE_PREFIXES)
    if (is_of_server and name in CATALOG.other_functions) or name.startswith(("dblink", "postgres_fdw_")):
        return _unqualified(name, ())
    return ()


def _unqualified(name: str, arguments: Sequence[dict[str, Any]]) -> tuple[Access, ...]:
    if name in CATALOG.other_functions:
        return _of_catalog(name, arguments)
    if name.startswith("pg_"):  # a newer server's, or somebody's own
        effect = _foreign_effect(name)
        return (Access(effect, join("pg_catalog", name)), Access(effect, join("public", name)))
    return (Access(_foreign_effect(name), join("public", name)),)


def _foreign_effect(name: str) -> Effect:
    if name.startswith(_EXTERNAL_PREFIXES) or name in _EXTERNAL:
        return Effect.EXTERNAL_IO
    return Effect.READ_SENSITIVE if name in _SENSITIVE else Effect.EXECUTE_CODE


def _of_catalog(name: str, arguments: Sequence[dict[str, Any]]) -> tuple[Access, ...]:
    if name == "set_config":
        return (_set_config(arguments),)
    if name in {"nextval", "setval"}:
        return _sequence(Effect.CREATE if name == "nextval" else Effect.MODIFY, name, arguments)
    if name == "pg_notify":
        channel = literal(arguments[0]) if arguments else None
        if channel is not None:
            return (Access(Effect.SESSION, f"channel:{channel}"),)
    if name in _TRANSACTION_ID:
        return (Access(Effect.TRANSACTION, "transaction:id"),)
    if name == "pg_advisory_unlock_all":  # the session's own locks; poolers and drivers reset with it
        return (Access(Effect.SESSION, "lock:advisory"),)
    return (Access(_foreign_effect(name), join("pg_catalog", name)),)


def _set_config(arguments: Sequence[dict[str, Any]]) -> Access:
    name = literal(arguments[0]) if len(arguments) == 3 else None
    if name is None:
        raise Ambiguous("set_config() is called with a computed parameter name; write the name as a literal.")
    return settings.set_value(name, literal(arguments[1]))


def _sequence(effect: Effect, name: str, arguments: Sequence[dict[str, Any]]) -> tuple[Access, ...]:
    sequence = literal(arguments[0]) if arguments else None
    if sequence is None:
        raise Ambiguous(f"{name}() is called with a computed sequence; write its name as a literal.")
    return tuple(Access(effect, found) for found in from_literal(sequence))


def literal(node: dict[str, Any]) -> str | None:
    """The text of a string literal, also one cast to a type of text; None for anything computed."""
    while "TypeCast" in node:
        cast = node["TypeCast"]
        names = cast["typeName"].get("names", [])
        if not names or names[-1]["String"]["sval"] not in _TEXT_TYPES or cast["typeName"].get("typmods"):
            return None
        node = cast["arg"]
    constant = node.get("A_Const")
    if constant is None or "sval" not in constant:
        return None
    text: str = constant["sval"].get("sval", "")
    return text
