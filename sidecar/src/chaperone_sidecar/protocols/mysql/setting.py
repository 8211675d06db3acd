"""SET: which settings a session may change without changing what later statements mean."""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.mysql.tokens import Kind, Token

READING_MODES: Final = frozenset(
    {"ANSI", "ANSI_QUOTES", "NO_BACKSLASH_ESCAPES", "IGNORE_SPACE", "PIPES_AS_CONCAT", "HIGH_NOT_PRECEDENCE", "ORACLE",
     "MSSQL", "DB2", "MAXDB", "POSTGRESQL", "MYSQL323", "MYSQL40", "EMPTY_STRING_IS_NULL", "REAL_AS_FLOAT"}
)  # fmt: skip
"""Modes that change how a text is read."""

_MODES: Final = frozenset(
    {"", "STRICT_TRANS_TABLES", "STRICT_ALL_TABLES", "NO_ZERO_DATE", "NO_ZERO_IN_DATE", "ERROR_FOR_DIVISION_BY_ZERO",
     "NO_ENGINE_SUBSTITUTION", "ONLY_FULL_GROUP_BY", "TRADITIONAL", "NO_AUTO_VALUE_ON_ZERO", "NO_AUTO_CREATE_USER",
     "ALLOW_INVALID_DATES", "PAD_CHAR_TO_FULL_LENGTH", "NO_UNSIGNED_SUBTRACTION", "TIME_TRUNCATE_FRACTIONAL"}
)  # fmt: skip

_HARMLESS_WORDS: Final = """
autocommit time_zone wait_timeout interactive_timeout net_read_timeout net_write_timeout lock_wait_timeout
innodb_lock_wait_timeout max_execution_time max_statement_time sql_select_limit group_concat_max_len
transaction_isolation tx_isolation transaction_read_only tx_read_only sql_auto_is_null sql_safe_updates
sql_big_selects sql_notes sql_warnings optimizer_switch join_buffer_size
sort_buffer_size tmp_table_size max_heap_table_size lc_time_names div_precision_increment max_join_size
information_schema_stats_expiry sql_quote_show_create
"""
_HARMLESS: Final = frozenset(_HARMLESS_WORDS.split())

_CHARSETS: Final = frozenset(
    {"character_set_client", "character_set_connection", "character_set_results", "collation_connection", "names"}
)

_NOT_UTF8: Final = (
    "the character set of a session is utf8mb4, so that texts and values are read as the server reads them; "
    "leave it so."
)
_MODE: Final = (
    "this sql_mode changes how statements are read; leave ANSI_QUOTES, NO_BACKSLASH_ESCAPES and the like out."
)
_COMPUTED: Final = "SET with a value that is computed is not passed on; write the value."


class Settings(msgspec.Struct, frozen=True):
    """What a SET does."""

    accesses: tuple[Access, ...]
    why_unknown: str = ""
    unset_charsets: tuple[tuple[int, int], ...] = ()  # where a NULL stands for the character set of results


class SetStatement:
    """Reads one SET from its tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 1
        self._accesses: list[Access] = []
        self._why = ""
        self._unset: list[tuple[int, int]] = []
        self._was_global = False  # a GLOBAL holds for the names behind it, too, if no @@ is before them

    def read(self) -> Settings | None:
        """What it does; None where its form is not known."""
        words = [token.word for token in self._tokens[1:4]]
        if words[0:1] == ["TRANSACTION"] or words[1:2] == ["TRANSACTION"]:
            return self._transaction(words)
        if words[0:1] in (["PASSWORD"], ["ROLE"]) or words[0:2] == ["DEFAULT", "ROLE"]:
            return Settings((Access(Effect.PRIVILEGE, f"role:{words[0].lower()}"),))
        if words[0:1] in (["STATEMENT"], ["RESOURCE"]):
            return None
        while True:
            if not self._assignment():
                return None
            if self._at >= len(self._tokens):
                return Settings(tuple(dict.fromkeys(self._accesses)), self._why, tuple(self._unset))
            if not self._take(","):
                return None

    def _transaction(self, words: list[str]) -> Settings | None:
        if words[0] == "GLOBAL":
            return Settings((Access(Effect.PRIVILEGE, "setting:global.transaction"),))
        known = {"SET", "SESSION", "LOCAL", "TRANSACTION", "ISOLATION", "LEVEL", "READ", "UNCOMMITTED", "COMMITTED",
                 "REPEATABLE", "SERIALIZABLE", "ONLY", "WRITE"}  # fmt: skip
        if not all(token.word in known or token.text == "," for token in self._tokens):
            return None
        return Settings((Access(Effect.TRANSACTION, "transaction:set"),))

    def _assignment(self) -> bool:
        if self._word() in ("NAMES", "CHARSET") or (self._word() == "CHARACTER" and self._word(1) == "SET"):
            self._at += 2 if self._word() == "CHARACTER" else 1
            return self._charset()
        is_global, is_said = False, True
        if self._word() in ("GLOBAL", "PERSIST", "PERSIST_ONLY", "SESSION", "LOCAL"):
            is_global = self._was_global = self._word() not in ("SESSION", "LOCAL")
            self._at += 1
        elif self._take("@"):
            if not self._take("@"):
                return self._variable()
            if self._word() in ("GLOBAL", "PERSIST", "PERSIST_ONLY", "SESSION", "LOCAL") and self._text(1) == ".":
                is_global = self._word() not in ("SESSION", "LOCAL")
                self._at += 2
        else:
            is_said = False
        if self._at >= len(self._tokens) or not self._tokens[self._at].is_name:
            return False
        name = self._tokens[self._at].text.lower()
        self._at += 1
        if self._text() == ".":  # a component's, or a structured variable
            return False
        value = self._value()
        if value is None:
            return False
        self._judge(name, value, is_global=is_global)
        if self._was_global and not is_said:
            self._judge(name, value, is_global=True)
        return True

    def _variable(self) -> bool:
        """@name = value."""
        if self._at >= len(self._tokens) or self._tokens[self._at].kind in (Kind.SIGN, Kind.NUMBER):
            return False
        self._at += 1
        if self._value() is None:
            return False
        self._accesses.append(Access(Effect.SESSION, "setting:user_variable"))
        return True

    def _charset(self) -> bool:
        if self._at >= len(self._tokens):
            return False
        found = self._plain()
        self._at += 1
        if self._word() == "COLLATE":
            self._at += 2
        self._accesses.append(Access(Effect.SESSION, "setting:names"))
        if found != "utf8mb4" or self._at > len(self._tokens):
            self._why = _NOT_UTF8
        return True

    def _value(self) -> str | None:
        """= value: one literal or word; other values are taken to the next comma and told as not known."""
        if self._take(":"):
            pass
        if not self._take("="):
            return None
        start, depth = self._at, 0
        while self._at < len(self._tokens):
            text = self._text()
            if text == "," and not depth:
                break
            depth += {"(": 1, ")": -1}.get(text, 0) if self._tokens[self._at].kind is Kind.SIGN else 0
            self._at += 1
        taken = self._tokens[start : self._at]
        if len(taken) == 2 and taken[0].text == "-" and taken[1].kind is Kind.NUMBER:
            return "-" + taken[1].text
        if len(taken) != 1 or taken[0].kind is Kind.SIGN:
            self._why = self._why or _COMPUTED
            return "" if taken else None
        return _plain(taken[0])

    def _judge(self, name: str, value: str, *, is_global: bool) -> None:
        if is_global:
            self._accesses.append(Access(Effect.PRIVILEGE, f"setting:global.{name}"))
            return
        if name == "sql_mode":
            self._accesses.append(Access(Effect.SESSION, "setting:sql_mode"))
            if not {mode.strip().upper() for mode in value.split(",")} <= _MODES:
                self._why = _MODE
        elif name in _CHARSETS:
            self._accesses.append(Access(Effect.SESSION, f"setting:{name}"))
            last = self._tokens[self._at - 1]
            if name == "character_set_results" and last.word == "NULL" and value == last.text:
                self._unset.append((last.start, last.end))
            elif not value.lower().startswith("utf8mb4"):
                self._why = _NOT_UTF8
        else:
            effect = Effect.SESSION if name in _HARMLESS else Effect.PRIVILEGE
            self._accesses.append(Access(effect, f"setting:{name}"))

    def _word(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].word if at < len(self._tokens) else ""

    def _text(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._tokens[at].text if at < len(self._tokens) else ""

    def _plain(self) -> str:
        return _plain(self._tokens[self._at]).lower()

    def _take(self, sign: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at].kind is Kind.SIGN and self._text() == sign:
            self._at += 1
            return True
        return False


def _plain(token: Token) -> str:
    """A word or a string without its quotes; a string with an escape keeps them, and so is no known value."""
    if token.kind is Kind.STRING and "\\" not in token.text and len(token.text) >= 2:
        return token.text[1:-1]
    return token.text
