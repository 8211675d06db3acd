"""Random queries over the three relations that `test_pg_lineage_server` makes, well typed for the most part.

What is written goes to copies that are only read by RETURNING: rolled back rows leave pages behind, and with
other pages the server may choose another plan, which may give rows that are equal to an ORDER BY in another order.
"""

from __future__ import annotations

from random import Random

TEXT, INT, NUMBER, JSON = "text", "int", "numeric", "jsonb"
type Columns = list[tuple[str, str]]
RELATIONS: dict[str, Columns] = {
    "c": [("id", INT), ("email", TEXT), ("name", TEXT), ("n", INT), ("team", INT), ("doc", JSON)],
    "o": [("id", INT), ("customer_id", INT), ("total", NUMBER), ("note", TEXT), ("team", INT)],
    "v": [("id", INT), ("mail", TEXT), ("name", TEXT)],
}
CLASSIFIED = {"public.c.email", "public.c.n", "public.c.doc", "public.v.mail"} | {
    "public.c2.email",
    "public.c2.n",
    "public.c2.doc",
}
_HIDDEN = {"email", "n", "doc", "mail"}
_WORDS = ["'x'", "'1'", "''", "'@'", "'a'"]
_TOTAL = ["lower({0})", "upper({0})", "reverse({0})", "left({0}, 2)", "right({0}, 2)", "md5({0})", "initcap({0})",
          "substr({0}, 2)", "substring({0}, 1, 3)", "concat({0}, {1})", "concat_ws('-', {0}, {2})",
          "({0})::varchar(3)", "({0})::name"]  # fmt: skip
_PARTIAL = ["repeat({0}, 2)", "lpad({0}, 5)", "split_part({0}, '@', 1)", "encode(({0})::bytea, 'hex')",
            "regexp_replace({0}, 'a', 'b')", "({0})::int::text", "chr(ascii({0}))", "format('%I', {0})",
            "array_to_string(string_to_array({0}, '@'), '')", "xmlelement(name a, {0})::text", "quote_literal({0})",
            "substring({0} from '(a)')", "repeat('x', {1})", "(({0})::jsonb)::text", "nullif({0}, 'a')",
            "substr({0}, 1, {1})", "btrim({0})", "replace({0}, 'a', 'bc')", "translate({0}, 'ab', 'cd')",
            "({0})::char(4)", "right({0}, {1})", "({0}).quote_ident", "least({0}, 'm')"]  # fmt: skip


class Writer:
    """Writes one query; `scopes` are the relations in sight, innermost last."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.scopes: list[list[tuple[str, Columns]]] = []
        self.ctes: list[tuple[str, Columns]] = []
        self.count = 0

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def often(self, chance: float) -> bool:
        return self.random.randint(0, 99) < chance * 100

    def pick(self, options: list) -> object:
        return options[self.random.randint(0, len(options) - 1)]

    def column(self, kind: str, *, plain: bool = False) -> str | None:
        """A column of a type; a `plain` one is not classified by its name."""
        level = self.scopes[-1] if self.often(0.85) else self.pick(self.scopes)
        found = [
            (alias, name)
            for alias, columns in level
            for name, of in columns
            if of == kind and not (plain and name in _HIDDEN)
        ]
        if not found:
            return None
        alias, name = self.pick(found)
        return name if len(level) == 1 and self.often(0.4) else f"{alias}.{name}"

    def text(self, depth: int = 2, *, plain: bool = False) -> str:
        column = self.column(TEXT, plain=plain) or str(self.pick(_WORDS))
        if depth <= 0 or self.often(0.4):
            return column if self.often(0.85) else str(self.pick(_WORDS))
        roll = self.random.randint(0, 15)
        inner = self.text(depth - 1, plain=plain)
        other = self.text(depth - 1, plain=plain)
        number = self.integer(depth - 1, plain=plain)
        if roll <= 4:
            return str(self.pick(_TOTAL)).format(inner, number, other)
        if roll == 5:
            return str(self.pick(_PARTIAL)).format(inner, number)
        if roll == 6:
            return f"({inner} || {other})"
        if roll == 7:
            return f"coalesce({inner}, {other})"
        if roll == 8:
            return f"CASE WHEN {self.condition(plain=self.often(0.7))} THEN {inner} ELSE {other} END"
        if roll == 9:
            return f"({number})::text"
        if roll == 10:
            return f"greatest({inner}, {other})"
        if roll == 11:
            return f"({self.whole()})::text"
        if roll == 12:
            return f"(SELECT {self.subquery_of(TEXT, depth - 1)})"
        if roll == 13:
            return f"({self.pick(['json', 'jsonb'])}_build_object('k', {inner}, 'l', {number}))::text"
        if roll == 14:
            return f"(ARRAY[{inner}, {other}])::text"
        document = self.column(JSON)
        return f"({document} ->> 'k')" if document else inner

    def integer(self, depth: int = 1, *, plain: bool = False) -> str:
        column = self.column(INT, plain=plain) or str(self.random.randint(0, 3))
        if depth <= 0 or self.often(0.6):
            return column if self.often(0.8) else str(self.random.randint(0, 3))
        roll = self.random.randint(0, 5)
        if roll == 0:
            return f"({column} + {self.integer(depth - 1, plain=plain)})"
        if roll == 1:
            return f"length({self.text(depth - 1, plain=plain)})"
        if roll == 2:
            return f"coalesce({column}, {self.integer(depth - 1, plain=plain)})"
        if roll == 3:
            return f"(({self.text(depth - 1, plain=plain)})::int)"
        if roll == 4:
            return f"(10 / {column})"
        return f"(SELECT {self.subquery_of(INT, depth - 1)})"

    def whole(self) -> str:
        alias, _ = self.pick(self.scopes[-1])
        return str(self.pick([f"{alias}", f"{alias}.*", f"row_to_json({alias})", f"to_jsonb({alias})"]))

    def subquery_of(self, kind: str, depth: int) -> str:
        relation = str(self.pick(list(RELATIONS)))
        alias = self.fresh("s")
        self.scopes.append([(alias, RELATIONS[relation])])
        value = self.text(depth) if kind == TEXT else self.integer(depth)
        value = f"max({value})" if self.often(0.8) else value
        where = f"WHERE {self.condition(plain=True)}" if self.often(0.5) else ""
        self.scopes.pop()
        return f"{value} FROM {relation} {alias} {where}"

    def condition(self, *, plain: bool = True) -> str:
        roll = self.random.randint(0, 7)
        if roll <= 2:
            return f"{self.integer(1, plain=plain)} {self.pick(['=', '<', '<>', '>='])} {self.integer(0, plain=plain)}"
        if roll == 3:
            return f"{self.text(1, plain=plain)} LIKE '%a%'"
        if roll == 4:
            return f"{self.text(0, plain=plain)} IS NOT NULL"
        if roll == 5:
            return f"{self.integer(0, plain=plain)} IN (SELECT {self.subquery_of(INT, 0)})"
        if roll == 6:
            return f"EXISTS (SELECT {self.subquery_of(TEXT, 1)})"
        return f"({self.condition(plain=plain)} {self.pick(['AND', 'OR'])} NOT {self.condition(plain=plain)})"

    def item(self, depth: int) -> tuple[str, list[tuple[str, Columns]]]:
        """One item of FROM, and the relations it brings."""
        roll = self.random.randint(0, 9)
        alias = self.fresh("t")
        if roll <= 4 or depth <= 0:
            if self.ctes and self.often(0.5):
                name, columns = self.pick(self.ctes)
            else:
                name = str(self.pick(list(RELATIONS)))
                columns = RELATIONS[name]
            return f"{name} {alias}", [(alias, columns)]
        if roll == 5:
            text, columns = self.select(depth - 1)
            return f"({text}) {alias}", [(alias, columns)]
        if roll == 6 and self.scopes and self.scopes[-1]:
            text, columns = self.select(depth - 1)
            return f"LATERAL ({text}) {alias}", [(alias, columns)]
        if roll == 7:
            return f"generate_series(1, {self.random.randint(1, 2)}) {alias}", [(alias, [(alias, INT)])]
        left, seen = self.item(depth - 1)
        if self.scopes:
            self.scopes[-1] += seen
        right, added = self.item(depth - 1)
        if self.scopes:
            del self.scopes[-1][len(self.scopes[-1]) - len(seen) :]
        kind = self.pick(["JOIN", "LEFT JOIN", "FULL JOIN"])
        both = seen + added
        if self.often(0.15):
            return f"{left} NATURAL LEFT JOIN {right}", both
        ids = [(a, n) for a, columns in seen for n, of in columns if of == INT and n not in _HIDDEN]
        others = [(a, n) for a, columns in added for n, of in columns if of == INT and n not in _HIDDEN]
        if self.often(0.3):
            return f"{left} {kind} {right} USING ({self.pick(['id', 'team', 'id, team'])})", both
        if ids and others:
            (a, n), (b, m) = self.pick(ids), self.pick(others)
            return f"{left} {kind} {right} ON {a}.{n} = {b}.{m}", both
        return f"{left} CROSS JOIN {right}", both

    def select(self, depth: int, *, kinds: list[str] | None = None) -> tuple[str, Columns]:
        """A query and its columns; of the types that are asked for."""
        self.scopes.append([])
        items = []
        for _ in range(self.random.randint(1, 2 if depth > 0 else 1)):
            text, brought = self.item(depth)
            items.append(text)
            self.scopes[-1] += brought
        columns: Columns = []
        targets = []
        is_grouped = self.often(0.2)
        key = self.column(INT, plain=True) if is_grouped else None
        is_starred = kinds is None and not is_grouped and self.often(0.15)
        if is_starred:
            alias, columns = self.pick(self.scopes[-1])
            targets.append(f"{alias}.*")
            columns = list(columns)
        wanted = kinds or [str(self.pick([TEXT, TEXT, INT])) for _ in range(self.random.randint(1, 3))]
        for kind in [] if is_starred else wanted:
            value = self.text() if kind == TEXT else self.integer()
            if is_grouped:
                value = str(
                    self.pick(
                        [f"max({value})", f"min({value})"]
                        if kind == TEXT
                        else [f"count({value})::int", f"max({value})", f"count(DISTINCT {value})::int", "count(*)::int"]
                    )
                    if self.often(0.8) or kind == INT
                    else f"string_agg({value}, ',')"
                )
            elif self.often(0.08):
                order = self.integer(0, plain=self.often(0.8))
                value = f"{self.pick(['lag', 'first_value', 'max'])}({value}) OVER (ORDER BY {order})"
            name = self.fresh("x")
            if self.often(0.1) and not is_grouped:
                name = str(self.pick(["email", "id", "name", "team"]))
                name = name if name not in [c for c, _ in columns] else self.fresh("x")
            targets.append(f"{value} AS {name}")
            columns.append((name, kind))
        text = f"SELECT {'DISTINCT ' if self.often(0.06) else ''}{', '.join(targets)} FROM {', '.join(items)}"
        if self.often(0.4):
            text += f" WHERE {self.condition(plain=self.often(0.9))}"
        if key is not None:
            text += f" GROUP BY {key}"
            if self.often(0.3):
                text += f" HAVING count({self.text(1, plain=self.often(0.5))}) > 1"
        if depth > 0 and self.often(0.15) and not is_starred:
            right, _ = self.select(depth - 1, kinds=wanted)
            text += f" {self.pick(['UNION ALL', 'UNION ALL', 'UNION', 'EXCEPT', 'INTERSECT ALL'])} {right}"
        self.scopes.pop()
        return text, columns

    def statement(self) -> tuple[str, bool]:
        """A statement, and whether it says the order of its rows."""
        head = ""
        for _ in range(self.random.randint(0, 2) if self.often(0.3) else 0):
            name = self.fresh("w")
            body, columns = self.select(1)
            head += f"{', ' if head else 'WITH '}{name} AS ({body})"
            self.ctes.append((name, columns))
        roll = self.random.randint(0, 19)
        if roll == 0:
            self.scopes.append([("c2", RELATIONS["c"])])
            text = f"UPDATE c2 SET name = {self.text()} WHERE {self.condition()} RETURNING id, {self.text()}, c2.*"
            self.scopes.pop()
            return f"{head} {text}", False
        if roll == 1:
            text, _ = self.select(1, kinds=[TEXT])
            return (
                f"{head} INSERT INTO o2 (id, note) SELECT 100 + count(*), max(y) FROM ({text}) q(y) RETURNING *",
                False,
            )
        text, columns = self.select(2)
        if self.often(0.3):
            order = self.pick([name for name, _ in columns])
            return f"{head} SELECT * FROM ({text}) q ORDER BY {order}", True
        return f"{head} {text}", False
