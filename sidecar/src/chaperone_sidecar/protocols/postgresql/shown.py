r"""What records, and people who read them, may see of a command: its text, parameters and objects.

Where columns are masked as a whole any literal may be one of their values, and nobody could recognise it. So a text
loses its literals (`$1`, `$2`, …), its comments, and the names that neither the server nor the command's own accesses
know (`name_1`, …); its words, objects and signs stay. A statement that touches no relation with such a column keeps its
literals (`Reader` says so). A text that does not parse keeps its first word: where its literals end cannot be told.

Detectors look at everything besides: at the text as it is written and, since SQL has its own ways to write a value, at
what its strings and numbers say (`E'\x34…'`, `U&'\0034'`, `'41' || '11'`, `4_111`, `0xE…`).

The id of a trace (W3C traceparent) in a comment is kept; it is no value.

Loading this module loads RE2, so a gateway without masks does not import it.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Final

import msgspec

from chaperone_sidecar.command import Access, Effect, Facts
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.protocols.postgresql import binary, messages
from chaperone_sidecar.protocols.postgresql.classify import Classified
from chaperone_sidecar.protocols.postgresql.relations import words
from chaperone_sidecar.protocols.postgresql.scalar import guesses
from chaperone_sidecar.protocols.postgresql.schema import NotLookedUp, Schema
from chaperone_sidecar.protocols.postgresql.tokens import (
    COMMENTS,
    STRINGS,
    Token,
    content,
    digits,
    readings,
    tokens,
)
from chaperone_sidecar.protocols.postgresql.vocabulary import VOCABULARY

MASKED: Final = b"[masked]"
MAX_SHOWN_BYTES: Final = 1 << 20  # a record keeps no more; `1,1,…` becomes longer with its literals numbered
MAX_VALUE_BYTES: Final = 64 << 10  # of a parameter in which something is masked in place; a longer one goes as a whole
BATCH_RUNS: Final = 256  # strings and numbers that are searched at once
MAX_TOKENS: Final = 100_000  # of a text, some 300 ms; what is behind them is not shown
MAX_JOINED: Final = 1000  # strings that are put together; longer chains are not looked at and go as a whole
MAX_DEPTH: Final = 3  # of texts in dollar quotes in texts in dollar quotes
MAX_KNOWN_TEXTS: Final = 256  # whose shown form is remembered, at most MAX_KNOWN_BYTES each: 2 MiB
MAX_KNOWN_BYTES: Final = 4096
MAX_KNOWN_FACTS: Final = 1024  # as the recorder keeps

_QUOTED: Final = b"'%s'" % MASKED
_SHORT: Final = 2  # an alias of one or two letters (`FROM orders o`) is no value, and texts are hard to read without
_FIRST_WORD: Final = re.compile(rb"\s*([A-Za-z]{2,20})\b")
_TRACE: Final = re.compile(rb"traceparent\s*[=:]\s*'?(00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})\b")
# Anything that may say something else than it looks like: escapes, doubled quotes, what is put together, numbers that
# are not plain digits.
_DISGUISE: Final = re.compile(
    rb"""\\ | '\s*+' | '\s*+(?:--|/\*) | "" | \|\| | \$(?![0-9]) | (?i:[bex]'|u&['"]) | (?i:uescape)
    | [0-9]_[0-9] | 0[xXoObB] | [0-9.][eE][-+]?[0-9]""",
    re.VERBOSE,
)
_DISGUISED_NUMBER: Final = re.compile(rb"[_xXoObBeE]")
_TEXT_NUMBER: Final = re.compile(rb"(?<![A-Za-z0-9_.])[0-9][0-9A-Za-z_.+-]*")
_BETWEEN: Final = frozenset((b"|", b"(", b")", b":"))  # 'a' || 'b', ('a'::text) || ('b')
_TEXT_TYPES: Final = frozenset((b"text", b"varchar", b"bytea"))

_PLAIN_NAME: Final = re.compile(r"(?:[a-z_]+:)?[A-Za-z_][\w$]*(?:\.(?:[A-Za-z_][\w$]*|\*))*", re.ASCII)
# Objects whose names are written as literals, or chosen by whoever writes.
_FREE_KINDS: Final = words("channel library")
# What clients call themselves; any other name may be anything.
_CLIENTS: Final = frozenset(
    {*words("asyncpg npgsql pg_dump pg_restore pgbench pgx psql psycopg psycopg2"), "PostgreSQL JDBC Driver"}
)


class Shown:
    """What may be seen of commands, by the masks of one identity at one database.

    Args:
        masker: the masks of policy.
        schema: what is known of the database's relations and types.
    """

    def __init__(self, masker: Masker, schema: Schema) -> None:
        self._masker = masker
        self._schema = schema
        self._binary = binary.Reader(schema.type, is_thorough=masker.has_patterns)
        self._texts: OrderedDict[tuple[bytes, bool], tuple[Facts, bytes]] = OrderedDict()
        self._facts: dict[tuple[int, bool], tuple[Facts, Facts]] = {}

    def text(self, text: bytes, classified: Classified, *, conceals: bool) -> bytes:
        """A command's text; the very object where nothing of it is hidden.

        Args:
            text: as the client sent it.
            classified: what it was read as.
            conceals: its literals may be values of columns.
        """
        if not self._masker.has_columns:
            return self._without_findings(text)
        key = (text, conceals)
        known = self._texts.get(key)
        if known is not None and known[0] is classified.facts:
            self._texts.move_to_end(key)
            return known[1]
        shown = self._without_findings(self._concealed(text, classified, conceals=conceals))
        if shown == text:
            shown = text
        if len(text) <= MAX_KNOWN_BYTES and len(shown) <= MAX_KNOWN_BYTES:
            self._texts[key] = (classified.facts, shown)
            if len(self._texts) > MAX_KNOWN_TEXTS:
                self._texts.popitem(last=False)
        return shown

    def params(self, params: bytes, types: Sequence[int], *, conceals: bool) -> bytes:
        """Bound parameters, in the form of Bind.

        Args:
            params: as the client sent them.
            types: the OIDs of their types, as far as known; 0 is not known.
            conceals: they may be values of columns.
        """
        if not params:
            return params
        shown = messages.map_params(params, _concealed_value if conceals else self._value_of(types))
        return params if shown == params else shown

    def arguments(self, body: bytes) -> bytes:
        """A FunctionCall: which function, and not with what."""
        return b"function %d %s" % (int.from_bytes(body[:4], "big"), MASKED)

    def facts(self, facts: Facts, *, conceals: bool) -> Facts:
        """The objects that a command touches, without names that are values; the very object where none are."""
        key = (id(facts), conceals)
        found = self._facts.get(key)
        if found is not None:
            return found[1]
        accesses = tuple(self._access(access, conceals=conceals) for access in facts.accesses)
        shown = facts if accesses == facts.accesses else msgspec.structs.replace(facts, accesses=accesses)
        if len(self._facts) >= MAX_KNOWN_FACTS:
            self._facts.clear()
        self._facts[key] = (facts, shown)  # holding the facts keeps their id theirs
        return shown

    # --- columns that are masked as a whole ---------------------------------------------------------------------------

    def _concealed(self, text: bytes, classified: Classified, *, conceals: bool) -> bytes:
        """A text without comments, and without its values where `conceals`."""
        if not conceals:
            return text if b"--" not in text and b"/*" not in text else _Concealing(None, self._hits).text(text)
        if classified.is_unread:
            return _unread(text)
        return _Concealing(self._names(classified.facts), self._hits).text(text)

    def _names(self, facts: Facts) -> frozenset[bytes]:
        """The names that a text may show: those of its objects and of their columns."""
        found: set[str] = set()
        for access in self.facts(facts, conceals=True).accesses:
            found.update(access.object.rpartition(":")[2].split("."))
            relation = self._schema.relation(access.object) if self._schema.has(access.object) else None
            found.update(column.name for column in (relation.columns if relation is not None else ()))
        return frozenset(name.encode() for name in found)

    def _access(self, access: Access, *, conceals: bool) -> Access:
        name, through = (self._object(name, access, conceals=conceals) for name in (access.object, access.through))
        return access if (name, through) == (access.object, access.through) else Access(access.effect, name, through)

    def _object(self, name: str, access: Access, *, conceals: bool) -> str:
        if not name:
            return name
        kind = name.partition(":")[0] if ":" in name else ""
        if conceals and not self._is_known(name):
            is_free = kind in _FREE_KINDS or (kind == "transaction" and access.effect is Effect.MAINTAIN)
            if is_free or not _PLAIN_NAME.fullmatch(name):
                return f"{kind}:{MASKED.decode()}" if re.fullmatch("[a-z_]+", kind) else MASKED.decode()
        return shown_name(self._masker, name)

    def _is_known(self, name: str) -> bool:
        return self._schema.has(name) and self._schema.relation(name) is not None

    # --- detectors ----------------------------------------------------------------------------------------------------

    def _without_findings(self, text: bytes) -> bytes:
        if not self._masker.has_detectors:
            return text
        shown = self._undisguised(text, 0)
        return self._masker.mask_text(shown) if self._masker.may_hit(shown) else shown

    def _undisguised(self, text: bytes, depth: int) -> bytes:
        """A text without the strings and numbers that say what detectors find."""
        if not _DISGUISE.search(text):
            return text
        if depth >= MAX_DEPTH:
            return MASKED
        out, place = bytearray(), 0
        runs = _runs(text)
        while batch := list(islice(runs, BATCH_RUNS)):
            if batch[-1][-1].place >= MAX_TOKENS:
                start = batch[0][0].start
                return bytes(out + text[place:start]) + _rest(len(text) - start)
            for run, shown in self._shown_runs(batch, text, depth):
                out += text[place : run[0].start] + shown
                place = run[-1].end
        return bytes(out + text[place:]) if place else text

    def _shown_runs(self, batch: list[list[Token]], text: bytes, depth: int) -> Iterator[tuple[list[Token], bytes]]:
        """What stands for strings that are put together, and for single tokens; those that may stay are left out."""
        said = [self._said(run, text) for run in batch]
        cells = [(index, cell) for index, found in enumerate(said) for cell in found]
        likely = {cells[hit] for hit in self._masker.hits([cell for _, cell in cells])}
        found = {index for index, cell in likely if self._hits(cell)}
        for index, run in enumerate(batch):
            first = run[0]
            if index in found or len(run) > MAX_JOINED or (first.kind == "number" and not said[index]):
                yield run, MASKED if first.kind == "number" else b'"%s"' % MASKED if first.kind == "quoted" else _QUOTED
            elif any(token.kind == "dollar" for token in run):
                inner = [self._undisguised(content(token), depth + 1) for token in run if token.kind == "dollar"]
                if inner != [content(token) for token in run if token.kind == "dollar"]:
                    yield run, first.value.replace(content(first), inner[0]) if len(run) == 1 else _QUOTED

    def _said(self, run: list[Token], text: bytes) -> list[bytes]:
        """What a run may say besides what it looks like, which is looked at with the whole text."""
        first = run[0]
        if first.kind == "number":
            found = digits(first.value)
            return [] if found is None else [found]
        each = [readings(token, text) for token in run]
        if len(run) == 1 and each[0] == (content(first),):
            return []
        return [b"".join(one[min(index, len(one) - 1)] for one in each) for index in range(max(map(len, each)))]

    def _hits(self, data: bytes) -> bool:
        return self._masker.may_hit(data) and self._masker.mask_text(data) != data

    def _value_of(self, types: Sequence[int]) -> Callable[[int, bytes, bool], bytes]:
        def shown(index: int, value: bytes, is_binary: bool) -> bytes:
            if is_binary:
                return self._binary_value(value, types[index] if index < len(types) else 0)
            return self._text_value(value)

        return shown

    def _text_value(self, value: bytes) -> bytes:
        if not self._masker.has_detectors:
            return value
        numbers = _TEXT_NUMBER.finditer(value) if _DISGUISED_NUMBER.search(value) else ()
        if any(_DISGUISED_NUMBER.search(one.group()) and self._hits(digits(one.group()) or b"") for one in numbers):
            return MASKED
        if not self._masker.may_hit(value):
            return value
        return self._masker.mask_text(value) if len(value) <= MAX_VALUE_BYTES else MASKED

    def _binary_value(self, value: bytes, oid: int) -> bytes:
        if not self._masker.has_detectors:
            return value
        texts = None
        if oid:
            try:
                texts = self._binary.texts(oid, value)
            except (ProtocolError, binary.UnknownBinary, NotLookedUp):
                texts = None  # it is not of its type, or that is not known
        texts = guesses(value) if texts is None else texts
        if texts is None:
            return MASKED
        if texts == [value]:
            return self._text_value(value)
        return MASKED if any(self._hits(one) for one in (value, *texts)) else value


class _Concealing:
    """Writes one text without its comments and, where `names` says which names may be shown, without its values."""

    def __init__(self, names: frozenset[bytes] | None, hits: Callable[[bytes], bool]) -> None:
        self._names = names
        self._hits = hits
        self._count = 0
        self._numbers: dict[bytes, int] = {}

    def text(self, text: bytes) -> bytes:
        out = bytearray()
        trace = b""
        parameters = re.findall(rb"\$([0-9]{1,5})", text) if self._names is not None else ()
        self._count = max(map(int, parameters), default=0)
        for token in tokens(text):
            if len(out) > MAX_SHOWN_BYTES or token.place >= MAX_TOKENS:
                return bytes(out) + _rest(len(text) - token.start)
            if token.kind in COMMENTS or token.kind == "space":
                if token.kind in COMMENTS and not trace:
                    trace = self._trace(token.value)
                if out and not out.endswith(b" "):
                    out += b" "
            elif self._names is None:
                out += token.value
            elif token.kind == "other" or (token.kind == "plain" and b"\\'" in token.value):
                return _unread(text)  # where this string ends is a matter of settings
            else:
                out += self._token(token, self._names)
        shown = bytes(out).rstrip(b" ")
        return shown + b" /*traceparent='%s'*/" % trace if trace else shown

    def _trace(self, comment: bytes) -> bytes:
        found = _TRACE.search(comment)
        if found is None or any(self._hits(part.lstrip(b"0")) for part in found.group(1).split(b"-")):
            return b""
        return found.group(1)

    def _token(self, token: Token, names: frozenset[bytes]) -> bytes:
        kind, value = token.kind, token.value
        if kind in ("sign", "parameter"):
            return value
        if kind == "word":
            folded = value.lower()
            if folded not in (b"true", b"false"):  # a value, too
                is_shown = folded in names or folded in _VOCABULARY or len(value) <= _SHORT
                return value if is_shown else self._numbered(folded)
        if kind == "quoted":
            return value if content(token) in names else b'"%s"' % self._numbered(content(token))
        self._count += 1
        return b"$%d" % self._count

    def _numbered(self, name: bytes) -> bytes:
        return b"name_%d" % self._numbers.setdefault(name, len(self._numbers) + 1)


def shown_name(masker: Masker, name: str) -> str:
    """A name of an object without what detectors find in it."""
    data = name.encode("utf-8", "replace")
    if not masker.may_hit(data):
        return name
    return masker.mask_text(data).decode("utf-8", "replace")


def shown_client(masker: Masker, name: str) -> str:
    """What a client calls itself, its user or its database: where columns are masked, only names of programs."""
    if masker.has_columns and name and name not in _CLIENTS:
        return MASKED.decode()
    return shown_name(masker, name)


_VOCABULARY: Final = frozenset(word.encode() for word in VOCABULARY)


def _rest(size_bytes: int) -> bytes:
    return b" [%d bytes are not shown]" % size_bytes


def _unread(text: bytes) -> bytes:
    first = _FIRST_WORD.match(text)
    word = first.group(1) if first is not None and first.group(1).lower() in _VOCABULARY else b""
    return word + b"[%d bytes whose values cannot be told are not shown]" % len(text)


def _concealed_value(_index: int, _value: bytes, _is_binary: bool) -> bytes:
    return MASKED


def _runs(text: bytes) -> Iterator[list[Token]]:
    """What may be disguised: names in quotes, numbers, and strings, of which those that are put together are one.

    A run of more than `MAX_JOINED` has its first and its last.
    """
    run: list[Token] = []
    for token in tokens(text):
        if token.kind in STRINGS:
            if len(run) > MAX_JOINED:
                run.pop()
            run.append(token)
        elif token.kind == "space" or token.kind in COMMENTS or token.value in _BETWEEN:
            continue
        elif run and token.value.lower() not in _TEXT_TYPES:
            yield run
            run = []
        if token.kind == "quoted" or (token.kind == "number" and _DISGUISED_NUMBER.search(token.value)):
            yield [token]
    if run:
        yield run
