"""From the question of a gateway to the one use of an approval: real broker, real API server, people who vote."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import pytest
from fix_approvals import LEADS, OUTSIDERS, TEXT, Approvals
from fix_broker import CREATOR, Pod, kubeconfig_of_broker

from chaperone_operator import kubeconfig
from chaperone_operator.broker.deadline import Deadlines
from chaperone_operator.broker.ledger import Ledger
from chaperone_operator.broker.snapshots import Snapshots
from chaperone_operator.broker.verdict import Verdicts
from chaperone_operator.kube import APPROVAL_REQUESTS, PODS, ApiError, Client, Object

pytestmark = [pytest.mark.peer]


@pytest.fixture
async def pod(approvals: Approvals) -> Pod:
    return await approvals.pod()


async def test_approved_command_passes_once_and_never_again(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    status, early = await approvals.use(pod, name, body)
    assert (status, early["title"]) == (409, "Not approved")
    waiting = asyncio.create_task(pod.call("GET", f"/v1/approvals/{name}?wait=20"))
    await asyncio.sleep(0)
    stored = await approvals.vote("lead-1", name, reason="month end")
    [vote] = stored["status"]["votes"]
    assert vote | {"at": ""} == {
        "decision": "Approve", "reason": "month end", "by": {"username": "lead-1"}, "groups": [LEADS], "at": "",
    }  # fmt: skip
    status, shown = await waiting
    assert (status, shown["state"], shown["approvals"], shown["needed"]) == (200, "Approved", 1, 1)
    assert shown["message"] == "Approved by lead-1 (month end)"
    status, used = await approvals.use(pod, name, body)
    assert (status, used["state"]) == (200, "Used")
    status, again = await approvals.use(pod, name, body)
    assert (status, again["title"]) == (409, "Already used")
    item = await approvals.stored(name)
    assert item["status"]["state"] == "Used"
    assert item["status"]["usedAt"]
    [condition] = item["status"]["conditions"]
    assert (condition["type"], condition["reason"]) == ("Decided", "Used")


async def test_request_says_who_asks_for_what_by_which_rule(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod, rule="two")
    spec = (await approvals.stored(name))["spec"]
    assert spec["requester"] == {
        "identity": "billing-agent", "pod": pod.name, "podUID": pod.uid, "serviceAccount": "agent", "workload": "",
        "createdBy": CREATOR, "owner": {"name": "Billing on-call", "email": ""},
    }  # fmt: skip
    assert spec["excluded"] == [f"system:serviceaccount:{approvals.namespace}:agent", CREATOR, "Billing on-call"]
    assert (spec["text"], spec["binding"], spec["revision"]) == (TEXT, body["binding"], approvals.revision)
    assert (spec["protocol"], spec["effects"], spec["estimatedRows"]) == ("PostgreSQL", ["modify"], 1)
    assert spec["approval"] == {
        "groups": [LEADS], "count": 2, "denyCount": 2, "waitSeconds": 45, "validForSeconds": 600,
        "reason": "Optional", "selfApproval": False,
    }  # fmt: skip


async def test_denied_command_does_not_pass(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    await approvals.vote("lead-1", name, "Deny", "not today")
    shown = await approvals.state(pod, name, "Denied")
    assert (shown["denials"], shown["message"]) == (1, "Denied by lead-1 (not today)")
    status, refused = await approvals.use(pod, name, body)
    assert (status, refused["title"]) == (403, "Denied")
    with pytest.raises(ApiError, match=r"\[decided\] This request is Denied already"):
        await approvals.vote("lead-2", name)


@pytest.mark.parametrize("has_vote", [False, True])
async def test_request_that_nobody_used_in_time_is_over(approvals: Approvals, pod: Pod, has_vote: bool) -> None:
    name, body = await approvals.ask(pod, rule="soon")
    if has_vote:
        await approvals.vote("lead-1", name)
    await approvals.state(pod, name, "Expired")
    status, refused = await approvals.use(pod, name, body)
    assert (status, refused["title"]) == (410, "Over")
    with pytest.raises(ApiError, match=r"\[decided\]"):
        await approvals.vote("lead-2", name)


async def test_approval_of_another_command_pod_identity_or_revision_is_not_used(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    await approvals.vote("lead-1", name)
    await approvals.state(pod, name, "Approved")
    status, refused = await approvals.use(pod, name, body, binding="f" * 64)
    assert (status, refused["title"]) == (403, "Another command")
    status, refused = await approvals.use(pod, name, body, revision="0" * 16)
    assert (status, refused["title"]) == (403, "Policy changed")
    other = {"labels": {"chaperone.dev/identity": "other-agent"}, "told": "other-agent"}
    for stranger in (await approvals.pod(), await approvals.pod(**other)):
        for method, path in (("GET", ""), ("DELETE", "")):
            assert (await stranger.call(method, f"/v1/approvals/{name}{path}"))[0] == 404
        assert (await approvals.use(stranger, name, body))[0] == 404
    assert (await approvals.use(pod, name, body))[0] == 200


async def test_whoever_asks_does_not_approve(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod)
    for user in (CREATOR, f"oidc:{CREATOR.upper()}", "Billing on-call"):
        with pytest.raises(ApiError, match=r"\[own-request\]"):
            await approvals.vote(user, name)
    account = f"system:serviceaccount:{approvals.namespace}:agent"
    with pytest.raises(ApiError, match=r"forbidden|own-request"):
        await approvals.vote(account, name, groups=(LEADS,))
    allowed, _ = await approvals.ask(pod, rule="self")
    await approvals.vote(CREATOR, allowed)
    await approvals.state(pod, allowed, "Approved")


async def test_pod_that_does_not_say_who_made_it_gets_no_approval(approvals: Approvals) -> None:
    pod = await approvals.pod(annotations={})
    status, refused = await pod.call("POST", "/v1/approvals", json=approvals.body())
    assert (status, refused["title"]) == (403, "Creator not known")
    await approvals.ask(pod, rule="self")


async def test_two_of_three_have_to_approve_and_one_person_counts_once(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod, rule="two")
    await approvals.vote("lead-1", name)
    with pytest.raises(ApiError, match=r"\[voted\]"):
        await approvals.vote("lead-1", name)
    shown = await approvals.until(pod, name, lambda one: one["approvals"] == 1)
    assert (shown["state"], shown["needed"]) == ("Pending", 2)
    await approvals.vote("lead-2", name, "Deny")
    shown = await approvals.until(pod, name, lambda one: one["denials"] == 1)
    assert shown["state"] == "Pending"
    await approvals.vote("lead-3", name)
    await approvals.state(pod, name, "Approved")
    assert (await approvals.stored(name))["status"]["tally"] == "2/2"
    assert (await approvals.use(pod, name, body))[0] == 200


async def test_approvers_who_vote_at_once_are_all_counted(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod, rule="two")
    await asyncio.gather(*(approvals.vote(f"lead-{number}", name) for number in (1, 2)))
    shown = await approvals.state(pod, name, "Approved")
    assert shown["approvals"] == 2
    voters = [vote["by"]["username"] for vote in (await approvals.stored(name))["status"]["votes"]]
    assert sorted(voters) == ["lead-1", "lead-2"]


async def test_of_many_uses_at_once_at_two_brokers_one_succeeds(approvals: Approvals, pod: Pod) -> None:
    second = approvals.replica()
    try:
        there = Pod(second, pod.namespace, pod.name, pod.uid, pod.account, pod.tls_key, pod.signer_key, pod.certificate)
        name, body = await approvals.ask(pod)
        await approvals.vote("lead-1", name)
        await approvals.state(pod, name, "Approved")
        await approvals.state(there, name, "Approved")
        answers = await asyncio.gather(*(approvals.use(one, name, body) for one in (pod, there) * 4))
    finally:
        assert second.stop() == 0
    assert sorted(status for status, _ in answers) == [200] + [409] * 7


async def test_asking_again_comes_to_the_same_request_also_at_another_broker(approvals: Approvals, pod: Pod) -> None:
    second = approvals.replica()
    try:
        there = Pod(second, pod.namespace, pod.name, pod.uid, pod.account, pod.tls_key, pod.signer_key, pod.certificate)
        body = approvals.body()
        answers = await asyncio.gather(
            *(one.call("POST", "/v1/approvals", json=body) for one in (pod, there) * 3)
        )  # fmt: skip
        assert {answer["name"] for _, answer in answers} == {answers[0][1]["name"]}
        name = answers[0][1]["name"]
        await approvals.vote("lead-1", name)
        await approvals.state(pod, name, "Approved")
        status, approved = await pod.call("POST", "/v1/approvals", json=body)
        assert (status, approved["name"], approved["state"]) == (200, name, "Approved")
        assert (await approvals.use(pod, name, body))[0] == 200
        await approvals.state(there, name, "Used")
        for one in (pod, there):
            status, fresh = await one.call("POST", "/v1/approvals", json=body)
            assert (status, fresh["state"]) == (200, "Pending")
            assert fresh["name"] != name
    finally:
        assert second.stop() == 0


async def test_requests_outlive_the_broker(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    assert approvals.broker.stop() == 0
    await approvals.vote("lead-1", name)  # people can vote meanwhile
    approvals.broker.start()
    await approvals.state(pod, name, "Approved")
    assert (await approvals.use(pod, name, body))[0] == 200


async def test_another_policy_takes_open_requests_back(approvals: Approvals, pod: Pod) -> None:
    pending, _ = await approvals.ask(pod)
    approved, body = await approvals.ask(pod)
    await approvals.vote("lead-1", approved)
    await approvals.state(pod, approved, "Approved")
    await approvals.put_rules()
    for name in (pending, approved):
        shown = await approvals.state(pod, name, "Cancelled")
        assert "policy changed" in shown["message"]
    status, refused = await approvals.use(pod, approved, body)
    assert (status, refused["title"]) == (403, "Policy changed")
    status, refused = await pod.call("POST", "/v1/approvals", json=body)
    assert (status, refused["title"]) == (403, "Policy changed")


async def test_replica_that_has_not_heard_of_a_policy_yet_does_not_take_requests_back(
    approvals: Approvals, pod: Pod
) -> None:
    broker = approvals.broker
    async with Client(kubeconfig.from_file(kubeconfig_of_broker(broker.api, broker.system))) as client:
        snapshots, ledger = Snapshots(client, broker.system), Ledger(client)
        following = asyncio.create_task(snapshots.run())
        await asyncio.wait_for(snapshots.synced.wait(), 20)
        following.cancel()  # from now on it knows the old policy only
        await approvals.put_rules()
        name, _ = await approvals.ask(pod)
        assert broker.stop() == 0
        running = [
            asyncio.create_task(part) for part in (ledger.run(), Verdicts(ledger, snapshots, Deadlines()).run())
        ]  # fmt: skip
        try:
            await approvals.vote("lead-1", name)
            assert await _decided(approvals, name) == "Approved"  # so it has looked, and left it
            await approvals.put_rules()
            async with asyncio.timeout(30):
                while (await approvals.stored(name))["status"]["state"] != "Cancelled":  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.1)
        finally:
            for task in running:
                task.cancel()
            broker.start()


async def _decided(approvals: Approvals, name: str) -> str:
    async with asyncio.timeout(30):
        while (state := (await approvals.stored(name))["status"]["state"]) == "Pending":  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.1)
    found: str = state
    return found


async def test_agent_that_went_away_takes_its_request_along(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    for _ in range(2):
        status, shown = await pod.call("DELETE", f"/v1/approvals/{name}")
        assert (status, shown["state"]) == (200, "Cancelled")
    assert (await approvals.use(pod, name, body))[0] == 410


@pytest.mark.parametrize(
    ("changed", "status", "title"),
    [
        ({"rule": "read-orders"}, 403, "No approval"),
        ({"policy": "other/billing"}, 403, "No approval"),
        ({"target": "none-such"}, 403, "No such target"),
        ({"revision": "0" * 16}, 403, "Policy changed"),
        ({"text": "x" * 16_385}, 400, "Command too long"),
        ({"binding": "short"}, 400, "Bad request"),
        ({"accesses": []}, 400, "Bad request"),
        ({"approval": {"groups": ["agents"]}}, 400, "Bad request"),
        ({"text": "x" * (513 << 10)}, 413, HTTPStatus.REQUEST_ENTITY_TOO_LARGE.phrase),
    ],
    ids=["rule", "policy", "target", "revision", "text", "binding", "no access", "own settings", "body"],
)  # fmt: skip
async def test_what_policy_does_not_ask_for_is_refused(
    approvals: Approvals, pod: Pod, changed: Object, status: int, title: str
) -> None:
    answer = await pod.call("POST", "/v1/approvals", json=approvals.body(**changed))
    assert (answer[0], answer[1]["title"]) == (status, title)


async def test_whole_text_of_the_longest_command_is_stored(approvals: Approvals, pod: Pod) -> None:
    text = "SELECT '" + "\x01\u00e9" * 5457 + "'"
    name, _ = await approvals.ask(pod, text=text)
    assert (await approvals.stored(name))["spec"]["text"] == text


async def test_agent_cannot_bury_approvers_in_requests(approvals: Approvals, pod: Pod) -> None:
    for _ in range(5):
        await approvals.ask(pod)
    status, refused = await pod.call("POST", "/v1/approvals", json=approvals.body())
    assert (status, refused["title"]) == (429, "Too many requests wait")
    assert "5 approval requests of this pod wait" in refused["detail"]


async def test_the_same_command_may_be_asked_for_again_and_again(approvals: Approvals, pod: Pod) -> None:
    body, names = approvals.body(), set()
    for _ in range(10):
        status, shown = await pod.call("POST", "/v1/approvals", json=body)
        assert (status, shown["state"]) == (200, "Pending"), shown
        names.add(shown["name"])
        assert (await pod.call("DELETE", f"/v1/approvals/{shown['name']}"))[0] == 200
    assert len(names) == 10


async def test_suspended_identity_uses_nothing(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    await approvals.vote("lead-1", name)
    await approvals.state(pod, name, "Approved")
    await approvals.put_rules(is_suspended=True)
    await approvals.state(pod, name, "Cancelled")
    for revision in (body["revision"], approvals.revision):
        status, refused = await approvals.use(pod, name, body, revision=revision)
        assert (status, refused["title"]) == (403, "Policy changed")
    status, refused = await pod.call("POST", "/v1/approvals", json=approvals.body())
    assert (status, refused["title"]) == (403, "No such target")
    await approvals.put_rules()


async def test_deleted_pod_uses_nothing(approvals: Approvals, pod: Pod) -> None:
    name, body = await approvals.ask(pod)
    await approvals.vote("lead-1", name)
    await approvals.state(pod, name, "Approved")
    async with approvals.broker.admin() as client:
        await client.delete(PODS, pod.name, pod.namespace, grace_s=0)
    status, refused = await approvals.use(pod, name, body)
    assert (status, refused["title"]) == (403, "Pod refused")


async def test_ended_requests_are_deleted_after_their_time(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod, rule="soon")
    await approvals.state(pod, name, "Expired")
    assert approvals.broker.stop() == 0
    approvals.broker.start("--approval-retention", "0.5")
    try:
        async with asyncio.timeout(30), approvals.broker.admin() as client:
            while any(one["metadata"]["name"] == name for one in await _items(client)):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
    finally:
        assert approvals.broker.stop() == 0
        approvals.broker.start()


async def _items(client: Any) -> tuple[Object, ...]:
    found: tuple[Object, ...] = (await client.list(APPROVAL_REQUESTS)).items
    return found


async def test_groups_that_do_not_approve_do_not_count(approvals: Approvals, pod: Pod) -> None:
    name, _ = await approvals.ask(pod)
    with pytest.raises(ApiError, match=r"\[not-an-approver\] outsider-1 is in none of the groups .*: billing-leads"):
        await approvals.vote("outsider-1", name, groups=(OUTSIDERS,))
