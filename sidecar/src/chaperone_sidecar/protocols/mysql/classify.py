"""What a text of MySQL would do: facts, read by a tokenizer of our own and checked against a second reader.

Statements that read or change rows are read twice: `tokens` says where words and strings are, and which names are
called or stand where tables do; sqlglot says how they belong together. Where the two do not agree, or the tree holds
what is not known here, the statement is `unknown`. All others are read from the tokens alone, and each must be
understood to its last token (`utility`).

Nothing here does I/O; the same text in the same context gives the same facts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from chaperone_sidecar.command import Access, Effect, Extent, Facts, Resolution, unknown
from chaperone_sidecar.protocols.mysql import functions, utility
from chaperone_sidecar.protocols.mysql.context import Context, UnknownName
from chaperone_sidecar.protocols.mysql.plan import Plan
from chaperone_sidecar.protocols.mysql.tokens import Kind, Token, Unreadable, decode, statements, tokenize

_ROWS: Final = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE", "WITH", "VALUES", "TABLE", "("})
_EXPLAIN: Final = frozenset({"EXPLAIN", "DESCRIBE", "DESC"})
_WRITES: Final = frozenset({Effect.CREATE, Effect.MODIFY, Effect.DELETE, Effect.BULK_WRITE})


class Classified(msgspec.Struct, frozen=True):
    """What is known of one text."""

    facts: Facts
    plan: Plan = Plan()
    database: str | None = None  # that the session uses once this has run
    kills: int | None = None  # the connection whose statement is to be ended
    may_change_session: bool = False  # in ways that are not seen here: code ran, or nobody knows what
    is_unknown: bool = False
    statements: int = 1  # that the server's own counters count; -1: not known
    unset_charsets: tuple[tuple[int, int], ...] = ()  # where SET character_set_results = NULL has its NULL

    def sent(self, text: bytes) -> bytes:
        """The text as it goes upstream: without a character set, results would come in those of their columns."""
        if not self.unset_charsets:
            return text
        decoded, parts, place = text.decode(), [], 0
        for start, end in self.unset_charsets:
            parts += [decoded[place:start], "utf8mb4"]
            place = end
        return "".join((*parts, decoded[place:])).encode()


def classify(text: bytes, context: Context) -> Classified:
    """Say what a text would do."""
    try:
        decoded = decode(text)
        found = statements(tokenize(decoded))
    except Unreadable as error:
        return _unknown(str(error))
    if not found:
        return Classified(Facts((Access(Effect.READ),), Resolution.NONE), statements=0)
    parts = [_statement(one, decoded, context) for one in found]
    if len(parts) == 1:
        return parts[0]
    if any(part.database is not None or part.kills is not None for part in parts):
        return _unknown("USE and KILL must be sent alone, since they decide what other statements mean.")
    if any(part.may_change_session for part in parts[:-1]):
        accesses = [access for part in parts for access in part.facts.accesses]
        return _unknown(
            "what runs code must be the last statement of a text, since it may change the session.", accesses
        )
    return _united(parts)


def _unknown(why: str, accesses: Sequence[Access] = ()) -> Classified:
    facts = unknown(f"what it would do is not known: {why}")
    if accesses:
        facts = msgspec.structs.replace(facts, accesses=(*facts.accesses, *accesses))
    return Classified(facts, Plan(blind=f"what it would do is not known: {why}"), None, None, True, True, -1)


def _united(parts: list[Classified]) -> Classified:
    accesses = tuple(dict.fromkeys(access for part in parts for access in part.facts.accesses))
    why = next((part.facts.why_unknown for part in parts if part.facts.why_unknown), "")
    resolution = Resolution.UNRESOLVED if why else Resolution.SYNTACTIC
    plan = Plan(
        tuple(dict.fromkeys(table for part in parts for table in part.plan.tables)),
        readings=tuple(reading for part in parts for reading in part.plan.readings),
        unmaskable=next((part.plan.unmaskable for part in parts if part.plan.unmaskable), ""),
        blind=next((part.plan.blind for part in parts if part.plan.blind), ""),
    )
    return Classified(
        Facts(accesses, resolution, why), plan, None, None,
        any(part.may_change_session for part in parts), any(part.is_unknown for part in parts),
        -1 if any(part.statements < 0 for part in parts) else sum(part.statements for part in parts),
        tuple(span for part in parts for span in part.unset_charsets),
    )  # fmt: skip


def _statement(tokens: list[Token], text: str, context: Context) -> Classified:
    first = tokens[0].word or tokens[0].text
    try:
        if first in _EXPLAIN:
            return _explained(tokens, text, context)
        if first in _ROWS:
            return _rows(tokens, text, context)
        told = utility.read(tokens, context)
        inner = _rows(told.query, text, context) if told is not None and told.query is not None else None
    except (Unreadable, UnknownName) as error:
        return _unknown(str(error))
    except RecursionError:  # a chain of operators is a tree as deep as it is long
        return _unknown("it is nested too deeply.")
    if told is None or not (told.accesses or inner):
        return _unknown(f"statements that begin with {first[:32]} in this form are not known.")
    if inner is not None:
        accesses = tuple(dict.fromkeys((*told.accesses, *inner.facts.accesses)))
        facts = msgspec.structs.replace(inner.facts, accesses=accesses, extents=())
        return msgspec.structs.replace(inner, facts=facts, plan=_stored(inner.plan))
    if told.why_unknown:
        return _unknown(told.why_unknown, told.accesses)
    resolution = Resolution.SYNTACTIC if any("." in one.object for one in told.accesses) else Resolution.NONE
    return Classified(
        Facts(told.accesses, resolution), Plan(told.tables, unmaskable=told.unmaskable, blind=told.blind),
        told.database, told.kills, told.may_change_session, unset_charsets=told.unset_charsets,
    )  # fmt: skip


def _stored(plan: Plan) -> Plan:
    """The plan of a query whose rows do not go to the client: what is masked in them would be there as it is."""
    readings = tuple(msgspec.structs.replace(one, is_plain=False) for one in plan.readings)
    return msgspec.structs.replace(plan, readings=readings, is_apart=True)


def _explained(tokens: list[Token], text: str, context: Context) -> Classified:
    """EXPLAIN: what the statement reads; with ANALYZE, which runs it, all that it does."""
    words = [token.word for token in tokens]
    at, runs = 1, False
    while at < len(tokens) and words[at] in ("ANALYZE", "EXTENDED", "PARTITIONS", "FORMAT"):
        runs |= words[at] == "ANALYZE"
        at += 1
        if words[at - 1] == "FORMAT":
            if [token.text for token in tokens[at : at + 1]] != ["="] or at + 2 > len(tokens):
                return _unknown("the form of this EXPLAIN is not known.")
            at += 2
    rest = tokens[at:]
    if not rest:
        return _unknown("this EXPLAIN explains nothing.")
    if (rest[0].word or rest[0].text) not in _ROWS:
        name, end = context.name(rest, 0)
        if end < len(rest) - 1 or runs:  # DESCRIBE t, DESCRIBE t column
            return _unknown("the form of this EXPLAIN is not known.")
        return Classified(Facts((Access(Effect.READ, name),), Resolution.SYNTACTIC), Plan())
    inner = _rows(rest, text, context)
    inner = msgspec.structs.replace(inner, plan=_stored(inner.plan))  # it quotes values of rows that it has read
    if runs:
        return inner
    accesses = tuple(
        dict.fromkeys(Access(Effect.READ, one.object) if one.effect in _WRITES else one for one in inner.facts.accesses)
    )
    return msgspec.structs.replace(inner, facts=msgspec.structs.replace(inner.facts, accesses=accesses, extents=()))


# --- statements about rows ------------------------------------------------------------------------------------------


def _rows(tokens: list[Token], text: str, context: Context) -> Classified:
    called = _called(tokens, context)
    if any(one.word == "VALUE" and two.word == "FOR" for one, two in itertools.pairwise(tokens)):
        return _unknown("NEXT VALUE FOR changes a sequence and is not passed on.", called)
    outside = _outside(tokens)
    if outside:
        return _unknown("it would write a file of the server.", (*called, *outside))
    from chaperone_sidecar.protocols.mysql import grammar  # noqa: PLC0415 - takes 6 MiB

    tree = grammar.parse(tokens, text)
    return RowStatement(tree, tokens, context, called).classified()


def _called(tokens: list[Token], context: Context) -> list[Access]:
    """Functions that are called and are not among the harmless ones."""
    found: list[Access] = []
    for index, token in enumerate(tokens[:-1]):
        if not token.is_name or tokens[index + 1].text != "(" or tokens[index + 1].kind is not Kind.SIGN:
            continue
        name, before = token.text.lower(), index - 1
        is_qualified = before >= 1 and tokens[before].text == "." and tokens[before - 1].is_name
        if is_qualified:
            before -= 2
        if before >= 0 and tokens[before].word in ("INTO", "AS", "WITH", "RECURSIVE", "INSERT", "REPLACE", "IGNORE"):
            continue  # a list of columns
        if is_qualified:
            found.append(Access(Effect.EXECUTE_CODE, f"{context.folded(tokens[index - 2].text)}.{name}"))
        elif name in functions.EXTERNAL:
            found.append(Access(Effect.EXTERNAL_IO, f"function:{name}"))
        elif not (_is_own(tokens, index) and name in functions.SAFE) and not _is_keyword(tokens, index):
            found.append(Access(Effect.EXECUTE_CODE, f"function:{context.plain(name)}"))
    return list(dict.fromkeys(found))


def _is_own(tokens: list[Token], index: int) -> bool:
    """Whether a name before a parenthesis can only be the server's: in backticks, or apart, it may be somebody's."""
    token = tokens[index]
    if token.kind is not Kind.WORD:
        return False
    return token.end == tokens[index + 1].start or token.text.lower() not in functions.ADJACENT


def _is_keyword(tokens: list[Token], index: int) -> bool:
    """Whether a word before a parenthesis is one of the grammar."""
    token, word = tokens[index], tokens[index].word.lower()
    if word in functions.BEFORE_QUERY:
        return index + 2 < len(tokens) and tokens[index + 2].word in ("SELECT", "WITH", "TABLE", "VALUES")
    if word == "against":
        return index > 0 and tokens[index - 1].text == ")"
    return token.kind is Kind.WORD and word in functions.KEYWORDS


def _outside(tokens: list[Token]) -> list[Access]:
    return [
        Access(Effect.EXTERNAL_IO, "file:" + tokens[index + 2].text[1:-1] if index + 2 < len(tokens) else "file:")
        for index in range(len(tokens) - 1)
        if tokens[index].word == "INTO" and tokens[index + 1].word in ("OUTFILE", "DUMPFILE")
    ]


class RowStatement:
    """One SELECT, INSERT, REPLACE, UPDATE or DELETE, as a tree."""

    def __init__(self, tree: Any, tokens: list[Token], context: Context, called: list[Access]) -> None:  # noqa: ANN401
        from chaperone_sidecar.protocols.mysql import grammar  # noqa: PLC0415

        self._tree = tree
        self._tokens = tokens
        self._context = context
        self._accesses = called
        self._shape = grammar.shape(tree, context)
        self._is_replace = tokens[0].word == "REPLACE"

    def classified(self) -> Classified:
        """Its facts."""
        shape = self._shape
        _check_agreement(self._tokens, shape.names | shape.own_names)
        accesses = list(dict.fromkeys((*self._changes(), *self._reads(), *self._accesses)))
        if not accesses:
            accesses = [Access(Effect.READ)]
        resolution = Resolution.SYNTACTIC if shape.tables else Resolution.NONE
        extents = self._extents(accesses)
        runs_code = any(one.effect is Effect.EXECUTE_CODE for one in accesses)
        return Classified(
            Facts(tuple(accesses), resolution, extents=extents),
            Plan(shape.tables, (shape,), blind="what code of the database shows is not known." if runs_code else ""),
            may_change_session=runs_code,
        )

    def _changes(self) -> Iterator[Access]:
        shape = self._shape
        for table in shape.targets:
            match shape.kind:
                case "insert":
                    yield Access(Effect.CREATE, table)
                    if self._is_replace:
                        yield Access(Effect.DELETE, table)
                    if shape.has_conflict:
                        yield Access(Effect.MODIFY, table)
                        yield Access(Effect.READ, table)
                case "update" | "delete":
                    yield Access(Effect.MODIFY if shape.kind == "update" else Effect.DELETE, table)
                    if not shape.has_where or len(shape.targets) > 1:
                        yield Access(Effect.BULK_WRITE, table)
                    if shape.reads_columns:
                        yield Access(Effect.READ, table)
            if shape.has_returning:
                yield Access(Effect.READ, table)

    def _reads(self) -> Iterator[Access]:
        shape = self._shape
        for table in shape.read:
            yield Access(Effect.READ_SENSITIVE if _is_sensitive(table) else Effect.READ, table)
            if shape.locks:
                yield Access(Effect.MODIFY, table)

    def _extents(self, accesses: list[Access]) -> tuple[Extent, ...]:
        shape = self._shape
        if len(shape.tables) != 1 or shape.references != 1:  # a condition on one may leave another whole
            return ()
        extent = Extent(shape.has_where, shape.limit)
        return tuple(extent if access.object == shape.tables[0] else Extent() for access in accesses)


_SENSITIVE_SCHEMAS: Final = frozenset({"mysql", "performance_schema", "sys"})
_SENSITIVE: Final = frozenset(
    f"information_schema.{name}"
    for name in (
        "processlist", "column_statistics", "innodb_trx", "innodb_locks", "innodb_lock_waits", "innodb_ft_index_cache",
        "innodb_ft_index_table", "optimizer_trace", "query_cache_info", "user_variables", "metadata_lock_info",
    )
)  # fmt: skip


def _is_sensitive(table: str) -> bool:
    """Whether it shows credentials, other sessions' statements or values of columns."""
    return table in _SENSITIVE or table.split(".", 1)[0] in _SENSITIVE_SCHEMAS


_BEFORE_TABLE: Final = frozenset({"FROM", "JOIN", "STRAIGHT_JOIN", "INTO", "UPDATE"})
_MODIFIERS: Final = frozenset({"LOW_PRIORITY", "IGNORE", "LATERAL", "QUICK", "DELAYED", "HIGH_PRIORITY"})


def _check_agreement(tokens: list[Token], known: frozenset[str]) -> None:
    """What stands where a table must is one of the tables that the tree has.

    Raises:
        Unreadable: it is not.
    """
    inside: list[str] = []  # the function that each open parenthesis belongs to, "" for none
    for index, token in enumerate(tokens):
        if token.kind is Kind.SIGN and token.text in "()":
            if token.text == "(":
                inside.append(tokens[index - 1].text.lower() if index and tokens[index - 1].is_name else "")
            elif inside:
                inside.pop()
            continue
        if token.word not in _BEFORE_TABLE or (
            inside and inside[-1] in ("extract", "substring", "substr", "mid", "trim")
        ):
            continue
        before = tokens[index - 1].word if index else ""
        if (token.word == "UPDATE" and before in ("KEY", "FOR")) or (token.word == "FROM" and before == "DISTINCT"):
            continue
        at = index + 1
        while at < len(tokens) and tokens[at].word in _MODIFIERS:
            at += 1
        if at >= len(tokens) or not tokens[at].is_name:
            continue
        while at + 2 < len(tokens) and tokens[at + 1].text == "." and tokens[at + 2].is_name:
            at += 2
        name = tokens[at].text.lower()
        if name not in known and not (tokens[at].word in ("SELECT", "DUAL") or name == "json_table"):
            raise Unreadable("its two readers do not agree on the tables in it.")
