"""Fixtures `mariadb` and `mysql`: real servers on free loopback ports, with TLS, for the whole test session."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest
from fix_postgres import PASSWORD
from pki import Authority
from ports import free_port

from chaperone_tools.mysql_servers import command, server

START_TIMEOUT_S = 60

TABLES = """
CREATE DATABASE orders CHARACTER SET utf8mb4;
CREATE TABLE orders.orders (id int PRIMARY KEY, customer varchar(64), total decimal(10,2), made datetime(3), note text);
CREATE TABLE orders.invoices (id int PRIMARY KEY, paid bool DEFAULT false, note varchar(200));
INSERT INTO orders.invoices (id) VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10);
CREATE TABLE orders.customers (id int PRIMARY KEY, name varchar(64), email varchar(64) UNIQUE, born date, score int);
INSERT INTO orders.customers VALUES (1, 'Ada', 'ada@example.com', '1815-12-10', 7),
  (2, 'Bob', 'bob@example.com', NULL, 8);
CREATE VIEW orders.people AS SELECT id, email AS contact FROM orders.customers;
CREATE TABLE orders.secrets (id int, value text);
INSERT INTO orders.secrets VALUES (1, 'top secret');
"""


_ROWS = ", ".join(f"({i}, 'customer {i}', {i * 1.5}, '2026-01-02 03:04:05.678', NULL)" for i in range(1, 1001))
ORDERS = f"INSERT INTO orders.orders VALUES {_ROWS}"


@dataclass(frozen=True)
class Server:
    """Where a server is and how its owner reaches it."""

    name: str
    port: int
    directory: Path
    ca_pem: str

    def fill(self) -> None:
        """Make the database as it is at the beginning."""
        self.run("DROP DATABASE IF EXISTS orders", *(one for one in TABLES.split(";\n") if one.strip()), ORDERS)

    def admin(self, **arguments: Any) -> pymysql.connections.Connection[Any]:
        """A superuser's connection, past any gateway."""
        return pymysql.connect(
            **{"host": "127.0.0.1", "port": self.port, "user": "owner", "password": PASSWORD, "autocommit": True,
               "ssl_ca": str(self.directory / "ca.pem"), **arguments}
        )  # fmt: skip

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements as the owner; the rows of the last one."""
        with self.admin() as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return list(cursor.fetchall())

    @property
    def log(self) -> str:
        """The server's log."""
        return (self.directory / "log").read_text(errors="replace")


def _users(name: str) -> list[str]:
    native = f"mysql_native_password USING PASSWORD('{PASSWORD}')"
    how = f"IDENTIFIED VIA {native}" if name == "mariadb" else f"IDENTIFIED BY '{PASSWORD}'"
    other = f"IDENTIFIED VIA ed25519 USING PASSWORD('{PASSWORD}')" if name == "mariadb" else how
    return [
        f"CREATE USER 'other'@'%' {other}",
        "GRANT ALL ON *.* TO 'other'@'%'",
        f"CREATE USER 'fresh'@'%' {how}",
        "GRANT ALL ON *.* TO 'fresh'@'%'",
        f"CREATE USER 'owner'@'%' {how}",
        "GRANT ALL ON *.* TO 'owner'@'%' WITH GRANT OPTION",
        f"CREATE USER 'agent_rw'@'%' {how}",
        "GRANT ALL ON *.* TO 'agent_rw'@'%'",
    ]


def start(name: str, directory: Path) -> tuple[Server, subprocess.Popen[bytes]]:
    """Make a data directory and start a server in it; the caller ends it."""
    root = shutil.copytree(server(name), directory / "server", symlinks=True)
    port, data, share = free_port(), directory / "data", root / "usr/share/mysql"
    authority = Authority()
    key, certificate = authority.server_pair("localhost", "127.0.0.1", "orders-db")
    for file, content in (("server.key", key), ("server.crt", certificate), ("ca.pem", authority.pem.encode())):
        (directory / file).write_bytes(content)
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if owner is not None:
        for path in (directory, *directory.glob("server.*"), directory / "ca.pem"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    as_owner: dict[str, Any] = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    common = [
        "--no-defaults",
        f"--datadir={data}",
        f"--tmpdir={directory}",
        "--secure-file-priv=",
        "--innodb-flush-log-at-trx-commit=0",
    ]
    first = directory / "first.sql"
    first.write_text(";\n".join(_users(name)) + ";\n")
    if name == "mariadb":
        data.mkdir()
        if owner is not None:
            os.chown(data, owner.pw_uid, owner.pw_gid)
        names = ("mysql_system_tables.sql", "mysql_system_tables_data.sql", "mysql_performance_tables.sql")
        scripts = [share / one for one in names]
        text = "CREATE DATABASE mysql;\nUSE mysql;\n" + "".join(one.read_text() for one in scripts)
        daemon = [
            *command(root, "mariadbd"),
            *common,
            f"--lc-messages-dir={share}",
            f"--plugin-dir={root}/usr/lib/mysql/plugin",
        ]
        _check(
            subprocess.run(
                [*daemon, "--bootstrap", "--innodb-log-file-size=8M"], input=text.encode(), cwd=directory,
                capture_output=True, timeout=START_TIMEOUT_S, check=False, **as_owner,
            )
        )  # fmt: skip
        extra = ["--innodb-log-file-size=8M", "--plugin-load-add=auth_ed25519", "--plugin-maturity=gamma"]
    else:
        daemon = [
            *command(root, "mysqld"),
            *common,
            f"--lc-messages-dir={share}",
            f"--plugin-dir={root}/usr/lib/mysql/plugin",
        ]
        _check(
            subprocess.run(
                [*daemon, "--initialize-insecure", "--innodb-redo-log-capacity=8M"], cwd=directory,
                capture_output=True, timeout=START_TIMEOUT_S, check=False, **as_owner,
            )
        )  # fmt: skip
        extra = ["--innodb-redo-log-capacity=8M", "--mysqlx=OFF"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [*daemon, f"--port={port}", "--bind-address=127.0.0.1", f"--socket={directory}/s", f"--init-file={first}",
             f"--pid-file={directory}/pid", f"--ssl-key={directory}/server.key", f"--ssl-cert={directory}/server.crt",
             f"--ssl-ca={directory}/ca.pem", "--character-set-server=utf8mb4", "--skip-log-bin",
             "--local-infile=ON", "--max-connections=100", *extra],
            stdout=log, stderr=log, cwd=directory, **as_owner,
        )  # fmt: skip
    made = Server(name, port, directory, authority.pem)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            made.fill()
        except pymysql.err.OperationalError as error:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise RuntimeError(f"{name} does not start ({error}):\n{made.log}") from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.1)
        else:
            return made, process


def _check(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode:
        raise RuntimeError(f"the server makes no data directory:\n{done.stderr.decode(errors='replace')[-4000:]}")


@contextlib.contextmanager
def running(name: str) -> Iterator[Server]:
    """A server in a directory of its own, gone in the end."""
    directory = Path(tempfile.mkdtemp(prefix=f"chaperone-{name}-"))
    directory.chmod(0o755)
    try:
        made, process = start(name, directory)
        try:
            yield made
        finally:
            process.terminate()
            process.wait(START_TIMEOUT_S)
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def mariadb() -> Iterator[Server]:
    """A MariaDB with database `orders`, users `owner` and `agent_rw`, and a few tables."""
    with running("mariadb") as made:
        yield made


@pytest.fixture(scope="session")
def mysql() -> Iterator[Server]:
    """A MySQL with the same."""
    with running("mysql") as made:
        yield made
