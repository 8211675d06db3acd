"""Generated sessions of MySQL and MariaDB: what clients say, text by text and with parameters, with faults among it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

DATABASE: Final = "differ"
SCENE: Final = (
    f"DROP DATABASE IF EXISTS {DATABASE}",
    f"CREATE DATABASE {DATABASE} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
    f"USE {DATABASE}",
    "CREATE TABLE things (id int AUTO_INCREMENT PRIMARY KEY, name varchar(40), amount decimal(12,3), weight double,"
    " small tinyint unsigned, big bigint, day date, moment datetime(3), clock time(2), kind enum('a','b','c'), marks"
    " set('x','y','z'), flags bit(9), raw varbinary(300), note text, info json, year year, UNIQUE (name))",
    "INSERT INTO things VALUES (1, 'one', 1.500, 0.1, 1, -9223372036854775808, '2026-01-02', '2026-01-02 03:04:05.678',"
    " '-12:34:56.78', 'a', 'x,z', b'101010101', x'00FF10', 'ünï 🙂', '{\"a\": [1, 2.5, null]}', 2026), (2, 'two', NULL,"
    " NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL), (3, '', -999999999.999, -1e300,"
    " 255, 9223372036854775807, '1000-01-01', '9999-12-31 23:59:59.999', '838:59:59.00', 'c', '', b'0', '', '', '[]',"
    " 1901)",
    "CREATE TABLE parts (thing int, place int, label char(10), PRIMARY KEY (thing, place))",
    "INSERT INTO parts VALUES (1, 1, 'left'), (1, 2, 'right'), (3, 1, NULL)",
    "CREATE VIEW shown AS SELECT id, name, amount FROM things WHERE id > 1",
)
COLUMNS: Final = (
    "id", "name", "amount", "weight", "small", "big", "day", "moment", "clock", "kind", "marks", "flags", "raw", "note",
    "info", "year",
)  # fmt: skip
VALUES: Final = (
    "1", "0", "-7", "2.50", "1e3", "NULL", "'x'", "''", "'it''s'", "'ü🙂'", "'2026-02-03'", "DATE '2026-02-03'",
    "x'41'", "TRUE", "_utf8mb4'y'", "999999999999", "'a'",
)  # fmt: skip
EXPRESSIONS: Final = (
    "count(*)", "sum(amount)", "avg(weight)", "max(name)", "concat(name, '-', id)", "coalesce(note, 'none')", "id + 1",
    "amount * 2", "name LIKE '%o%'", "CASE id WHEN 1 THEN 'yes' ELSE NULL END", "cast(weight AS char)", "upper(name)",
    "hex(raw)", "json_extract(info, '$.a[1]')", "length(note)", "id BETWEEN 1 AND 2", "NULL IS NULL", "1 / 0",
    "'a' 'b'", "date_add(day, INTERVAL 1 DAY)", "group_concat(name ORDER BY id)", "repeat('z', 70000)", "-id",
    "NOT small",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """A statement; with parameters it is prepared first, and executed once with each row of them."""

    text: str
    rows: tuple[tuple[int | str | None, ...], ...] = ()


def session(rng: random.Random) -> Iterator[Said]:
    """What one client says."""
    for _ in range(rng.randint(4, 14)):
        yield rng.choice(_KINDS)(rng)
        if rng.random() < 0.1:
            yield from (_change(rng), Said("SELECT row_count()"), _select(rng), Said("SELECT found_rows()"))


def _select(rng: random.Random) -> Said:
    what = ", ".join(rng.sample(COLUMNS, rng.randint(1, 6)))
    return Said(
        f"SELECT {rng.choice(('', 'DISTINCT '))}{what} FROM things"
        f"{rng.choice(('', f' WHERE {rng.choice(COLUMNS)} = {rng.choice(VALUES)}', ' WHERE id IN (1, 3)'))}"
        f" ORDER BY id{rng.choice(('', ' DESC'))}, {what}{rng.choice(('', ' LIMIT 2', ' LIMIT 1, 1'))}"
    )


def _expression(rng: random.Random) -> Said:
    group = rng.choice(("", " GROUP BY id ORDER BY id", " ORDER BY id"))
    return Said(f"SELECT {', '.join(rng.sample(EXPRESSIONS, rng.randint(1, 3)))} FROM things{group}")


def _several(rng: random.Random) -> Said:
    return Said(
        rng.choice(
            (
                "SELECT t.name, p.label FROM things t LEFT JOIN parts p ON p.thing = t.id ORDER BY t.id, p.place",
                "SELECT id FROM things UNION ALL SELECT place FROM parts ORDER BY 1",
                "SELECT name FROM things WHERE id = (SELECT max(thing) FROM parts)",
                "SELECT name FROM things WHERE EXISTS (SELECT 1 FROM parts WHERE thing = things.id) ORDER BY id",
                "WITH n AS (SELECT id, name FROM things) SELECT * FROM n ORDER BY id",
                "SELECT id, row_number() OVER (ORDER BY id DESC) FROM things ORDER BY id",
                "SELECT * FROM shown ORDER BY id",
                "SELECT *, 1 AS one FROM parts ORDER BY thing, place",
                "SELECT place, sum(thing) FROM parts GROUP BY place WITH ROLLUP",
            )
        )
    )


def _change(rng: random.Random) -> Said:
    value, column = rng.choice(VALUES), rng.choice(COLUMNS[1:])
    return Said(
        rng.choice(
            (
                f"INSERT INTO things ({column}) VALUES ({value})",
                f"INSERT INTO things (note, {column}) VALUES ('n{rng.random()}', {value}), ('m', 1)",
                f"INSERT IGNORE INTO things (id, {column}) VALUES (1, {value})",
                f"INSERT INTO things (id, name) VALUES (1, 'one') ON DUPLICATE KEY UPDATE {column} = {value}",
                f"REPLACE INTO parts VALUES (1, 1, {value})",
                f"UPDATE things SET {column} = {value} WHERE id <= {rng.randint(1, 3)}",
                f"DELETE FROM parts WHERE place = {rng.randint(1, 3)}",
                "INSERT INTO parts SELECT id, 9, name FROM things WHERE id < 3",
            )
        )
    )


def _around(rng: random.Random) -> Said:
    return Said(
        rng.choice(
            (
                "BEGIN", "START TRANSACTION READ ONLY", "COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO SAVEPOINT s",
                "SET autocommit = 0", "SET autocommit = 1", "SHOW WARNINGS", "SHOW TABLES", "SHOW COLUMNS FROM parts",
                f"USE {DATABASE}", "USE nowhere", "SELECT DATABASE(), @@autocommit", "DESCRIBE parts",
                "SELECT last_insert_id()", "SHOW CREATE TABLE parts", "DO 1",
                "CREATE TABLE made (a int)", "DROP TABLE IF EXISTS made", "ALTER TABLE parts ADD COLUMN more int",
                "TRUNCATE TABLE parts", "EXPLAIN SELECT 1",
            )
        )
    )  # fmt: skip


def _fault(rng: random.Random) -> Said:
    return Said(
        rng.choice(
            (
                "SELECT nothing FROM things", "SELECT 1 FROM absent", "INSERT INTO parts VALUES (1)",
                "SELECT cast('x' AS date) FROM things WHERE id = 1", "SELECT 18446744073709551615 + 1",
                "INSERT INTO parts (thing, place) VALUES (1, 1)", "SELECT (SELECT id FROM things)",
                "UPDATE things SET small = 256 WHERE id = 1", "INSERT INTO things (kind) VALUES ('q')",
            )
        )
    )  # fmt: skip


def _prepared(rng: random.Random) -> Said:
    text, width = rng.choice(
        (
            ("SELECT * FROM things WHERE id = ?", 1),
            ("SELECT ?, ? IS NULL, id FROM things ORDER BY id", 2),
            ("UPDATE things SET note = ? WHERE id = ?", 2),
            ("INSERT INTO parts (thing, place, label) VALUES (?, ?, ?)", 3),
            ("SELECT name FROM things WHERE name = ? OR amount > ? ORDER BY id", 2),
        )
    )
    values: tuple[int | str | None, ...] = (1, 2, 3, -5, None, "two", "", "ü🙂", "2026-01-02", 1 << 40)
    return Said(text, tuple(tuple(rng.choice(values) for _ in range(width)) for _ in range(rng.randint(1, 3))))


_KINDS: Final = (_select, _select, _expression, _several, _change, _change, _around, _fault, _prepared, _prepared)
