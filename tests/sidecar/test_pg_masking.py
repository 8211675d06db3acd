"""Ways around a mask, over the wire: each is masked or refused, in every format and kind of query.

What a client received is searched for the canaries as they are, and as somebody would put them together again: cells
joined, reversed, without separators, out of hexadecimal and base64, out of binary numbers.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fix_dev import Gateway, start, write_manifests
from fix_postgres import PASSWORD, Postgres
from raw_client import client

from chaperone_sidecar.protocols.postgresql import messages as m

CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "postgresql_masking.jsonl").read_text().splitlines()
]
TABLE = Path(__file__).parents[2] / "docs" / "masking-cases.md"

CARD, SSN, EMAIL, NAME = 4716892311450065, "612-44-8391", "canary.kestrel@example.org", "Zyxwen Quorbly"
NOTE = f"pays with {CARD} since May, write to {EMAIL}"
NEEDLES = [str(CARD), SSN.replace("-", ""), "canarykestrel", "zyxwenquorbly", "quorbly"]
PARTS = [SSN.encode(), b"8391", b"uorbl", b"kestrel", b"11450065"]

SCHEMA = f"""
CREATE TABLE customers (id int PRIMARY KEY, name text, email text, ssn text, note text, card_number bigint, doc jsonb);
INSERT INTO customers VALUES
  (1, '{NAME}', '{EMAIL}', '{SSN}', '{NOTE}', {CARD}, '{{"mail": "{EMAIL}", "card": {CARD}}}'), (2, NULL, NULL, NULL,
   'nothing', 1234, '[]');
CREATE TABLE many AS SELECT g AS id, CASE WHEN g = 1203 THEN '{NOTE}' ELSE 'row ' || g END AS note
  FROM generate_series(1, 1500) g;
ANALYZE many;
CREATE TABLE inbox (id int, body text);
CREATE TABLE ledger (id int, body text) PARTITION BY RANGE (id);
CREATE TABLE ledger_2026 PARTITION OF ledger FOR VALUES FROM (1) TO (1000);
INSERT INTO ledger VALUES (1, '{NAME}');
CREATE TABLE parents (id int, body text);
CREATE TABLE only_child () INHERITS (parents);
INSERT INTO only_child VALUES (1, '{NAME}');
CREATE VIEW customer_view AS SELECT id, name AS who FROM customers WHERE name IS NOT NULL;
CREATE DOMAIN letter AS text CHECK (VALUE < 'M');
CREATE TYPE mood AS ENUM ('fine', 'grim');
COMMENT ON TABLE customers IS 'ask {EMAIL}';
ALTER TABLE customers OWNER TO agent_rw;
ALTER TABLE inbox OWNER TO agent_rw;
GRANT ALL ON ALL TABLES IN SCHEMA public TO agent_rw;
GRANT pg_read_all_stats TO agent_rw;
"""
RULES = [
    {
        "name": "work",
        "action": "Allow",
        "match": {
            "effects": ["read", "bulk_read", "create", "modify", "bulk_write", "schema"],
            "objects": ["public.*", "pg_catalog.*"],
        },
    },
    {"name": "statistics", "action": "Allow", "match": {"effects": ["read_sensitive"], "objects": ["pg_catalog.*"]}},
    {"name": "sessions", "action": "Allow", "match": {"effects": ["session", "transaction"]}},
    {"name": "code", "action": "Allow", "match": {"effects": ["execute_code"]}},
]
CLASSIFIED = [
    {"columns": ["public.customers.name", "public.ledger.body", "public.parents.body"], "class": "person"},
    {"columns": ["public.customers.email"], "class": "email"},
    {"columns": ["public.customers.ssn"], "class": "ssn"},
]
MASKS = [{"detectors": ["PaymentCard", "USSocialSecurity", "Email"], "method": "Redact"}]


@dataclass
class Seen:
    """All that a client got of one form of a case."""

    kinds: str = ""
    codes: list[str] = field(default_factory=list)
    cells: list[bytes] = field(default_factory=list)
    raw: bytes = b""

    def take(self, messages: list[tuple[str, bytes]]) -> None:
        for kind, body in messages:
            self.kinds += kind
            self.raw += body
            if kind == "E":
                self.codes.append(m.sqlstate(body))
            elif kind == "D":
                self.cells += cells(body)
            elif kind == "d":
                self.cells.append(body)

    @property
    def verdict(self) -> str:
        if "42501" in self.codes:
            return "refused"
        return "error" if self.codes else "masked"


def cells(body: bytes) -> Iterator[bytes]:
    position = 2
    for _ in range(int.from_bytes(body[:2], "big")):
        length = int.from_bytes(body[position : position + 4], "big", signed=True)
        position += 4
        if length >= 0:
            yield body[position : position + length]
            position += length


def plain(data: bytes) -> str:
    """Letters and digits alone, digits of all alphabets as ASCII's."""
    text = data.decode("utf-8", "ignore").lower()
    return "".join(str(int(c)) if c.isdecimal() else c for c in text if c.isalnum())


def readings(data: bytes) -> Iterator[bytes]:
    """The bytes, and what they are in other clothes."""
    yield data
    for found in re.findall(rb"(?:[0-9a-fA-F]{2}){6,}", data):
        with suppress(binascii.Error):
            yield binascii.unhexlify(found)
    for found in re.findall(rb"[A-Za-z0-9+/\n]{8,}={0,2}", data):
        with suppress(binascii.Error):
            yield base64.b64decode(found.replace(b"\n", b"") + b"==")


def leaks(seen: Seen) -> list[str]:
    """Canaries that the client has got hold of."""
    joined = b"".join(seen.cells)
    found = [part.decode() for part in PARTS if part in seen.raw]
    for data in (seen.raw, joined):
        for reading in readings(data):
            text = plain(reading)
            found += [needle for needle in NEEDLES if needle in text or needle in text[::-1]]
            turned = text.translate(str.maketrans("nopqrstuvwxyzabcdefghijklm", "abcdefghijklmnopqrstuvwxyz"))
            found += [needle for needle in NEEDLES if needle in turned]
    for cell in seen.cells:
        if struct.pack(">q", CARD) in cell or struct.pack(">d", CARD) in cell:
            found.append("the card as a binary number")
        if b"".join(struct.pack(">h", int(group)) for group in (4716, 8923, 1145, 65)) in cell:
            found.append("the card as a binary numeric")
    return found


def query(text: str) -> bytes:
    return m.frame(m.QUERY, text.encode() + b"\0")


def extended(text: str, result_format: int, *, is_described: bool) -> list[bytes]:
    described = [m.frame(m.DESCRIBE, b"P\0")] if is_described else []
    formats = b"\0\0\0\0" + b"\0\1" + result_format.to_bytes(2, "big")
    return [
        m.encode_parse(b"", text.encode()), m.frame(m.BIND, b"\0\0" + formats), *described,
        m.frame(m.EXECUTE, b"\0" + bytes(4)), m.SYNC_FRAME,
    ]  # fmt: skip


FORMS = {
    "simple": lambda sql: [query(sql)],
    "extended text": lambda sql: extended(sql, 0, is_described=True),
    "extended binary": lambda sql: extended(sql, 1, is_described=False),
    "COPY text": lambda sql: [query(f"COPY ({sql}) TO STDOUT")],
    "COPY csv": lambda sql: [query(f"COPY ({sql}) TO STDOUT WITH (FORMAT csv, HEADER)")],
    "COPY binary": lambda sql: [query(f"COPY ({sql}) TO STDOUT WITH (FORMAT binary)")],
}


@pytest.fixture(scope="module")
def masked(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that allows nearly everything, with classified columns and detectors."""
    with postgres.admin() as admin:
        admin.execute(SCHEMA)
    folder = tmp_path_factory.mktemp("manifests")
    write_manifests(folder, postgres, rules=RULES, masks=MASKS, classified=CLASSIFIED)
    gateway = start(folder, tmp_path_factory.mktemp("evidence"))
    assert gateway.process.poll() is None, "".join(gateway.output)
    yield gateway
    assert gateway.stop() == 0, "".join(gateway.output)
    assert gateway.verify().stdout.endswith("verify: OK\n")
    assert PASSWORD not in "".join(gateway.output)
    kept = b"".join(path.read_bytes() for path in gateway.evidence.rglob("*") if path.is_file())
    output = "".join(gateway.output).encode()
    for canary in (str(CARD), SSN, EMAIL, "Quorbly"):
        assert canary.encode() not in kept, f"{canary} is in the evidence"
        assert canary.encode() not in output, f"{canary} is in the log"


def play(gateway: Gateway, case: dict[str, Any], form: str) -> Seen:
    seen = Seen()
    with client(gateway) as agent:
        for before in case.get("before", ()):
            agent.send(query(before))
            seen.take(agent.until("Z"))
        agent.send(*FORMS[form](case["sql"]))
        seen.take(agent.until("Z"))
        agent.send(query("ROLLBACK"))
        seen.take(agent.until("Z"))
    return seen


def clean(postgres: Postgres) -> None:
    """Undo what a case may have left behind."""
    with postgres.admin() as admin:
        admin.execute("TRUNCATE inbox; INSERT INTO inbox VALUES (0, 'empty')")
        admin.execute("DROP TABLE IF EXISTS leaked; DROP VIEW IF EXISTS peeping")
        found = admin.execute(
            "SELECT 1 FROM pg_attribute WHERE attrelid = 'customers'::regclass AND attname = 'harmless'"
        ).fetchone()
        if found:
            admin.execute("ALTER TABLE customers RENAME COLUMN harmless TO name")


FOUND: dict[int, dict[str, str]] = {}


@pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda number: f"{CASES[number]['row']}-{CASES[number]['case']}"
)
def test_a_way_around_a_mask_is_masked_or_refused(masked: Gateway, postgres: Postgres, number: int) -> None:
    case = CASES[number]
    verdicts = FOUND.setdefault(number, {})
    for form in FORMS:
        if form.startswith("COPY") and not case.get("copy", True):
            verdicts[form] = "–"
            continue
        clean(postgres)
        seen = play(masked, case, form)
        assert leaks(seen) == [], (form, seen.raw)
        verdicts[form] = seen.verdict
        if case["row"] == 14 and seen.codes:
            verdicts[form] = "refused" if "42501" in seen.codes else "masked"  # the error is what is looked at
        assert verdicts[form] in ("masked", "refused"), (form, seen.codes, seen.raw)
    clean(postgres)


def test_the_table_in_the_documentation_says_what_was_found() -> None:
    assert len(FOUND) == len(CASES), "the cases have to run before this test"
    lines = ["| row | case | " + " | ".join(FORMS) + " |", "|---" * (len(FORMS) + 2) + "|"]
    for number, verdicts in sorted(FOUND.items()):
        case = CASES[number]
        lines.append(f"| {case['row']} | {case['case']} | " + " | ".join(verdicts[form] for form in FORMS) + " |")
    table = "\n".join(lines) + "\n"
    assert table in TABLE.read_text(), f"docs/masking-cases.md has another table than was found:\n{table}"
