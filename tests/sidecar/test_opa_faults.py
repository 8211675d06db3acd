"""An OPA that is late, falls silent, breaks off or answers nonsense: nothing runs, and later all is well again.

The gateway is that of a pod. Between it and the real OPA stands a relay of this file, which lets questions through and
does what it is told with the answers.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from evidence_directory import read_records
from fix_broker import Broker
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres
from manifests import identity, policy, rule, target
from pod_gateway import connect, install, ruled, running, until
from psycopg import errors
from psycopg.pq import TransactionStatus

from chaperone_evidence import entry, record
from chaperone_operator.compile import compile_namespace
from chaperone_sidecar.command import Access, Command, Effect, Facts, Resolution
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.policy.decider import Decider

pytestmark = pytest.mark.peer

INSERT = "INSERT INTO invoices (id, paid) VALUES (%s, false)"
UNANSWERED = "OPA does not answer"
UNUSABLE = "OPA gave no usable decision"

type Fault = Callable[[asyncio.StreamWriter, bytes], Awaitable[None]]
"""Does something with the whole answer of OPA, which it may write to the gateway or not."""


async def well(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """As it came."""
    gateway.write(answer)


async def silent(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """Nothing at all, until the gateway hangs up."""


async def half(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """One half, and then nothing more."""
    gateway.write(answer[: len(answer) // 2])


async def broken_off(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """One byte is missing when the connection ends."""
    gateway.write(answer[:-1])
    gateway.close()


async def hung_up(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """The connection ends instead of an answer."""
    gateway.close()


def saying(body: bytes, *headers: str, status: str = "200 OK", kind: str = "application/json") -> Fault:
    """Another answer than OPA's."""
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers]

    async def answer(gateway: asyncio.StreamWriter, _: bytes) -> None:
        gateway.write("\r\n".join([*head, "", ""]).encode() + body)

    return answer


async def garbage(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """No HTTP."""
    gateway.write(bytes(range(256)) * 8)


async def bad_chunks(gateway: asyncio.StreamWriter, answer: bytes) -> None:
    """Chunks whose sizes are none."""
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    gateway.write(head.encode() + b"zz\r\n{}\r\n")


class Relay:
    """Listens on a socket of its own and asks OPA; `fault` is what it does with answers that decide."""

    def __init__(self, opa: Opa) -> None:
        self._opa = opa
        self.socket = opa.socket.with_suffix(f".{id(self):x}")
        self.fault: Fault = well
        self.questions = asyncio.Queue[bytes]()
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Opa]:
        """The OPA as the gateway finds it."""
        server = await asyncio.start_unix_server(self._serve, self.socket)
        try:
            yield dataclasses.replace(self._opa, socket=self.socket)
        finally:
            server.close()
            server.close_clients()
            await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while True:
                question = await message(reader)
                answer = await self._asked(question)
                if b"/chaperone/decision" in question.partition(b"\r\n")[0]:
                    await self.fault(writer, answer)
                    self.questions.put_nowait(question)
                else:
                    await well(writer, answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway hung up
        finally:
            writer.close()
            self._serving.discard(task)

    async def _asked(self, question: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self._opa.socket)
        try:
            writer.write(question)
            return await message(reader)
        finally:
            writer.close()


async def message(reader: asyncio.StreamReader) -> bytes:
    """A request or response whose length is said."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    size = int(lengths[0].partition(b":")[2]) if lengths else 0
    return head + await reader.readexactly(size)


@pytest.fixture(scope="module")
def opa(opa_with: Callable[[bytes], Opa]) -> Opa:
    snapshot = compile_namespace(
        "agents", [identity()], [target()], [policy([rule("orders", "Allow", ["read"], ["public.orders"])])], [],
        namespace_labels={},
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    return opa_with(snapshot.bundle)


@asynccontextmanager
async def deciding(opa: Opa) -> AsyncIterator[tuple[Decider, Relay]]:
    relay = Relay(opa)
    async with relay.listening() as found:
        decider = Decider("billing-agent", found.socket)
        await decider.start()
        try:
            assert await decider.wait_for_revision(opa.ask("chaperone/revision", {}), 10)
            yield decider, relay
        finally:
            await decider.stop()


async def reading(decider: Decider, name: str) -> Decision:
    asked = Command("query", b"", Facts((Access(Effect.READ, name),), Resolution.CATALOG))
    return await decider.decide("orders-db", "PostgreSQL", asked)


ALLOWED = b'{"result": {"action": "Allow", "policy": "p", "rule": "r", "message": "", "revision": "1"'


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (silent, UNANSWERED),
        (half, UNANSWERED),
        (broken_off, UNANSWERED),
        (hung_up, UNANSWERED),
        (garbage, UNANSWERED),
        (bad_chunks, UNANSWERED),
        (saying(ALLOWED + b"}}", status="500 Internal Server Error"), UNANSWERED),
        (saying(ALLOWED + b"}}", "Location: /v1/data/chaperone/decision", status="307 Temporary Redirect"), UNANSWERED),
        (saying(ALLOWED + b"}}", kind="text/html"), UNANSWERED),
        (saying(ALLOWED + b"}}", "Content-Encoding: gzip"), UNANSWERED),
        (saying(ALLOWED), UNANSWERED),
        (saying(b"\xff\xfe"), UNANSWERED),
        (saying(b"[" * 200_000), UNANSWERED),
        (saying(b'{"result": ' + b"9" * 9000 + b"}"), UNANSWERED),
        (saying(b""), UNUSABLE),
        (saying(b"{}"), UNUSABLE),
        (saying(b"[]"), UNUSABLE),
        (saying(b"true"), UNUSABLE),
        (saying(b'{"result": true}'), UNUSABLE),
        (saying(b'{"result": {"action": "Allow"}}'), UNUSABLE),
        (saying(ALLOWED.replace(b"Allow", b"allow") + b"}}"), UNUSABLE),
        (saying(ALLOWED + b', "counts": [{"rule": 7}]}}'), UNUSABLE),
    ],
)  # fmt: skip
async def test_what_is_no_answer_of_opa_denies_and_is_not_remembered(opa: Opa, fault: Fault, why: str) -> None:
    async with deciding(opa) as (decider, relay):
        relay.fault = fault
        found = await reading(decider, "public.orders")
        assert (found.action, found.rule, found.revision) == (Action.DENY, "policy-unavailable", "")
        assert why in found.message
        relay.fault = well
        found = await reading(decider, "public.orders")
        assert (found.action, found.rule) == (Action.ALLOW, "orders")


async def test_an_answer_that_comes_late_is_none_to_the_next_question(opa: Opa) -> None:
    async with deciding(opa) as (decider, relay):
        may_answer = asyncio.Event()

        async def late(gateway: asyncio.StreamWriter, answer: bytes) -> None:
            await may_answer.wait()
            gateway.write(answer)

        relay.fault = late
        assert (await reading(decider, "public.orders")).rule == "policy-unavailable"
        relay.fault = well
        may_answer.set()
        found = await reading(decider, "public.invoices")
        assert (found.action, found.rule) == (Action.DENY, "uncovered")
        assert (await reading(decider, "public.orders")).action is Action.ALLOW


async def test_a_command_that_opa_does_not_decide_is_refused_recorded_and_never_sent(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    rules = [
        rule("orders", "Allow", ["read"], ["public.orders"]),
        rule("new", "Allow", ["create"], ["public.invoices"]),
        rule("own", "Allow", ["session"]),  # after ROLLBACK psycopg takes its prepared statements away
    ]
    snapshot = ruled(broker, postgres, rules)
    await broker.put_snapshot(snapshot)
    relay = Relay(opa_with(snapshot.bundle))
    faults = [(silent, UNANSWERED), (half, UNANSWERED), (broken_off, UNANSWERED), (garbage, UNANSWERED),
              (saying(b"{}"), UNUSABLE)]  # fmt: skip
    async with (
        relay.listening() as found,
        running(broker, collector, found, tmp_path, "slow-policy") as (gateway, port, _),
        await connect(port) as agent,
        await connect(port) as other,
    ):
        await agent.execute("SELECT count(*) FROM orders")
        for number, (fault, why) in enumerate(faults):
            relay.fault = fault
            for text, values in ((INSERT, (7000 + number,)), (INSERT % (7100 + number), None)):
                while not relay.questions.empty():
                    relay.questions.get_nowait()
                refused = asyncio.create_task(agent.execute(text, values))
                await relay.questions.get()
                # What was decided before needs nobody: another session goes on meanwhile.
                assert await (await other.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
                with pytest.raises(errors.InsufficientPrivilege, match=why):
                    await refused
            assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
        relay.fault = well
        await agent.execute("BEGIN")
        relay.fault = silent
        with pytest.raises(errors.InsufficientPrivilege, match=UNANSWERED):
            await agent.execute(INSERT, (7200,))
        assert agent.info.transaction_status is TransactionStatus.INERROR
        assert written(postgres) == []
        relay.fault = well
        await agent.execute("ROLLBACK")
        await agent.execute(INSERT, (7300,))
        assert written(postgres) == [7300]
        gateway.write_head()
        await until(lambda: len(undecided(stored(collector))) == 11)
    records = read_records(tmp_path / "spool")
    for kept in (records, stored(collector)):
        intents = undecided(kept)
        assert [one.decision for one in intents] == ["Deny"] * 11
        begun = {one.command for one in kept if isinstance(one, record.CommandOutcome)}
        assert not begun & {one.command for one in intents}


def undecided(records: list[record.Known]) -> list[record.CommandIntent]:
    return [one for one in records if isinstance(one, record.CommandIntent) and one.rule == "policy-unavailable"]


def stored(collector: Collector) -> list[record.Known]:
    """The records that the collector has."""
    parts = [entry.split(raw) for (raw,) in collector.rows("SELECT bytes FROM entry ORDER BY idx")]
    return [record.decode(header) for cls, _, header in parts if cls == entry.CLASS_RECORD]


def written(postgres: Postgres) -> list[int]:
    """The invoices of this test that the database has; taken away again."""
    with postgres.admin() as admin:
        rows = admin.execute("DELETE FROM invoices WHERE id >= 7000 RETURNING id").fetchall()
    return [one for (one,) in rows]
