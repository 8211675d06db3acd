"""What the sessions of one target share: its masks, and how the gateway asks the database about names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from chaperone_sidecar.command import Command, Facts, unknown
from chaperone_sidecar.masking.rule import Masks
from chaperone_sidecar.protocols.mysql.classify import Classified
from chaperone_sidecar.protocols.mysql.plan import Columns
from chaperone_sidecar.protocols.mysql.tokens import Kind, Unreadable, decode, tokenize

if TYPE_CHECKING:  # it loads RE2, which a gateway without masks does not carry
    from chaperone_sidecar.masking.mask import Masker

_RUNNING: Final = frozenset({"query", "execute"})
_CONCEALED: Final = b"[masked]"


class Reader:
    """One target's.

    Args:
        masks: what policy says of them.
        masker: made of them; None where nothing is masked.
    """

    def __init__(self, masks: Masks, masker: Masker | None) -> None:
        self.masker = masker
        self.columns = Columns(masks) if masker is not None and masker.has_columns else None
        self.is_strict = masks.unmaskable != "Allow"
        """Whether what cannot be masked is refused, or, as far as that is certain, redacted."""
        self.redacts = masks.unmaskable == "Redact"

    def unmaskable(self, classified: Classified, views: Sequence[str]) -> str:
        """Why a text's masks cannot be kept; "" where they can, or need not.

        Args:
            classified: the text.
            views: those of its tables that are views.
        """
        if self.columns is None or not self.is_strict:
            return ""
        found = self.columns.check(classified.plan)
        if not found and views and not self.is_opaque(classified, views):
            return f"{views[0]} is a view, so which of its columns are masked is not known; ask its tables."
        return found

    def is_opaque(self, classified: Classified, views: Sequence[str]) -> bool:
        """Whether a text passes because all that it shows is redacted: it reads a view, and policy says "Redact"."""
        return (
            bool(views) and self.redacts and self.columns is not None and self.columns.may_be_redacted(classified.plan)
        )

    def asks_views(self, classified: Classified) -> tuple[str, ...]:
        """The tables of a text of which must be known whether they are views."""
        if self.columns is None or not self.is_strict:
            return ()
        return tuple(table for table in classified.plan.tables if not table.startswith("information_schema."))

    def command(
        self, kind: str, text: bytes, classified: Classified, params: bytes, *, in_transaction: bool
    ) -> Command:
        """A command, with what people may see of it."""
        facts = classified.facts
        masker = self.masker
        statements = classified.statements if kind in _RUNNING else 0
        if masker is None:
            return Command(kind, text, facts, params, in_transaction, statements=statements)
        conceals = self.columns is not None and bool(
            classified.is_unknown or classified.plan.blind or self.columns.touched(classified.plan.tables)
        )
        return Command(
            kind, text, facts, params, in_transaction,
            _without_literals(text) if conceals else masker.mask_text(text),
            (_CONCEALED if params else b"") if conceals else masker.mask_text(params),
            statements=statements,
        )  # fmt: skip

    def shown_values(self, command: Command, values: Sequence[bytes | None]) -> list[bytes | None]:
        """What people may see of an execution's parameters."""
        masker = self.masker
        if masker is None or command.shown_params == _CONCEALED:
            return [_CONCEALED] * len(values)
        return [None if one is None else masker.mask_text(one) for one in values]


def lowered(masks: Masks) -> Masks:
    """Masks whose columns are named in lower case, in which they are compared, and whose tables also are.

    A server may fold names of tables, and then it tells them in lower case, however policy writes them.
    """
    return msgspec.structs.replace(
        masks,
        rules=tuple(msgspec.structs.replace(one, columns=_lowered(one.columns)) for one in masks.rules),
        classified=tuple(msgspec.structs.replace(one, columns=_lowered(one.columns)) for one in masks.classified),
    )


def _lowered(columns: tuple[str, ...]) -> tuple[str, ...]:
    parts = [one.rpartition(".") for one in columns]
    said = (f"{name}.{column.lower()}" for table, _, column in parts for name in (table, table.lower()))
    return tuple(dict.fromkeys(said))


def question(tables: Sequence[str]) -> str:
    """Asks which of some tables are views; their names hold letters, digits, _, - and $ alone."""
    pairs = [table.split(".", 1) for table in tables]
    wanted = " OR ".join(f"(TABLE_SCHEMA = '{schema}' AND TABLE_NAME = '{name}')" for schema, name in pairs)
    return (
        "SELECT TABLE_SCHEMA, TABLE_NAME FROM information_schema.TABLES "  # noqa: S608 - of plain names
        f"WHERE TABLE_TYPE LIKE '%VIEW%' AND ({wanted})"
    )


def changed_reading() -> Facts:
    """Facts of anything in a session that reads texts otherwise than it was pinned to."""
    return unknown(
        "this session changed how statements are read, so what the statement means is not known; open a new session."
    )


def _without_literals(text: bytes) -> bytes:
    """A text with every value left out."""
    try:
        decoded = decode(text)
        tokens = tokenize(decoded)
    except Unreadable:
        return _CONCEALED
    parts, place = [], 0
    for token in tokens:
        if token.kind in (Kind.STRING, Kind.NUMBER):
            parts += [decoded[place : token.start], "?"]
            place = token.end
    return "".join((*parts, decoded[place:])).encode()
