"""`chaperone follow`: lines as things happen, through the real API server; and nothing that a terminal would obey."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fix_apiserver import running
from fix_collector import Sender
from fix_crds import establish
from fix_evidence_api import EvidenceApi, served
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import record

pytestmark = [pytest.mark.peer, pytest.mark.timeout(300)]

LIMIT_S = 150.0  # a watch that failed some times in a row is begun again after a minute
LINE = re.compile(r"(\d\d:\d\d:\d\d(?:\.\d{3}|    )|            )  (.*)")


@pytest.fixture(scope="module")
def unanswered(gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EvidenceApi]:
    """Its own, with our kinds, and without a broker that would answer what is asked here."""
    with (
        running(tmp_path_factory.mktemp("api-server")) as server,
        served(server, gateway_ca, tmp_path_factory.mktemp("evidence-api")) as found,
    ):
        establish(server)
        yield found


class Followed:
    """The lines of a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def lines(self, count: int) -> list[str]:
        """The next ones in the order of their times, without these and the day's heading.

        What a watch tells later than the others waited for it, on a busy machine, stands where it came, with its own
        time; in which order what is in time is told, the tests of the timeline show.
        """
        found: list[tuple[str, str]] = []
        try:
            async with asyncio.timeout(LIMIT_S):
                await self._read(found, count)
        except TimeoutError:
            self._process.kill()
            _, apart = await self._process.communicate()
            pytest.fail(f"of {count} lines there came {found}; it said: {apart.decode()}")
        return [text for _, text in sorted(found, key=lambda one: one[0])]

    async def _read(self, found: list[tuple[str, str]], count: int) -> None:
        assert self._process.stdout is not None
        while len(found) < count:
            line = (await self._process.stdout.readline()).decode().rstrip("\n")
            if re.fullmatch(r"-- 20\d\d-\d\d-\d\d UTC --", line):
                continue
            match = LINE.fullmatch(line)
            assert match, line
            found.append((match[1].strip() or found[-1][0], match[2].strip()))

    async def said(self) -> str:
        """The next line of what it says apart from them."""
        assert self._process.stderr is not None
        return (await asyncio.wait_for(self._process.stderr.readline(), LIMIT_S)).decode()


@asynccontextmanager
async def following(
    api: EvidenceApi, *arguments: str, kubeconfig: Path | None = None
) -> AsyncIterator[Followed]:  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaperone_cli.main", "follow", "-n", "agents", *arguments,
        f"--kubeconfig={kubeconfig or api.server.kubeconfig}", stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PATH": f"{Path(api.command()[0]).parent}:{os.environ['PATH']}", "COLUMNS": "100"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        async with asyncio.timeout(LIMIT_S):
            assert (await process.stderr.readline()).endswith(b" on; ctrl-C ends it\n")
        yield Followed(process)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


async def test_sessions_commands_and_ends_are_told_as_they_come(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    stream = Stream(Pod(gateway_ca, identity="followed", pod_uid="uid-followed"))
    person = record.Delegated("https://login.example.com", "user-7", "")
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
        async with following(evidence_api, "--identity=followed", "--from-start") as followed:
            session = stream.open_session(delegated=person)
            await sender.ship(stream)
            assert await followed.lines(2) == [
                f"orders-db     PostgreSQL  # opened {session}, user app, on behalf of",
                "# user-7",
            ]
            waiting = stream.intend(session, "SELECT 1\n\x1b[2J", approval="billing-7")
            await sender.ship(stream)
            assert await followed.lines(2) == [
                "orders-db     PostgreSQL  > SELECT 1 \ufffd[2J",
                "= Allow by billing/read-orders, approved as billing-7",
            ]
            stream.conclude(session, waiting, rows=7)
            await sender.ship(stream)
            assert await followed.lines(1) == [
                "orders-db     PostgreSQL  # ok, 7 rows, 70 B, 1.5 ms: SELECT 1 \ufffd[2J"
            ]
            stream.intend(session, "DROP TABLE orders " + "x" * 300, decision="Deny", rule="never")
            await sender.ship(stream)
            refused, more, last, why = await followed.lines(4)
            assert refused.startswith("orders-db     PostgreSQL  > DROP TABLE orders xxx")
            assert more.startswith("> xxx")
            assert last.endswith("x…")
            assert why == "= Deny by billing/never"
            stream.close_session(session, 2, 1)
            await sender.ship(stream)
            assert await followed.lines(1) == [f"orders-db     PostgreSQL  # ended …{session[-6:]}: client closed"]


TASK = (
    ("orders-db", "PostgreSQL", "SELECT cents\nFROM orders WHERE id = 3", "SELECT cents FROM orders WHERE id = 3"),
    ("shop-db", "MySQL", "SELECT email FROM customers", "SELECT email FROM customers"),
    ("payments", "HTTP", "POST /v1/refunds\nContent-Type: text/plain\n(a body of 10 bytes)", "POST /v1/refunds"),
    ("cluster", "Kubernetes", "PATCH /api/v1/nodes/a\nContent-Type: x\n\n{}", "PATCH /api/v1/nodes/a {}"),
    ("build-host", "SSH", "tail -n 1 /srv/app/app.log", "tail -n 1 /srv/app/app.log"),
    (
        "tickets",
        "MCP",
        "POST /mcp\nContent-Type: application/json\n(a body of 99 bytes)",
        "POST /mcp query public.orders",
    ),
)


async def test_one_task_over_all_protocols_is_one_timeline(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    """Sessions that overlap, told as they were: opened one after the other, each with a command, ended the same way."""
    stream = Stream(Pod(gateway_ca, identity="task", pod_uid="uid-task"))
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
        async with following(evidence_api, "--identity=task", "--from-start") as followed:
            first = stream.open_session("orders-db", "PostgreSQL")
            stream.conclude(first, stream.intend(first, "SELECT 1"))
            await sender.ship(stream)
            await followed.lines(3)  # both watches have begun, which takes as long as it takes
            opened = [stream.open_session(target, protocol) for target, protocol, _, _ in TASK]
            for session, (target, _, text, _) in zip(opened, TASK, strict=True):
                stream.conclude(session, stream.intend(session, text, target=target))
            for session in opened:
                stream.close_session(session, 1)
            await sender.ship(stream)
            lines = await followed.lines(4 * len(TASK))
    places = [f"{target:<10}  {protocol:<10}" for target, protocol, _, _ in TASK]
    wanted = [f"{at}  # opened {session}, user app" for at, session in zip(places, opened, strict=True)]
    for at, (*_, shown) in zip(places, TASK, strict=True):
        wanted += [f"{at}  > {shown}", "= Allow by billing/read-orders: 1 row, 10 B, 1.5 ms"]
    wanted += [f"{at}  # ended …{session[-6:]}: client closed" for at, session in zip(places, opened, strict=True)]
    assert [" ".join(line.split()) for line in lines] == [" ".join(line.split()) for line in wanted]


async def test_of_mcp_it_is_told_what_is_called_however_long_the_request_is(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    """The endpoint, which every one of them names, is not told as an object; a batch tells all that it calls."""
    stream = Stream(Pod(gateway_ca, identity="caller", pod_uid="uid-caller"))
    head = "POST /mcp\nContent-Type: application/json\n\n"
    session = stream.open_session("tickets", "MCP")
    tool, other, end = ("execute_code", "tool:search"), ("execute_code", "tool:drop"), ("session", "path:/mcp")
    called = {"target": "tickets", "kind": "tools/call", "policy": "agents/tickets"}
    asked = stream.intend(session, head + '{"text":"' + "x" * 600 + '"}', rule="search", accesses=(tool, end), **called)
    stream.conclude(session, asked, rows=0)
    batch = called | {"kind": "batch"}
    stream.intend(session, head + "[{}\x1b[2J]", decision="Deny", rule="never", accesses=(tool, other, end), **batch)
    listing = ("session", "mcp:stream")
    stream.intend(session, "GET /mcp", rule="connect", accesses=(listing, end), **(called | {"kind": "GET"}))
    async with (
        Sender(evidence_api.collector, stream.pod) as sender,
        following(evidence_api, "--identity=caller", "--from-start") as followed,
    ):
        await sender.ship(stream)
        lines = await followed.lines(9)
    assert f"tickets       MCP         # opened {session}, user app" in lines
    text, more, last, allowed, refused, why, listened, connected = [line for line in lines if "# opened" not in line]
    assert text.startswith('tickets       MCP         > POST /mcp tools/call tool:search {"text":"xxx')
    assert more.startswith("> xxx") and last.endswith("x…")
    assert allowed == "= Allow by tickets/search: 0 B, 1.5 ms"
    assert refused == "tickets       MCP         > POST /mcp batch tool:search tool:drop [{}\ufffd[2J]"
    assert why == "= Deny by tickets/never"
    assert listened == "tickets       MCP         > GET /mcp GET mcp:stream"
    assert connected == "= Allow by tickets/connect"


async def test_nothing_is_lost_or_told_twice_while_the_collector_is_away(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    """Nor does one end who has heard nothing yet."""
    stream = Stream(Pod(gateway_ca, identity="restarted", pod_uid="uid-restarted"))
    other = Stream(Pod(gateway_ca, identity="quiet", pod_uid="uid-quiet"))
    async with (
        following(evidence_api, "--identity=restarted", "--from-start") as followed,
        following(evidence_api, "--identity=quiet") as quiet,
    ):
        async with Sender(evidence_api.collector, stream.pod) as sender:
            session = stream.open_session()
            stream.intend(session, "SELECT 1")
            await sender.ship(stream)
            assert len(await followed.lines(3)) == 3
        evidence_api.collector.stop()
        evidence_api.collector.start()
        evidence_api.register()
        async with Sender(evidence_api.collector, stream.pod) as sender:
            for number in range(2, 5):
                stream.intend(session, f"SELECT {number}")
            stream.close_session(session, 4)
            await sender.ship(stream)
            lines = await followed.lines(7)
        opened = other.open_session()
        async with Sender(evidence_api.collector, other.pod) as sender:
            await sender.ship(other)
            assert f"# opened {opened}" in (await quiet.lines(1))[0]
    assert [line.partition("> ")[2] for line in lines[:6:2]] == ["SELECT 2", "SELECT 3", "SELECT 4"]
    assert f"# ended …{session[-6:]}" in lines[6]


async def test_only_what_was_refused_of_one_session(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    stream = Stream(Pod(gateway_ca, identity="refused", pod_uid="uid-refused"))
    one, other = stream.open_session(), stream.open_session()
    for session in (one, other):
        stream.conclude(session, stream.intend(session))
        stream.intend(session, f"DELETE FROM orders -- {session}", decision="Deny", rule="never")
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
    async with following(evidence_api, f"--session={other}", "--refused", "--from-start") as followed:
        assert await followed.lines(2) == [
            f"orders-db     PostgreSQL  > DELETE FROM orders -- {other}",
            "= Deny by billing/never",
        ]


async def test_from_now_on_is_what_is_told_without_more(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    stream = Stream(Pod(gateway_ca, identity="from-now", pod_uid="uid-from-now"))
    stream.open_session("before-db")
    async with Sender(evidence_api.collector, stream.pod) as sender:
        await sender.ship(stream)
        async with following(evidence_api, "--identity=from-now") as followed:
            session = stream.open_session("after-db")
            await sender.ship(stream)
            (line,) = await followed.lines(1)
            assert line.startswith(f"after-db      PostgreSQL  # opened {session}")


def ask(api: EvidenceApi, name: str, identity: str, session: str, text: str, protocol: str = "PostgreSQL") -> None:
    """A request as the broker makes it."""
    terms = {
        "groups": ["billing-leads", "on-call"], "count": 2, "denyCount": 1, "waitSeconds": 45, "validForSeconds": 600,
        "reason": "Optional", "selfApproval": False,
    }  # fmt: skip
    requester = {"identity": identity, "pod": "p", "podUID": "u", "serviceAccount": "s", "owner": {"name": "On call"}}
    spec = {
        "requester": requester, "session": session, "target": "orders-db", "protocol": protocol, "kind": "query",
        "text": text, "binding": "0" * 64, "accesses": [{"effect": "modify", "object": "public.invoices"}],
        "effects": ["modify"], "policy": "agents/billing", "rule": "fix", "revision": "r", "approval": terms,
        "createdAt": "2026-11-27T10:00:05Z", "expiresAt": "2026-11-27T10:10:05Z", "shape": "0123456789abcdef",
    }  # fmt: skip
    made = {"apiVersion": "chaperone.dev/v1alpha1", "kind": "ApprovalRequest", "spec": spec}
    made["metadata"] = {"name": name, "namespace": "agents"}
    api.kubectl("create", "-f", "-", given=json.dumps(made))


def answer(api: EvidenceApi, name: str, state: str, at: str, message: str) -> None:
    """What the broker writes of a request."""
    condition = {"type": "Decided", "status": "True", "reason": state, "message": message, "lastTransitionTime": at}
    status = {"state": state, "message": message, "conditions": [condition]}
    change = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))
    api.kubectl("patch", "approvalrequests.chaperone.dev", name, "-n", "agents", *change)


async def test_a_command_is_told_while_it_waits_for_people_and_how_that_ended(
    unanswered: EvidenceApi, gateway_ca: Authority
) -> None:
    stream = Stream(Pod(gateway_ca, identity="waiting", pod_uid="uid-waiting"))
    waits = "? waits as {} for 2 of billing-leads, on-call by"
    session = stream.open_session()
    ask(unanswered, "apr-before", "waiting", session, "DELETE FROM a")
    ask(unanswered, "apr-of-another", "another", session, "DELETE FROM b")
    async with Sender(unanswered.collector, stream.pod) as sender, following(
        unanswered, "--identity=waiting"
    ) as followed:  # fmt: skip
        assert await followed.lines(3) == [
            "orders-db     PostgreSQL  > DELETE FROM a", waits.format("apr-before"), "? billing/fix, held up to 45 s"
        ]  # fmt: skip
        ask(unanswered, "apr-allowed", "waiting", session, "UPDATE a\nSET b = 1\x1b[2J")
        assert await followed.lines(3) == [
            "orders-db     PostgreSQL  > UPDATE a SET b = 1\ufffd[2J", waits.format("apr-allowed"),
            "? billing/fix, held up to 45 s"
        ]  # fmt: skip
        answer(unanswered, "apr-allowed", "Approved", "2026-11-27T10:00:09Z", "Approved by ada; grace (it is so)")
        (approved,) = await followed.lines(1)
        answer(unanswered, "apr-allowed", "Used", "2026-11-27T10:00:10Z", "Used.")
        stream.intend(session, "UPDATE a\nSET b = 1", approval="apr-allowed", rule="fix")
        await sender.ship(stream)
        _, command, by = await followed.lines(3)  # with its session
        answer(unanswered, "apr-before", "Denied", "2026-11-27T10:00:11Z", "Denied by grace (no)")
        (denied,) = await followed.lines(1)
    assert approved == "orders-db     PostgreSQL  ? apr-allowed: Approved, Approved by ada; grace (it is so)"
    assert (command, by) == (
        "orders-db     PostgreSQL  > UPDATE a SET b = 1", "= Allow by billing/fix, approved as apr-allowed"
    )  # fmt: skip
    assert denied == "orders-db     PostgreSQL  ? apr-before: Denied, Denied by grace (no)"


async def test_who_may_read_the_log_and_no_requests_sees_the_log(
    unanswered: EvidenceApi, gateway_ca: Authority
) -> None:
    stream = Stream(Pod(gateway_ca, identity="audited", pod_uid="uid-audited"))
    async with Sender(unanswered.collector, stream.pod) as sender:
        await sender.ship(stream)
        auditor = unanswered.server.kubeconfig_of("auditor-1", "auditors")
        async with following(unanswered, "--identity=audited", kubeconfig=auditor) as followed:
            said = await followed.said()
            assert said.startswith("follow: what waits for people is not shown: Error from server (Forbidden)")
            session = stream.open_session()
            await sender.ship(stream)
            (line,) = await followed.lines(1)
            assert f"# opened {session}" in line


async def test_who_may_not_read_is_told(evidence_api: EvidenceApi) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "chaperone_cli.main", "follow", "-n", "elsewhere",
        f"--kubeconfig={evidence_api.server.kubeconfig_of('nobody-1')}", stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 1
    assert b"follow: FAILED: Error from server (Forbidden)" in said
