"""The side connection against a real PostgreSQL, and against servers that lie or say nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import msgspec
import psycopg
import pytest
from fix_dev import Gateway
from fix_postgres import Postgres, holding
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from side_connection import READY, Clock, Leases, catalog_at, dial, row, server_saying, target_at
from waiting import eventually

from chaperone_sidecar import catalog as catalog_module
from chaperone_sidecar.backend import PostgresBackends
from chaperone_sidecar.catalog import BACK_OFF_S, TTL_S, Catalog, Catalogs
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.postgresql import lookup
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec
from chaperone_sidecar.protocols.postgresql.messages import frame
from chaperone_sidecar.protocols.postgresql.schema import NotLookedUp, Relation

peer = pytest.mark.peer

OBJECTS = """
DROP SCHEMA IF EXISTS cat CASCADE;
CREATE SCHEMA cat;
GRANT USAGE ON SCHEMA cat TO agent_rw;
CREATE TABLE cat.t (id int PRIMARY KEY, name text, gone int, note varchar(7)[]);
ALTER TABLE cat.t DROP COLUMN gone;
CREATE VIEW cat.v AS SELECT id, name FROM cat.t WHERE id IN (SELECT id FROM public.secrets);
CREATE VIEW cat.vv AS SELECT v.name, upper(v.name) AS big FROM cat.v UNION SELECT customer, '' FROM public.orders;
CREATE FUNCTION cat.f(int) RETURNS int LANGUAGE sql AS 'SELECT count(*)::int FROM public.invoices';
CREATE VIEW cat.vf AS SELECT cat.f(id) AS n FROM cat.t;
CREATE VIEW cat.system AS SELECT a.rolpassword, t.relname FROM pg_authid a, pg_catalog.pg_class t;
CREATE VIEW cat.none AS SELECT 1 AS one;
CREATE MATERIALIZED VIEW cat.m AS SELECT * FROM cat.vv;
CREATE TABLE cat.parent (id int);
CREATE TABLE cat.child (more text) INHERITS (cat.parent);
CREATE TABLE cat.grandchild () INHERITS (cat.child);
CREATE TABLE cat.events (at int) PARTITION BY RANGE (at);
CREATE TABLE cat.events_1 PARTITION OF cat.events FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (at);
CREATE TABLE cat.events_1_1 PARTITION OF cat.events_1 FOR VALUES FROM (0) TO (5);
CREATE TYPE cat.pair AS (a int, b text);
CREATE DOMAIN cat.positive AS int CHECK (VALUE > 0);
CREATE VIEW cat.recursive AS WITH RECURSIVE r(n) AS (SELECT id FROM cat.t UNION SELECT n FROM r) SELECT n FROM r;
"""


@pytest.fixture(scope="module")
def held(postgres: Postgres) -> Iterator[Postgres]:
    with holding(postgres, "cat", OBJECTS):
        yield postgres


@pytest.fixture
def objects(held: Postgres) -> Postgres:
    """The server; connections of earlier catalogs, which end there a moment after they were closed, are gone."""
    with held.admin() as admin:
        eventually(lambda: not backends_of(admin))
    return held


def found(catalog: Catalog, name: str) -> Relation:
    relation = catalog.schema.relation(name)
    assert relation is not None, name
    return relation


@peer
async def test_a_table_has_its_columns_as_they_are_now(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat.t"])
        table = found(catalog, "cat.t")
        assert [(column.name, column.number) for column in table.columns] == [("id", 1), ("name", 2), ("note", 4)]
        assert (table.kind, table.definition, table.reads, table.children, table.parent) == ("r", "", (), (), "")
        assert catalog.schema.relation_by_oid(table.oid) is table
        assert await catalog.learn_types([column.type for column in table.columns])
        note = catalog.schema.type(table.columns[2].type)
        assert note is not None
        assert (note.name, note.kind, note.is_array) == ("pg_catalog._varchar", "b", True)
        assert catalog.schema.type(note.element) is not None


@peer
async def test_what_a_view_reads_is_learnt_with_it_at_any_depth(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat.vv"])
        assert set(found(catalog, "cat.vv").reads) == {"cat.v", "public.orders"}
        assert set(found(catalog, "cat.v").reads) == {"cat.t", "public.secrets"}
        assert "FROM cat.v" in found(catalog, "cat.vv").definition
        assert "FROM public.secrets" in found(catalog, "cat.v").definition
        assert found(catalog, "public.secrets").kind == "r"


@peer
async def test_a_view_on_the_servers_own_catalogs_reads_them_though_it_does_not_depend_on_them(
    objects: Postgres,
) -> None:
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat.system", "cat.none", "cat.vf", "cat.recursive"])
        assert set(found(catalog, "cat.system").reads) == {"pg_catalog.pg_authid", "pg_catalog.pg_class"}
        assert found(catalog, "cat.none").reads == ()
        assert found(catalog, "cat.vf").reads == ("cat.t",)  # what a function reads is not seen
        assert found(catalog, "cat.recursive").reads == ("cat.t",)


@peer
async def test_materialised_views_inheritance_and_partitions(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat.m", "cat.parent", "cat.events", "cat.events_1_1", "cat.pair"])
        assert (found(catalog, "cat.m").kind, found(catalog, "cat.m").reads) == ("m", ("cat.vv",))
        assert "FROM cat.vv" in found(catalog, "cat.m").definition
        assert found(catalog, "cat.parent").children == ("cat.child",)
        assert found(catalog, "cat.child").children == ("cat.grandchild",)
        assert found(catalog, "cat.grandchild").children == ()
        assert (found(catalog, "cat.events").kind, found(catalog, "cat.events").children) == ("p", ())
        assert found(catalog, "cat.events_1_1").parent == "cat.events_1"
        assert found(catalog, "cat.events_1").parent == "cat.events"
        assert found(catalog, "cat.pair").kind == "c"


@peer
async def test_temporary_children_of_other_sessions_are_none(objects: Postgres) -> None:
    with objects.admin() as admin:
        admin.execute("CREATE TEMP TABLE mine () INHERITS (cat.parent)")
        async with catalog_at(objects.port) as catalog:
            assert await catalog.learn(["cat.parent"])
            assert found(catalog, "cat.parent").children == ("cat.child",)


@peer
async def test_types(objects: Postgres) -> None:
    with objects.admin() as admin:
        (pair, positive, own) = admin.execute(
            "SELECT 'cat.pair'::regtype::oid, 'cat.positive'::regtype::oid, 'cat.pair'::regclass::oid"
        ).fetchone() or (0, 0, 0)
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn_types([pair, positive, 4451, 30, 4_000_000_000, 2**40, -1, 0])
        composite, domain = catalog.schema.type(pair), catalog.schema.type(positive)
        assert composite is not None
        assert domain is not None
        assert (composite.name, composite.kind, composite.relation) == ("cat.pair", "c", own)
        assert (domain.kind, domain.element) == ("d", 23)
        multirange = catalog.schema.type(4451)
        assert multirange is not None
        bounds = catalog.schema.type(multirange.element)
        assert bounds is not None
        assert (multirange.kind, bounds.kind, bounds.element) == ("m", "r", 23)
        assert catalog.schema.type(23) is not None
        for absent in (4_000_000_000, 2**40, -1, 0):
            assert catalog.schema.type(absent) is None


HOSTILE = [
    'a"; DROP TABLE orders; --', "a'; DROP TABLE orders; --", "таблица", "表 名", "a\\", '"', "'", "$1",
    "{a,b}", '","', "[null]", "Upper", " ", "a'||(SELECT 1)||'", "x" * 63, "é" * 31, "😀", "%s", "null",
]  # fmt: skip


@peer
async def test_hostile_names_are_names(objects: Postgres) -> None:
    with objects.admin() as admin:
        for name in HOSTILE:
            admin.execute(sql.SQL("CREATE TABLE cat.{} (a int)").format(sql.Identifier(name)))
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn([f"cat.{name}" for name in HOSTILE])
        for name in HOSTILE:
            assert found(catalog, f"cat.{name}").columns[0].name == "a", name
        other = [f"{name}.{name}" for name in HOSTILE] + [f"public.{name}" for name in HOSTILE]
        assert await catalog.learn(other)
        assert [catalog.schema.relation(name) for name in other] == [None] * len(other)
    with objects.admin() as admin:
        assert admin.execute("SELECT count(*) FROM public.orders").fetchone() == (1000,)
        for name in HOSTILE:
            admin.execute(sql.SQL("DROP TABLE cat.{}").format(sql.Identifier(name)))


UNNAMEABLE = ["", ".", "a", "cat.", ".t", "cat.t.x", "cat.t\0", "cat.\ud800", "cat.t\n", "cat\0.t"]


@peer
async def test_what_cannot_be_a_name_is_absent(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(UNNAMEABLE)
        assert await catalog.learn([*UNNAMEABLE, "cat.t"])
        assert [catalog.schema.relation(name) for name in UNNAMEABLE] == [None] * len(UNNAMEABLE)
        assert catalog.schema.relation("cat.t") is not None


@peer
async def test_a_longer_name_is_not_the_one_it_would_be_cut_to(objects: Postgres) -> None:
    with objects.admin() as admin:
        admin.execute(f"CREATE TABLE cat.{'y' * 63} (a int)")
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat." + "y" * 63, "cat." + "y" * 64])
        assert catalog.schema.relation("cat." + "y" * 63) is not None
        assert catalog.schema.relation("cat." + "y" * 64) is None


@peer
async def test_dropped_and_renamed_things_are_seen_after_invalidate_and_not_before(objects: Postgres) -> None:
    with objects.admin() as admin:
        admin.execute("CREATE TABLE cat.passing (a int); CREATE TABLE cat.changing (a int)")
        async with catalog_at(objects.port) as catalog:
            assert await catalog.learn(["cat.passing", "cat.changing"])
            before = catalog.generation
            admin.execute("DROP TABLE cat.passing; ALTER TABLE cat.changing RENAME a TO b")
            assert await catalog.learn(["cat.passing", "cat.changing"])
            assert catalog.schema.relation("cat.passing") is not None
            assert catalog.generation == before
            catalog.invalidate()
            assert catalog.generation != before
            with pytest.raises(NotLookedUp):
                catalog.schema.relation("cat.passing")
            assert await catalog.learn(["cat.passing", "cat.changing"])
            assert catalog.schema.relation("cat.passing") is None
            assert found(catalog, "cat.changing").columns[0].name == "b"
        admin.execute("DROP TABLE cat.changing")


@peer
async def test_what_was_learnt_is_forgotten_after_its_time(objects: Postgres) -> None:
    clock = Clock()
    async with catalog_at(objects.port, clock=clock) as catalog:
        first = catalog.generation
        clock.now_s += 10 * TTL_S
        assert catalog.generation == first  # nothing was known
        assert await catalog.learn(["cat.t"])
        clock.now_s += TTL_S - 0.1
        assert catalog.generation == first
        assert await catalog.learn(["cat.v"])  # keeps nothing alive
        clock.now_s += 0.1
        assert catalog.generation != first
        assert not catalog.schema.has("cat.t")
        assert await catalog.learn(["cat.t"])


def backends_of(admin: psycopg.Connection) -> list[int]:
    rows = admin.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'chaperone-catalog'").fetchall()
    return [pid for (pid,) in rows]


async def until(is_so: object, timeout_s: float = 60) -> None:
    assert callable(is_so)
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110 - what a server does sends no event
            await asyncio.sleep(0.01)


@peer
@pytest.mark.parametrize("is_noticed", [True, False])
async def test_a_connection_that_was_cut_is_replaced(objects: Postgres, *, is_noticed: bool) -> None:
    leases = Leases()
    async with catalog_at(objects.port, leases) as catalog:
        assert await catalog.learn(["cat.t"])
        with objects.admin() as admin:
            (pid,) = backends_of(admin)
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            if is_noticed:
                await asyncio.sleep(0.1)
            catalog.invalidate()
            assert await catalog.learn(["cat.t"])
            assert backends_of(admin) != [pid]
        assert leases.asked == 2


@peer
async def test_the_connection_is_read_only_has_no_search_path_and_goes_when_idle(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat.t"])
        assert catalog._connection is not None
        values = await catalog._connection.ask(
            """SELECT json_build_array(name, setting) FROM pg_settings, json_array_elements_text($1::json) AS one(value)
                WHERE name = ANY('{search_path,default_transaction_read_only,statement_timeout}') ORDER BY name""",
            [1],
        )
        assert values == [
            b'["default_transaction_read_only", "on"]', b'["search_path", ""]', b'["statement_timeout", "3000"]',
        ]  # fmt: skip
    with objects.admin() as admin:
        await until(lambda: not backends_of(admin))
        async with catalog_at(objects.port, idle_s=1) as catalog:
            assert await catalog.learn(["cat.t"])
            await until(lambda: not backends_of(admin))
            catalog.invalidate()
            assert await catalog.learn(["cat.t"])
            assert len(backends_of(admin)) == 1


@peer
async def test_the_connection_goes_with_the_last_session_and_what_is_known_stays(objects: Postgres) -> None:
    async with catalog_at(objects.port) as catalog:
        catalog.join()
        catalog.join()
        assert await catalog.learn(["cat.t"])
        catalog.leave()
        with objects.admin() as admin:
            assert len(backends_of(admin)) == 1
            asking = asyncio.create_task(catalog.learn(["cat.v"]))
            await asyncio.sleep(0)
            catalog.leave()
            assert await asking  # whoever asks still is answered
            await until(lambda: not backends_of(admin))
        assert catalog.schema.has("cat.t")
        catalog.join()
        assert await catalog.learn(["cat.vv"])
        assert catalog._connection is not None
        catalog.leave()


@peer
def test_a_database_can_be_dropped_once_its_sessions_have_ended(
    objects: Postgres, gateway_with: Callable[..., Gateway]
) -> None:
    gateway = gateway_with()
    with objects.admin() as admin:
        for table in (b"orders", b"invoices"):  # what is known of the first is not asked again
            with gateway.connect() as session:
                assert session.execute(b"SELECT count(*) FROM public." + table).fetchone()
                assert len(backends_of(admin)) == 1
            ends = time.monotonic() + 60
            while backends_of(admin):
                assert time.monotonic() < ends, "the gateway is still connected"


@peer
async def test_many_learn_at_once_over_one_connection(objects: Postgres) -> None:
    names = ["cat.t", "cat.v", "cat.vv", "cat.m", "cat.parent", "cat.events", "cat.nothing", "public.orders"]
    leases = Leases()
    async with catalog_at(objects.port, leases) as catalog:
        answers = await asyncio.gather(
            *(catalog.learn([names[i % 8], names[(i * 3 + 1) % 8]]) for i in range(60)),
            *(catalog.learn_types([23 + i]) for i in range(20)),
        )
        assert all(answers)
        assert all(catalog.schema.has(name) for name in names)
        assert leases.asked == 1
        with objects.admin() as admin:
            assert len(backends_of(admin)) == 1


@peer
async def test_a_session_that_goes_takes_no_answer_from_others(objects: Postgres) -> None:
    leases = Leases()
    async with catalog_at(objects.port, leases) as catalog:
        tasks = [asyncio.create_task(catalog.learn([f"cat.{i}", "cat.t"])) for i in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        assert await asyncio.gather(*tasks[1::2]) == [True] * 5
        assert leases.asked == 1


@peer
async def test_ddl_that_comes_while_the_database_is_asked_makes_it_asked_again(objects: Postgres) -> None:
    with objects.admin() as admin, objects.admin() as other:
        async with catalog_at(objects.port) as catalog:
            with admin.transaction():
                admin.execute("LOCK TABLE public.secrets IN ACCESS EXCLUSIVE MODE")
                asking = asyncio.create_task(catalog.learn(["cat.v"]))
                await until(
                    lambda: (
                        other.execute(
                            """SELECT FROM pg_stat_activity
                            WHERE application_name = 'chaperone-catalog' AND wait_event_type = 'Lock'"""
                        ).rowcount
                    )
                )
                admin.execute("ALTER TABLE public.secrets ADD COLUMN fresh int")
                catalog.invalidate()
            generation = catalog.generation
            assert await asking
            assert catalog.generation == generation
            assert found(catalog, "public.secrets").columns[-1].name == "fresh"
        admin.execute("ALTER TABLE public.secrets DROP COLUMN fresh")


@peer
async def test_a_lock_hides_a_definition_but_not_what_a_view_reads(objects: Postgres) -> None:
    with objects.admin() as admin, admin.transaction():
        admin.execute("LOCK TABLE public.secrets IN ACCESS EXCLUSIVE MODE")
        async with catalog_at(objects.port) as catalog:
            assert await catalog.learn(["cat.v"])
            assert set(found(catalog, "cat.v").reads) == {"cat.t", "public.secrets"}
            assert found(catalog, "cat.v").definition == ""


@peer
async def test_a_definition_that_is_too_long_is_left_out(objects: Postgres) -> None:
    with objects.admin() as admin:
        long = ", ".join(f"id + {i} AS a_column_with_a_name_{i}" for i in range(1200))
        admin.execute(f"CREATE VIEW cat.long AS SELECT {long} FROM cat.t")
    async with catalog_at(objects.port) as catalog:
        assert await catalog.learn(["cat.long", "cat.v"])
        long_view = found(catalog, "cat.long")
        assert (long_view.kind, long_view.definition, long_view.reads) == ("v", "", ("cat.t",))
        assert len(long_view.columns) == 1200
        assert found(catalog, "cat.v").definition


@peer
async def test_relations_without_end(objects: Postgres) -> None:
    with objects.admin() as admin:
        admin.execute("CREATE SCHEMA many")
        for start in range(0, 6000, 500):  # each transaction holds its locks
            admin.execute(
                f"""DO $$ BEGIN FOR i IN {start}..{start + 499} LOOP
                    EXECUTE format('CREATE TABLE many.t%s (a int)', i); END LOOP; END $$"""
            )
        admin.execute("CREATE TABLE many.root (a int)")
        for start in range(0, 1200, 400):
            admin.execute(
                f"""DO $$ BEGIN FOR i IN {start}..{start + 399} LOOP
                    EXECUTE format('CREATE TABLE many.c%s () INHERITS (many.root)', i); END LOOP; END $$"""
            )
    async with catalog_at(objects.port) as catalog:
        first = catalog.generation
        for start in range(0, 6000, lookup.MAX_NAMES):
            names = [f"many.t{i}" for i in range(start, start + lookup.MAX_NAMES)]
            assert await catalog.learn(names)
            assert all(catalog.schema.has(name) for name in names)
            assert len(catalog.schema) <= catalog_module.MAX_KNOWN
        assert catalog.generation == first + 1
        assert not await catalog.learn([f"many.t{i}" for i in range(lookup.MAX_NAMES + 1000)])
        catalog.invalidate()
        assert await catalog.learn(["many.root", "many.t1"])
        assert len(found(catalog, "many.root").children) == 1200
        assert len(catalog.schema) == lookup.MAX_ROWS
    with objects.admin() as admin:
        for prefix in ("c", "t"):
            for start in range(0, 6000 if prefix == "t" else 1200, 400):
                tables = ", ".join(f"many.{prefix}{i}" for i in range(start, start + 400))
                admin.execute(f"DROP TABLE {tables}")
        admin.execute("SET client_min_messages TO error; DROP SCHEMA many CASCADE")


@peer
async def test_a_wrong_password_is_false_and_the_lease_is_given_back(objects: Postgres) -> None:
    leases, clock = Leases("wrong"), Clock()
    async with catalog_at(objects.port, leases, clock) as catalog:
        assert not await catalog.learn(["cat.t"])
        assert not await catalog.learn(["cat.t"])
        assert (leases.asked, leases.forgotten) == (2, 1)  # once more, because it may be a new one; it is not
        leases.password = Leases().password
        clock.now_s += BACK_OFF_S
        assert await catalog.learn(["cat.t"])


async def test_a_server_that_never_answers_is_false_in_time_and_then_at_once() -> None:
    clock = Clock()
    async with server_saying(greeting=b"") as (port, connections), catalog_at(port, clock=clock) as catalog:
        began = time.monotonic()
        assert await asyncio.gather(*(catalog.learn([f"public.t{i}"]) for i in range(20))) == [False] * 20
        assert time.monotonic() - began < 3 * catalog_module.LEARN_TIMEOUT_S  # and not one after the other
        again = time.monotonic()
        assert not await catalog.learn(["public.t"])
        assert time.monotonic() - again < catalog_module.ASK_TIMEOUT_S  # as long as asking takes there
        assert connections() == 1


async def test_a_server_that_is_not_there_is_false() -> None:
    async with catalog_at(1) as catalog:
        assert not await catalog.learn(["public.t"])


A_ROW = b'{"oid":7,"schema":"public","name":"t","kind":"r","mark":"m","columns":[["a",1,23]],"edges":[]}'
LIES = {
    "two columns": row(A_ROW, A_ROW) + READY,
    "no column": row() + READY,
    "NULL": row(None) + READY,
    "no JSON": row(b"{") + READY,
    "no UTF-8": row(b'"\xff"') + READY,
    "another kind": row(A_ROW.replace(b'"r"', b'"q"')) + READY,
    "a huge OID": row(A_ROW.replace(b"7", b"99999999999")) + READY,
    "deep": row(b"[" * 100_000) + READY,
    "too many": row(A_ROW) * (lookup.MAX_ROWS + 1) + READY,
    "too large": row(b" " * (9 << 20)) + READY,
    "COPY": frame(ord("d"), A_ROW) + READY,
    "COPY out": frame(ord("H"), b"\0\0\0") + READY,
    "a type that does not exist": frame(ord("?"), b"") + READY,
    "a log-in in the middle": frame(ord("R"), b"\0\0\0\0") + READY,
    "an error": frame(ord("E"), b"SERROR\0C42501\0Mno\0\0") + READY,
    "an error without fields": frame(ord("E"), b"") + READY,
    "an odd status": frame(ord("Z"), b"Q"),
    "a long definition": b"",
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_a_server_that_lies_is_an_error_and_nothing_worse(lie: bytes) -> None:
    answers = [lie]
    if not lie:
        view = A_ROW.replace(b'"r"', b'"v"')
        answers = [row(view) + READY, row(b'[7,"' + b"x" * (lookup.MAX_DEFINITION_BYTES + 1) + b'"]') + READY]
    async with server_saying(*answers) as (port, _), catalog_at(port) as catalog:
        assert not await catalog.learn(["public.t"])
        assert not catalog.schema.has("public.t")


async def test_a_relation_whose_name_holds_a_dot_is_not_taken_for_another() -> None:
    odd = A_ROW.replace(b'"t"', b'"t.x"')
    async with server_saying(row(A_ROW) + row(odd) + READY) as (port, _), catalog_at(port) as catalog:
        assert await catalog.learn(["public.t"])
        assert not catalog.schema.has("public.t.x")


@given(st.binary(max_size=200), st.integers(1, 50))
def test_arbitrary_bytes_are_an_answer_or_a_protocol_error(data: bytes, size: int) -> None:
    answer = lookup.Answer(BackendCodec())
    try:
        for start in range(0, len(data), size):
            if answer.feed(data[start : start + size]):
                lookup.relations(answer.values())
                return
    except ProtocolError as error:
        assert error.side == "upstream"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda of: st.lists(of, max_size=4), max_leaves=8
)
KEYS = ["oid", "schema", "name", "kind", "columns", "edges", "element", "relation", "is_array"]


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=9) | JSON, max_size=3))
def test_arbitrary_rows_are_read_or_a_protocol_error(rows: list[object]) -> None:
    values = [msgspec.json.encode(one) for one in rows]
    for read in (lookup.relations, lookup.types, lambda found: lookup.with_definitions([], found)):
        try:
            read(values)
        except ProtocolError as error:
            assert error.side == "upstream"


# --- many databases -------------------------------------------------------------------------------------------------


async def test_one_catalog_a_database_for_as_long_as_its_target_stays() -> None:
    catalogs = Catalogs(PostgresBackends(dial, Leases()))
    here, there = target_at(1, "a", database=""), target_at(1, "b")
    one = catalogs.of(here, "x")
    assert catalogs.of(here, "x") is one
    assert catalogs.of(here, "y") is not one
    assert catalogs.of(there, "x") is catalogs.of(there, "y")  # the target says the database
    kept = catalogs.of(there, "x")
    moved = target_at(2, "a", database="")
    catalogs.follow([moved, there])
    assert catalogs.of(moved, "x") is not one
    assert catalogs.of(there, "x") is kept
    assert not await one.learn(["public.t"])
    catalogs.close()


@peer
async def test_catalogs_that_are_closed_have_no_connection(objects: Postgres) -> None:
    catalogs = Catalogs(PostgresBackends(dial, Leases()))
    target = target_at(objects.port)
    assert await catalogs.of(target, "orders").learn(["cat.t"])
    with objects.admin() as admin:
        assert len(backends_of(admin)) == 1
        catalogs.close()
        await until(lambda: not backends_of(admin))


@peer
async def test_a_catalog_that_gave_way_to_many_others_is_still_good(objects: Postgres) -> None:
    catalogs = Catalogs(PostgresBackends(dial, Leases()))
    target = target_at(objects.port, database="")
    first = catalogs.of(target, "orders")
    assert await first.learn(["cat.t"])
    before = first.generation
    for i in range(catalog_module.MAX_CATALOGS):
        catalogs.of(target, f"other{i}")
    assert first.generation != before
    with objects.admin() as admin:
        await until(lambda: not backends_of(admin))
    assert await first.learn(["cat.t"])
    first.close()
    catalogs.close()
