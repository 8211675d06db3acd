"""What a text is read in: the session's database, and how the server compares names of tables."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import msgspec

from chaperone_sidecar.protocols.mysql.tokens import Token

MAX_NAME_CHARACTERS: Final = 64
_PLAIN: Final = re.compile(r"[A-Za-z0-9_$-]+")
_CASELESS: Final = frozenset({"information_schema"})  # whatever lower_case_table_names says


def folded_column(name: str) -> str:
    """A column's name, the same for all spellings that a server may take for one another.

    Servers compare letter by letter in lower case, where the dotted capital I is an i and the Kelvin sign a k. This
    folds more than any server does: accents and widths, too.
    """
    parts = unicodedata.normalize("NFKD", name.casefold())
    return "".join(sign for sign in parts if not unicodedata.combining(sign)).replace("\u0131", "i")


class UnknownName(Exception):
    """A name that no rule could name without doubt; the text says so to the client."""


class Context(msgspec.Struct, frozen=True):
    """Where names are looked up. `folds_tables`: lower_case_table_names is not 0."""

    database: str
    folds_tables: bool = False

    def folded(self, name: str) -> str:
        """A schema or table as policy names it.

        Raises:
            UnknownName: other characters than a rule may have without doubt.
        """
        plain = self.plain(name)
        return plain.lower() if self.folds_tables or plain.lower() in _CASELESS else plain

    def plain(self, name: str) -> str:
        """A name as it stands.

        Raises:
            UnknownName: other characters than a rule may have without doubt.
        """
        if len(name) > MAX_NAME_CHARACTERS or not _PLAIN.fullmatch(name):
            raise UnknownName("a name holds other characters than letters, digits, _, - and $, or too many of them.")
        return name

    def table(self, schema: str, name: str) -> str:
        """`schema.table`; without a schema it is in the session's database.

        Raises:
            UnknownName: as `folded`; or there is neither.
        """
        schema = schema or self.database
        if not schema:
            raise UnknownName("no database is selected, so its tables have no schema; write schema.table, or USE one.")
        folded = self.folded(schema)
        name = self.plain(name).lower() if folded in _CASELESS else self.folded(name)
        return f"{folded}.{name}"

    def name(self, tokens: list[Token], at: int) -> tuple[str, int]:
        """The table that is named from a token on, and where what follows it begins.

        Raises:
            UnknownName: there is none.
        """
        if at >= len(tokens) or not tokens[at].is_name:
            raise UnknownName("a name is missing where a table must be named.")
        if at + 2 < len(tokens) and tokens[at + 1].text == "." and tokens[at + 2].is_name:
            return self.table(tokens[at].text, tokens[at + 2].text), at + 3
        return self.table("", tokens[at].text), at + 1
