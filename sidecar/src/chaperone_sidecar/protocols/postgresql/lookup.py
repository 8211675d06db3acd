"""What the gateway asks a database about itself, and how it reads the answers: bytes in, bytes out.

Each question is one statement of the extended protocol with one parameter, a JSON text: names are whatever an agent
wrote, and never become part of a statement. Each row of an answer is one JSON text, read into a type; whatever has
another shape, or is larger than anybody asked for, is a `ProtocolError` of the upstream. Statements name nothing
outside pg_catalog, and the connection searches nothing else.

`MARKS` says whether relations are what they were. It and `RELATIONS` need no lock on what they look at, so nobody who
locks a table can hide what is behind a view. `DEFINITIONS` does: the server opens the relations of a view to write it
down.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Final

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec, Frame, Rows
from chaperone_sidecar.protocols.postgresql.grammar import INLINE_BYTES
from chaperone_sidecar.protocols.postgresql.schema import VIEWS, Column, Relation, RelationKind, Type

MAX_NAMES: Final = 500  # asked for at once; a statement that names more is not resolved
MAX_ROWS: Final = 1000  # relations or types in one answer: those asked for come first
MAX_DEFINITION_BYTES: Final = INLINE_BYTES  # of one view: a longer text is not parsed in place
MAX_DEFINITIONS_BYTES: Final = 1 << 20  # of all views of one answer, those that were reached first
MAX_ANSWER_BYTES: Final = 8 << 20  # 1000 relations of 30 columns take 2 MiB; the widest one alone 160 KiB

_KINDS: Final = "('r', 'p', 'v', 'm', 'f', 'c')"

# One row a relation: those asked for, then, step by step, what a view reads, what inherits from a table, and what a
# relation inherits from or is a partition of. A view's relations are those of its rule's dependencies and those in the
# rule itself: the server notes no dependency on its own catalogs. Temporary children are another session's, or the
# agent's own.
_EDGES: Final = f"""
    SELECT 'reads' AS way, d.refobjid AS next
      FROM pg_rewrite w
      JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
     WHERE w.ev_class = here.oid AND w.ev_type = '1' AND d.refobjid <> here.oid
    UNION
    SELECT 'reads', found[1]::oid
      FROM pg_rewrite w, regexp_matches(w.ev_action::text, ' :relid ([0-9]+)', 'g') AS found
     WHERE w.ev_class = here.oid AND w.ev_type = '1' AND found[1]::oid NOT IN (0, here.oid)
    UNION
    SELECT 'children', i.inhrelid
      FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid
     WHERE i.inhparent = here.oid AND NOT k.relispartition AND k.relpersistence <> 't'
    UNION
    SELECT CASE WHEN k.relispartition THEN 'parent' ELSE 'inherits' END, i.inhparent
      FROM pg_inherits i JOIN pg_class k ON k.oid = i.inhrelid
     WHERE i.inhrelid = here.oid AND k.relkind IN {_KINDS}
"""  # noqa: S608 - made of this module's own texts
# What says that a relation was touched: the transactions that wrote its rows in the catalogs. A name that was taken
# away and given back is another row.
_MARK: Final = """encode(sha256(convert_to(concat_ws(' ', c.oid, c.xmin, c.relkind,
        (SELECT string_agg(concat(a.attnum, ':', a.xmin), ',' ORDER BY a.attnum)
           FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0),
        (SELECT string_agg(concat(w.oid, ':', w.xmin), ',' ORDER BY w.oid) FROM pg_rewrite w WHERE w.ev_class = c.oid),
        (SELECT string_agg(concat(i.inhrelid, ':', i.inhparent, ':', i.xmin), ',' ORDER BY i.inhrelid, i.inhparent)
           FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent))), 'UTF8')), 'hex')"""
RELATIONS: Final = f"""
WITH RECURSIVE here(oid) AS (
    SELECT c.oid
      FROM json_array_elements($1::json) AS wanted(name)
      JOIN pg_namespace n ON n.nspname = (wanted.name->>0) COLLATE "C"
      JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = (wanted.name->>1) COLLATE "C"
     WHERE c.relkind IN {_KINDS}
    UNION
    SELECT k.oid
      FROM here, LATERAL ({_EDGES}) AS edge, pg_class k
     WHERE k.oid = edge.next AND k.relkind IN {_KINDS}
)
SELECT json_build_object(
    'oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind, 'mark', {_MARK},
    'columns', (
        SELECT coalesce(json_agg(json_build_array(a.attname, a.attnum, a.atttypid::int8) ORDER BY a.attnum), '[]')
          FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    'edges', (
        SELECT coalesce(json_agg(json_build_array(e.way, o.nspname, k.relname) ORDER BY e.way, e.next), '[]')
          FROM ({_EDGES}) e JOIN pg_class k ON k.oid = e.next JOIN pg_namespace o ON o.oid = k.relnamespace
         WHERE k.relkind IN {_KINDS}))
  FROM (SELECT oid, row_number() OVER () AS place FROM here LIMIT {MAX_ROWS}) here
  JOIN pg_class c ON c.oid = here.oid
  JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY here.place
"""  # noqa: S608 - made of this module's own texts
MARKS: Final = f"""
SELECT json_build_array(n.nspname, c.relname, {_MARK})
  FROM json_array_elements($1::json) AS wanted(name)
  JOIN pg_namespace n ON n.nspname = (wanted.name->>0) COLLATE "C"
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = (wanted.name->>1) COLLATE "C"
 WHERE c.relkind IN {_KINDS}
"""  # noqa: S608 - made of this module's own texts
DEFINITIONS: Final = f"""
SELECT json_build_array(view.oid::int8, CASE
        WHEN view.size > {MAX_DEFINITION_BYTES} THEN ''
        WHEN sum(view.size) OVER (ORDER BY view.place) > {MAX_DEFINITIONS_BYTES} THEN ''
        ELSE view.text END)
  FROM (
    SELECT wanted.oid, wanted.place, definition.text, octet_length(definition.text) AS size
      FROM (SELECT value::oid AS oid, place
              FROM json_array_elements_text($1::json) WITH ORDINALITY AS one(value, place)) wanted,
           pg_get_viewdef(wanted.oid) AS definition(text)
     WHERE definition.text IS NOT NULL) view
"""  # noqa: S608 - made of this module's own texts
_ELEMENT: Final = """coalesce(
        CASE t.typtype
            WHEN 'd' THEN t.typbasetype
            WHEN 'r' THEN (SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid)
            WHEN 'm' THEN (SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid)
            ELSE t.typelem
        END, 0::oid)"""
TYPES: Final = f"""
WITH RECURSIVE here(oid, element) AS (
    SELECT t.oid, {_ELEMENT}
      FROM json_array_elements_text($1::json) AS wanted(value) JOIN pg_type t ON t.oid = wanted.value::oid
    UNION
    SELECT t.oid, {_ELEMENT} FROM here JOIN pg_type t ON t.oid = here.element
)
SELECT json_build_object(
    'oid', t.oid::int8, 'schema', n.nspname, 'name', t.typname, 'kind', t.typtype, 'element', here.element::int8,
    'relation', t.typrelid::int8,
    'is_array', t.typelem <> 0 AND t.typsubscript = 'array_subscript_handler'::regproc)
  FROM (SELECT oid, element FROM here LIMIT {MAX_ROWS}) here
  JOIN pg_type t ON t.oid = here.oid
  JOIN pg_namespace n ON n.oid = t.typnamespace
"""  # noqa: S608 - made of this module's own texts

type Oid = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]


class _Row(msgspec.Struct, frozen=True):
    oid: Oid
    schema: str
    name: str


class _RelationRow(_Row, frozen=True):
    kind: RelationKind
    mark: str
    columns: tuple[tuple[str, int, Oid], ...]
    edges: tuple[tuple[str, str, str], ...]


class _TypeRow(_Row, frozen=True):
    kind: str
    element: Oid
    relation: Oid
    is_array: bool


class Answer:
    """Reads the answer to one question, from its request to ReadyForQuery."""

    def __init__(self, codec: BackendCodec) -> None:
        self._codec = codec
        self._data = bytearray()
        self.code = ""
        """SQLSTATE, if the database refused."""

    def feed(self, data: bytes) -> bool:
        """Take bytes as they came; True when the answer is whole.

        Raises:
            ProtocolError: side=upstream; no answer to what was asked, or too large.
        """
        self._codec.feed(data)
        while (found := self._codec.next()) is not None:
            if isinstance(found, Rows):
                self._data += found.data
                if len(self._data) > MAX_ANSWER_BYTES:
                    raise ProtocolError("The database answered more about itself than was asked.", side="upstream")
            elif self._take(found):
                return True
        return False

    def _take(self, found: Frame) -> bool:
        if found.type == m.READY_FOR_QUERY:
            m.transaction_status(found.body)
            return True
        if found.type == m.ERROR_RESPONSE:
            self.code = m.sqlstate(found.body)
        elif found.type not in _EXPECTED:
            raise ProtocolError(
                f"The database sent a message of type {chr(found.type)!r} that nothing asked for.", side="upstream"
            )
        return False

    def values(self) -> list[bytes]:
        """The values of its rows.

        Raises:
            ProtocolError: side=upstream; rows of another shape, or too many.
        """
        data, position = bytes(self._data), 0
        values: list[bytes] = []
        while position < len(data):
            size = int.from_bytes(data[position + 1 : position + 5], "big")
            if data[position] != m.DATA_ROW or len(values) >= MAX_ROWS:
                raise ProtocolError("The database answered with rows that nothing asked for.", side="upstream")
            values.append(m.decode_single(data[position + 5 : position + 1 + size]))
            position += 1 + size
        return values


_EXPECTED: Final = m.ASYNCHRONOUS | frozenset({m.PARSE_COMPLETE, m.BIND_COMPLETE, m.COMMAND_COMPLETE})


def request(question: str, about: list[tuple[str, str]] | list[int]) -> bytes:
    """The messages that ask a question about names or OIDs."""
    value = msgspec.json.encode([str(one) if isinstance(one, int) else one for one in about])
    return m.encode_parse(b"", question.encode()) + m.encode_bind(value) + m.encode_execute(0) + m.SYNC_FRAME


def split(name: str) -> tuple[str, str] | None:
    """Schema and name of an object, or None: no relation that the classifier could name is called so."""
    schema, _, relation = name.partition(".")
    if not schema or not relation or "." in relation or not name.isprintable():  # halves of surrogate pairs are not
        return None
    return schema, relation


def relations(values: Iterable[bytes]) -> list[Relation]:
    """The relations in an answer to `RELATIONS`, in its order, without definitions.

    Raises:
        ProtocolError: side=upstream.
    """
    rows = [_decode(value, _RelationRow) for value in values]
    parents = {f"{row.schema}.{row.name}": _along(row, "parent", "inherits") for row in rows}
    return [_relation(row, parents) for row in rows]


def _along(row: _RelationRow, *ways: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(f"{schema}.{name}" for found, schema, name in row.edges if found in ways))


def _ancestors(name: str, parents: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    waiting = list(parents[name])
    while waiting:
        parent = waiting.pop()
        if parent not in found:
            found[parent] = None
            waiting += parents.get(parent, ())
    return tuple(found)


def _relation(row: _RelationRow, parents: Mapping[str, tuple[str, ...]]) -> Relation:

    return Relation(
        row.oid,
        name := f"{row.schema}.{row.name}",
        row.kind,
        tuple(Column(*column) for column in row.columns),
        children=_along(row, "children"),
        reads=_along(row, "reads") if row.kind in VIEWS else (),
        parent=next(iter(_along(row, "parent")), ""),
        parents=_ancestors(name, parents),
        mark=row.mark,
    )


def marks(values: Iterable[bytes]) -> dict[str, str]:
    """The marks in an answer to `MARKS`, by the names of the relations.

    Raises:
        ProtocolError: side=upstream.
    """
    rows = [_decode(value, tuple[str, str, str]) for value in values]
    return {f"{schema}.{name}": mark for schema, name, mark in rows}


def with_definitions(found: list[Relation], values: Iterable[bytes]) -> list[Relation]:
    """The same with what an answer to `DEFINITIONS` says of them.

    Raises:
        ProtocolError: side=upstream; also for a definition longer than what was asked for.
    """
    texts = dict(_decode(value, tuple[Oid, str]) for value in values)
    if any(len(text.encode()) > MAX_DEFINITION_BYTES for text in texts.values()):
        raise ProtocolError("The database answered with a definition that is too long.", side="upstream")
    return [
        msgspec.structs.replace(one, definition=texts.get(one.oid, "")) if one.kind in VIEWS else one for one in found
    ]


def types(values: Iterable[bytes]) -> list[Type]:
    """The types in an answer to `TYPES`, and those that they are made of.

    Raises:
        ProtocolError: side=upstream.
    """
    found = []
    for value in values:
        row = _decode(value, _TypeRow)
        described = {"oid": row.oid, "name": f"{row.schema}.{row.name}", "kind": row.kind, "element": row.element}
        found.append(_convert(described | {"relation": row.relation, "is_array": row.is_array}, Type))
    return found


def views(found: Collection[Relation]) -> list[int]:
    """The OIDs of those that have a definition."""
    return [one.oid for one in found if one.kind in VIEWS]


def _decode[T](value: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(value, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("The database's answer about itself cannot be read.", side="upstream") from None


def _convert[T](value: object, shape: type[T]) -> T:
    try:
        return msgspec.convert(value, shape)
    except msgspec.ValidationError:
        raise ProtocolError("The database's answer about itself cannot be read.", side="upstream") from None
