"""What lies behind the names of a statement: by tables of relations, and against a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
from fix_postgres import Postgres, holding
from play import Nothing
from side_connection import catalog_at

from chaperone_evidence import canonical, record
from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import Offload
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.offload import worked_off
from chaperone_sidecar.policy.cache import DecisionCache
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.protocols.postgresql import answers
from chaperone_sidecar.protocols.postgresql.classify import classify
from chaperone_sidecar.protocols.postgresql.lookup import MAX_NAMES
from chaperone_sidecar.protocols.postgresql.reading import Reader
from chaperone_sidecar.protocols.postgresql.resolution import MAX_IMPLIED, names, resolve
from chaperone_sidecar.protocols.postgresql.schema import Relation, RelationKind, Schema
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.stream import begin_stream, make_signer


def known(*relations: Relation, absent: tuple[str, ...] = ()) -> Schema:
    schema = Schema()
    for relation in relations:
        schema.add(relation.name, relation)
    for name in absent:
        schema.add(name, None)
    return schema


def view(name: str, *reads: str, definition: str = "", kind: RelationKind = "v") -> Relation:
    return Relation(hash(name) & 0xFFFF, name, kind, (), definition, (), reads)


def table(name: str, *children: str, parent: str = "", kind: RelationKind = "r") -> Relation:
    return Relation(hash(name) & 0xFFFF, name, kind, (), "", children, (), parent)


def facts_of(text: str) -> Facts:
    return classify(text.encode()).facts


def implied(text: str, schema: Schema) -> list[str]:
    found = resolve(facts_of(text), schema)
    return [f"{one.effect} {one.object} < {one.through}" for one in found.accesses if one.through]


SCHEMA = known(
    table("public.t"),
    table("public.s"),
    table("public.parent", "public.child"),
    table("public.child", "public.grandchild"),
    table("public.grandchild"),
    table("public.events", kind="p"),
    table("public.events_1", parent="public.events", kind="p"),
    table("public.events_1_1", parent="public.events_1"),
    view("public.v", "public.t", definition="SELECT id FROM public.t;"),
    view(
        "public.w", "public.t", "public.s", definition="SELECT id FROM public.t WHERE id IN (SELECT id FROM public.s)"
    ),
    view("public.vv", "public.v", definition="SELECT id FROM public.v"),
    view("public.vp", "public.parent", definition="SELECT * FROM public.parent"),
    view("public.m", "public.vv", definition="SELECT * FROM public.vv", kind="m"),
    view("public.joined", "public.t", "public.s", definition="SELECT 1 FROM public.t, public.s"),
    view("public.unread", "public.t", "public.s"),
    view("public.roles", "pg_catalog.pg_authid", "pg_catalog.pg_class"),
    view("public.odd", "public.a.b", definition='SELECT 1 FROM public."a.b"'),
    view("public.lie", "public.t", definition="DROP TABLE public.t"),
    absent=("public.nope", "public.pg_x", "public.q"),
)
CASES: list[tuple[str, list[str]]] = [
    ("SELECT * FROM t", []),
    ("SELECT * FROM v", ["read public.t < public.v"]),
    ("SELECT * FROM vv", ["read public.t < public.vv", "read public.v < public.vv"]),
    ("SELECT * FROM v, t", []),
    ("SELECT * FROM v, vv", ["read public.t < public.v"]),
    ("COPY (SELECT * FROM v) TO STDOUT", ["read public.t < public.v", "bulk_read public.t < public.v"]),
    (
        "SELECT * FROM m",
        ["read public.t < public.m", "read public.v < public.m", "read public.vv < public.m"],
    ),
    ("SELECT * FROM parent", ["read public.child < public.parent", "read public.grandchild < public.parent"]),
    ("SELECT * FROM child", ["read public.grandchild < public.child"]),
    ("SELECT * FROM grandchild", []),
    ("SELECT * FROM ONLY parent", []),
    ("SELECT * FROM ONLY (parent)", []),
    ("UPDATE ONLY parent SET id = 1", []),
    ("DELETE FROM ONLY parent WHERE id = 1", []),
    ("TRUNCATE ONLY parent", []),
    ("LOCK ONLY parent", []),
    ("WITH q AS (SELECT * FROM ONLY parent) SELECT * FROM q", []),
    ("EXPLAIN SELECT * FROM ONLY parent", []),
    ("COPY (SELECT * FROM ONLY parent) TO STDOUT", []),
    (
        "SELECT * FROM ONLY parent, parent x",
        ["read public.child < public.parent", "read public.grandchild < public.parent"],
    ),
    (
        "SELECT 1 FROM ONLY parent; SELECT 1 FROM parent",
        ["read public.child < public.parent", "read public.grandchild < public.parent"],
    ),
    (
        "EXPLAIN SELECT 1 FROM parent, ONLY parent x",
        ["read public.child < public.parent", "read public.grandchild < public.parent"],
    ),
    ("SELECT * FROM ONLY parent, vp", ["read public.child < public.vp", "read public.grandchild < public.vp"]),
    ("SELECT * FROM ONLY child, ONLY parent", []),
    ("SELECT * FROM ONLY child, parent", ["read public.grandchild < public.parent"]),
    ("SELECT * FROM ONLY events_1", ["read public.events < public.events_1"]),
    ("SELECT * FROM events", []),
    (
        "SELECT * FROM events_1_1",
        ["read public.events < public.events_1_1", "read public.events_1 < public.events_1_1"],
    ),
    ("TRUNCATE events_1", ["destroy public.events < public.events_1"]),
    ("TRUNCATE child", ["destroy public.grandchild < public.child"]),
    ("DROP VIEW v", []),
    (
        "SELECT * FROM roles",
        ["read pg_catalog.pg_class < public.roles", "read_sensitive pg_catalog.pg_authid < public.roles"],
    ),
    ("INSERT INTO v VALUES (1)", ["create public.t < public.v"]),
    ("INSERT INTO vv VALUES (1)", ["create public.t < public.vv", "create public.v < public.vv"]),
    ("INSERT INTO w VALUES (1)", ["read public.s < public.w", "create public.t < public.w"]),
    (
        "UPDATE v SET id = 1",
        ["modify public.t < public.v", "bulk_write public.t < public.v"],
    ),
    ("INSERT INTO joined VALUES (1)", ["read public.s < public.joined", "read public.t < public.joined"]),
    ("INSERT INTO unread VALUES (1)", ["create public.s < public.unread", "create public.t < public.unread"]),
    ("INSERT INTO lie VALUES (1)", ["create public.t < public.lie"]),
    ("INSERT INTO parent VALUES (1)", []),
    ("COPY parent FROM STDIN", []),
    (
        "UPDATE parent SET id = 1",
        [
            "modify public.child < public.parent", "modify public.grandchild < public.parent",
            "bulk_write public.child < public.parent", "bulk_write public.grandchild < public.parent",
        ],
    ),
    (
        "DELETE FROM vp WHERE id = 1",
        [
            "read public.child < public.vp", "read public.grandchild < public.vp", "read public.parent < public.vp",
            "delete public.child < public.vp", "delete public.grandchild < public.vp",
            "delete public.parent < public.vp",
        ],
    ),
    ("SELECT 1", []),
    ("BEGIN", []),
    ("SELECT * FROM pg_roles", []),
    ("GRANT SELECT ON v TO x", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=[text for text, _ in CASES])
def test_what_a_statement_implies(text: str, expected: list[str]) -> None:
    assert implied(text, SCHEMA) == expected
    found = resolve(facts_of(text), SCHEMA)
    assert tuple(one for one in found.accesses if not one.through) == facts_of(text).accesses


RESOLUTIONS = [
    ("SELECT * FROM t", "catalog"),
    ("SELECT * FROM v JOIN s USING (id)", "catalog"),
    ("SELECT * FROM t, nope", "syntactic"),
    ("SELECT * FROM t, not_asked_for", "syntactic"),
    ("SELECT * FROM pg_class", "catalog"),
    ("SELECT * FROM t, information_schema.tables", "catalog"),
    ("SELECT * FROM pg_catalog.pg_not_there", "syntactic"),
    ("SELECT * FROM pg_x", "syntactic"),  # of a newer catalog, or public's
    ("SELECT nextval('q')", "syntactic"),  # a sequence is no relation that has columns
    ("CREATE TABLE nope (id int)", "syntactic"),
    ("CREATE TABLE nope AS SELECT * FROM t", "syntactic"),
    ("CREATE TABLE nope (id int); INSERT INTO nope VALUES (1)", "syntactic"),
    ("ALTER TABLE s INHERIT t; SELECT * FROM t", "syntactic"),
    ("SELECT * FROM pg_temp.t", "unresolved"),
    ("CREATE TEMP TABLE t (id int); SELECT * FROM t", "unresolved"),
    ("SELECT FROM WHERE", "unresolved"),
    ("SELECT 1", "none"),
    ("SET work_mem TO 1", "none"),
]


@pytest.mark.parametrize(("text", "expected"), RESOLUTIONS)
def test_resolution_is_the_catalogs_where_every_relation_was_found(text: str, expected: str) -> None:
    found = resolve(facts_of(text), SCHEMA)
    assert found.resolution == expected


def test_facts_of_which_nothing_is_known_stay_the_same_object() -> None:
    for text in ("SELECT * FROM t", "SELECT 1", "DROP TABLE t", "SELEC"):
        facts = facts_of(text)
        assert resolve(facts, Schema()) is facts


def test_a_temporary_name_is_never_asked_for_and_hides_nothing_else() -> None:
    facts = facts_of("SELECT * FROM pg_temp.t, v")
    assert names(facts) == ("public.v",)
    found = resolve(facts, SCHEMA)
    assert found.why_unknown == facts.why_unknown != ""
    assert Access(Effect.READ, "public.t", "public.v") in found.accesses


def test_names_are_those_of_relations_that_are_not_the_servers() -> None:
    facts = facts_of("INSERT INTO t SELECT * FROM s.\"X y\", pg_class; SET x.y TO 1; COPY v TO '/tmp/a.b'; NOTIFY c")
    assert set(names(facts)) == {"public.t", "s.X y", "public.v"}


def test_more_than_can_be_followed_is_unknown_and_says_so() -> None:
    tables = [table(f"public.t{i}") for i in range(MAX_IMPLIED + 1)]
    most = known(view("public.v", *(one.name for one in tables[:-1])), *tables)
    found = resolve(facts_of("SELECT * FROM v"), most)
    assert len(found.accesses) == 1 + MAX_IMPLIED
    assert found.resolution is Resolution.CATALOG
    more = known(view("public.v", *(one.name for one in tables)), *tables)
    found = resolve(facts_of("SELECT * FROM v"), more)
    assert found.resolution is Resolution.UNRESOLVED
    assert found.accesses[-1] == Access(Effect.UNKNOWN)
    assert "name the tables that are meant" in found.why_unknown


def test_what_was_cut_off_behind_a_view_is_unknown() -> None:
    for schema in (known(view("public.v", "public.not_in_the_answer")), SCHEMA):
        found = resolve(facts_of("SELECT * FROM v" if schema is not SCHEMA else "SELECT * FROM odd"), schema)
        assert Access(Effect.UNKNOWN) in found.accesses
        assert found.why_unknown


def test_a_statement_that_names_too_many_relations_is_unknown() -> None:
    text = "; ".join(f"SELECT * FROM t{i}" for i in range(MAX_NAMES + 1))
    found = resolve(facts_of(text), Schema())
    assert found.accesses[-1] == Access(Effect.UNKNOWN)
    assert "split it" in found.why_unknown


def test_relations_that_lead_to_each_other_end() -> None:
    ring = known(view("public.a", "public.b"), view("public.b", "public.a"), table("public.p", "public.p"))
    assert implied("SELECT * FROM a", ring) == ["read public.b < public.a"]
    assert implied("SELECT * FROM p", ring) == []


# --- what becomes of an implied access --------------------------------------------------------------------------------

REACHED = resolve(facts_of("SELECT * FROM v"), SCHEMA)


def test_refusal_says_through_what() -> None:
    decision = Decision(Action.DENY, "agents/p", "d", "no", "r")
    said = answers.refusal(decision, Command("query", b"SELECT * FROM v", REACHED))
    assert b"read public.v, read public.t (reached through public.v)." in said


def test_decisions_are_remembered_by_what_is_implied_too() -> None:
    cache = DecisionCache()
    named = facts_of("SELECT * FROM v, t")
    deny = Decision(Action.DENY, "", "d", "", "r")
    cache.keep("x", Command("query", b"", REACHED), deny)
    both = Facts(tuple(msgspec.structs.replace(one, through="") for one in REACHED.accesses), REACHED.resolution)
    assert {one.object for one in both.accesses} == {one.object for one in named.accesses}
    assert cache.find("x", Command("query", b"", both)) is None
    again = msgspec.structs.replace(REACHED, accesses=(*REACHED.accesses,))
    assert cache.find("x", Command("query", b"", again)) is deny


async def test_the_question_says_what_is_implied() -> None:
    asked: list[dict[str, object]] = []

    class Asking(Decider):
        async def _query(self, question: dict[str, object], rule: str) -> object:
            asked.append(question)
            return {"action": "Allow", "policy": "p", "rule": "a", "message": "", "revision": "r"}

    decider = Asking("me", Path("/nowhere"))
    decider._loaded.set()
    await decider.decide("t", "PostgreSQL", Command("query", b"", REACHED))
    assert asked[0]["accesses"] == [
        {"effect": "read", "object": "public.v"},
        {"effect": "read", "object": "public.t", "through": "public.v"},
    ]
    assert asked[0]["resolution"] == "catalog"


def test_a_record_says_through_what_and_one_without_has_the_bytes_it_always_had() -> None:
    def header(entry: record.AccessEntry) -> bytes:
        return canonical.encode(
            record.CommandIntent(
                seq=1, wall_us=2, mono_us=3, session="s", command="c", target="t", kind="query", decision="Allow",
                sha256="x", size_bytes=1, accesses=(entry,),
            )
        )  # fmt: skip

    plain = header(record.AccessEntry("read", "public.t"))
    assert b'"accesses":[{"effect":"read","object":"public.t"}]' in plain
    through = header(record.AccessEntry("read", "public.t", "public.v"))
    assert b'{"effect":"read","object":"public.t","through":"public.v"}' in through
    for one in (plain, through):
        found = record.decode(one)
        assert isinstance(found, record.CommandIntent)
        assert canonical.encode(found) == one


def test_the_longest_names_there_are_fit_into_a_record(tmp_path: Path) -> None:
    opened = record.StreamOpen(
        seq=0, wall_us=0, mono_us=0, stream="", cluster="c", namespace="n", pod="p", pod_uid="u", identity="i",
        vkey="", certificate="",
    )  # fmt: skip
    recorder, _ = begin_stream(tmp_path, 8 << 20, make_signer("c", "u"), opened, Ids())
    log = recorder.new_session("t" * 253)
    longest = '"' * 63 + "." + '"' * 63
    accesses = tuple(Access(Effect.READ_SENSITIVE, f"{longest[:-3]}{i:03}", longest) for i in range(MAX_IMPLIED))
    decision = Decision(Action.DENY, "n" * 63 + "/" + "p" * 253, "r" * 253, "", "0" * 16)
    intent = recorder.intend(log, Command("query", b"x", Facts(accesses, Resolution.SYNTACTIC)), decision)
    assert recorder.conclude(log, intent, "refused").seq == intent.receipt.seq + 1


# --- what others make forgotten ---------------------------------------------------------------------------------------


class Forgetful(Nothing):
    """A catalog that some times has forgotten again what it was asked, since another session saw DDL or was allowed."""

    def __init__(self, times: int) -> None:
        self.generation, self.schema, self.times = 0, Schema(), times

    async def learn(self, names: Collection[str]) -> bool:
        if self.times:
            self.times, self.generation = self.times - 1, self.generation + 1
            return False
        for name in names:
            self.schema.add(name, table(name))
        return True


@pytest.mark.parametrize(
    ("catalog", "expected"),
    [
        (Forgetful(3), Resolution.CATALOG),
        (Forgetful(1000), Resolution.UNRESOLVED),  # it ends
        (Nothing(), Resolution.UNRESOLVED),
    ],
)
async def test_what_other_sessions_make_forgotten_is_asked_again(catalog: Nothing, expected: Resolution) -> None:
    reading, answer = Reader(catalog).read(b"SELECT id FROM public.t"), None
    with pytest.raises(StopIteration) as over:
        while True:
            answer = await worked_off(reading.send(answer))
    assert over.value.value.facts.resolution is expected


# --- Offload ----------------------------------------------------------------------------------------------------------


async def test_work_may_be_a_future_of_a_thread_or_a_coroutine_and_ends_in_time() -> None:
    done: Future[int] = Future()
    done.set_result(7)
    assert await worked_off(Offload(lambda: done)) == 7
    assert await worked_off(Offload(lambda: asyncio.sleep(0, "slept"))) == "slept"
    with pytest.raises(ChaperoneError, match="too long"):
        await worked_off(Offload(lambda: asyncio.sleep(60)), timeout_s=0.01)
    with pytest.raises(ChaperoneError, match="too long"):
        await worked_off(Offload(Future), timeout_s=0.01)


# --- with a real server ---------------------------------------------------------------------------------------------

OBJECTS = """
DROP SCHEMA IF EXISTS res CASCADE;
CREATE SCHEMA res;
CREATE TABLE res.t (id int PRIMARY KEY, name text);
CREATE TABLE res.s (id int);
CREATE VIEW res.v AS SELECT id, name FROM res.t WHERE id NOT IN (SELECT id FROM res.s);
CREATE VIEW res.vv AS SELECT * FROM res.v WHERE name <> '';
CREATE VIEW res.j AS SELECT t.id FROM res.t JOIN res.s USING (id);
CREATE MATERIALIZED VIEW res.m AS SELECT * FROM res.vv;
CREATE TABLE res.p (id int); CREATE TABLE res.c () INHERITS (res.p);
CREATE TABLE res.e (at int) PARTITION BY RANGE (at);
CREATE TABLE res.e1 PARTITION OF res.e FOR VALUES FROM (0) TO (10);
CREATE VIEW res.ve AS SELECT * FROM res.e;
"""
REAL = {
    "SELECT * FROM res.vv": "read res.s, read res.t, read res.v",
    "SELECT * FROM res.m": "read res.s, read res.t, read res.v, read res.vv",
    "UPDATE res.vv SET name = 'x' WHERE id = 1": "read res.s, read res.t, read res.v, modify res.t, modify res.v",
    "INSERT INTO res.v VALUES (1)": "read res.s, create res.t",
    "SELECT * FROM res.j": "read res.s, read res.t",
    "SELECT * FROM res.p": "read res.c",
    "SELECT * FROM res.ve": "read res.e",
    "SELECT * FROM res.e": "",
    "SELECT * FROM res.e1": "read res.e",
}


@pytest.fixture(scope="module")
def objects(postgres: Postgres) -> Iterator[Postgres]:
    with holding(postgres, "res", OBJECTS):
        yield postgres


@pytest.mark.peer
async def test_what_is_implied_at_a_real_server(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        for text, expected in REAL.items():
            facts = facts_of(text)
            catalog.invalidate()
            assert await catalog.learn(names(facts))
            found = resolve(facts, catalog.schema)
            assert found.resolution is Resolution.CATALOG, text
            assert ", ".join(f"{one.effect} {one.object}" for one in found.accesses if one.through) == expected, text


@pytest.mark.peer
async def test_what_is_implied_follows_what_the_server_does(objects: Postgres) -> None:
    """The server's own word: which tables it locks when it runs the statement."""
    async with catalog_at(objects.port) as catalog:
        for text in REAL:
            facts = facts_of(text)
            assert await catalog.learn(names(facts))
            reached = {one.object for one in resolve(facts, catalog.schema).accesses}
            with objects.admin() as admin, admin.transaction(force_rollback=True):
                admin.execute(text)
                locked = admin.execute(
                    """SELECT n.nspname || '.' || c.relname FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                         JOIN pg_namespace n ON n.oid = c.relnamespace
                        WHERE l.pid = pg_backend_pid() AND n.nspname = 'res' AND c.relkind <> 'i'
                          AND NOT (c.relispartition AND NOT c.relname = ANY(%s))""",
                    [[name.split(".")[1] for name in names(facts)]],
                ).fetchall()
            assert {name for (name,) in locked} <= reached, text
