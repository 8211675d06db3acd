"""One agent, one task, six protocols, while somebody follows it: a disputed invoice is settled.

Konrad was charged twice. The agent reads what he wrote to the support desk (MCP), his orders (PostgreSQL) and who he is
(MySQL), asks the payment provider (HTTP) and the log of the program that sends invoices (SSH), restarts that program
(Kubernetes), and deletes the second invoice, for which somebody has to approve. What is not its business is refused.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaperone_tools.cache import checkout
from chaperone_tools.demo.approval import GROUP, LEAD, approve
from chaperone_tools.demo.staging import AGENT, AGENTS, CONNECTION, DATA, DOMAIN
from chaperone_tools.demo.story import Story, styled, typed, with_stdin
from chaperone_tools.demo.work import psql
from chaperone_tools.install import wait_for
from chaperone_tools.kubectl import Kubectl

FOLLOW: Final = ("kubectl", "chaperone", "follow", "-n", AGENTS, "--identity", "billing-agent")
WIDTH: Final = 100  # characters of the terminal that follows
FOLLOWING_LIMIT_S: Final = 30.0  # kubectl, Python and two questions
TOLD_LIMIT_S: Final = 30.0  # a moment after the last command
STOP_LIMIT_S: Final = 15.0
ORDERS: Final = "SELECT id, item, cents FROM orders WHERE customer = 3 ORDER BY id"
CUSTOMER: Final = "SELECT name, email, tier FROM customers WHERE id = 3"
LOG: Final = "tail -n 3 /srv/worker/worker.log"
DUPLICATE: Final = "DELETE FROM invoices WHERE id = 4"
LEFT: Final = "SELECT id, order_id FROM invoices ORDER BY id"
WORKER: Final = "deployment/invoice-worker"
WORKER_PATH: Final = f"/apis/apps/v1/namespaces/{DATA}/deployments/invoice-worker"
_END: Final = r"\d+ B, [\d.]+ ms)?"  # a command that runs on has its end on a line of its own
STEPS: Final = (
    ("MCP", "POST /mcp tools/call tool:find_ticket", rf"Allow by tickets/call(: {_END}"),
    ("MCP", "POST /mcp tools/call tool:delete_ticket", "Deny by tickets/never"),
    ("PostgreSQL", ORDERS, rf"Allow by billing/read-orders(: 2 rows, {_END}"),
    ("MySQL", "SELECT name, email, tier FROM customers WHERE id =", rf"Allow by customers/look-up(: 1 row, {_END}"),
    ("HTTP", "GET /v1/payments/4", rf"Allow by payments/state-of-payments(: {_END}"),
    ("SSH", LOG, rf"Allow by worker-host/read-log(: {_END}"),
    ("Kubernetes", f"PATCH {WORKER_PATH}", rf"Allow by worker/restart-worker(: {_END}"),
    ("Kubernetes", f"DELETE {WORKER_PATH}", "Deny by worker/never"),
    ("PostgreSQL", DUPLICATE, rf"Allow by billing/delete-invoices, approved as apr-\w+(: {_END}"),
    ("PostgreSQL", LEFT, rf"Allow by billing/settle-invoices(: 3 rows, {_END}"),
)
"""What the timeline says: protocol, how the command begins, its decision and end."""
ASKED: Final = (
    (DUPLICATE, rf"waits as apr-\w+ for 1 of {GROUP} by billing/delete-invoices, held up to \d+ s"),
    ("", rf"apr-\w+: Approved, Approved by {LEAD}"),
)
"""And of what waits for people: the command, who may answer; then, without it, who did."""


def do_task(story: Story, kubectl: Kubectl) -> None:
    """Do it, and show the timeline of it."""
    story.chapter("One task over six protocols: Konrad says that he was charged twice")
    with _followed(story) as lines:
        story.run(
            *with_stdin(AGENT), "--", "python3", "-", script="tickets.py",
            shows=("tools: find_ticket\n", "[Email]", "charged twice", "not allowed: ", "by the support desk."),
            hides=("zuse@", "Traceback"),
        )  # fmt: skip
        psql(story, ORDERS, shows=("relay", "(2 rows)"))
        story.run(
            *AGENT, "--", "mariadb", f"--host=crm-db.{DOMAIN}", "crm", "--table", "-e", CUSTOMER,
            shows=("Konrad", "z***@example.org"), hides=("zuse@",),
        )  # fmt: skip
        story.run(
            *AGENT, "--", "curl", "-sS", f"https://payments.{DOMAIN}/v1/payments/4",
            shows=('"disputed"', "[Email]"), hides=("zuse@",),
        )  # fmt: skip
        story.run(
            *AGENT, "--", "ssh", f"worker-host.{DOMAIN}", LOG,
            shows=("invoice 4 sent, order 3 again", "[PaymentCard]"), hides=("4111",),
        )  # fmt: skip
        _kubectl(story, "rollout", "restart", WORKER, shows="restarted")
        _kubectl(story, "delete", WORKER, shows="Ask the owner of the worker.", status=1)
        story.chapter("The second invoice goes once somebody of billing-leads has approved that")
        held = (*AGENT, "--", "psql", CONNECTION, "-c", DUPLICATE)
        approve(story, kubectl, AGENTS, held, shows=("DELETE ",))
        psql(story, LEFT, shows=("(3 rows)",))
    story.chapter("What somebody saw who followed the agent meanwhile")
    print(f"\n{styled(f'$ {typed(FOLLOW)}', '1')}\n" + "\n".join(lines))
    judge_timeline(story, lines)


def _kubectl(story: Story, *words: str, shows: str, status: int = 0) -> None:
    story.run(*AGENT, "--", "kubectl", *words, "-n", DATA, shows=(shows,), status=status)


@contextmanager
def _followed(story: Story) -> Iterator[list[str]]:
    """Follow the agent from now on; when this ends, the lines are there."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="chaperone-demo-") as folder:
        said, complaints = Path(folder) / "said", Path(folder) / "complaints"
        with said.open("w") as out, complaints.open("w") as err:
            follower = subprocess.Popen(
                FOLLOW, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=checkout(),
                env={**story.environment, "COLUMNS": str(WIDTH)},
            )  # fmt: skip
        try:
            wait_for(
                "following the agent",
                FOLLOWING_LIMIT_S,
                lambda: "" if "from now on" in complaints.read_text() else "its first word",
                complaints.read_text,
            )
            yield lines
            wait_for(
                "the last command in the timeline",
                TOLD_LIMIT_S,
                lambda: "" if _outcome(said.read_text(), LEFT) else "its end",
                lambda: said.read_text() + complaints.read_text(),
            )
        finally:
            follower.terminate()
            follower.wait(STOP_LIMIT_S)
        lines += said.read_text().splitlines()


@dataclass(frozen=True)
class _Block:
    """One thing of the timeline: its first columns, a command without blanks, and what stands below it."""

    at: list[str]
    command: str
    decided: str  # with how it ended
    asked: str


def _blocks(lines: list[str]) -> Iterator[_Block]:
    """The commands, and what waits for people."""
    at, said = "", dict[str, list[str]]()
    for line in [*lines, ""]:
        margin, sign, text = re.fullmatch(r"(.*?)(?:(?:^|  )([>=?#]) (.*))?", line).groups(default="")  # type: ignore[union-attr]
        if margin.strip() or not line:
            if at:
                decided, asked = (" ".join(said[one]).strip() for one in "=?")
                yield _Block(at.split(), "".join("".join(said[">"]).split()), decided, asked)
            at, said = margin if sign in (">", "?") else "", {">": [], "=": [], "?": []}
        if at and sign in said:
            said[sign].append(text)


def _outcome(timeline: str, command: str) -> str:
    """The decision on a command, with how it ended; "" where it is not told."""
    wanted = "".join(command.split())
    return next((one.decided for one in _blocks(timeline.splitlines()) if one.command.startswith(wanted)), "")


def judge_timeline(story: Story, lines: list[str]) -> None:
    """The timeline has every protocol's commands, in the order of their time, each with its decision and its end.

    What waits for people is there while it waits, and who answered.
    """
    blocks = list(_blocks(lines))
    for protocol, command, decided in STEPS:
        wanted = "".join(command.split())
        found = [
            one.decided for one in blocks if protocol in one.at and one.command.startswith(wanted) and not one.asked
        ]
        is_so = len(found) == 1 and re.fullmatch(decided, found[0]) is not None
        story.expect(is_so, f"the timeline says of {command!r} at {protocol}: {found}")
    asked = [(one.command, one.asked) for one in blocks if one.asked]
    is_so = len(asked) == len(ASKED) and all(
        text == "".join(command.split()) and re.fullmatch(wanted, said)
        for (text, said), (command, wanted) in zip(asked, ASKED, strict=True)
    )
    story.expect(is_so, f"the timeline says of what people were asked: {asked}")
    times = [one.at[0] for one in blocks]  # of what people are asked whole seconds
    is_sorted = all(one[: len(other)] <= other[: len(one)] for one, other in itertools.pairwise(times))
    story.expect(is_sorted, "the timeline is not in the order of its time")
    story.expect(all(len(line) <= WIDTH for line in lines), f"a line of the timeline is wider than {WIDTH}")
