"""The masker: what a policy's masks mean for one value.

Masks are united: a value that several rules reach is masked by the strictest method among them. A column that an
AccessTarget classifies and no rule names is redacted: what a policy says nothing about is not shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking.detectors import BUILTIN, Detector, Span
from chaperone_sidecar.masking.engine import ANY_FILTER, Scanner, builtin, custom
from chaperone_sidecar.masking.methods import method, replacement, strictest
from chaperone_sidecar.masking.rule import Classified, ColumnClass, MaskRule, Method, Pattern
from chaperone_sidecar.masking.values import TRIGGERS, Values

MIN_KEY_BYTES: Final = 16
MAX_CACHED_COLUMNS: Final = 4096
MAX_CUSTOM_DETECTORS: Final = 32

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")
_KINDS: Final = {kind.lower(): kind for kind in BUILTIN}


class Masker:
    """The masks of one identity on one target; no state but caches, so sessions share it."""

    def __init__(self, rules: Sequence[MaskRule] = (), classified: Sequence[Classified] = (), key: bytes = b"") -> None:
        """Compile the rules.

        Args:
            rules: the masks of all policies that speak of this identity and target.
            classified: the classified columns of the target.
            key: the tenant's key for Hash; never logged, never shown.

        Raises:
            ConfigError: a rule that cannot be obeyed, with the reason.
        """
        methods: dict[str, list[Method]] = {}
        detectors: dict[str, Detector] = {}
        self._columns: list[tuple[re.Pattern[str], Method]] = []
        for rule in rules:
            how = method(rule.method)
            if not rule.columns and not rule.detectors:
                raise ConfigError("A mask names neither columns nor detectors, so it masks nothing; name one.")
            if how == "Hash" and len(key) < MIN_KEY_BYTES:
                raise ConfigError("Method Hash needs the tenant's key; without one every card number can be tried.")
            self._columns += [(_glob(column), how) for column in rule.columns]
            for wanted in rule.detectors:
                detector = _detector(wanted)
                if detectors.setdefault(detector.kind, detector).pattern != detector.pattern:
                    raise ConfigError(f"Two detectors are named {detector.kind}; rename one.")
                methods.setdefault(detector.kind, []).append(how)
        if sum(detector.family == "custom" for detector in detectors.values()) > MAX_CUSTOM_DETECTORS:
            raise ConfigError(f"There are more than {MAX_CUSTOM_DETECTORS} patterns; join some of them by |.")
        self._classified = [(_glob(column), _kind(entry.kind)) for entry in classified for column in entry.columns]
        self._methods = {kind: strictest(said) for kind, said in methods.items()}
        self._key = key
        self._scanner = Scanner(list(detectors.values()), TRIGGERS) if detectors else None
        self._values = Values(self._scanner, self._replace) if self._scanner else None
        self._texts = Values(self._scanner, self._replace_text) if self._scanner else None
        self._classes: dict[str, ColumnClass | None] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no value can need a mask, so that rows need not be looked at."""
        return self._scanner is None and not self.has_columns

    @property
    def has_columns(self) -> bool:
        """Whether columns are masked by name, so that lineage must be known."""
        return bool(self._columns or self._classified)

    @property
    def has_detectors(self) -> bool:
        """Whether values are looked at, whatever column they are of."""
        return self._scanner is not None

    @property
    def has_patterns(self) -> bool:
        """Whether a policy's own patterns are among the detectors: then any number and any day may be a value."""
        return self._scanner is not None and self._scanner.has_custom

    def column_class(self, column: str, *, is_derived: bool = False) -> ColumnClass | None:
        """How a column is masked as a whole, or None if only detectors look at it.

        Args:
            column: `schema.table.column`, or with the database before it.
            is_derived: the output is an expression over the column. Partial then shows nothing, for an expression may
                move what is hidden to where it is shown, and Hash neither: of a part there are few, to compare with.
        """
        if column not in self._classes:
            if len(self._classes) >= MAX_CACHED_COLUMNS:
                self._classes.clear()
            self._classes[column] = self._class_of(column)
        found = self._classes[column]
        if found is not None and is_derived and found.method in ("Partial", "Hash"):
            return ColumnClass(found.kind, "Redact")
        return found

    def may_hit(self, data: bytes | memoryview) -> bool:
        """Whether detectors may find something in `data`, which may be raw frames: False means no value in it."""
        return self._scanner is not None and self._scanner.may_hit(data)

    def hits(self, cells: Sequence[bytes]) -> list[int]:
        """Which of many values detectors may find something in."""
        return self._scanner.hit_cells(cells) if self._scanner is not None else []

    def visit(self, data: bytes, resume: Callable[[int, int], int]) -> None:
        """Tell of places in raw frames where detectors may find something; see `Scanner.visit`.

        Not where there are patterns of a policy's own (`has_patterns`).
        """
        if self._scanner is not None:
            self._scanner.visit(data, resume)

    def mask_found(self, data: bytes, filters: int = ANY_FILTER) -> bytes | None:
        """As `mask_value` for a value of no class, with the filters that `visit` told for it, a bit for each."""
        return self._values.mask(data, 0, filters) if self._values is not None else data

    def mask_value(self, data: bytes, column_class: ColumnClass | None = None, *, is_text: bool = True) -> bytes | None:
        """What the client sees of a value in text format; None is NULL. Untouched values come back as they are.

        Args:
            data: the value.
            column_class: of the column it comes from.
            is_text: whether its type takes any text; of others (numbers, inet, binary format) a masked value is NULL.
        """
        if column_class is not None:
            masked = replacement(column_class.method, column_class.kind, data, self._key)
        elif self._values is not None:
            masked = self._values.mask(data)
        else:
            return data
        return masked if is_text or masked == data else None

    def mask_text(self, data: bytes) -> bytes:
        """Mask text in which no NULL can be said: server messages, command texts, lines. Null redacts there."""
        return (self._texts.mask(data) or b"") if self._texts is not None else data

    def scan(self, data: bytes) -> list[Span]:
        """What the detectors find in `data` as it stands."""
        return self._scanner.scan(data) if self._scanner is not None else []

    def mask_row(
        self, cells: Sequence[bytes | None], classes: Sequence[ColumnClass | None] | None = None
    ) -> list[bytes | None]:
        """Mask the values of a row, or of many: one search over all of them that no class speaks for."""
        out = list(cells)
        rest = []
        for index, cell in enumerate(cells):
            if cell is None:
                continue
            if classes is not None and (known := classes[index]) is not None:
                out[index] = self.mask_value(cell, known)
            else:
                rest.append(index)
        if self._scanner is not None and self._values is not None:
            texts = [cells[index] or b"" for index in rest]
            for hit in self._scanner.hit_cells(texts):
                out[rest[hit]] = self._values.mask(texts[hit])
        return out

    def _class_of(self, column: str) -> ColumnClass | None:
        said = [how for glob, how in self._columns if glob.fullmatch(column)]
        kinds = [kind for glob, kind in self._classified if glob.fullmatch(column)]
        if not said and not kinds:
            return None
        kind = kinds[0] if kinds else "masked"
        if kind in self._methods:
            said.append(self._methods[kind])
        return ColumnClass(kind, strictest(said) if said else "Redact")

    def _replace(self, kind: str, value: bytes) -> bytes | None:
        return replacement(self._methods.get(kind, "Redact"), kind, value, self._key)

    def _replace_text(self, kind: str, value: bytes) -> bytes:
        return self._replace(kind, value) or replacement("Redact", kind, value) or b""


def _detector(wanted: str | Pattern) -> Detector:
    if isinstance(wanted, str):
        return builtin(wanted)
    if not _NAME.fullmatch(wanted.name) or wanted.name in BUILTIN:
        raise ConfigError(f"A pattern is named {wanted.name!r}; take letters, digits, - and _, and no detector's name.")
    return custom(wanted.name, wanted.pattern)


def _kind(name: str) -> str:
    """Classes are free text; those that name a detector mean its kind."""
    return _KINDS.get(name.lower(), name)


def _glob(pattern: str) -> re.Pattern[str]:
    """A column pattern: `*` stays within a part, and a database that one side does not name is any."""
    parts = pattern.split(".")
    if not 3 <= len(parts) <= 4 or not all(parts):
        raise ConfigError(f"{pattern!r} names no column; write schema.table.column, or database.schema.table.column.")
    texts = [re.escape(part).replace(r"\*", "[^.]*") for part in parts]
    database = f"(?:{texts.pop(0)}\\.)?" if len(texts) == 4 else r"(?:[^.]+\.)?"
    return re.compile(database + r"\.".join(texts), re.DOTALL)
