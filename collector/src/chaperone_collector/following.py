"""What a collector hears of those that share its log, and which of them leads.

A thread with a connection of its own looks a few times a second how far the log is, for watches, receipts and `grown`.
The lock that makes this collector the one that leads belongs to that connection, so the server gives it to another one
when this one dies. Gateways that wait for signatures may wait at a collector that does not sign: it says so by NOTIFY.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

import psycopg

from chaperone_collector.database import ServerLost
from chaperone_collector.postgresql import Server
from chaperone_collector.store import Store

log = logging.getLogger(__name__)

LOOK_S: Final = 0.2  # how late others' entries are seen: a fifth of the second that people are promised
AGAIN_S: Final = 1.0  # between two tries to reach the server
HURRY_S: Final = 1.0  # how long one word of somebody who waits holds
_CHANNEL: Final = "chaperone_hurry"
_LEAD: Final = "SELECT pg_try_advisory_lock('chaperone_log'::regclass::oid::bigint)"
_STATE: Final = (
    "SELECT (SELECT coalesce(max(idx) + 1, 0) FROM entry), coalesce(max(size), 0), coalesce(sum(witnesses), 0)::bigint "
    "FROM (SELECT size, witnesses FROM checkpoint ORDER BY size DESC LIMIT 64) recent"
)


class Following:
    """Follows the log while it runs; `close` ends it and gives up the lead."""

    def __init__(self, store: Store, server: Server) -> None:
        self._store = store
        self._connection = server.open_reader()
        self._known: psycopg.Connection[tuple[object, ...]] | None = None
        self._leads = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        is_lost = False
        while not self._stopping.is_set():
            try:
                self._look()
                is_lost = False
            except (psycopg.Error, ServerLost) as error:
                if not is_lost:
                    log.warning("the log cannot be followed: %s", error)
                is_lost = True
                self._connection.close()
                self._lead(is_held=False)
                self._stopping.wait(AGAIN_S)
        self._connection.close()

    def _look(self) -> None:
        raw = self._connection.raw
        if raw is not self._known:  # what the last one held is gone
            self._lead(is_held=False)
            raw.execute(f"LISTEN {_CHANNEL}".encode())
            self._known = raw
        if not self._leads and (row := raw.execute(_LEAD).fetchone()) and row[0]:
            self._lead(is_held=True)
        if (state := raw.execute(_STATE).fetchone()) is not None:
            self._store.tell(self._store.hear, *state)
        if self._store.is_hurried and not self._leads:
            raw.execute(f"NOTIFY {_CHANNEL}".encode())
        if {note.pid for note in raw.notifies(timeout=LOOK_S)} - {raw.info.backend_pid}:
            self._store.tell(self._store.hurry, HURRY_S)

    def _lead(self, *, is_held: bool) -> None:
        if is_held is not self._leads:
            log.info("this collector %s", "leads: it signs the log" if is_held else "does not lead any more")
        self._leads = is_held
        self._store.tell(lambda: self._store.lead.set(is_held=is_held))
