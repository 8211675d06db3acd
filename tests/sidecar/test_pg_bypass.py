"""Ways around a policy: each is seen for what it does, and refused over the wire however its bytes arrive.

A line of the corpus says what the statement really does, and the access that must be among its facts, or `unknown`.
"""

from __future__ import annotations

import json
import re
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fix_dev import Gateway
from fix_postgres import Postgres

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.classify import Classified, classify, classify_apart

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "postgresql_bypass.jsonl").read_text().splitlines()
]
READS_ONLY = [
    {"name": "read", "action": "Allow", "match": {"effects": ["read"], "objects": ["public.*"]}},
]
EARLY_ANSWER_S = 0.001  # long enough for the gateway to have seen the first part of a message by itself
PARSED_APART_S = 30


def text_of(line: dict[str, Any]) -> bytes:
    if "hex" in line:
        return bytes.fromhex(line["hex"])
    sql: str = line["sql"]
    return sql.replace("{repeated}", line.get("repeat", "") * line.get("times", 0)).encode()


def classified(text: bytes) -> Classified:
    return classify(text) if len(text) <= grammar.INLINE_BYTES else classify_apart(text).result(PARSED_APART_S)


def is_refused(line: dict[str, Any]) -> bool:
    """Whether a policy that allows `read` alone refuses the line: some only read, or end a transaction."""
    passes = {Effect.READ, Effect.TRANSACTION}
    return any(access.effect not in passes for access in classified(text_of(line)).facts.accesses)


def name(line: dict[str, Any]) -> str:
    return f"{line['trick']}: {line.get('sql', line.get('hex'))[:50]}"


@pytest.mark.parametrize("line", CORPUS, ids=name)
def test_what_a_statement_really_does_is_among_its_facts(line: dict[str, Any]) -> None:
    facts = classified(text_of(line)).facts
    assert line["must"] in [f"{access.effect.value} {access.object}".strip() for access in facts.accesses]


def test_corpus_has_every_trick() -> None:
    tricks = Counter(line["trick"] for line in CORPUS)
    assert len(CORPUS) >= 500
    assert min(tricks.values()) >= 15, tricks


# --- over the wire --------------------------------------------------------------------------------------------------


class Client:
    """A client that sends its bytes in the pieces it is told."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PARSED_APART_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.send(m.encode_startup((("user", "agent"), ("database", "orders"))))
        self.answer()

    def send(self, *pieces: bytes) -> None:
        """Send the pieces one after the other; none but the last may be answered."""
        for piece in pieces[:-1]:
            self._socket.sendall(piece)
            readable, _, _ = select.select([self._socket], [], [], EARLY_ANSWER_S)
            assert not readable, "answered before the message was whole"
        self._socket.sendall(pieces[-1])

    def answer(self) -> list[tuple[str, bytes]]:
        """All messages up to ReadyForQuery, or to the end of the connection."""
        found: list[tuple[str, bytes]] = []
        while not found or found[-1][0] != "Z":
            while len(self._buffer) < 5 or len(self._buffer) < 1 + struct.unpack(">I", self._buffer[1:5])[0]:
                data = self._socket.recv(65536)
                if not data:
                    return found
                self._buffer += data
            size = 1 + struct.unpack(">I", self._buffer[1:5])[0]
            found.append((chr(self._buffer[0]), self._buffer[5:size]))
            self._buffer = self._buffer[size:]
        return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def reading(gateway_with: Callable[..., Gateway]) -> Gateway:
    """A gateway whose policy allows to read the tables of `public`, and nothing else."""
    return gateway_with(rules=READS_ONLY)


@contextmanager
def nothing_reaches(postgres: Postgres) -> Iterator[None]:
    """The server logs every text it is given; all there is are the gateway's own.

    One makes an extended query fail; others ask for the catalog, on a connection that no agent's text comes near.
    """
    before = len(postgres.log)
    yield
    logged = [line for line in postgres.log[before:].splitlines() if re.search("(?i)statement|execute", line)]
    own = ("STATEMENT:  chaperone_refused", "chaperone-catalog LOG:  execute <unnamed>: ")
    assert [line for line in logged if not line.endswith(own)] == []
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM orders").fetchone() == (1000,)


def assert_refused(answer: list[tuple[str, bytes]], line: dict[str, Any]) -> None:
    kinds = "".join(kind for kind, _ in answer)
    if b"\0" in text_of(line):  # no message of the protocol: the connection ends
        assert kinds in ("E", "EZ"), line
        return
    assert kinds == "EZ", line
    assert b"\0C42501\0" in answer[0][1], line
    assert b"refused by Chaperone" in answer[0][1], line
    assert answer[1][1] == b"I", line


def query(text: bytes) -> bytes:
    return m.frame(m.QUERY, text + b"\0")


def parse(text: bytes) -> bytes:
    return m.frame(m.PARSE, b"\0" + text + b"\0\0\0") + m.frame(m.SYNC, b"")


@pytest.mark.peer
@pytest.mark.parametrize("message", [query, parse])
def test_every_way_around_is_refused_and_never_reaches_the_server(
    reading: Gateway, postgres: Postgres, message: Callable[[bytes], bytes]
) -> None:
    with closing(Client(reading.port)) as client:
        client.send(query(b"SELECT id FROM orders WHERE id = 1"))
        assert [kind for kind, _ in client.answer()] == ["T", "D", "C", "Z"]  # the gateway does let through
    refused = [line for line in CORPUS if is_refused(line)]
    assert len(refused) > 450
    client = Client(reading.port)
    with nothing_reaches(postgres):
        for line in refused:
            client.send(message(text_of(line)))
            answer = client.answer()
            assert_refused(answer, line)
            if answer[-1][0] != "Z":
                client.close()
                client = Client(reading.port)
    client.close()


@pytest.mark.peer
def test_a_refused_message_may_be_cut_anywhere(reading: Gateway, postgres: Postgres) -> None:
    short = [line for line in CORPUS if is_refused(line) and len(text_of(line)) <= 60 and b"\0" not in text_of(line)]
    sample = short[:: len(short) // 30]
    assert len(sample) >= 25
    assert len({line["trick"] for line in sample}) >= 8
    with closing(Client(reading.port)) as client, nothing_reaches(postgres):
        for line in sample:
            whole = query(text_of(line))
            for cut in range(1, len(whole)):
                client.send(whole[:cut], whole[cut:])
                assert_refused(client.answer(), line)
            client.send(*(whole[place : place + 1] for place in range(len(whole))))
            assert_refused(client.answer(), line)
