"""The second reader: sqlglot's tree of one statement, boiled down to a `Shape`.

sqlglot accepts more than a server does and is a witness, not a judge: its tokens must lie where ours do, and every node
of its tree must be of a type that is known here. Imported with the first session; it takes 6 MiB, and 32 were it
compiled (docs/decisions/029).
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import sqlglot
from sqlglot import exp
from sqlglot.dialects.mysql import MySQL

from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.plan import Output, Shape, StatementKind
from chaperone_sidecar.protocols.mysql.tokens import Kind, Token, Unreadable

logging.getLogger("sqlglot").setLevel(logging.CRITICAL)  # it would quote statements

# sqlglot takes up to 28 calls a parenthesis, and `tokens` lets 40 of them through, which Python's usual 1000 would not.
# Calls of Python take no C stack, so what is deeper ends in an exception all the same.
sys.setrecursionlimit(max(sys.getrecursionlimit(), 2000))

_DIALECT: Final = MySQL()
_DISAGREE: Final = "its two readers do not agree on it."
_WORDY: Final = re.compile(r"[A-Za-z0-9_$.'\"`]")
_PART: Final = re.compile(r"\S+")

_KNOWN_WORDS: Final = """
JSONPath JSONPathRoot JSONPathKey JSONPathSubscript JSONPathWildcard
Select From Where Group Having Order Ordered Limit Offset Join Union Intersect Except Subquery With CTE Table
TableAlias Alias Column Identifier Star Literal Null Boolean Placeholder Parameter SessionParameter Var Tuple
Values Insert Update Delete Schema OnConflict Returning Lock Distinct Case If Interval Window WindowSpec Between In
Paren DataType DataTypeParam Cast Collate Rollup Partition IndexTableHint Dot HexString BitString Exists Anonymous
PropertyEQ JSONTable JSONSchema JSONColumnDef JSONKeyValue Not Neg BitwiseNot National Separator Into Aliases
IntervalSpan WeekStart CharacterSet Introducer Cube GroupingSets Escape Filter WithinGroup Any All EQ
"""
_KNOWN: Final = frozenset(_KNOWN_WORDS.split())


MAX_OPEN_JOINS: Final = 8
"""Joins that wait for their ON; sqlglot tries every way to nest them: 12 took 0.15 s, each more 2.7 times as long."""


def _check_joins(tokens: list[Token]) -> None:
    waiting = 0
    for token in tokens:
        if token.word in ("JOIN", "STRAIGHT_JOIN"):
            waiting += 1
        elif token.word in ("ON", "USING") and waiting:
            waiting -= 1
        if waiting > MAX_OPEN_JOINS:
            raise Unreadable(f"more than {MAX_OPEN_JOINS} joins are without ON or USING; write the conditions there.")


def parse(tokens: list[Token], text: str) -> Any:  # noqa: ANN401 - sqlglot has one type for every node
    """The tree of a statement.

    Raises:
        Unreadable: sqlglot cannot read it, or reads other words than we do.
    """
    _check_joins(tokens)
    start, end = tokens[0].start, tokens[-1].end
    # sqlglot takes a REPLACE for a command of its own that it does not read; it is an INSERT in all but its effect.
    part = "INSERT " + text[start + 7 : end] if tokens[0].word == "REPLACE" else text[start:end]
    ours = [(one.start - start, one.end - start) for one in tokens if one.kind is not Kind.SIGN]
    if tokens[0].word == "REPLACE":
        ours[0] = (0, len("INSERT"))
    try:
        read = sqlglot.tokenize(part, dialect=_DIALECT)
        trees = _DIALECT.parser().parse(read, part) if list(_spans(read, part)) == ours else []
    except RecursionError:
        raise Unreadable("it is nested too deeply.") from None
    except Exception:  # beside its own errors it lets those of Python out, such as TypeError
        raise Unreadable("it is no statement that the gateway can read.") from None
    if len(trees) != 1 or trees[0] is None:
        raise Unreadable(_DISAGREE)
    return trees[0]


def _spans(read: list[Any], text: str) -> Iterator[tuple[int, int]]:
    """Where words, names, strings and numbers are; signs are left out, and `.5` is one number."""
    dot = -1
    for token in read:
        start, end = token.start, token.end + 1
        first = text[start]
        if first == "." and end - start == 1:
            dot = start
            continue
        if not _WORDY.match(first):
            continue
        if dot == start - 1 and first.isdigit():
            start = dot
        if first in "'\"`" or (first in "xXbB" and text[start + 1 : start + 2] == "'"):
            yield start, end
        else:  # ORDER BY is one token there and two here
            for part in _PART.finditer(text, start, end):
                yield part.start(), part.end()


def shape(tree: Any, context: Context) -> Shape:  # noqa: ANN401
    """Where its tables and columns stand.

    Raises:
        Unreadable: the tree holds what is not known here.
    """
    return _Reader(tree, context).shape()


class _Reader:
    def __init__(self, tree: Any, context: Context) -> None:  # noqa: ANN401
        while isinstance(tree, exp.Subquery) and tree.alias == "" and not tree.args.get("joins"):
            inner = tree.this
            if any(tree.args.get(name) for name in ("limit", "order", "offset", "with_", "with")):
                break
            tree = inner
        self._tree = tree
        self._context = context
        for node in tree.walk():
            _check(node)
        self._ghosts = {id(one) for one in tree.args.get("tables") or ()} if isinstance(tree, exp.Delete) else set()
        self._tables = [(node, self._named(node)) for node in tree.find_all(exp.Table) if id(node) not in self._ghosts]

    def shape(self) -> Shape:
        tree = self._tree
        kind = _kind(tree)
        if kind is None:
            raise Unreadable("it is no statement about rows.")
        named = [(node, name) for node, name in self._tables if name]
        tables = tuple(dict.fromkeys(name for _, name in named))
        targets = self._targets(named)
        target_ids = {
            id(node)
            for node, name in named
            if kind == "insert" and name in targets and node.find_ancestor(exp.Select) is None
        }
        if kind in ("update", "delete"):
            target_ids = {id(node) for node, _ in named if node.find_ancestor(exp.Select) is None}
        is_alone = kind == "insert" or len(target_ids) == 1
        read = tuple(dict.fromkeys(name for node, name in named if not is_alone or id(node) not in target_ids))
        outputs, plain = self._outputs()
        assigned = self._assigned()
        mentioned = [
            node for node in tree.find_all(exp.Column)
            if id(node) not in plain and id(node) not in assigned and not isinstance(node.this, exp.Star)
        ]  # fmt: skip
        where = tree.args.get("where")
        return Shape(
            kind=kind,
            tables=tables,
            targets=targets,
            read=read,
            names=frozenset(name.split(".", 1)[1].lower() for name in tables),
            own_names=self._own_names(),
            references=len(named),
            has_where=where is not None and _narrows(where.this),
            limit=_limit(tree),
            locks=tree.find(exp.Lock) is not None,
            reads_columns=bool(mentioned) or bool(tree.args.get("order")),
            has_conflict=tree.args.get("conflict") is not None,
            has_returning=tree.args.get("returning") is not None,
            is_plain=self._is_plain(),
            outputs=outputs,
            aliases=tuple(
                (one.alias.lower(), one.this.name.lower())
                for one in getattr(tree, "expressions", ())
                if isinstance(one, exp.Alias) and id(one.this) in plain
            ),
            mentioned=frozenset(node.name.lower() for node in mentioned) | self._unaccounted(),
            has_star=any(not isinstance(star.parent, exp.Count) for star in tree.find_all(exp.Star)),
            is_distinct=tree.args.get("distinct") is not None,
            has_ordinals=_has_ordinals(tree),
            chooses=tree.find(exp.IndexTableHint, exp.Partition) is not None,
            joins_by_name=frozenset(_joined(tree)),
        )

    def _targets(self, named: list[tuple[Any, str]]) -> tuple[str, ...]:
        tree = self._tree
        if isinstance(tree, exp.Insert):
            target = tree.this.this if isinstance(tree.this, exp.Schema) else tree.this
            return tuple(name for node, name in named if node is target)
        if isinstance(tree, exp.Update | exp.Delete):
            return tuple(dict.fromkeys(name for node, name in named if node.find_ancestor(exp.Select) is None))
        return ()

    def _named(self, node: Any) -> str:  # noqa: ANN401
        """The table that a node names, "" for a CTE, a table of JSON, or DUAL."""
        if isinstance(node.this, exp.JSONTable):
            return ""
        if not isinstance(node.this, exp.Identifier) or node.args.get("catalog") is not None:
            raise Unreadable("what stands there for a table is not known.")
        schema = node.args.get("db")
        if schema is None:
            if node.name.upper() == "DUAL" and not node.this.args.get("quoted"):
                return ""
            if self._is_cte(node):
                return ""
        return self._context.table(schema.name if schema is not None else "", node.name)

    def _is_cte(self, node: Any) -> bool:  # noqa: ANN401
        """Whether a name without a schema is that of a CTE that is visible there."""
        folds = self._context.folds_tables
        wanted = node.name.lower() if folds else node.name
        inside: Any = node
        while inside is not None:
            parent = inside.parent
            if parent is not None and isinstance(parent, exp.With):
                names = [one.alias.lower() if folds else one.alias for one in parent.expressions]
                place = next(index for index, one in enumerate(parent.expressions) if one is inside)
                visible = names[: place + 1] if parent.args.get("recursive") else names[:place]
                if wanted in visible:
                    return True
                inside = parent.parent  # the statement that the WITH belongs to does not show it its own names
            else:
                found = _with(inside)
                if found is not None and wanted in [
                    one.alias.lower() if folds else one.alias for one in found.expressions
                ]:
                    return True
                inside = parent
                continue
            inside = inside.parent if inside is not None else None
        return False

    def _own_names(self) -> frozenset[str]:
        names = {cte.alias.lower() for cte in self._tree.find_all(exp.CTE)}
        names |= {one.name.lower() for one in self._tree.find_all(exp.TableAlias)}
        names |= {one.name.lower() for one in self._tree.args.get("tables") or ()}
        return frozenset(names)

    def _outputs(self) -> tuple[tuple[Output, ...], set[int]]:
        found: list[Output] = []
        plain: set[int] = set()
        if not isinstance(self._tree, exp.Select):
            return (), plain
        for one in self._tree.expressions:
            node = one.this if isinstance(one, exp.Alias) else one
            if isinstance(node, exp.Star) or (isinstance(node, exp.Column) and isinstance(node.this, exp.Star)):
                found.append(Output(is_star=True))
            elif isinstance(node, exp.Column):
                found.append(Output(node.name.lower()))
                plain.add(id(node))
            else:
                found.append(Output())
        return tuple(found), plain

    def _assigned(self) -> set[int]:
        """Columns that a value is given to: they are not read."""
        tree = self._tree
        pairs = list(tree.expressions) if isinstance(tree, exp.Update) else []
        conflict = tree.args.get("conflict")
        if conflict is not None:
            pairs += conflict.expressions
        return {id(pair.this) for pair in pairs if isinstance(pair, exp.EQ)}

    def _unaccounted(self) -> frozenset[str]:
        """Names that stand elsewhere in the tree than sqlglot's columns do, as in VALUES(c).

        A net below `find_all(exp.Column)`: it counts every name, less those that name tables, columns for themselves
        in the list and their aliases, and columns that an INSERT fills.
        """
        tree = self._tree
        names = Counter(one.name.lower() for one in tree.find_all(exp.Identifier, exp.Var))
        for node in tree.find_all(exp.Column):
            names[node.name.lower()] -= 1
        if isinstance(tree, exp.Insert) and isinstance(tree.this, exp.Schema):
            names.subtract(one.name.lower() for one in tree.this.expressions)
        names.subtract(one.alias.lower() for one in tree.find_all(exp.Alias))
        for node, _ in self._tables:
            names.subtract(one.lower() for one in (node.name, node.db, node.alias) if one)
        for node in tree.find_all(exp.Column):
            names.subtract(one.lower() for one in (node.table, node.db) if one)
        return frozenset(name for name, count in names.items() if count > 0)

    def _is_plain(self) -> bool:
        tree = self._tree
        if not isinstance(tree, exp.Select) or _with(tree) is not None or tree.args.get("into") is not None:
            return False
        return sum(1 for _ in tree.find_all(exp.Select, exp.Union, exp.Subquery, exp.JSONTable)) == 1


def _kind(tree: Any) -> StatementKind | None:  # noqa: ANN401
    if isinstance(tree, exp.Select | exp.SetOperation | exp.Subquery | exp.Values):
        return "select"
    if isinstance(tree, exp.Insert):
        return "insert"
    if isinstance(tree, exp.Update):
        return "update"
    return "delete" if isinstance(tree, exp.Delete) else None


def _with(node: Any) -> Any:  # noqa: ANN401
    return node.args.get("with_") or node.args.get("with")


def _check(node: Any) -> None:  # noqa: ANN401
    """Refuse a type of node that is not known: what it does is not known either."""
    name = type(node).__name__
    if name in _KNOWN or isinstance(node, exp.Func | exp.Binary):
        if isinstance(node, exp.Insert | exp.Update | exp.Delete) and node.parent is not None:
            raise Unreadable("a change inside another statement is not known.")
        if isinstance(node, exp.TableAlias) and node.columns and isinstance(node.parent, exp.Table):
            raise Unreadable("columns of a table get other names.")
        if isinstance(node, exp.Into):
            raise Unreadable("SELECT … INTO is not passed on.")
        if isinstance(node, exp.Join) and node.args.get("kind") not in (
            None,
            "",
            "INNER",
            "CROSS",
            "OUTER",
            "STRAIGHT_JOIN",
            "STRAIGHT",
        ):
            raise Unreadable("a join of this kind is not known.")
        return
    raise Unreadable(f"its part {name} is not known.")


def _narrows(condition: Any) -> bool:  # noqa: ANN401
    """Whether a condition may leave rows out: it looks at a column, and not only at itself."""
    if isinstance(condition, exp.Paren):
        return _narrows(condition.this)
    if isinstance(condition, exp.And):
        return _narrows(condition.this) or _narrows(condition.expression)
    if isinstance(condition, exp.Or):
        return _narrows(condition.this) and _narrows(condition.expression)
    if isinstance(condition, exp.Binary) and condition.this == condition.expression:
        return False
    return condition.find(exp.Column) is not None


def _limit(tree: Any) -> int | None:  # noqa: ANN401
    limit = tree.args.get("limit")
    found = limit.args.get("expression") if limit is not None else None
    return int(found.name) if isinstance(found, exp.Literal) and found.name.isdigit() else None


def _has_ordinals(tree: Any) -> bool:  # noqa: ANN401
    """Whether rows may be ordered or grouped by a place in the list: in parentheses, too, or by a parameter or TRUE."""
    found = [one.this for one in tree.find_all(exp.Ordered)]
    for group in tree.find_all(exp.Group):
        found += group.expressions
        found += [one for node in group.find_all(exp.Rollup, exp.Cube, exp.GroupingSets) for one in node.expressions]
    return any(one.find(exp.Column) is None and not isinstance(one, exp.Null | exp.Func) for one in found)


def _joined(tree: Any) -> Iterator[str]:  # noqa: ANN401
    for join in tree.find_all(exp.Join):
        if str(join.args.get("method") or "").upper() == "NATURAL":
            yield "*"
        for one in join.args.get("using") or ():
            yield one.name.lower()
