"""Who decides on commands that wait, at a `chaperone dev`: rules that ask, the person, the client that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
from fix_dev import Gateway
from fix_postgres import Postgres

WAIT_S = 20.0
LIMIT_S = 60.0
FIX = "UPDATE invoices SET paid = true WHERE id = 1"
ASK = {
    "name": "fix-invoices",
    "action": "RequireApproval",
    "match": {"effects": ["modify"], "objects": ["public.invoices"]},
    "approval": {"groups": ["billing-leads"], "wait": "20s", "validFor": "60s"},
}
HURRY = ASK | {"approval": {"groups": ["billing-leads"], "wait": "1s", "validFor": "60s"}}


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + LIMIT_S
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


class Person:
    """Who decides, by files."""

    def __init__(self, gateway: Gateway) -> None:
        self._folder = gateway.evidence.with_name(f"{gateway.evidence.name}-approvals")

    def requests(self) -> list[Path]:
        return sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)

    def next(self, count: int = 1) -> tuple[str, dict[str, object]]:
        """Wait for the request that makes it `count` in all."""
        until = time.monotonic() + LIMIT_S
        while len(found := self.requests()) < count:
            assert time.monotonic() < until, "nobody asked for an approval"
            time.sleep(0.02)
        return found[count - 1].stem, msgspec.json.decode(found[count - 1].read_bytes())

    def decide(self, name: str, word: str) -> None:
        (self._folder / f"{name}.{word}").touch()


def cancels(connection: psycopg.Connection, postgres: Postgres) -> threading.Thread:
    """Begin to wait until the connection's backend sleeps, and cancel that: what does not run yet goes on."""
    query = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND pid = %s"

    def sleeps() -> bool:
        with postgres.admin() as admin:
            return admin.execute(query, (connection.info.backend_pid,)).fetchone() is not None

    def work() -> None:
        eventually(sleeps)
        connection.cancel()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def paid(postgres: Postgres) -> bool:
    with postgres.admin() as owner:
        return bool(owner.execute("SELECT paid FROM invoices WHERE id = 1").fetchone()[0])  # type: ignore[index]


class Waiting:
    """A statement that runs in a thread of its own."""

    def __init__(self, connection: psycopg.Connection, text: str, params: tuple[object, ...] | None = None) -> None:
        self.error: psycopg.Error | None = None
        self.thread = threading.Thread(target=self._run, args=(connection, text, params), daemon=True)
        self.thread.start()

    def _run(self, connection: psycopg.Connection, text: str, params: tuple[object, ...] | None) -> None:
        try:
            connection.execute(text, params)  # type: ignore[call-overload]
        except psycopg.Error as error:
            self.error = error

    def end(self) -> psycopg.Error | None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        return self.error
