"""Commands that wait for people, in a cluster: who may vote, who may not, and what runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from stage import Database, Kubectl, Object, Pod, Team, chaperone, until
from voting import LEADS, REQUESTS, Held, may_vote, pending, person

from chaperone_tools.errors import ToolsError

pytestmark = pytest.mark.cluster

FIX = "UPDATE invoices SET paid = NOT paid WHERE id = 2"
ASK: Object = {
    "name": "fix-invoices", "action": "RequireApproval",
    "match": {"effects": ["read", "modify"], "objects": ["public.invoices"]},
    "approval": {"groups": [LEADS], "wait": "110s", "validFor": "2m"},  # people do a lot meanwhile
}  # fmt: skip


@pytest.fixture(scope="module")
def agent(team: Team) -> Pod:
    """An agent that has to ask before it touches invoices, in a namespace where the leads may vote."""
    team.identity()
    team.policy(ASK)
    may_vote(team)
    return team.pod()


@pytest.fixture
def asked(kubectl: Kubectl, team: Team, agent: Pod, tmp_path: Path) -> Iterator[str]:
    """A request that waits; it is denied in the end."""
    held = Held(lambda: agent.psql(FIX))
    name = pending(kubectl, team)
    yield name
    lead = person(kubectl, tmp_path, "lead-last", LEADS)
    assert chaperone(lead, "deny", name, "-n", team.namespace, "--yes", "--reason", "the test is over").status == 0
    assert "Denied by lead-last" in held.end().err


def paid(database: Database) -> str:
    """What the command would change."""
    return database.query("SELECT paid FROM invoices WHERE id = 2")


def test_what_a_lead_approves_runs_once_and_what_one_denies_does_not(
    kubectl: Kubectl, team: Team, agent: Pod, database: Database, tmp_path: Path
):
    lead, before = person(kubectl, tmp_path, "lead-1", LEADS), paid(database)
    held = Held(lambda: agent.psql(FIX))
    name = pending(kubectl, team)
    assert paid(database) == before
    assert name in chaperone(lead, "approvals", "-n", team.namespace).out
    voted = chaperone(lead, "approve", name, "-n", team.namespace, "--yes")
    assert voted.status == 0, voted.err
    assert FIX in voted.out
    assert held.end().out == "UPDATE 1\n"
    after = paid(database)
    assert after != before
    until("it is recorded with its approval", lambda: bool(team.commands(approval=name, decision="Allow")))

    held = Held(lambda: agent.psql(FIX))
    second = pending(kubectl, team)
    assert chaperone(lead, "deny", second, "-n", team.namespace, "--yes", "--reason", "once is enough").status == 0
    done = held.end()
    assert done.status == 1
    assert "Denied by lead-1 (once is enough)" in done.err
    assert paid(database) == after


def vote(who: Kubectl, team: Team, name: str, **more: object) -> str:
    """Add a vote past the command line; what the API server says."""
    value = {"decision": "Approve"} | more
    patch = json.dumps([{"op": "add", "path": "/status/votes/-", "value": value}])
    return who(
        "patch", REQUESTS, name, f"--namespace={team.namespace}", "--subresource=status", "--type=json", f"-p={patch}"
    )


def test_agents_account_neither_asks_nor_votes(
    kubectl: Kubectl, team: Team, asked: str, database: Database, tmp_path: Path
):
    before, where = paid(database), f"--namespace={team.namespace}"
    account = f"system:serviceaccount:{team.namespace}:default"
    agent = person(kubectl, tmp_path, account, "system:serviceaccounts")
    with pytest.raises(ToolsError, match="forbidden"):
        agent("get", REQUESTS, where)
    with pytest.raises(ToolsError, match="forbidden"):
        vote(agent, team, asked)
    kubectl("create", "rolebinding", "agent-votes", where, "--clusterrole=chaperone-approver",
            f"--serviceaccount={team.namespace}:default")  # fmt: skip
    until("the binding counts", lambda: _may(agent, "get", REQUESTS, where))
    with pytest.raises(ToolsError, match="own-request"):
        vote(agent, team, asked)
    made = kubectl.json(REQUESTS, asked, where)
    with pytest.raises(ToolsError, match="forbidden"):
        agent("create", "--filename=-", stdin=json.dumps(_copy(made)))
    assert paid(database) == before


def test_nobody_makes_a_request_or_votes_in_anothers_name(
    kubectl: Kubectl, team: Team, asked: str, database: Database, tmp_path: Path
):
    before, where = paid(database), f"--namespace={team.namespace}"
    made = kubectl.json(REQUESTS, asked, where)
    with pytest.raises(ToolsError, match=r"by the broker alone"):  # not even who may do anything in the cluster
        kubectl("create", "--filename=-", stdin=json.dumps(_copy(made)))
    with pytest.raises(ToolsError, match=r"by the broker alone"):
        kubectl("delete", REQUESTS, asked, where)
    outsider = person(kubectl, tmp_path, "outsider", "system:masters")
    with pytest.raises(ToolsError, match="not-an-approver"):
        vote(outsider, team, asked)
    with pytest.raises(ToolsError, match=r"one-vote|exactly one vote"):
        state = json.dumps({"status": {"state": "Approved"}})
        kubectl("patch", REQUESTS, asked, where, "--subresource=status", "--type=merge", f"-p={state}")
    assert kubectl.json(REQUESTS, asked, where)["status"].get("votes", []) == []
    assert paid(database) == before


def test_name_that_somebody_types_into_a_vote_is_overwritten(kubectl: Kubectl, team: Team, agent: Pod, tmp_path: Path):
    held = Held(lambda: agent.psql(FIX + " AND true"))
    name = pending(kubectl, team)
    lead = person(kubectl, tmp_path, "lead-2", LEADS)
    vote(lead, team, name, by={"username": "lead-1"}, groups=[LEADS], at="2026-01-01T00:00:00Z", decision="Deny")
    (stored,) = kubectl.json(REQUESTS, name, f"--namespace={team.namespace}")["status"]["votes"]
    assert stored["by"]["username"] == "lead-2"
    assert "Denied by lead-2" in held.end().err


def _copy(made: Object) -> Object:
    metadata = {"name": "apr-forged", "namespace": made["metadata"]["namespace"]}
    return {"apiVersion": made["apiVersion"], "kind": made["kind"], "metadata": metadata, "spec": made["spec"]}


def _may(who: Kubectl, *arguments: str) -> bool:
    try:
        who(*arguments)
    except ToolsError:
        return False
    return True
