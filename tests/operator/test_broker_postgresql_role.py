"""Roles of PostgreSQL for one session each: a real broker, a real API server, real servers of two versions."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import signal
import time
from collections.abc import Iterator

import fix_postgres
import psycopg
import pytest
from fix_broker import Broker, secret
from fix_postgres import Postgres
from leasing import TARGET, delete, enrolled, leased, ledger, put_target, refused, session, struck, until
from msgspec.structs import replace

from chaperone_operator.broker import scram
from chaperone_operator.compile.credential import Place
from chaperone_operator.kube import ACCESS_TARGETS, CONFIG_MAPS, EVENTS, LEASES, SECRETS, Object
from chaperone_tools import postgresql_servers

pytestmark = pytest.mark.peer

ADMIN_PASSWORD = "canary-admin-c41e9d"
ROLE: Object = {"postgresqlRole": {"adminSecretRef": {"name": "role-admin"}, "grants": ["app_reader", "app_writer"]}}
ROLES = """
CREATE ROLE app_reader;
CREATE ROLE app_writer;
CREATE ROLE chaperone_admin LOGIN CREATEROLE PASSWORD '{password}';
GRANT app_reader, app_writer TO chaperone_admin WITH ADMIN OPTION;
"""


@pytest.fixture(scope="module", params=["installed", 18], ids="postgresql-{}".format)
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server on which the broker may make roles."""
    folder = None if request.param == "installed" else postgresql_servers.server(request.param)
    with fix_postgres.running(folder) as postgres:
        with postgres.admin() as admin:
            admin.execute("SET log_statement = 'none'")  # these statements name a password, the broker's never do
            admin.execute(ROLES.format(password=ADMIN_PASSWORD))
            admin.execute("GRANT SELECT ON orders TO app_reader; GRANT CREATE ON SCHEMA public TO app_reader")
        yield postgres


def place(server: Postgres) -> Place:
    """Where it is: dialled by an address, known by another name."""
    return Place("127.0.0.1", server.port, "orders", "VerifyFull", "orders-db")


@pytest.fixture
async def ready(broker: Broker, server: Postgres) -> Broker:
    """A broker whose policy grants the server."""
    async with broker.admin() as client:
        for one in (
            secret("role-admin", username="chaperone_admin", password=ADMIN_PASSWORD),
            secret("role-ca", "Opaque", **{"ca.crt": server.ca_pem}),
        ):
            await client.apply(SECRETS, one["metadata"]["name"], one, manager="test", namespace=broker.system)
    await put_target(broker, ROLE, place(server), "role-ca")
    return broker


def log_in(server: Postgres, lease: Object) -> psycopg.Connection:
    return psycopg.connect(
        host="127.0.0.1", port=server.port, user=lease["username"], password=lease["password"], dbname="orders",
        autocommit=True, sslmode="require",
    )  # fmt: skip


def roles(server: Postgres) -> set[str]:
    with server.admin() as admin:
        found = admin.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'chp%'").fetchall()
    return {name for (name,) in found}


def is_cut(connection: psycopg.Connection) -> bool:
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return True
    return False


async def test_each_session_gets_a_role_named_for_it_that_may_do_what_grants_say(
    ready: Broker, server: Postgres
) -> None:
    pod, one, other = await enrolled(ready), session(), session()
    lease, second = await leased(pod, session=one), await leased(pod, session=other)
    assert (lease["id"], lease["kind"], lease["username"]) == (one, "password", f"chp_{one}")
    assert second["username"] == f"chp_{other}"
    assert second["password"] != lease["password"]
    assert lease["ca_pem"] == server.ca_pem
    assert 14 * 60 < lease["expires_at_unix"] - time.time() <= 15 * 60
    with log_in(server, lease) as agent:
        assert agent.execute("SELECT count(*) FROM orders").fetchone() == (1000,)
        for forbidden in ("SELECT * FROM secrets", "CREATE ROLE x", "SET ROLE chaperone_admin"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                agent.execute(forbidden)
        with pytest.raises(psycopg.OperationalError, match="too many connections for role"):
            log_in(server, lease)
    with server.admin() as admin:
        found = admin.execute(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls, "
            "extract(epoch FROM rolvaliduntil)::int FROM pg_roles WHERE rolname = %s", [lease["username"]],
        ).fetchone()  # fmt: skip
    assert found is not None
    assert found[0] is False
    assert abs(found[1] - lease["expires_at_unix"]) <= 2
    assert {one, other} <= await ledger(ready)


async def test_password_is_in_no_log_entry_or_object(ready: Broker, server: Postgres) -> None:
    pod = await enrolled(ready)
    lease = await leased(pod)
    log_in(server, lease).close()
    async with ready.admin() as client:
        objects = str([await client.list(one) for one in (ACCESS_TARGETS, LEASES, CONFIG_MAPS, EVENTS)])
    assert f"chp_{lease['id']}" in server.log  # statements are logged there
    for told in (server.log, ready.log.read_text(), objects):
        assert lease["password"] not in told
        assert ADMIN_PASSWORD not in told


def test_verifier_is_the_one_that_the_server_makes(server: Postgres) -> None:
    with server.admin() as admin:
        admin.execute("SET password_encryption = 'scram-sha-256'; CREATE ROLE likewise LOGIN PASSWORD 'some password'")
        found = admin.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'likewise'").fetchone()
        admin.execute("DROP ROLE likewise")
    assert found is not None
    salt = base64.b64decode(found[0].split(":")[1].split("$")[0])
    assert scram.verifier("some password", salt) == found[0]


async def test_end_of_a_session_ends_its_backend_and_drops_its_role(ready: Broker, server: Postgres) -> None:
    pod = await enrolled(ready)
    lease = await leased(pod)
    agent = log_in(server, lease)
    agent.execute("CREATE TABLE left_behind (id int); INSERT INTO left_behind VALUES (1)")
    agent.execute("CREATE FUNCTION trap() RETURNS text SECURITY DEFINER LANGUAGE sql AS 'SELECT current_user::text'")
    agent.execute("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC")
    status, answer = await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]})
    assert (status, answer) == (204, b"")
    assert lease["username"] not in roles(server)
    assert is_cut(agent)
    assert lease["id"] not in await ledger(ready)
    with server.admin() as admin:
        owners = admin.execute(
            "SELECT pg_get_userbyid(relowner), (SELECT pg_get_userbyid(proowner) FROM pg_proc WHERE proname = 'trap') "
            "FROM pg_class WHERE relname = 'left_behind'"
        ).fetchone()
        assert admin.execute("SELECT * FROM left_behind").fetchall() == [(1,)]
        admin.execute("DROP TABLE left_behind; DROP FUNCTION trap")
    assert owners == ("app_reader", "app_reader")  # never a role with more rights than the session had
    assert (await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204


async def test_what_a_session_left_in_another_database_is_handed_over_too(ready: Broker, server: Postgres) -> None:
    with server.admin("postgres") as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO app_reader")
    pod = await enrolled(ready)
    lease = await leased(pod)
    with psycopg.connect(
        host="127.0.0.1", port=server.port, user=lease["username"], password=lease["password"], dbname="postgres"
    ) as agent:
        agent.execute("CREATE TABLE elsewhere (id int)")
    assert (await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204
    assert lease["username"] not in roles(server)
    with server.admin("postgres") as admin:
        found = admin.execute("SELECT tableowner FROM pg_tables WHERE tablename = 'elsewhere'").fetchone()
        admin.execute("DROP TABLE elsewhere")
    assert found == ("app_reader",)


async def test_what_cannot_be_handed_over_leaves_a_role_that_is_worth_nothing(ready: Broker, server: Postgres) -> None:
    pod = await enrolled(ready)
    lease = await leased(pod)
    agent = log_in(server, lease)
    agent.execute("CREATE FUNCTION stays() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    with server.admin() as admin:
        admin.execute("REVOKE CREATE ON SCHEMA public FROM app_reader, PUBLIC")
    assert (await pod.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204
    assert is_cut(agent)
    with pytest.raises(psycopg.OperationalError, match="not permitted to log in"):
        log_in(server, lease)
    assert lease["id"] in await ledger(ready)
    with server.admin() as admin:
        admin.execute("GRANT CREATE ON SCHEMA public TO app_reader")
    await delete(pod)
    await until(lambda: lease["username"] not in roles(server))
    with server.admin() as admin:
        admin.execute("DROP FUNCTION stays")


async def test_end_of_a_pod_takes_its_roles_back(ready: Broker, server: Postgres) -> None:
    pod, other = await enrolled(ready), await enrolled(ready)
    gone, stays = await leased(pod), await leased(other)
    agent, bystander = log_in(server, gone), log_in(server, stays)
    await delete(pod)
    await until(lambda: gone["username"] not in roles(server))  # and not at the end of the lease's 15 minutes
    assert is_cut(agent)
    assert not is_cut(bystander)
    bystander.close()


async def test_restart_of_a_gateway_takes_the_roles_of_its_start_before_back(ready: Broker, server: Postgres) -> None:
    pod = await enrolled(ready)
    lease = await leased(pod)
    await pod.set_status(restarts=1)
    again = pod.restarted()
    assert (await again.exchange())[0] == 200
    await until(lambda: lease["username"] not in roles(server))


async def test_policy_that_grants_no_more_takes_roles_back(ready: Broker, server: Postgres) -> None:
    pod = await enrolled(ready)
    lease = await leased(pod)
    agent = log_in(server, lease)
    await put_target(ready, ROLE, place(server), "role-ca", rules=False)
    await until(lambda: lease["username"] not in roles(server))
    assert is_cut(agent)
    assert (await pod.call("POST", "/v1/leases/renew", json={"id": lease["id"]}))[0] in {403, 404}


async def test_broker_that_was_killed_loses_no_lease(ready: Broker, server: Postgres) -> None:
    pod = await enrolled(ready)
    lease = await leased(pod)
    assert ready.process is not None
    ready.process.send_signal(signal.SIGKILL)
    ready.process.wait(20)
    await delete(pod)
    assert lease["username"] in roles(server)
    ready.start()
    await until(lambda: lease["username"] not in roles(server))
    await struck(ready, lease)


async def test_two_brokers_take_the_same_leases_back(ready: Broker, server: Postgres) -> None:
    other = dataclasses.replace(ready, process=None)
    other.start()
    try:
        pod = await enrolled(ready)
        leases = [await leased(pod) for _ in range(12)]
        agents = [log_in(server, lease) for lease in leases]
        await delete(pod)
        await until(lambda: not {lease["username"] for lease in leases} & roles(server))
        await struck(ready, *leases)
        assert all(map(is_cut, agents))
    finally:
        assert other.stop() == 0


async def test_roles_that_no_ledger_knows_are_dropped_when_their_time_is_up(ready: Broker, server: Postgres) -> None:
    orphan, young = f"chp_{session()}", f"chp_{session()}"
    with psycopg.connect(
        host="127.0.0.1", port=server.port, user="chaperone_admin", password=ADMIN_PASSWORD, dbname="orders",
        autocommit=True,
    ) as admin:  # fmt: skip
        admin.execute(f"CREATE ROLE {orphan} LOGIN VALID UNTIL '2026-01-01' IN ROLE app_reader")
        admin.execute(f"CREATE ROLE {young} LOGIN VALID UNTIL '2126-01-01' IN ROLE app_reader")
        admin.execute("CREATE ROLE chp_of_somebody LOGIN VALID UNTIL '2026-01-01'")
    assert ready.stop() == 0
    ready.start()
    await until(lambda: orphan not in roles(server))
    assert {young, "chp_of_somebody"} <= roles(server)
    with server.admin() as admin:
        admin.execute(f"DROP ROLE {young}; DROP ROLE chp_of_somebody")


async def test_lease_is_renewed_for_its_own_pod_alone(ready: Broker, server: Postgres) -> None:
    pod, other = await enrolled(ready), await enrolled(ready)
    lease = await leased(pod)
    await asyncio.sleep(1.1)
    status, answer = await pod.call("POST", "/v1/leases/renew", json={"id": lease["id"]})
    assert (status, answer["expires_at_unix"] > lease["expires_at_unix"]) == (200, True)
    with server.admin() as admin:
        found = admin.execute(
            "SELECT extract(epoch FROM rolvaliduntil)::int FROM pg_roles WHERE rolname = %s", [lease["username"]]
        ).fetchone()
    assert found == (answer["expires_at_unix"],)
    assert (await other.call("POST", "/v1/leases/renew", json={"id": lease["id"]}))[0] == 404
    assert (await other.call("POST", "/v1/leases/release", json={"id": lease["id"]}))[0] == 204
    assert lease["username"] in roles(server)
    for bad in ("", "x", "../" + lease["id"]):
        assert (await pod.call("POST", "/v1/leases/renew", json={"id": bad}))[0] == 404


async def test_a_session_has_one_lease_and_has_to_be_named(ready: Broker) -> None:
    pod, one = await enrolled(ready), session()
    await leased(pod, session=one)
    assert "This session has its lease" in await refused(pod, 409, session=one)
    for bad in ("", "x", one.upper(), f"{one}; DROP ROLE"):
        assert "name its ULID" in await refused(pod, 400, session=bad)


async def test_server_that_makes_no_role_is_said_and_leaves_nothing(ready: Broker, server: Postgres) -> None:
    pod, before = await enrolled(ready), await ledger(ready)
    await leased(pod)
    there = place(server)
    cases = [
        (ROLE, "role-ca", there, "wrong", "SQLSTATE 28P01"),
        (ROLE, "orders-db-ca", there, ADMIN_PASSWORD, "shows no certificate that is accepted"),
        (ROLE, "role-ca", replace(there, server_name="other"), ADMIN_PASSWORD, "no certificate"),
        (ROLE, "role-ca", replace(there, port=1), ADMIN_PASSWORD, "cannot be reached"),
        (
            {"postgresqlRole": ROLE["postgresqlRole"] | {"grants": ['no"such']}},
            "role-ca", there, ADMIN_PASSWORD, "makes no role (SQLSTATE 42704)",
        ),
    ]  # fmt: skip
    known = await ledger(ready)
    for credential, authority, where, password, words in cases:
        async with ready.admin() as client:
            one = secret("role-admin", username="chaperone_admin", password=password)
            await client.apply(SECRETS, "role-admin", one, manager="test", namespace=ready.system)
        await put_target(ready, credential, where, authority)
        told = ""
        async with asyncio.timeout(30):
            while words not in told:
                told = await refused(pod, 424)
                await asyncio.sleep(0.5)  # a pod may ask sixty times a minute
        async with ready.admin() as client:
            found = await client.get(ACCESS_TARGETS, TARGET)
        condition = next(one for one in found["status"]["conditions"] if one["type"] == "CredentialReady")
        assert (condition["status"], words in condition["message"]) == ("False", True)
    assert await ledger(ready) <= known | before
