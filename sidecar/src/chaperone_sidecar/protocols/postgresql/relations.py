"""Names as the server would resolve them.

The gateway pins `search_path` to `public`, and the server always searches `pg_catalog` before it, so an unqualified
name is one of the two: a known catalog name is the catalog's, another one `public`'s. A name that looks like the
catalog's but is not known here (a newer server, a table somebody called `pg_x`) could be either, and counts as both.

`pg_temp` is searched even before the catalog: whoever may create a temporary object may give any name another meaning.
Such names raise `Ambiguous`, and the statement is unknown.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import msgspec


def words(text: str) -> frozenset[str]:
    """The words of a text, for tables of names."""
    return frozenset(text.split())


class Ambiguous(Exception):
    """A name whose object cannot be told from the text; the message is one sentence for the refusal."""


class Catalog(msgspec.Struct, frozen=True):
    """What fresh servers of all versions hold in their own schemas; see `chaperone_tools.postgresql_catalog`."""

    servers: dict[str, str]  # which majors it was made from, with the SHA-256 of what each answered
    relations: frozenset[str]  # tables and views of pg_catalog
    safe_functions: frozenset[str]  # of pg_catalog: in every version each overload only computes or reads the catalog
    other_functions: frozenset[str]  # of pg_catalog: all others
    safe_information_schema: frozenset[str]  # functions of information_schema
    operators: frozenset[str]  # of pg_catalog


CATALOG: Final = msgspec.json.decode((Path(__file__).parent / "catalog.json").read_bytes(), type=Catalog)

# Values of other people's data, secrets, other sessions' statements, the server's files.
_SENSITIVE: Final = words(
    """pg_authid pg_shadow pg_statistic pg_statistic_ext_data pg_stats pg_stats_ext pg_stats_ext_exprs
    pg_stat_activity pg_stat_statements pg_stat_statements_info pg_stat_replication pg_stat_wal_receiver pg_stat_ssl
    pg_stat_gssapi pg_hba_file_rules pg_ident_file_mappings pg_file_settings pg_user_mapping pg_user_mappings
    pg_largeobject pg_subscription pg_db_role_setting pg_foreign_server
    pg_backend_memory_contexts pg_shmem_allocations pg_config pg_aios pg_shmem_allocations_numa"""
)
_SENSITIVE_INFORMATION: Final = words(
    """user_mapping_options _pg_user_mappings foreign_server_options _pg_foreign_servers foreign_data_wrapper_options
    _pg_foreign_data_wrappers"""
)
# Columns of the server's own relations that hold values of other tables, or other people's statements.
TELLING: Final = {
    "pg_catalog.pg_prepared_xacts": words("gid"),
    "pg_catalog.pg_stat_activity": words("query"),
    "pg_catalog.pg_statistic": words("stavalues1 stavalues2 stavalues3 stavalues4 stavalues5"),
    "pg_catalog.pg_statistic_ext_data": words("stxdexpr stxdmcv"),
    "pg_catalog.pg_stats": words("most_common_vals histogram_bounds most_common_elems"),
    "pg_catalog.pg_stats_ext": words("most_common_vals"),
    "pg_catalog.pg_stats_ext_exprs": words("most_common_vals histogram_bounds most_common_elems"),
}
_TELLING_ALONE: Final = frozenset({"pg_catalog.pg_stat_activity"})  # what else it has says nothing of values
_PART: Final = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([A-Za-z_\x80-\U0010ffff][\w$\x80-\U0010ffff]*))\s*')
_LONG_BYTES: Final = 60  # a character of four bytes may have been cut off after this


def relation(node: dict[str, Any]) -> tuple[str, ...]:
    """The objects a `RangeVar` may mean: one, or two when catalog and `public` are both possible.

    A database before the schema is dropped: the server refuses any but the current one.
    """
    return qualify(node.get("schemaname", ""), node["relname"])


def qualify(schema: str, name: str) -> tuple[str, ...]:
    """The objects that a relation's name may mean."""
    if schema:
        return (join(schema, name),)
    if name in CATALOG.relations:
        return (f"pg_catalog.{name}",)
    if name.startswith("pg_"):
        return (join("pg_catalog", name), join("public", name))
    return (join("public", name),)


def join(schema: str, name: str) -> str:
    """`schema.name`, where both are such that no other pair gives the same text."""
    if schema.startswith("pg_temp"):
        raise Ambiguous(f"The name {schema}.{name} is a temporary object's; use a table of a permanent schema.")
    for part in (schema, name):
        if "." in part or ":" in part or not part.isprintable():
            raise Ambiguous("A quoted name contains a dot, a colon or an invisible character; no rule can name it.")
        if len(part) * 4 >= _LONG_BYTES and not part.isascii() and len(part.encode()) >= _LONG_BYTES:
            raise Ambiguous("A name of other than ASCII letters is so long that the server may cut it; shorten it.")
    return f"{schema}.{name}"


def is_sensitive(name: str) -> bool:
    """Whether reading the object shows secrets, other sessions or samples of other tables' values."""
    schema, _, relname = name.partition(".")
    if schema == "pg_toast":  # the long values of another table
        return True
    if schema == "information_schema":
        return relname in _SENSITIVE_INFORMATION
    return relname in _SENSITIVE


def is_telling(name: str, column: str) -> bool:
    """Whether nobody can say what a column of the server's own relation shows; of sensitive ones, most."""
    if column in TELLING.get(name, ()):
        return True
    return is_sensitive(name) and name not in _TELLING_ALONE


def is_system(name: str) -> bool:
    """Whether the object is the server's own: writing it changes rights or settings, not data."""
    return name.startswith(("pg_catalog.", "information_schema.", "pg_toast."))


def strings(nodes: list[dict[str, Any]]) -> list[str]:
    """The parts of a qualified name given as a list of `String`s."""
    return [node["String"]["sval"] for node in nodes if "String" in node]


def from_literal(text: str) -> tuple[str, ...]:
    """The objects that a text cast to `regclass` may mean: parts are folded and unquoted as in a statement.

    Raises:
        Ambiguous: no plain qualified name (an OID, or more parts than schema and name).
    """
    parts: list[str] = []
    position = 0
    while len(parts) < 3:
        found = _PART.match(text, position)
        if found is None:
            break
        quoted, plain = found.groups()
        parts.append(quoted.replace('""', '"') if quoted is not None else _fold(plain))
        position = found.end()
        if position == len(text):
            return qualify(parts[-2] if len(parts) > 1 else "", parts[-1])
        if text[position] != ".":
            break
        position += 1
    raise Ambiguous("A text that names a relation is no plain name; write it as 'schema.name'.")


def _fold(name: str) -> str:
    return "".join(letter.lower() if letter.isascii() else letter for letter in name)
