"""Who may write what of an ApprovalRequest at a real API server: the schema, the webhooks, the rights of people."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fix_approvals import LEADS, OUTSIDERS, Approvals, Signing, registrations, request
from fix_broker import Broker, kubeconfig_of_broker
from fix_crds import kubectl

from chaperone_operator import kubeconfig
from chaperone_operator.approval import timestamp
from chaperone_operator.kube import (
    APPROVAL_REQUESTS,
    MUTATING_WEBHOOKS,
    SERVICE_ACCOUNTS,
    VALIDATING_WEBHOOKS,
    ApiError,
    Client,
    Object,
)

pytestmark = [pytest.mark.peer]


def as_broker(broker: Broker) -> Client:
    return Client(kubeconfig.from_file(kubeconfig_of_broker(broker.api, broker.system)))


@pytest.fixture
async def name(approvals: Approvals) -> str:
    """A request that only votes can move: its revision is in force, and nobody waits for it."""
    name = f"apr-{time.monotonic_ns()}"
    async with as_broker(approvals.broker) as client:
        made = await client.create(APPROVAL_REQUESTS, request(name, revision=approvals.revision), approvals.namespace)
    assert made["status"] == {"state": "Pending", "votes": []}
    return name


def vote(**changed: Any) -> Object:
    usual: Object = {
        "decision": "Approve", "by": {"username": "lead-1"}, "groups": [LEADS], "at": timestamp(time.time()),
    }  # fmt: skip
    return usual | changed


def added(value: Object) -> list[Object]:
    return [{"op": "add", "path": "/status/votes/-", "value": value}]


async def test_whatever_a_voter_types_is_overwritten_by_who_he_is(approvals: Approvals, name: str) -> None:
    forged = vote(by={"username": "boss", "uid": "1"}, groups=[LEADS, "admins"], at="2000-01-01T00:00:00Z", extra=1)
    stored = await approvals.patch("lead-1", name, added(forged), (LEADS, "staff"))
    [found] = stored["status"]["votes"]
    assert found["by"] == {"username": "lead-1"}
    assert found["groups"] == [LEADS]
    assert found["at"] > "2026"
    assert "extra" not in found


async def test_uid_of_a_voter_is_kept(approvals: Approvals, name: str) -> None:
    arguments = ("patch", "approvalrequest", name, "-n", approvals.namespace, "--subresource=status", "--type=json")
    who = ("--as=lead-9", "--as-uid=uid-9", f"--as-group={LEADS}", "-o", "json")
    told = await asyncio.to_thread(
        kubectl, approvals.broker.api, *arguments, "-p", json.dumps(added({"decision": "Approve"})), *who
    )
    assert json.loads(told)["status"]["votes"][0]["by"] == {"username": "lead-9", "uid": "uid-9"}


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "replace", "path": "/status/state", "value": "Approved"}],
        [*added({"decision": "Approve"}), {"op": "replace", "path": "/status/state", "value": "Approved"}],
        [*added({"decision": "Approve"}), {"op": "add", "path": "/status/tally", "value": "1/1"}],
        [*added({"decision": "Approve"}), {"op": "add", "path": "/status/message", "value": "fine"}],
        [*added({"decision": "Approve"}), *added({"decision": "Approve"})],
        [{"op": "add", "path": "/status/usedAt", "value": "2026-01-01T00:00:00Z"}],
        [{"op": "remove", "path": "/status/votes"}],
    ],
    ids=["state", "state with a vote", "tally", "message", "two votes", "usedAt", "no vote"],
)
async def test_people_add_one_vote_and_nothing_else(approvals: Approvals, name: str, patch: list[Object]) -> None:
    with pytest.raises(ApiError, match=r"\[one-vote\]"):
        await approvals.patch("lead-1", name, patch)
    status = (await approvals.stored(name))["status"]
    assert (status["state"], status["votes"]) == ("Pending", [])


async def test_votes_of_others_stay_as_they_are(approvals: Approvals, name: str) -> None:
    name, _ = await approvals.ask(await approvals.pod(), rule="two")
    await approvals.vote("lead-1", name)
    own = {"decision": "Approve"}
    for patch in (
        [{"op": "replace", "path": "/status/votes/0/decision", "value": "Deny"}],
        [{"op": "remove", "path": "/status/votes/0"}],
        [{"op": "replace", "path": "/status/votes", "value": [own, own]}],
        [{"op": "add", "path": "/status/votes/0", "value": own}],
        [*added(own), {"op": "replace", "path": "/status/votes/0/by/username", "value": "lead-5"}],
    ):
        with pytest.raises(ApiError, match=r"\[one-vote\]"):
            await approvals.patch("lead-2", name, patch)


@pytest.mark.parametrize(
    "typed", [{"decision": "Maybe"}, {"reason": "x"}, {"decision": "Approve", "reason": 1}], ids=str
)
async def test_vote_that_cannot_be_read_is_refused(approvals: Approvals, name: str, typed: Object) -> None:
    with pytest.raises(ApiError, match=r"\[unreadable\]"):
        await approvals.patch("lead-1", name, added(typed))


async def test_rule_that_asks_for_a_reason_gets_one(approvals: Approvals) -> None:
    name, _ = await approvals.ask(await approvals.pod(), rule="why")
    for reason in ("", "  "):
        with pytest.raises(ApiError, match=r"\[reason\] Rule why asks for a reason"):
            await approvals.vote("lead-1", name, reason=reason)
    await approvals.vote("lead-1", name, reason="month end")


async def test_expired_request_takes_no_votes_even_before_the_broker_says_so(approvals: Approvals) -> None:
    async with as_broker(approvals.broker) as client:
        body = request(f"apr-{time.monotonic_ns()}", expiresAt="2026-01-01T00:10:00Z", revision=approvals.revision)
        assert approvals.broker.stop() == 0
        try:
            made = await client.create(APPROVAL_REQUESTS, body, approvals.namespace)
            with pytest.raises(ApiError, match=r"\[expired\]"):
                await approvals.vote("lead-1", made["metadata"]["name"])
        finally:
            approvals.broker.start()


async def test_only_the_broker_makes_requests(approvals: Approvals) -> None:
    async with approvals.broker.admin() as client:
        with pytest.raises(ApiError, match=r"\[broker-only\] Approval requests are made by the broker alone"):
            await client.create(APPROVAL_REQUESTS, request("apr-forged"), approvals.namespace)


async def test_nobody_changes_what_people_approve(approvals: Approvals, name: str) -> None:
    async with approvals.broker.admin() as client:
        with pytest.raises(ApiError, match=r"spec never changes|broker-only"):
            await client.merge_patch(APPROVAL_REQUESTS, name, {"spec": {"text": "SELECT 1"}}, approvals.namespace)
        with pytest.raises(ApiError, match="broker-only"):
            await client.merge_patch(APPROVAL_REQUESTS, name, {"metadata": {"labels": {"a": "b"}}}, approvals.namespace)
    async with as_broker(approvals.broker) as client:
        with pytest.raises(ApiError, match="forbidden"):  # the broker may not even ask
            await client.merge_patch(APPROVAL_REQUESTS, name, {"spec": {"text": "SELECT 1"}}, approvals.namespace)


async def test_the_broker_neither_votes_nor_approves_without_a_quorum(approvals: Approvals, name: str) -> None:
    async with as_broker(approvals.broker) as client:
        for status, why in (
            ({"votes": [vote()]}, "votes-are-peoples"),
            ({"state": "Approved"}, r"no-quorum\] The votes \(0/1\)"),
            ({"state": "Used"}, "a decided request does not become another one"),
        ):
            with pytest.raises(ApiError, match=why):
                await client.merge_patch(APPROVAL_REQUESTS, name, {"status": status}, approvals.namespace, "status")


async def test_ended_requests_stay_ended(approvals: Approvals, name: str) -> None:
    async with as_broker(approvals.broker) as client:
        await client.merge_patch(
            APPROVAL_REQUESTS, name, {"status": {"state": "Cancelled"}}, approvals.namespace, "status"
        )
        for state in ("Pending", "Approved", "Used"):
            with pytest.raises(ApiError, match=r"a decided request does not become another one|no-quorum"):
                body: Object = {"status": {"state": state}}
                await client.merge_patch(APPROVAL_REQUESTS, name, body, approvals.namespace, "status")


async def test_agents_account_has_no_rights_at_approvals(approvals: Approvals, name: str) -> None:
    async with approvals.broker.admin() as client:
        token = await client.create(SERVICE_ACCOUNTS, {"spec": {}}, approvals.namespace, "agent", "token")
    config = approvals.folder / "agent.kubeconfig"
    admin = json.loads(await asyncio.to_thread(kubectl, approvals.broker.api, "config", "view", "--raw", "-o", "json"))
    admin["users"][0]["user"] = {"token": token["status"]["token"]}
    config.write_text(json.dumps(admin))
    async with Client(kubeconfig.from_file(config)) as agent:
        with pytest.raises(ApiError, match="forbidden"):
            await agent.get(APPROVAL_REQUESTS, name, approvals.namespace)
        with pytest.raises(ApiError, match="forbidden"):
            await agent.create(APPROVAL_REQUESTS, request("apr-agent"), approvals.namespace)
        with pytest.raises(ApiError, match="forbidden"):
            await agent.merge_patch(APPROVAL_REQUESTS, name, {"status": {}}, approvals.namespace, "status")


async def test_without_webhooks_that_answer_nobody_votes_and_nothing_is_asked(
    approvals: Approvals, name: str, tmp_path: Path
) -> None:
    silent = Signing(approvals.broker, tmp_path)
    silent.port = 1  # nobody listens there
    async with approvals.broker.admin() as client:
        kept = [(one, await client.get(one, "approvals-test")) for one in (MUTATING_WEBHOOKS, VALIDATING_WEBHOOKS)]
        try:
            for resource, body in registrations(silent):
                await client.merge_patch(resource, "approvals-test", {"webhooks": body["webhooks"]})
            async with asyncio.timeout(30):
                while True:
                    try:
                        await client.create(APPROVAL_REQUESTS, request("apr-x"), approvals.namespace)
                    except ApiError as error:
                        if "failed calling webhook" in str(error):
                            break
                    await asyncio.sleep(0.05)
            with pytest.raises(ApiError, match="failed calling webhook"):
                await approvals.vote("lead-1", name)
            pod = await approvals.pod()
            assert (await pod.call("POST", "/v1/approvals", json=approvals.body()))[0] == 503
        finally:
            for resource, body in kept:
                await client.merge_patch(resource, "approvals-test", {"webhooks": body["webhooks"]})
            async with asyncio.timeout(30):
                while True:
                    try:
                        await approvals.patch("outsider-1", name, [], (OUTSIDERS,))
                    except ApiError as error:
                        if "one-vote" in str(error):
                            break
                    await asyncio.sleep(0.05)
    await approvals.vote("lead-1", name)


async def test_table_says_who_wants_what(approvals: Approvals, name: str) -> None:
    told = await asyncio.to_thread(kubectl, approvals.broker.api, "get", "apr", name, "-n", approvals.namespace)
    assert told.split("\n")[0].split() == ["NAME", "IDENTITY", "TARGET", "EFFECTS", "STATE", "VOTES", "EXPIRES", "AGE"]
    assert told.split("\n")[1].split()[1:5] == ["billing-agent", "orders-db", '["modify"]', "Pending"]
