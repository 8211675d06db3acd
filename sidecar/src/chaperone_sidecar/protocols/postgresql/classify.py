"""Statement text in, facts out: what a query string would do, decided as a whole.

`classify` never raises: what cannot be understood is `unknown`, with one sentence that says why and what to do. The
rules, statement by statement, are in CLASSIFY.md; the known limits, too.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import msgspec

from chaperone_sidecar.command import Access, Effect, Extent, Facts, Resolution, unknown
from chaperone_sidecar.protocols.postgresql import definition, extent, grammar, query, utility
from chaperone_sidecar.protocols.postgresql.grammar import ParseError, Parser
from chaperone_sidecar.protocols.postgresql.plan import Plan
from chaperone_sidecar.protocols.postgresql.relations import words
from chaperone_sidecar.protocols.postgresql.walk import Node, Walk

HANDLED_BY: Final = (query, utility, definition)  # importing them registers their handlers

CACHE_BYTES: Final = 4 * 1024 * 1024  # some ten thousand statements; shared by all sessions of the gateway
_ENTRY_BYTES: Final = 600  # what an entry holds besides its text, rounded up
_MAX_SHAPED: Final = 4096  # longer texts are seldom told apart by a number alone
_SHARE: Final = 8  # a text over 1/8 of the cache is not kept: one large script would push out all others


class Statement(msgspec.Struct, frozen=True, gc=False):
    """One statement of a text, as far as the session must know it.

    `kind` is `begin`, `commit`, `rollback`, `savepoint`, `release`, `rollback_to`, `copy_in`, `copy_out`, `prepare`,
    `execute`, `deallocate`, `declare`, `fetch`, `close`, `discard` or `other`; `name` is the prepared statement's,
    cursor's or savepoint's, empty when all are meant or none.
    """

    kind: str
    name: str = ""


class Classified(msgspec.Struct, frozen=True, gc=False):
    """The facts of a text, and what its statements do to the session.

    `changes_names`: prepared statements are dropped or made by SQL. `changes_portals`: cursors are, or a transaction
    ends, which drops them. `changes_reading`: later texts may mean something else than is said here. `may_copy_in`:
    the backend may ask for data (COPY FROM STDIN), or it is not known.

    What follows is there only where columns are masked (`reading.py`). `plans`: how the results of the statements are
    masked, in order. `unmaskable`: why the text must not run, since its result could not be masked. `conceals`: its
    literals and parameters may be values of classified columns, so records must not show them.
    """

    facts: Facts
    statements: tuple[Statement, ...] = ()
    changes_names: bool = False
    changes_portals: bool = False
    changes_reading: bool = False
    may_copy_in: bool = False
    plans: tuple[Plan, ...] = ()
    unmaskable: str = ""
    conceals: bool = False

    @property
    def is_unread(self) -> bool:
        """Whether the text has no parse tree: a policy that allows `unknown` lets it pass all the same."""
        return self.may_copy_in and not self.statements

    @property
    def counted(self) -> int:
        """How many of its statements the backend's own counters count when they run; -1: not known.

        PREPARE and DEALLOCATE run nothing (pg_stat_statements counts the latter from 17 on).
        """
        return -1 if self.is_unread else sum(one.kind not in _NAMES for one in self.statements)


_EFFECT_ORDER: Final = {effect: place for place, effect in enumerate(Effect)}
_TOUCHES_NOTHING: Final = Facts((Access(Effect.READ),), Resolution.NONE)
_OBJECTLESS: Final = frozenset({Effect.TRANSACTION, Effect.SESSION})
_NAMES: Final = frozenset({"prepare", "deallocate"})
_PORTALS: Final = frozenset({"declare", "close", "commit", "rollback", "discard"})
# Settings that decide what names and strings mean.
_READING: Final = frozenset(
    f"setting:{name}"
    for name in words(
        """search_path role session_authorization standard_conforming_strings client_encoding backslash_quote
        transform_null_equals"""
    )
)
_KINDS: Final = {
    "PrepareStmt": ("prepare", "name"),
    "ExecuteStmt": ("execute", "name"),
    "DeallocateStmt": ("deallocate", "name"),
    "DeclareCursorStmt": ("declare", "portalname"),
    "FetchStmt": ("fetch", "portalname"),
    "ClosePortalStmt": ("close", "portalname"),
}
_TRANSACTIONS: Final = {
    "TRANS_STMT_BEGIN": "begin",
    "TRANS_STMT_START": "begin",
    "TRANS_STMT_COMMIT": "commit",
    "TRANS_STMT_PREPARE": "commit",
    "TRANS_STMT_ROLLBACK": "rollback",
    "TRANS_STMT_SAVEPOINT": "savepoint",
    "TRANS_STMT_RELEASE": "release",
    "TRANS_STMT_ROLLBACK_TO": "rollback_to",
}


def classify(text: bytes) -> Classified:
    """Facts of a whole query string of at most `grammar.INLINE_BYTES`; longer ones are unknown here. Never raises."""
    try:
        return _classified(grammar.parse(text))
    except ParseError as error:
        return Classified(unknown(str(error)), may_copy_in=True)


_parser: Final = Parser()


def classify_apart(text: bytes) -> Future[Classified]:
    """The same for texts up to `grammar.LARGE_BYTES`, in a thread of its own; the future never ends with an error."""
    answer: Future[Classified] = Future()
    answer.set_running_or_notify_cancel()

    def hand_over(done: Future[Classified]) -> None:
        error = done.exception()
        if error is None:
            answer.set_result(done.result())
        else:
            why = str(error) if isinstance(error, ParseError) else _NOT_WALKED
            answer.set_result(Classified(unknown(why), may_copy_in=True))

    _parser.parse_large(text, _classified).add_done_callback(hand_over)
    return answer


def parse_apart[T](text: bytes, then: Callable[[list[Node]], T]) -> Future[T]:
    """What `then` makes of a text's statements, for texts up to `grammar.LARGE_BYTES`; see `Parser.parse_large`."""
    return _parser.parse_large(text, then)


_NOT_WALKED: Final = "The statement has a shape that this gateway doesn't know; rewrite it."


def _classified(trees: list[Node]) -> Classified:
    found: dict[Access, Extent] = {}
    whole = Walk()
    statements: list[Statement] = []
    for tree in trees:
        walk = Walk()
        try:
            walk.statement(tree["stmt"])
            statements.append(_statement(tree["stmt"]))
        except (KeyError, TypeError, IndexError, AttributeError, ValueError):
            # The tree isn't as the tables say: a library of another version. Said in words, not by falling over.
            walk.unknown(_NOT_WALKED)
            statements.append(Statement("other"))
        for access, reach in _reached(walk, tree["stmt"]).items():
            found[access] = extent.widest(found[access], reach) if access in found else reach
        whole.include(walk)
    if not found:  # blanks and comments only: drivers ping with them
        return Classified(_TOUCHES_NOTHING)
    facts = _facts(found, whole)
    return Classified(
        facts,
        tuple(statements),
        changes_names=any(s.kind in _NAMES or (s.kind == "discard" and s.name == "all") for s in statements),
        changes_portals=any(s.kind in _PORTALS for s in statements),
        changes_reading=any(_changes_reading(access) for access in found),
        may_copy_in=facts.resolution is Resolution.UNRESOLVED or any(s.kind == "copy_in" for s in statements),
    )


def _reached(walk: Walk, tree: Node) -> dict[Access, Extent]:
    try:
        return extent.extents(walk, tree) or dict.fromkeys(_TOUCHES_NOTHING.accesses, Extent())
    except (KeyError, TypeError, AttributeError, ValueError):
        walk.unknown(_NOT_WALKED)
        return dict.fromkeys(walk.found, Extent())


def _facts(found: dict[Access, Extent], walk: Walk) -> Facts:
    accesses = tuple(sorted(found, key=lambda access: (_EFFECT_ORDER[access.effect], access.object)))
    extents = tuple(found[access] for access in accesses) if any(map(_says, found.values())) else ()
    if any(access.effect is Effect.UNKNOWN for access in accesses):
        return Facts(accesses, Resolution.UNRESOLVED, walk.why_unknown, extents=extents)
    alone = frozenset(walk.alone - walk.whole)
    named = any(access.object and access.effect not in _OBJECTLESS for access in accesses)
    return Facts(accesses, Resolution.SYNTACTIC if named else Resolution.NONE, alone=alone, extents=extents)


def _says(reach: Extent) -> bool:
    return reach.has_where or reach.limit is not None


def _statement(tree: dict[str, Any]) -> Statement:
    ((kind, node),) = tree.items()
    if kind in _KINDS:
        word, field = _KINDS[kind]
        return Statement(word, node.get(field, ""))
    if kind == "TransactionStmt":
        return Statement(_TRANSACTIONS.get(node["kind"], "other"), node.get("savepoint_name", ""))
    if kind == "CopyStmt" and "filename" not in node and not node.get("is_program"):
        return Statement("copy_in" if node.get("is_from") else "copy_out")
    if kind == "DiscardStmt":
        return Statement("discard", node.get("target", "DISCARD_ALL").removeprefix("DISCARD_").lower())
    return Statement("other")


def _changes_reading(access: Access) -> bool:
    if access.effect is Effect.PRIVILEGE:
        return access.object in _READING or access.object.startswith("pg_catalog.")
    return access.effect is Effect.SCHEMA and access.object.startswith("pg_temp.")


class ClassifyCache:
    """Text to what it was classified as; the least recently used goes first.

    Facts depend on the text alone while the gateway pins search path and encodings, so all sessions may share one. No
    fact looks at the value of an integer but that of a LIMIT, so texts that differ in no more share an entry (see
    `_shape`). A fact that comes to look at another has to be taken out of that first.

    Args:
        max_bytes: of texts and facts together.
        is_exact: facts depend on integers where these may name an output column (ORDER BY 2).
    """

    def __init__(self, max_bytes: int = CACHE_BYTES, *, is_exact: bool = False) -> None:
        self._max_bytes = max_bytes
        self._is_exact = is_exact
        self.size_bytes = 0
        self._entries: OrderedDict[bytes, Classified] = OrderedDict()

    def find(self, text: bytes) -> Classified | None:
        """What the text was classified as, if that is still kept."""
        found = self._entries.get(text)
        if found is None:
            text = self._key(text)
            found = self._entries.get(text)
        if found is not None:
            self._entries.move_to_end(text)
        return found

    def keep(self, text: bytes, classified: Classified) -> None:
        """Remember a text, and forget others until `max_bytes` suffice."""
        if classified.facts.resolution is not Resolution.UNRESOLVED:  # a number alone may be what was not understood
            text = self._key(text)
        size = _size(text, classified)
        if size > self._max_bytes // _SHARE:
            return
        if text in self._entries:
            self.size_bytes -= _size(text, self._entries.pop(text))
        self._entries[bytes(text)] = classified
        self.size_bytes += size
        while self.size_bytes > self._max_bytes:
            old_text, old = self._entries.popitem(last=False)
            self.size_bytes -= _size(old_text, old)

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size_bytes = 0

    def _key(self, text: bytes) -> bytes:
        return text if self._is_exact and _PLACES.search(text) else _shape(text)


# Without quotes, comments, dollars and backslashes every run of digits that touches no word and no point is an integer.
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_ \t\r\n.,;()=<>+*%-]*\Z")
# Where an integer may be more than a value: the number of an output column, or what a function cuts out.
_PLACES: Final = re.compile(rb"(?i)by|distinct|\(")
# The number of a LIMIT or FETCH FIRST is a fact: what follows these words up to the next letter stays.
_INTEGER: Final = re.compile(rb"(\b(?i:limit|first|next)\b[^A-Za-z]*)|(?<![A-Za-z0-9_.])[0-9]{1,9}(?![A-Za-z0-9_.])")


def _shape(text: bytes) -> bytes:
    """The text with each integer as 0 where that is plain to see; else the text itself."""
    if len(text) > _MAX_SHAPED or not _PLAIN.match(text) or b"--" in text:
        return text
    return _INTEGER.sub(lambda found: found[1] or b"0", text)


def _size(text: bytes, classified: Classified) -> int:
    names = sum(len(access.object) for access in classified.facts.accesses)
    planned = sum(200 + 100 * len(plan.origins) for plan in classified.plans)
    count = len(classified.facts.accesses) + len(classified.statements)
    return _ENTRY_BYTES + len(text) + names + 160 * count + planned
