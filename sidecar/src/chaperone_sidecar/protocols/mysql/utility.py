"""Statements that are not about rows: read from their tokens alone, each to its last one.

A statement that is not understood whole is no statement of these: the caller makes it `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.setting import READING_MODES, SetStatement
from chaperone_sidecar.protocols.mysql.tokens import Kind, Token


class Told(msgspec.Struct, frozen=True):
    """What a statement does; see `classify.Classified`."""

    accesses: tuple[Access, ...]
    tables: tuple[str, ...] = ()
    why_unknown: str = ""
    unmaskable: str = ""
    blind: str = ""
    database: str | None = None
    kills: int | None = None
    may_change_session: bool = False
    query: list[Token] | None = None  # a statement about rows inside of it
    unset_charsets: tuple[tuple[int, int], ...] = ()


_RUNS_CODE: Final = "what code of the database shows is not known."
_SCHEMA: Final = "information_schema"
_SHOWN: Final = {
    "DATABASES": "schemata", "SCHEMAS": "schemata", "TABLES": "tables", "COLUMNS": "columns", "FIELDS": "columns",
    "INDEX": "statistics", "INDEXES": "statistics", "KEYS": "statistics", "VARIABLES": "system_variables",
    "STATUS": "status", "WARNINGS": "warnings", "ERRORS": "warnings", "ENGINES": "engines", "COLLATION": "collations",
    "CHARSET": "character_sets", "PLUGINS": "plugins", "GRANTS": "user_privileges", "PRIVILEGES": "privileges",
    "TRIGGERS": "triggers", "EVENTS": "events", "PROCEDURE": "routines", "FUNCTION": "routines",
}  # fmt: skip
_SHOW_MODIFIERS: Final = frozenset({"FULL", "EXTENDED", "GLOBAL", "SESSION", "LOCAL", "STORAGE"})


def read(tokens: list[Token], context: Context) -> Told | None:
    """What a statement does; None where its form is not known.

    Raises:
        UnknownName: a name that no rule could name.
    """
    reader = _READERS.get(tokens[0].word)
    return reader(tokens, context) if reader is not None else None


def _words(tokens: list[Token]) -> list[str]:
    return [token.word or token.text for token in tokens]


def _show(tokens: list[Token], context: Context) -> Told | None:
    words, at = _words(tokens), 1
    while at < len(words) and words[at] in _SHOW_MODIFIERS:
        at += 1
    if at >= len(words):
        return None
    what, rest = words[at], tokens[at + 1 :]
    if what == "PROCESSLIST" and not rest:
        return Told((Access(Effect.READ_SENSITIVE, f"{_SCHEMA}.processlist"),))
    if what == "CREATE":
        return _show_create(rest, context)
    if what == "CHARACTER" and words[at + 1 : at + 2] == ["SET"]:
        what, rest = "CHARSET", rest[1:]
    if what in ("TABLE", "PROCEDURE", "FUNCTION"):
        if words[at + 1 : at + 2] != ["STATUS"]:
            return None
        what, rest = "TABLES" if what == "TABLE" else what, rest[1:]
    if what == "COUNT" and words[at + 1 :] in (["(", "*", ")", "WARNINGS"], ["(", "*", ")", "ERRORS"]):
        what, rest = "WARNINGS", []
    if what not in _SHOWN or not _is_show_tail(what, rest):
        return None
    told = Told((Access(Effect.READ, f"{_SCHEMA}.{_SHOWN[what]}"),))
    return (
        msgspec.structs.replace(told, blind="warnings may quote values of masked columns.")
        if what in ("WARNINGS", "ERRORS")
        else told
    )


_CREATED: Final = {"TABLE": "tables", "VIEW": "tables", "PROCEDURE": "routines", "FUNCTION": "routines"}


def _show_create(rest: list[Token], context: Context) -> Told | None:
    what = rest[0].word if rest else ""
    if what in ("DATABASE", "SCHEMA"):
        return Told((Access(Effect.READ, f"{_SCHEMA}.schemata"),)) if len(rest) == 2 else None
    if what not in _CREATED:
        return None
    _, end = context.name(rest, 1)
    return Told((Access(Effect.READ, f"{_SCHEMA}.{_CREATED[what]}"),)) if end == len(rest) else None


def _is_show_tail(what: str, rest: list[Token]) -> bool:
    """FROM a table, FROM a schema, LIKE a pattern, or WHERE with names and values alone: nothing is called in it."""
    at = 0
    while at < len(rest) and rest[at].word in ("FROM", "IN") and at + 1 < len(rest) and rest[at + 1].is_name:
        at += 2
        while at + 1 < len(rest) and rest[at].text == "." and rest[at + 1].is_name:
            at += 2
    if at + 1 < len(rest) and rest[at].word == "LIKE" and rest[at + 1].kind is Kind.STRING:
        at += 2
    elif at + 1 < len(rest) and rest[at].word == "WHERE" and what not in ("WARNINGS", "ERRORS"):
        return all(one.kind is not Kind.SIGN or one.text in "=<>!." for one in rest[at + 1 :])
    if what in ("WARNINGS", "ERRORS") and at + 1 < len(rest) and rest[at].word == "LIMIT":
        return all(one.kind is Kind.NUMBER or one.text == "," for one in rest[at + 1 :])
    if what == "GRANTS" and not at and rest and rest[0].word == "FOR":
        return len(rest) == 2 and rest[1].word == "CURRENT_USER"
    return at == len(rest)


def _use(tokens: list[Token], context: Context) -> Told | None:
    if len(tokens) != 2 or not tokens[1].is_name:
        return None
    return use(tokens[1].text, context)


def use(name: str, context: Context) -> Told:
    """Another database for what names none.

    Raises:
        UnknownName: no rule could name it.
    """
    return Told((Access(Effect.SESSION, f"database:{context.folded(name)}"),), database=name)


_TRANSACTION: Final = {
    ("BEGIN",): "begin", ("BEGIN", "WORK"): "begin", ("START", "TRANSACTION"): "begin",
    ("START", "TRANSACTION", "READ", "ONLY"): "begin", ("START", "TRANSACTION", "READ", "WRITE"): "begin",
    ("START", "TRANSACTION", "WITH", "CONSISTENT", "SNAPSHOT"): "begin", ("COMMIT",): "commit",
    ("COMMIT", "WORK"): "commit", ("ROLLBACK",): "rollback", ("ROLLBACK", "WORK"): "rollback",
}  # fmt: skip


def _transaction(tokens: list[Token], context: Context) -> Told | None:
    words = tuple(_words(tokens))
    found = _TRANSACTION.get(words)
    if found is None and tokens[-1].is_name and words[:-1] in (
        ("SAVEPOINT",), ("RELEASE", "SAVEPOINT"), ("ROLLBACK", "TO"), ("ROLLBACK", "TO", "SAVEPOINT"),
        ("ROLLBACK", "WORK", "TO"), ("ROLLBACK", "WORK", "TO", "SAVEPOINT"),
    ):  # fmt: skip
        found = "savepoint"
    return Told((Access(Effect.TRANSACTION, f"transaction:{found}"),)) if found else None


def _set(tokens: list[Token], context: Context) -> Told | None:
    told = SetStatement(tokens).read()
    if told is None:
        return None
    return Told(told.accesses, why_unknown=told.why_unknown, unset_charsets=told.unset_charsets)


def _kill(tokens: list[Token], context: Context) -> Told | None:
    words = _words(tokens)
    if len(words) != 3 or words[1] != "QUERY" or not words[2].isdigit():
        return Told(
            (Access(Effect.MAINTAIN, "connection:others"),),
            why_unknown="KILL of a connection is not passed on; KILL QUERY ends what one of this pod's sessions runs.",
        )
    return Told((Access(Effect.SESSION, "connection:own"),), kills=int(words[2]))


def _call(tokens: list[Token], context: Context) -> Told | None:
    name, _ = context.name(tokens, 1)
    return Told((Access(Effect.EXECUTE_CODE, name),), blind=_RUNS_CODE, may_change_session=True)


def _definition(tokens: list[Token], context: Context) -> Told | None:
    """CREATE, ALTER, DROP, RENAME, TRUNCATE."""
    words = _words(tokens)
    verb = words[0]
    at = 1
    while at < len(words) and words[at] in _BEFORE_KIND:
        at += 1
    if verb == "CREATE" and at + 1 < len(words) and words[at] in ("ALGORITHM", "DEFINER", "SQL"):
        return _denied(
            Effect.SCHEMA, "this form of CREATE is not known; leave ALGORITHM, DEFINER and SQL SECURITY out."
        )
    what = words[at] if at < len(words) else ""
    if what in _CODE:
        return Told(
            (
                Access(Effect.EXECUTE_CODE, f"{what.lower()}:{verb.lower()}"),
                Access(Effect.SCHEMA, f"{what.lower()}:{verb.lower()}"),
            ),
            blind=_RUNS_CODE,  # a trigger or an event copies masked values without being called
            may_change_session=True,
        )
    if what in ("USER", "ROLE"):
        return Told((Access(Effect.PRIVILEGE, f"{what.lower()}:{verb.lower()}"),))
    if what in ("SERVER", "TABLESPACE", "LOGFILE", "UNDO"):
        return Told((Access(Effect.EXTERNAL_IO, f"{what.lower()}:{verb.lower()}"),))
    if verb == "TRUNCATE" and what != "TABLE":
        at -= 1  # TABLE may be left out
        what = "TABLE"
    at += 1
    while at < len(words) and words[at] in ("IF", "NOT", "EXISTS", "ONLINE", "IGNORE"):
        at += 1
    replaces = verb == "CREATE" and words[1:3] == ["OR", "REPLACE"]
    if what in ("DATABASE", "SCHEMA"):
        if at >= len(tokens) or not tokens[at].is_name:
            return None
        effect = Effect.DESTROY if verb == "DROP" or replaces else Effect.SCHEMA
        return Told((Access(effect, f"database:{context.folded(tokens[at].text)}"),))
    if what in ("INDEX",):
        at = next((index for index, word in enumerate(words) if word == "ON"), len(words)) + 1
        name, _ = context.name(tokens, at)
        why = "an index would tell of the values of masked columns." if verb == "CREATE" else ""
        return Told((Access(Effect.SCHEMA, name),), (name,), unmaskable=why)
    if what not in ("TABLE", "TABLES", "VIEW", "SEQUENCE"):
        return None
    if verb == "RENAME":
        return _renamed(tokens, at, context)
    if verb in ("DROP", "TRUNCATE"):
        return _dropped(tokens, at, context)
    told = _made(tokens, at, context, is_altered=verb == "ALTER" and what != "VIEW")
    if told is None or not replaces or what == "VIEW":
        return told
    lost = Access(Effect.DESTROY, told.accesses[0].object)
    return msgspec.structs.replace(told, accesses=(*told.accesses, lost))


_BEFORE_KIND: Final = frozenset(
    {"OR", "REPLACE", "TEMPORARY", "UNIQUE", "FULLTEXT", "SPATIAL", "ONLINE", "OFFLINE", "IGNORE"}
)
_CODE: Final = frozenset({"PROCEDURE", "FUNCTION", "TRIGGER", "EVENT", "PACKAGE", "AGGREGATE", "LIBRARY"})
_OUTSIDE: Final = frozenset(
    {"DIRECTORY", "FEDERATED", "FEDERATEDX", "CONNECT", "SPIDER", "CONNECTION", "S3", "OQGRAPH", "MRG_MYISAM", "MERGE"}
)
_LOSES: Final = frozenset({"DROP", "TRUNCATE", "DISCARD", "IMPORT", "EXCHANGE", "RENAME", "CONVERT", "BLACKHOLE"})
_FORM_OF_QUERY: Final = frozenset({"SELECT", "WITH", "VALUES", "TABLE"})


def _made(tokens: list[Token], at: int, context: Context, *, is_altered: bool) -> Told | None:
    name, at = context.name(tokens, at)
    words = _words(tokens)
    parents = [
        context.name(tokens, index + 1)[0] for index in range(at, len(words)) if words[index] == "REFERENCES"
    ]  # fmt: skip
    accesses = [Access(Effect.SCHEMA, name), *(Access(Effect.READ, one) for one in parents)]
    outside = sorted(_OUTSIDE & set(words[at:]))
    if outside:
        accesses.append(Access(Effect.EXTERNAL_IO, f"engine:{outside[0].lower()}"))
    if is_altered:
        said = set(words[at:])
        accesses += [Access(Effect.DESTROY, name)] if said & _LOSES else []
        is_moved = "CONVERT" in said and said & {"PARTITION", "TABLE"}
        if is_moved or (said & {"RENAME", "EXCHANGE", "UNION"} and "COLUMN" not in said):
            return Told(tuple(accesses), (name,), "an ALTER TABLE that concerns another table is not passed on.")
        why = "a table with masked columns would be another one."
        return Told(tuple(accesses), (name, *parents), unmaskable=why)
    like = next((index for index in range(at, min(at + 2, len(words))) if words[index] == "LIKE"), None)
    if like is not None:
        model, _ = context.name(tokens, like + 1)
        return Told((*accesses, Access(Effect.READ, model)), (name,))
    query = next((index for index in range(at, len(words)) if words[index] in _FORM_OF_QUERY), None)
    if query is None:
        why = "a foreign key would tell of the values of masked columns." if parents else ""
        return Told(tuple(accesses), (name, *parents), unmaskable=why)
    if parents:
        return None
    end = len(tokens)
    if words[query - 1] == "(" and words[-1] == ")":
        end -= 1
    if tail := [index for index in range(query, end) if words[index : index + 3] == ["WITH", "CHECK", "OPTION"]]:
        end = tail[0]
    return Told(tuple(accesses), (name,), query=tokens[query:end])


def _dropped(tokens: list[Token], at: int, context: Context) -> Told | None:
    accesses, tables = [], []
    while True:
        name, at = context.name(tokens, at)
        accesses.append(Access(Effect.DESTROY, name))
        tables.append(name)
        if at >= len(tokens) or tokens[at].word in ("CASCADE", "RESTRICT", "WAIT", "NOWAIT"):
            return Told(tuple(accesses), tuple(tables))
        if tokens[at].text != ",":
            return None
        at += 1


def _renamed(tokens: list[Token], at: int, context: Context) -> Told | None:
    accesses, tables = [], []
    while at < len(tokens):
        old, at = context.name(tokens, at)
        if at >= len(tokens) or tokens[at].word != "TO":
            return None
        new, at = context.name(tokens, at + 1)
        accesses += [Access(Effect.SCHEMA, old), Access(Effect.SCHEMA, new), Access(Effect.DESTROY, old)]
        tables += [old, new]
        if at < len(tokens) and tokens[at].text != ",":
            return None
        at += 1
    return Told(tuple(accesses), tuple(tables), unmaskable="a table with masked columns would get another name.")


def _tables(effect: Effect) -> Callable[[list[Token], Context], Told | None]:
    def read_tables(tokens: list[Token], context: Context) -> Told | None:
        """ANALYZE, OPTIMIZE, CHECK, REPAIR TABLE a, b."""
        at = 1
        while at < len(tokens) and tokens[at].word in ("LOCAL", "NO_WRITE_TO_BINLOG"):
            at += 1
        if at >= len(tokens) or tokens[at].word not in ("TABLE", "TABLES"):
            return None
        accesses, at = [], at + 1
        while True:
            name, at = context.name(tokens, at)
            accesses.append(Access(effect, name))
            while at < len(tokens) and tokens[at].word in _LOCK_WORDS:
                at += 1
            if at >= len(tokens):
                named = tuple(one.object for one in accesses) if tokens[0].word == "CHECKSUM" else ()
                return Told(tuple(accesses), named, unmaskable="a checksum tells of the values of masked columns.")
            if tokens[at].text != ",":
                return None
            at += 1

    return read_tables


_LOCK_WORDS: Final = frozenset(
    {"READ", "WRITE", "LOCAL", "LOW_PRIORITY", "QUICK", "FAST", "MEDIUM", "EXTENDED", "CHANGED"}
)


def _unlock(tokens: list[Token], context: Context) -> Told | None:
    return Told((Access(Effect.SESSION, "lock:tables"),)) if _words(tokens)[1:] in (["TABLES"], ["TABLE"]) else None


def _denied(effect: Effect, why: str, subject: str = "") -> Told:
    return Told((Access(effect, subject),), why_unknown=why)


def _always(effect: Effect, subject: str) -> Callable[[list[Token], Context], Told]:
    def read_always(tokens: list[Token], context: Context) -> Told:
        return Told((Access(effect, subject),), blind=_RUNS_CODE, may_change_session=effect is Effect.EXECUTE_CODE)

    return read_always


_DYNAMIC: Final = "PREPARE, EXECUTE and DEALLOCATE run text that is made by the server; use prepared statements."


def _dynamic(tokens: list[Token], context: Context) -> Told:
    return _denied(Effect.EXECUTE_CODE, _DYNAMIC, "dynamic:sql")


_READERS: Final[dict[str, Callable[[list[Token], Context], Told | None]]] = {
    "SHOW": _show, "USE": _use, "SET": _set, "KILL": _kill, "CALL": _call,
    "BEGIN": _transaction, "START": _transaction, "COMMIT": _transaction, "ROLLBACK": _transaction,
    "SAVEPOINT": _transaction, "RELEASE": _transaction,
    "CREATE": _definition, "ALTER": _definition, "DROP": _definition, "RENAME": _definition, "TRUNCATE": _definition,
    "ANALYZE": _tables(Effect.MAINTAIN), "OPTIMIZE": _tables(Effect.MAINTAIN), "CHECK": _tables(Effect.MAINTAIN),
    "REPAIR": _tables(Effect.MAINTAIN), "CHECKSUM": _tables(Effect.MAINTAIN), "LOCK": _tables(Effect.MAINTAIN),
    "UNLOCK": _unlock,
    "GRANT": _always(Effect.PRIVILEGE, "role:grant"), "REVOKE": _always(Effect.PRIVILEGE, "role:revoke"),
    "INSTALL": _always(Effect.EXECUTE_CODE, "plugin:install"),
    "UNINSTALL": _always(Effect.EXECUTE_CODE, "plugin:uninstall"),
    "SHUTDOWN": _always(Effect.DESTROY, "server:shutdown"), "RESTART": _always(Effect.DESTROY, "server:restart"),
    "FLUSH": _always(Effect.MAINTAIN, "server:flush"), "RESET": _always(Effect.DESTROY, "server:reset"),
    "PURGE": _always(Effect.DESTROY, "server:purge"), "CHANGE": _always(Effect.TUNNEL, "replication:change"),
    "STOP": _always(Effect.TUNNEL, "replication:stop"), "BINLOG": _always(Effect.EXECUTE_CODE, "server:binlog"),
    "LOAD": _always(Effect.EXTERNAL_IO, "file:load"), "IMPORT": _always(Effect.EXTERNAL_IO, "file:import"),
    "CLONE": _always(Effect.EXTERNAL_IO, "server:clone"),
    "PREPARE": _dynamic, "EXECUTE": _dynamic, "DEALLOCATE": _dynamic,
}  # fmt: skip


def changes_reading(mode: str) -> bool:
    """Whether an sql_mode holds one that changes how a text is read."""
    return any(one.upper() in READING_MODES for one in mode.split(","))
