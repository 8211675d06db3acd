"""Fixture `postgres`: a real PostgreSQL on a free loopback port, with SCRAM and TLS, for the whole test session."""

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

import psycopg
import pytest
from pki import Authority
from ports import free_port

PASSWORD = "canary-7f3a9c-password"
START_TIMEOUT_S = 90

SCHEMA = """
CREATE ROLE reader LOGIN PASSWORD '{password}' IN ROLE pg_read_all_data;
CREATE ROLE agent_rw LOGIN PASSWORD '{password}';
CREATE DATABASE orders;
"""
TABLES = """
CREATE TABLE public.orders (id int PRIMARY KEY, customer text, total numeric(10,2));
INSERT INTO public.orders SELECT i, 'customer ' || i, i * 1.5 FROM generate_series(1, 1000) i;
CREATE TABLE public.invoices (id int PRIMARY KEY, paid boolean DEFAULT false);
INSERT INTO public.invoices SELECT i FROM generate_series(1, 100) i;
CREATE TABLE public.secrets (id int, value text);
INSERT INTO public.secrets VALUES (1, 'top secret');
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO agent_rw;
GRANT CREATE ON SCHEMA public TO agent_rw;
"""


@dataclass(frozen=True)
class Postgres:
    """Where the server is and how its owner reaches it."""

    port: int
    directory: Path
    ca_pem: str

    def admin(self, database: str = "orders") -> psycopg.Connection:
        """A superuser's connection, past any gateway."""
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname=database, autocommit=True
        )

    @property
    def log(self) -> str:
        """The server's log."""
        return (self.directory / "log").read_text(errors="replace")


def binaries() -> Path:
    """Where the newest installed server's programs are."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        raise RuntimeError("PostgreSQL is not installed; run `make setup`.")
    return found[-1].parent


def start(
    directory: Path, programs: Path | None = None, settings: str = ""
) -> tuple[Postgres, subprocess.Popen[bytes]]:
    """Make a cluster in `directory` and start it, with the machine's newest server unless told; the caller ends it."""
    bin_dir, port = programs or binaries(), free_port()
    data = directory / "data"
    password_file = directory / "password"
    password_file.write_text(PASSWORD)
    authority = Authority()
    key, certificate = authority.server_pair("localhost", "127.0.0.1", "orders-db")
    (directory / "server.key").write_bytes(key)
    (directory / "server.crt").write_bytes(certificate)
    (directory / "server.key").chmod(0o600)
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    if owner is not None:
        for path in (directory, *directory.iterdir()):
            os.chown(path, owner.pw_uid, owner.pw_gid)
    user, group = (owner.pw_uid, owner.pw_gid) if owner is not None else (None, None)
    groups: list[int] | None = [] if owner is not None else None
    subprocess.run(
        [bin_dir / "initdb", "-D", data, "-U", "postgres", "-A", "scram-sha-256", f"--pwfile={password_file}",
         "-E", "UTF8", "--locale=C", "--no-sync"],
        check=True, capture_output=True, timeout=START_TIMEOUT_S, cwd=directory,
        user=user, group=group, extra_groups=groups,
    )  # fmt: skip
    with (data / "postgresql.conf").open("a") as config:
        config.write(
            f"port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n"
            f"ssl = on\nssl_cert_file = '{directory}/server.crt'\nssl_key_file = '{directory}/server.key'\n"
            "max_connections = 200\nlog_statement = all\nlog_line_prefix = '%m [%p] %a '\n" + settings
        )
    postgres = Postgres(port, directory, authority.pem)
    process = restarted(postgres, bin_dir)
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with postgres.admin("postgres") as connection:
                for statement in SCHEMA.format(password=PASSWORD).split(";"):
                    if statement.strip():
                        connection.execute(statement)
            with postgres.admin() as connection:
                connection.execute(TABLES)
        except psycopg.OperationalError:
            if time.monotonic() > deadline or process.poll() is not None:
                process.kill()
                raise RuntimeError(f"PostgreSQL does not start:\n{postgres.log}") from None
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        else:
            return postgres, process


def restarted(postgres: Postgres, programs: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the server of a cluster that is there, as its owner; it may take a moment until it answers."""
    owner = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    groups: list[int] | None = [] if owner is not None else None
    with (postgres.directory / "log").open("ab") as log:
        return subprocess.Popen(
            [(programs or binaries()) / "postgres", "-D", postgres.directory / "data"], stdout=log, stderr=log,
            cwd=postgres.directory, user=owner.pw_uid if owner else None, group=owner.pw_gid if owner else None,
            extra_groups=groups,
        )  # fmt: skip


@contextlib.contextmanager
def running(server: Path | None = None, settings: str = "") -> Iterator[Postgres]:
    """A server in a directory of its own, gone in the end: the machine's newest, or a copy of the one in that folder.

    A copy, because the server runs as another user than the tests, who may not see into their cache.
    """
    directory = Path(tempfile.mkdtemp(prefix="chaperone-pg-"))
    directory.chmod(0o755)
    try:
        programs = None
        if server is not None:
            programs = shutil.copytree(server, directory / "server", symlinks=True) / "bin"
        postgres, process = start(directory, programs, settings)
        try:
            yield postgres
        finally:
            process.terminate()
            process.wait(START_TIMEOUT_S)
    finally:
        shutil.rmtree(directory)


@contextlib.contextmanager
def holding(postgres: Postgres, schema: str, objects: str) -> Iterator[Postgres]:
    """A server that holds some objects, all of them in one schema, for a while."""
    with postgres.admin() as admin:
        admin.execute(objects)
    yield postgres
    with postgres.admin() as admin:
        admin.execute(f"SET client_min_messages TO error; DROP SCHEMA {schema} CASCADE")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server with database `orders`, roles `reader` and `agent_rw`, and a few tables."""
    with running() as server:
        yield server
