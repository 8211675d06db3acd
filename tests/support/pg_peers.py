"""The same session straight to PostgreSQL and through the gateway, with a policy that allows everything.

What the client gets must be the same, message by message and byte by byte, less these known differences:

1. BackendKeyData: the gateway gives out secrets of its own.
2. NotificationResponse names the backend's process id, which is another one in another session.
3. Ids of tables and types that a user made (from 16384 on) in RowDescription and ParameterDescription are those of two
   databases; they are compared by the order in which they first appear.
4. Bind or Execute of a name that doesn't exist is refused by the gateway: severity, SQLSTATE and message are the
   server's, detail and hint are the gateway's, and the fields that quote the server's source are missing.
5. A name that SQL made or may have changed (`PREPARE`, `DEALLOCATE`, `DISCARD`, `DECLARE`, `CLOSE`, the end of a
   transaction) is not known to the gateway from when the statement is sent, though it may fail at the server. Where
   that shows, the comparison ends.
6. ParameterStatus at start-up: the gateway pins search_path, client_encoding and standard_conforming_strings; the
   session beside it asks for the same, and then they are equal.
7. Sync that is sent inside COPY FROM STDIN, with data after it, when the COPY has already failed: the server answers
   it, the gateway takes it for one inside the COPY. Not generated.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import fix_dev
import psycopg
from fix_postgres import PASSWORD, Postgres
from hypothesis import HealthCheck, given, settings
from pg_sessions import CONTENT, END, AwaitCopy, AwaitReady, Move, Send, sent, sessions

from chaperone_sidecar import steps
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql import scram, startup, upstream

ANSWER_TIMEOUT_S: Final = 30.0
FIRST_USER_ID: Final = 16384  # FirstNormalObjectId
EFFECTS: Final = [
    "*", "destroy", "privilege", "execute_code", "external_io", "unknown",
]  # fmt: skip
CHANGES_NAMES: Final = (b"DEALLOCATE", b"PREPARE", b"DISCARD", b"DECLARE", b"CLOSE", b"COMMIT", b"ROLLBACK", b"END")

type Message = tuple[str, bytes]


class Silence(AssertionError):
    """An answer did not come."""


class Wire:
    """A client's socket that reads while it writes, and keeps whole messages."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), ANSWER_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.messages: list[Message] = []
        self.is_over = False

    def close(self) -> None:
        self._socket.close()

    def count(self, kind: str) -> int:
        return sum(1 for found, _ in self.messages if found == kind)

    def send(self, data: bytes) -> None:
        while data and not self.is_over:
            readable, writable, _ = select.select([self._socket], [self._socket], [], ANSWER_TIMEOUT_S)
            if readable:
                self._receive()
            elif writable:
                try:
                    data = data[self._socket.send(data) :]
                except ConnectionError:
                    return  # what the server said last is still to be read

    def read(self) -> None:
        readable, _, _ = select.select([self._socket], [], [], ANSWER_TIMEOUT_S)
        if not readable:
            raise Silence(f"Nothing after {self.messages[-3:]}")
        self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionError:
            data = b""
        self.is_over = not data
        self._buffer += data
        position = 0
        while position + 5 <= len(self._buffer):
            end = position + 1 + struct.unpack_from(">I", self._buffer, position + 1)[0]
            if end > len(self._buffer):
                break
            self.messages.append((chr(self._buffer[position]), self._buffer[position + 5 : end]))
            position = end
        self._buffer = self._buffer[position:]

    def play(self, moves: tuple[Move, ...]) -> list[Message]:
        """Do what a session says, and read to its end."""
        for move in moves:
            match move:
                case Send():
                    for piece in move.pieces:
                        self.send(piece)
                case AwaitReady():
                    while not self.is_over and self.count("Z") < move.count:
                        self.read()
                case AwaitCopy():
                    asked = self.count("G")
                    while not self.is_over and self.count("Z") < move.count and self.count("G") <= asked:
                        self.read()
        while not self.is_over and not self._is_answered():
            self.read()
        self.send(m.TERMINATE_FRAME)
        return self.messages

    def _is_answered(self) -> bool:
        return len(self.messages) > 2 and self.messages[-1][0] == "Z" and END in self.messages[-3][1]


def straight(port: int) -> tuple[Wire, list[Message]]:
    """A session past the gateway: it logs in and asks for what the gateway pins."""
    wire = Wire(port)
    log_in = upstream.log_in(
        "mirror", upstream.Credential("agent_rw", PASSWORD, os.urandom(18)), "mirror", startup.PINNED,
        use_tls=False, is_verified=False,
    )  # fmt: skip
    answer: object = None
    while True:
        try:
            step = log_in.send(answer)
        except StopIteration as stop:
            statuses = [("S", f"{name}\0{value}\0".encode()) for name, value in stop.value.parameters]
            wire.messages.clear()
            return wire, statuses
        answer = None
        if isinstance(step, steps.Send):
            wire.send(step.data)
        elif isinstance(step, steps.Read):
            answer = wire._socket.recv(1 << 16)
        elif isinstance(step, upstream.Derive):
            answer = scram.derive(step.password, step.salt, step.iterations)


def through(port: int) -> tuple[Wire, list[Message]]:
    """A session through the gateway."""
    wire = Wire(port)
    wire.send(m.encode_startup((("user", "agent"), ("database", "orders"))))
    while not wire.is_over and not wire.count("Z"):
        wire.read()
    statuses = [message for message in wire.messages if message[0] == "S"]
    wire.messages.clear()
    return wire, statuses


class _Ids:
    """Ids of user-made tables and types, by the order in which they appear (difference 3)."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def number(self, oid: int) -> int:
        return oid if oid < FIRST_USER_ID else FIRST_USER_ID + self._seen.setdefault(oid, len(self._seen))

    def row_description(self, body: bytes) -> bytes:
        out, position = body[:2], 2
        for _ in range(int.from_bytes(body[:2], "big")):
            end = body.index(b"\0", position) + 1
            table, column, kind, size, modifier, format_ = struct.unpack_from(">IhIhih", body, end)
            out += body[position:end]
            out += struct.pack(">IhIhih", self.number(table), column, self.number(kind), size, modifier, format_)
            position = end + 18
        return out

    def parameter_description(self, body: bytes) -> bytes:
        found = struct.unpack(f">{(len(body) - 2) // 4}I", body[2:])
        return body[:2] + struct.pack(f">{len(found)}I", *map(self.number, found))


def comparable(messages: list[Message]) -> list[Message]:
    """The messages less what is known to differ (1, 2, 3)."""
    ids = _Ids()
    out = []
    for kind, body in messages:
        if kind == "A":
            out.append((kind, body[4:]))
        elif kind == "T":
            out.append((kind, ids.row_description(body)))
        elif kind == "t":
            out.append((kind, ids.parameter_description(body)))
        else:
            out.append((kind, body))
    return out


def compare(expected: list[Message], found: list[Message], *, may_forget: bool) -> bool:
    """Fail at the first message that differs and may not; False if the comparison ended there (difference 5)."""
    for place, (one, other) in enumerate(zip(expected, found, strict=False)):
        if one == other:
            continue
        if other[0] == "E" and b"Chaperone knows only" in other[1]:
            if one[0] == "E" and all(
                m.error_fields(one[1]).get(field) == m.error_fields(other[1])[field] for field in "SVCM"
            ):
                continue  # difference 4
            if may_forget:
                return False
        raise AssertionError(f"message {place}\nserver:  {_shown(expected, place)}\ngateway: {_shown(found, place)}")
    assert len(expected) == len(found), f"server: {expected[-3:]}, gateway: {found[-3:]}"
    return True


def _shown(messages: list[Message], place: int) -> str:
    return " ".join(f"{kind}{body[:160]!r}" for kind, body in messages[max(0, place - 2) : place + 3])


class Peers:
    """The server, the gateway before it, and the two databases' owner."""

    def __init__(self, postgres: Postgres, gateway: fix_dev.Gateway) -> None:
        self.postgres = postgres
        self.gateway = gateway
        self.compared = 0
        self.cut_short = 0
        self._owners = [postgres.admin("orders"), postgres.admin("mirror")]
        self.major = self._owners[0].info.server_version // 10_000

    def compare(self, moves: tuple[Move, ...]) -> list[Message]:
        """Play a session on both and compare; what the server said."""
        for owner in self._owners:
            owner.execute(CONTENT, prepare=False)
        expected = self._play(*straight(self.postgres.port), moves)
        found = self._play(*through(self.gateway.port), moves)
        may_forget = any(word in sent(moves) for word in CHANGES_NAMES)
        self.compared += 1
        self.cut_short += not compare(comparable(expected), comparable(found), may_forget=may_forget)
        return expected

    def compare_generated(self, count: int) -> None:
        """Compare generated sessions; only few of them may end at difference 5."""

        @settings(
            max_examples=count, deadline=None, database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )  # fmt: skip
        @given(moves=sessions())
        def same(moves: tuple[Move, ...]) -> None:
            self.compare(moves)

        same()
        assert self.cut_short < self.compared / 10

    def _play(self, wire: Wire, statuses: list[Message], moves: tuple[Move, ...]) -> list[Message]:
        try:
            return statuses + wire.play(moves)
        finally:
            wire.close()

    def close(self) -> None:
        for owner in self._owners:
            owner.close()


def everything() -> list[dict[str, object]]:
    """Rules that allow all there is."""
    return [{"name": "everything", "action": "Allow", "match": {"effects": EFFECTS}}]


@contextmanager
def side_by_side(postgres: Postgres, folder: Path) -> Iterator[Peers]:
    """A server whose schemas are made anew for each session, and a gateway; its evidence must verify in the end."""
    with postgres.admin("postgres") as admin:
        admin.execute("CREATE DATABASE mirror TEMPLATE orders")
    for database in ("orders", "mirror"):
        with psycopg.connect(postgres.admin(database).info.dsn, password=PASSWORD, autocommit=True) as admin:
            admin.execute(f"ALTER DATABASE {database} SET lock_timeout TO '10s'")
    (folder / "manifests").mkdir()
    fix_dev.write_manifests(folder / "manifests", postgres, rules=everything())
    gateway = fix_dev.start(folder / "manifests", folder / "evidence")
    assert gateway.process.poll() is None, "".join(gateway.output)
    both = Peers(postgres, gateway)
    yield both
    both.close()
    assert gateway.stop() == 0, "".join(gateway.output)
    verdict = gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout
