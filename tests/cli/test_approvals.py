"""`chaperone approvals`, `approve` and `deny` through kubectl, against a real API server, broker and webhooks."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest
from fix_approvals import LEADS, OUTSIDERS, TEXT, Approvals
from fix_broker import CREATOR, Pod

pytestmark = pytest.mark.peer
HOSTILE = "UPDATE a SET b = 1;\n-- nothing to see\x1b[2J\rrequest: harmless\u202e"


@pytest.fixture
async def pod(approvals: Approvals) -> Pod:
    return await approvals.pod()


async def chaperone(
    approvals: Approvals, *arguments: str, user: str = "lead-1", groups: Any = (LEADS,), typed: str = ""
) -> subprocess.CompletedProcess[str]:
    config = approvals.broker.api.kubeconfig_of(user, *groups)
    binaries = os.environ.get("CHAPERONE_BIN", f"{os.environ['HOME']}/.cache/chaperone/bin")
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "chaperone_cli.main", *arguments]
    command += ["-n", approvals.namespace, "--kubeconfig", str(config)]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, input=typed, capture_output=True, text=True, timeout=100, check=False
    )


async def test_list_names_what_waits_and_for_how_long(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod)
    twin, _ = await approvals.ask(pod)
    done = await chaperone(approvals, "approvals")
    assert done.returncode == 0, done.stderr
    head, *rows = [line.split() for line in done.stdout.splitlines()]
    assert head == ["NAME", "AGE", "LEFT", "STATE", "VOTES", "IDENTITY", "TARGET", "EFFECTS", "ALIKE", "COMMAND"]
    mine = {row[0]: row for row in rows}
    for one in (name, twin):
        assert mine[one][3:8] == ["Pending", "0/1", "billing-agent", "orders-db", "modify"]
        assert int(mine[one][8]) >= 2
        assert mine[one][9:] == TEXT.split()
    await approvals.vote("lead-1", name, "Deny", "no")
    await approvals.state(pod, name, "Denied")
    assert name not in (await chaperone(approvals, "approvals")).stdout
    assert name in (await chaperone(approvals, "approvals", "--all")).stdout


async def test_whole_command_is_shown_before_the_vote_and_no_is_the_default(approvals: Approvals, pod: Pod) -> None:
    accesses = [
        {"effect": "modify", "object": "public.a"},
        {"effect": "read", "object": "public.c", "through": "public.v"},
    ]
    name, body = await approvals.ask(pod, rule="two", text=HOSTILE, accesses=accesses, estimated_rows=3)
    for typed in ("", "\n", "n\n"):
        done = await chaperone(approvals, "approve", name, typed=typed)
        assert done.returncode == 2
        assert "not voted" in done.stdout
    for told in (
        f"request:   {approvals.namespace}/{name} (Pending, ",
        "identity:  billing-agent, owner Billing on-call\n",
        f"pod:       {pod.name}, created by {CREATOR}\n",
        f"session:   {body['session']}\n",
        "target:    orders-db (PostgreSQL)\n",
        "effect:    modify public.a\n",
        "effect:    read public.c, reached through public.v\n",
        "rows:      about 3 (estimate)\n",
        f"rule:      two of {approvals.namespace}/billing, revision {approvals.revision}\n",
        f"approvers: 2 of {LEADS}\n",
        f"binding:   {body['binding']}\n",
        "  | UPDATE a SET b = 1;\n  | -- nothing to see\ufffd[2J\ufffdrequest: harmless\ufffd\n",
    ):
        assert told in done.stdout, told
    assert (await approvals.stored(name))["status"]["votes"] == []


async def test_yes_approves_and_deny_denies(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod)
    done = await chaperone(approvals, "approve", name, "--reason", "month end", typed="y\n")
    assert (done.returncode, done.stderr) == (0, "")
    shown = await approvals.state(pod, name, "Approved")
    assert shown["message"] == "Approved by lead-1 (month end)"
    name, _ = await approvals.ask(pod)
    assert (await chaperone(approvals, "deny", name, "-y")).returncode == 2  # click's: a reason is needed
    done = await chaperone(approvals, "deny", name, "-y", "--reason", "not today")
    assert done.returncode == 0, done.stderr
    await approvals.state(pod, name, "Denied")


async def test_what_the_api_server_refuses_is_told(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod)
    done = await chaperone(approvals, "approve", name, "-y", user="outsider-2", groups=(OUTSIDERS,))
    assert done.returncode == 1
    assert "[not-an-approver] outsider-2 is in none of the groups" in done.stderr
    for arguments, why in (
        (("approve", "../../pods", "-y"), "not the name of an approval request"),
        (("approve", "apr-none", "-y"), "NotFound"),
        (("approvals", "--context", "none"), "none"),
    ):
        done = await chaperone(approvals, *arguments)
        assert (done.returncode, why in done.stderr) == (1, True), done.stderr


async def test_watching_shows_the_list_again(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod)
    config = approvals.broker.api.kubeconfig_of("lead-1", LEADS)
    binaries = os.environ.get("CHAPERONE_BIN", f"{os.environ['HOME']}/.cache/chaperone/bin")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-m", "chaperone_cli.main", "approvals", "-w", "-n", approvals.namespace,
        "--kubeconfig", str(config), stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert process.stdout is not None
    seen = 0
    async with asyncio.timeout(60):
        while seen < 2:
            seen += name.encode() in await process.stdout.readline()
    process.send_signal(2)
    assert await asyncio.wait_for(process.wait(), 20) == 0
