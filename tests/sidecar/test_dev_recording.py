"""Recordings of results: what a client was shown, no more and no less, and never before it is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fix_dev import Gateway, start, write_manifests
from fix_postgres import Postgres
from psycopg import errors
from raw_client import Client, bind, client, execute
from recordings import every_byte, read_frames, read_parts, read_rows

from chaperone_evidence import frames, record
from chaperone_sidecar.protocols.postgresql import messages as m

pytestmark = pytest.mark.peer

CANARY = "Quorbly"
SCHEMA = f"""
CREATE TABLE people (id int, name text, motto text);
INSERT INTO people SELECT g, '{CANARY} ' || g, 'motto ' || g FROM generate_series(1, 5) g;
ALTER TABLE people OWNER TO agent_rw;
CREATE TABLE wide AS SELECT i AS id, repeat(md5(i::text), 30) AS value FROM generate_series(1, 40000) i;
ALTER TABLE wide OWNER TO agent_rw;
"""
ALL = [
    {
        "name": "all",
        "action": "Allow",
        "match": {"effects": ["read", "bulk_read", "create", "modify", "session", "transaction", "execute_code"]},
    }
]
CLASSIFIED = [{"columns": ["public.people.name"], "class": "person"}]
MASKS = [{"columns": ["public.people.name"], "method": "Redact"}]
FULL: dict[str, object] = {"results": "Full"}

type Make = Callable[..., Gateway]


@pytest.fixture
def people(postgres: Postgres) -> Iterator[Postgres]:
    with postgres.admin() as admin:
        admin.execute(SCHEMA)
    yield postgres
    with postgres.admin() as admin:
        admin.execute("DROP TABLE people, wide")


def verified(gateway: Gateway) -> Path:
    assert gateway.stop() == 0
    verdict = gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout
    return gateway.evidence


def test_nothing_is_recorded_where_nobody_asks_for_it(gateway_with: Make, people: Postgres) -> None:
    gateway = gateway_with(rules=ALL)
    with gateway.connect() as agent:
        agent.execute("SELECT * FROM people").fetchall()
    assert read_parts(verified(gateway)) == []


@pytest.mark.parametrize("durability", ["Written", "Synced"])
def test_a_masked_value_is_recorded_only_as_it_was_shown(gateway_with: Make, people: Postgres, durability: str) -> None:
    evidence = FULL | {"durability": durability}
    gateway = gateway_with(rules=ALL, classified=CLASSIFIED, masks=MASKS, evidence=evidence)
    shown = []
    with gateway.connect() as agent:
        for binary in (False, True):
            for query, params in (("SELECT id, name, motto FROM people ORDER BY id", None),
                                  ("SELECT name FROM people WHERE id > %s ORDER BY id", (2,))):  # fmt: skip
                shown += agent.execute(query, params, binary=binary).fetchall()
        with agent.cursor().copy("COPY (SELECT name, motto FROM people ORDER BY id) TO STDOUT") as copy:
            copied = b"".join(bytes(piece) for piece in copy)
    folder = verified(gateway)
    assert CANARY.encode() not in every_byte(folder)
    assert b"motto 3" in every_byte(folder)
    assert CANARY not in str(shown)
    names = [row[-2] if len(row) == 3 else row[0] for row in read_rows(folder)]
    assert {name.raw.decode() if isinstance(name, frames.Bytes) else name for name in names} == {
        row[-2] if len(row) == 3 else row[0] for row in shown
    }
    columns = [frame.columns for frame in read_frames(folder, frames.Columns) if isinstance(frame, frames.Columns)]
    assert [[(one.name, one.is_masked) for one in found] for found in columns] == [
        [("id", False), ("name", True), ("motto", False)], [("name", True)],
    ] * 2  # fmt: skip
    (data,) = [frame for frame in read_frames(folder, frames.Data) if isinstance(frame, frames.Data)]
    assert (data.data, data.part_of, data.direction) == (copied.decode(), "copy", "out")


@pytest.mark.parametrize("durability", ["Written", "Synced"])
def test_rows_belong_to_their_command_and_have_its_columns(
    gateway_with: Make, people: Postgres, durability: str
) -> None:
    gateway = gateway_with(rules=ALL, evidence=FULL | {"durability": durability})
    with gateway.connect() as agent:
        with agent.pipeline():
            first = agent.execute("SELECT id FROM people WHERE id = %s", (1,))
            second = agent.execute("SELECT motto, id FROM people WHERE id = %s", (2,))
        assert (first.fetchall(), second.fetchall()) == ([(1,)], [("motto 2", 2)])
        agent.execute("SELECT 1; SELECT NULL::text, ''")
    folder = verified(gateway)
    intents = [one for one in gateway.records() if isinstance(one, record.CommandIntent) and one.kind != "parse"]
    bodies: dict[str, list[object]] = {one.command: [] for one in intents}
    for part, found in read_parts(folder):
        for frame in found:
            if isinstance(frame, frames.Columns):
                bodies[part.command].append([one.name for one in frame.columns])
            elif isinstance(frame, frames.Rows):
                bodies[part.command] += frame.rows
    told = [found for found in bodies.values() if found]
    assert told == [
        [["id"], ("1",)], [["motto", "id"], ("motto 2", "2")], [["?column?"], ("1",), ["text", "?column?"], (None, "")],
    ]  # fmt: skip


def test_a_binary_result_is_kept_as_bytes_with_the_type(gateway_with: Make, people: Postgres) -> None:
    gateway = gateway_with(rules=ALL, evidence=FULL)
    with gateway.connect() as agent:
        assert agent.execute("SELECT id FROM people WHERE id = %s", (4,), binary=True).fetchall() == [(4,)]
    folder = verified(gateway)
    assert read_rows(folder) == [(frames.Bytes("AAAABA=="),)]
    assert read_frames(folder, frames.Columns)[0].columns == (frames.Column("id", "23"),)  # type: ignore[union-attr]


def test_a_statement_described_once_has_its_columns_each_time(gateway_with: Make, people: Postgres) -> None:
    gateway = gateway_with(rules=ALL, evidence=FULL)
    with client(gateway) as agent:
        parse = m.frame(m.PARSE, b"s\0SELECT motto FROM people WHERE id = 1\0\0\0")
        agent.send(parse + m.frame(m.DESCRIBE, b"Ss\0") + m.SYNC_FRAME)
        assert agent.kinds() == "1tTZ"
        for _ in range(2):
            agent.send(bind(b"", b"s") + execute(b"") + m.SYNC_FRAME)
            assert agent.kinds() == "2DCZ"
    folder = verified(gateway)
    assert [frame.columns[0].name for frame in read_frames(folder, frames.Columns)] == ["motto"] * 2  # type: ignore[union-attr]
    assert read_rows(folder) == [("motto 1",)] * 2


def test_errors_notices_refusals_and_ends_are_recorded_as_the_client_heard_them(
    gateway_with: Make, people: Postgres
) -> None:
    gateway = gateway_with(evidence=FULL)
    with gateway.connect() as agent:
        with pytest.raises(errors.DivisionByZero):
            agent.execute("SELECT total / 0 FROM orders")
        with pytest.raises(errors.InsufficientPrivilege) as refused:
            agent.execute("DROP TABLE orders")
        agent.execute("UPDATE invoices SET paid = true WHERE id < 4")
        agent.execute("ROLLBACK")
    said = [frame for frame in read_frames(verified(gateway), frames.Message) if isinstance(frame, frames.Message)]
    told = [(one.severity, one.code, one.text) for one in said]
    assert ("ERROR", "22012", "division by zero") in told
    assert ("ERROR", "42501", refused.value.diag.message_primary) in told
    assert ("COMPLETE", "", "UPDATE 3") in told
    assert ("WARNING", "25P01", "there is no transaction in progress") in told


def test_a_result_is_cut_where_the_identity_says_and_the_client_gets_all_of_it(
    gateway_with: Make, people: Postgres
) -> None:
    gateway = gateway_with(rules=ALL, evidence=FULL | {"maxResultBytes": "64Ki"})
    with gateway.connect() as agent:
        got = agent.execute("SELECT * FROM wide ORDER BY id LIMIT 1000").fetchall()
        agent.execute("SELECT id FROM people WHERE id = 1")  # the next one has room of its own
    assert len(got) == 1000
    folder = verified(gateway)
    kept = read_rows(folder)
    assert 40 < len(kept) < 80
    assert [(str(number), text) for number, text in got[: len(kept) - 1]] == kept[:-1]
    assert kept[-1] == ("1",)
    (cut,) = [frame for frame in read_frames(folder, frames.Cut) if isinstance(frame, frames.Cut)]
    assert cut.why == "maxResultBytes"
    assert 60_000 < cut.kept_bytes <= 65_536


def test_a_value_longer_than_a_chunk_is_kept_in_pieces(gateway_with: Make, people: Postgres) -> None:
    for classified in (None, CLASSIFIED):  # passed on in pieces, and looked at as a whole
        gateway = gateway_with(rules=ALL, classified=classified, evidence=FULL)
        with gateway.connect() as agent:
            ((got,),) = agent.execute("SELECT repeat('abcdefgh', 100000) FROM people WHERE id = 1").fetchall()
        folder = verified(gateway)
        pieces = [frame for frame in read_frames(folder, frames.Data) if isinstance(frame, frames.Data)]
        assert {one.part_of for one in pieces} == {"row"}
        whole = b"".join(one.data.raw if isinstance(one.data, frames.Bytes) else one.data.encode() for one in pieces)
        assert whole.endswith(got.encode())


@pytest.mark.parametrize("pause_s", [0.0, 0.05, 0.2])
def test_what_a_client_got_is_recorded_even_when_the_gateway_is_killed(
    gateway_with: Make, people: Postgres, pause_s: float
) -> None:
    """The point of the feature: the client's bytes are a beginning of what lies in the spool."""
    gateway = gateway_with(rules=ALL, evidence=FULL | {"maxResultBytes": "64Mi"})
    rows = []
    with client(gateway) as agent:
        agent.send(m.encode_query(b"SELECT id, value FROM wide ORDER BY id"))
        assert agent.message()[0] == "T"
        found = agent.message()  # the result has begun
        time.sleep(pause_s)
        gateway.kill()
        while (kind := found[0]) != "":
            assert kind == "D"
            rows.append(cells(found[1]))
            found = received(agent)
    assert 0 < len(rows) < 40000, "the gateway was to die in the middle of the result"
    kept = read_rows(gateway.evidence)
    assert kept[: len(rows)] == rows
    assert len(kept) < 40000


def received(agent: Client) -> tuple[str, bytes]:
    try:
        return agent.message()
    except ConnectionResetError:
        return "", b""


def cells(body: bytes) -> tuple[str, ...]:
    found, place = [], 2
    while place < len(body):
        after = place + 4 + int.from_bytes(body[place : place + 4], "big")
        found.append(body[place + 4 : after].decode())
        place = after
    return tuple(found)


def test_nothing_is_shown_that_finds_no_room(people: Postgres, tmp_path: Path, small_disk: Path) -> None:
    write_manifests(tmp_path, people, rules=ALL, evidence=FULL | {"maxResultBytes": "64Mi"})
    gateway = start(tmp_path, small_disk / "evidence")
    rows, last = [], ""
    try:
        with client(gateway) as agent:
            agent.send(
                m.encode_query(b"SELECT md5(a.id || 'x' || b.id) || md5(a.id || 'y' || b.id) FROM wide a, people b")
            )
            while (kind := (found := received(agent))[0]) != "":
                last = kind + str(m.error_fields(found[1]).get("C", "")) if kind == "E" else kind
                if kind == "D":
                    rows.append(cells(found[1]))
    finally:
        gateway.stop()
    assert 0 < len(rows) < 200_000
    assert last == "E53100"
    assert read_rows(gateway.evidence)[: len(rows)] == rows
    closed = [one for one in gateway.records() if isinstance(one, record.SessionClose)]
    assert [one.reason for one in closed] == ["SpoolFull"]
