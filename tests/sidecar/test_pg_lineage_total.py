"""What `columns/total.py` lists is total on every server that we support, whatever the values are.

Each call is made over a column of hostile values. It may not fail for any of them;
it gives NULL only for NULL; and the length of what it gives follows from the length that went in, but for the signs
that JSON, rows and arrays put before some letters, and for letters that are several in another case.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import pytest
from pg_peers import Peers
from psycopg import errors

from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql.columns import total
from chaperone_sidecar.protocols.postgresql.lineage import trace
from chaperone_sidecar.protocols.postgresql.schema import Column, Relation, Schema

pytestmark = pytest.mark.peer

TEXTS: Final = ["", " ", "a", "a ", " a", "ann@example.org", "null", "{}", '"', "\\", "\\x00", "ß", "é", "İ", "ﬁ",
                "🙂", "e\u0301", "\u200b", "\ufffd", "\U0010ffff", "\t\r\n", "0", "-1", "1e400", "NaN", "infinity",
                "$1", "%s", "(1,2)", "x" * 200, "x" * 300_000]  # fmt: skip
# Column → type, OID, values as the server reads them.
COLUMNS: Final[dict[str, tuple[str, int, list[str]]]] = {
    "t": ("text", 25, TEXTS),
    "v": ("varchar", 1043, TEXTS),
    "p": ("char(200)", 1042, [text for text in TEXTS if len(text) <= 200]),
    "d": ("text COLLATE levelled", 25, TEXTS),
    "m": ("name", 19, [text for text in TEXTS if len(text) < 64]),
    "b": ("bytea", 17, ["", "\\x00", "\\xff", "\\xc328", "\\x" + "61" * 100_000]),
    "i": ("int", 23, ["0", "-1", "2147483647", "-2147483648"]),
    "j": ("bigint", 20, ["0", "9223372036854775807", "-9223372036854775808"]),
    "n": ("numeric", 1700, ["0", "NaN", "1e1000", "-1e-1000", "0.10"]),
    "f": ("float8", 701, ["0", "-0", "NaN", "Infinity", "-Infinity", "5e-324", "1.7e308"]),
    "s": ("smallint", 21, ["0", "32767", "-32768"]),
    "r": ("float4", 700, ["0", "NaN", "Infinity", "1e-45"]),
    "o": ("boolean", 16, ["true", "false"]),
    "a": ("date", 1082, ["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"]),
    "z": ("timestamptz", 1184, ["infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-01-01 BC"]),
    "w": ("interval", 1186, ["0", "178000000 years", "-1 mon 3 days 04:05:06.789"]),
    "u": ("uuid", 2950, ["00000000-0000-0000-0000-000000000000"]),
    "k": ("inet", 869, ["::", "10.0.0.1/8"]),
    "l": ("text[]", 1009, ["{}", "{a,NULL}", "[5:6]={a,b}", "{{a},{b}}"]),
    "g": ("jsonb", 3802, ["null", "{}", "[]", '"a"', '{"k": 1e400}', '{"k": "\\u0001"}']),
}
OF_TEXT: Final = ["lower({})", "upper({})", "initcap({})", "reverse({})", "left({}, 3)", "left({}, -3)", "left({}, 0)",
                  "right({}, 2147483647)", "right({}, -2147483647)", "substr({}, -5, 3)", "substr({}, 2, 2147483647)",
                  "substring({}, 2)", "substring({} from 1 for 0)", "length({})", "char_length({})",
                  "character_length({})", "octet_length({})", "md5({})", "{} || 'x'", "'x' || {}", "{}::text",
                  "{}::varchar(3)", "{}::name", "{}::varchar", "string_agg({}, ',')",
                  "string_agg('x', {})"]  # fmt: skip
OF_BYTES: Final = ["length({})", "octet_length({})", "md5({})", "{}::text"]
OF_ALL: Final = ["concat({}, 'x')", "concat_ws('-', {}, 'x')", "to_json({})", "json_build_array({}, 1)",
                 "json_build_object('k', {})", "to_jsonb({})", "jsonb_build_array({}, 1)",
                 "jsonb_build_object('k', {})",
                 "row_to_json(ROW({}))", "json_agg({})", "jsonb_agg({})", "count({})", "ROW({}, 1)::text",
                 "coalesce({}, NULL)", "CASE WHEN true THEN {} END"]  # fmt: skip
OF_SCALARS: Final = ["'x' || {}", "{}::text", "array_agg({})", "first_value({}) OVER ()", "last_value({}) OVER ()",
                     "nth_value({}, 1) OVER ()", "lag({}, 0) OVER ()", "lead({}, 0) OVER ()",
                     "ARRAY[{}]::text"]  # fmt: skip
SINCE_16: Final = ["any_value({})"]
WIDER: Final = {"s": ("int", "bigint", "numeric", "float4", "float8"), "i": ("bigint", "numeric", "float8"),
                "j": ("numeric",), "f": ("float8",)}  # fmt: skip
# Whose length does not follow from the number of letters: other bytes, other cases, quotes.
MAY_DIFFER: Final = ("lower", "upper", "initcap", "json", "ROW", "ARRAY", "array_agg", "name", "md5", "octet")


LEVELLED: Final = "CREATE COLLATION levelled (provider = icu, locale = 'und-u-ks-level1', deterministic = false)"


def schema() -> Schema:
    known = Schema()
    columns = tuple(Column(name, at, oid) for at, (name, (_, oid, _)) in enumerate(COLUMNS.items(), 1))
    known.add("public.hostile", Relation(1, "public.hostile", "r", columns))
    return known


def calls(major: int) -> list[tuple[str, str]]:
    """Column and expression, of all that is listed and fits the type."""
    found = []
    for column in COLUMNS:
        patterns = list(OF_ALL)
        if column in "tvpdm":
            patterns += OF_TEXT
        if column == "b":
            patterns += OF_BYTES
        if column not in "lg":
            patterns += OF_SCALARS + (SINCE_16 if major >= 16 else [])
        if column == "b":
            patterns.remove("'x' || {}")  # bytes are no text there
        patterns += [f"{{}}::{wider}" for wider in WIDER.get(column, ())]
        found += [(column, pattern.replace("{}", column)) for pattern in patterns]
    return found


def is_total(column: str, call: str) -> bool:
    lineage = trace(grammar.parse(f"SELECT {call} FROM hostile WHERE id = 1".encode())[0]["stmt"], KNOWN)
    return f"public.hostile.{column}" not in lineage.deciding


KNOWN: Final = schema()


def test_every_listed_name_is_called() -> None:
    used = " ".join(call for _, call in calls(18))
    windows = {"row_number", "rank", "dense_rank"}  # they take nothing
    assert [name for name in total.NAMES - windows if f"{name}(" not in used] == []


def test_no_value_makes_a_listed_call_fail_or_shows_in_its_length(versioned: Peers) -> None:
    failed: list[tuple[str, str]] = []
    told: list[tuple[str, Any]] = []
    checked = 0
    with versioned.postgres.admin() as admin:
        admin.execute(LEVELLED)
        for column, call in calls(versioned.major):
            kind, _, values = COLUMNS[column]
            assert is_total(column, call), call
            table = f"hostile_{column} (id serial, {column} {kind})"
            admin.execute(f"CREATE TABLE IF NOT EXISTS {table}")  # type: ignore[arg-type]
            if not admin.execute(f"SELECT 1 FROM hostile_{column}").fetchall():  # type: ignore[arg-type]
                for value in [*values, None]:
                    admin.execute(f"INSERT INTO hostile_{column} ({column}) VALUES (%s)", [value])  # type: ignore[arg-type]
            query = (
                f"SELECT h.{column} IS NULL, length(h.{column}::text), q.c IS NULL, length(q.c)"
                f" FROM hostile_{column} h,"
                f" LATERAL (SELECT ({call})::text AS c FROM hostile_{column} WHERE id = h.id) q"
            )
            try:
                rows = admin.execute(query).fetchall()  # type: ignore[arg-type]
            except errors.DatabaseError as error:
                failed.append((call, str(error)[:80]))
                continue
            assert len(rows) == len(values) + 1, call
            checked += len(rows)
            told += [(call, row) for row in rows if row[2] and not row[0]]
            if column in "tvdm" and not any(word in call for word in MAY_DIFFER):
                lengths: dict[int, set[int]] = defaultdict(set)
                for _, before, _, after in rows:
                    lengths[before].add(after)
                told += [(call, found) for found in lengths.items() if len(found[1]) > 1]
        for column in COLUMNS:
            admin.execute(f"DROP TABLE hostile_{column}")  # type: ignore[arg-type]
        admin.execute("DROP COLLATION levelled")
    assert failed == []
    assert told == []
    assert checked > 3000
