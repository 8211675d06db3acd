"""`chaperone dev` in front of a MariaDB or a MySQL."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fix_dev
import pymysql
import yaml
from fix_mysql import Server
from fix_postgres import PASSWORD
from manifests import identity, policy, target
from ports import free_port

COM_STMT_PREPARE, COM_STMT_EXECUTE, COM_STMT_FETCH = 0x16, 0x17, 0x1C
CURSOR_EXISTS, LAST_ROW_SENT = 0x40, 0x80

RULES: list[dict[str, Any]] = [
    {
        "name": "read",
        "action": "Allow",
        "match": {"effects": ["read"], "objects": ["orders.orders", "orders.customers"]},
    },
    {
        "name": "work-on-invoices",
        "action": "Allow",
        "match": {
            "effects": ["read", "create", "modify", "delete", "bulk_write"],
            "objects": ["orders.invoices"],
        },
    },
    {"name": "catalog", "action": "Allow", "match": {"effects": ["read"], "objects": ["information_schema.*"]}},
    {"name": "sessions", "action": "Allow", "match": {"effects": ["session", "transaction"]}},
    {"name": "sleep", "action": "Allow", "match": {"effects": ["execute_code"], "objects": ["function:sleep"]}},
    {"name": "never", "action": "Deny", "match": {"effects": ["destroy", "external_io"]}, "message": "Ask the DBA."},
]


def write(folder: Path, server: Server, targets: dict[str, dict[str, Any]], results: str) -> None:
    """The manifests of one agent with several targets, by name; each may be other than usual in what it names.

    `tls_mode`, `ca_pem`, `user`, `password`, `port`, `database` are those of the target; `classified` too. `rules` and
    all else are of a policy for it alone.
    """
    objects, secrets = [identity(evidence={"results": results})], []
    for name, changes in targets.items():
        more = dict(changes)
        mode, database = more.pop("tls_mode", "VerifyFull"), more.pop("database", "orders")
        tls: dict[str, Any] = {"mode": mode}
        if mode.startswith("Verify"):
            tls |= {"caSecretRef": {"name": f"{name}-ca"}, "serverName": "localhost"}
        place = {"host": "localhost", "port": more.pop("port", server.port)} | (
            {"database": database} if database else {}
        )
        made = target(
            name, protocol="MySQL", upstream=place, tls=tls, credential={"secretRef": {"name": f"{name}-login"}}
        )
        if "classified" in more:
            made["spec"]["classified"] = more.pop("classified")
        ca = more.pop("ca_pem", server.ca_pem)
        login = {"username": more.pop("user", "agent_rw"), "password": more.pop("password", PASSWORD)}
        secrets += [_secret(f"{name}-ca", {"ca.crt": ca}), _secret(f"{name}-login", login)]
        rules = more.pop("rules", RULES)
        objects += [made, policy(rules, f"on-{name}", targets=[{"name": name}], **more)]
    (folder / "agents.yaml").write_text(yaml.safe_dump_all(objects))
    (folder / "secrets.yaml").write_text(yaml.safe_dump_all(secrets))


def _secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


class Gateway:
    """A running gateway, at one of its targets."""

    def __init__(self, running: fix_dev.Gateway, ports: dict[str, int], name: str) -> None:
        self.running = running
        self._ports = ports
        self.port = ports[name]

    def at(self, name: str) -> Gateway:
        """The same gateway at another target."""
        return Gateway(self.running, self._ports, name)

    def connect(self, **arguments: Any) -> pymysql.connections.Connection[Any]:
        """A connection of the agent, without a password."""
        usual = {"host": "127.0.0.1", "port": self.port, "user": "agent", "autocommit": True, "read_timeout": 60}
        return pymysql.connect(**(usual | arguments))

    def run(self, *statements: str, **arguments: Any) -> list[tuple[Any, ...]]:
        """Run statements in a session of their own; the rows of the last one."""
        with self.connect(**arguments) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())


@contextlib.contextmanager
def gateway(
    folder: Path, server: Server, targets: dict[str, dict[str, Any]], results: str = "Full"
) -> Iterator[Gateway]:
    """A gateway before several targets of `write`; at the first one. What it recorded verifies in the end."""
    manifests = folder / "manifests"
    manifests.mkdir(parents=True)
    write(manifests, server, targets, results)
    ports = {name: free_port() for name in targets}
    running = fix_dev.start(manifests, folder / "evidence", ports)
    assert running.process.poll() is None, "".join(running.output)
    try:
        yield Gateway(running, ports, next(iter(targets)))
    finally:
        running.stop()
    verdict = running.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout
    assert PASSWORD not in "".join(running.output)


def prepare(connection: pymysql.connections.Connection[Any], text: str) -> tuple[int, int, int]:
    """COM_STMT_PREPARE: the statement's number, its columns and parameters."""
    connection._execute_command(COM_STMT_PREPARE, text)
    first = connection._read_packet().get_all_data()
    number, columns, params = struct.unpack("<IHH", first[1:9])
    for count in (params, columns):
        for _ in range(count + bool(count)):
            connection._read_packet()
    return number, columns, params


def execute(
    connection: pymysql.connections.Connection[Any], number: int, *params: int | str | None, flags: int = 0
) -> list[bytes]:
    """COM_STMT_EXECUTE: the packets of the answer, columns and their ends left out; none where a cursor is open."""
    nulls = bytearray((len(params) + 7) // 8)
    types, values = b"", b""
    for index, one in enumerate(params):
        if one is None:
            nulls[index // 8] |= 1 << index % 8
            types += b"\x06\x00"
        elif isinstance(one, int):
            types += b"\x08\x00"
            values += one.to_bytes(8, "little", signed=True)
        else:
            types += b"\xfd\x00"
            values += bytes((len(one.encode()),)) + one.encode()
    body = struct.pack("<IBI", number, flags, 1) + (bytes(nulls) + b"\x01" + types + values if params else b"")
    connection._execute_command(COM_STMT_EXECUTE, body)
    first = connection._read_packet().get_all_data()
    if first[0] == 0:
        return []
    for _ in range(first[0] + 1):
        end = connection._read_packet().get_all_data()
    return [] if end[3] & CURSOR_EXISTS else _rows(connection)[0]


def fetch(connection: pymysql.connections.Connection[Any], number: int, count: int) -> tuple[list[bytes], bool]:
    """COM_STMT_FETCH: rows of an open cursor, and whether the last one is among them."""
    connection._execute_command(COM_STMT_FETCH, struct.pack("<II", number, count))
    return _rows(connection)


def _rows(connection: pymysql.connections.Connection[Any]) -> tuple[list[bytes], bool]:
    rows: list[bytes] = []
    while True:
        one = connection._read_packet().get_all_data()
        if one[0] == 0xFE and len(one) < 9:
            return rows, bool(one[3] & LAST_ROW_SENT)
        rows.append(one)
