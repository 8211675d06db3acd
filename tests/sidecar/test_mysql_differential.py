"""Generated sessions, through the gateway and straight to MariaDB and MySQL: the same bytes come back.

What the gateway refuses though policy allows everything is in `REFUSED`, and is not said to the server directly either.
CHAPERONE_SESSIONS sets how many sessions are compared.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import pymysql
import pytest
from fix_mysql import Server
from fix_postgres import PASSWORD
from manifests import rule
from my_gateway import Gateway, execute, gateway, prepare
from my_sessions import DATABASE, SCENE, Said, session

from chaperone_sidecar.command import Effect

pytestmark = pytest.mark.peer

SESSIONS: Final = int(os.environ.get("CHAPERONE_SESSIONS", "30"))
RULES: Final = [rule("all", "Allow", [one.value for one in Effect if one is not Effect.UNKNOWN])]
REFUSED: Final = (r"^DO ",)  # it is not read
_END: Final = re.compile(rb"\x05\x00\x00.\xfe..(..)", re.DOTALL)  # of columns or rows; with the session's status
_INDEX: Final = 0x30  # bits of it: no index, or no good one, was used by the statement that ran last


class Taped(pymysql.connections.Connection):  # type: ignore[type-arg] - it has none where it runs
    """A connection whose bytes are kept as they come."""

    tape = b""

    def _read_bytes(self, num_bytes: int) -> bytes:
        data: bytes = super()._read_bytes(num_bytes)  # type: ignore[misc]
        self.tape += data
        return data

    def say(self, said: Said) -> list[bytes]:
        """The bytes of each answer; of a statement that cannot be prepared there is one."""
        if not said.rows:
            return [self._told(partial(self.query, said.text))]
        number: list[int] = []
        told = self._told(lambda: number.append(prepare(self, said.text)[0]))
        if number:
            told = told[:5] + told[9:]  # servers count as they like
        return [told, *(self._told(partial(execute, self, number[0], *row)) for row in said.rows if number)]

    def _told(self, ask: Callable[[], object]) -> bytes:
        self.tape = b""
        with contextlib.suppress(pymysql.err.MySQLError):
            ask()
        return _END.sub(_without_index, self.tape)


def _without_index(end: re.Match[bytes]) -> bytes:
    """MariaDB leaves in what it says of a statement that was prepared what another one did, also the gateway's own."""
    status = int.from_bytes(end[1], "little") & ~_INDEX
    return end[0][:-2] + status.to_bytes(2, "little")


@pytest.fixture(params=["mariadb", "mysql"], scope="module")
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def through(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway whose policy allows everything."""
    server.run(*SCENE)
    target = {"rules": RULES, "database": DATABASE}
    with gateway(tmp_path_factory.mktemp("gateway"), server, {"differ": target}) as made:
        yield made
    server.run(f"DROP DATABASE {DATABASE}")


def test_a_client_gets_the_bytes_that_it_would_get_without_the_gateway(through: Gateway, server: Server) -> None:
    refused: set[str] = set()
    for number in range(SESSIONS):
        said = list(session(random.Random(number)))  # noqa: S311 - it has to be the same again
        server.run(*SCENE)
        with Taped(host="127.0.0.1", port=through.port, user="agent", autocommit=True) as agent:
            got = [agent.say(one) for one in said]
        refused |= {one.text for one, answers in zip(said, got, strict=True) if b"Chaperone" in answers[0]}
        server.run(*SCENE)
        with Taped(
            host="127.0.0.1", port=server.port, user="agent_rw", password=PASSWORD, autocommit=True, database=DATABASE,
            ssl_ca=str(server.directory / "ca.pem"),
        ) as agent:  # fmt: skip
            for one, answers in zip(said, got, strict=True):
                if one.text not in refused:
                    assert answers == agent.say(one), (number, one)
    assert not [one for one in refused if not any(re.search(known, one) for known in REFUSED)]
