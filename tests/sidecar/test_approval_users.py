"""Approvals where an agent acts for a person: who that is is shown and recorded, and somebody else approves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from evidence_directory import read_records
from fix_approvals import LEADS
from fix_broker import secret
from fix_way import FIX, LONG, SHORT, Way, ended, held
from manifests import Object, rule
from oidc import AUDIENCE, CANARY, EMAIL, SUBJECT, Issuer, issuing
from pod_gateway import connect, ruled
from psycopg import errors

from chaperone_evidence import record
from chaperone_operator.kube import SECRETS, ApiError

pytestmark = pytest.mark.peer


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    async with issuing(tmp_path) as found:
        yield found


@asynccontextmanager
async def running(way: Way, issuer: Issuer, *, required: bool = True, **approval: Any) -> AsyncIterator[int]:
    """The port of a gateway whose agent acts for persons; those of finance may ask to change invoices."""
    broker = way.approvals.broker
    async with broker.admin() as client:
        made = secret("issuer-ca", "Opaque", **{"ca.crt": issuer.ca_pem})
        await client.apply(SECRETS, "issuer-ca", made, manager="test", namespace=broker.system)
    delegation: Object = {
        "issuer": issuer.url, "audience": AUDIENCE, "jwks": {"caSecretRef": {"name": "issuer-ca"}},
        "required": required,
    }  # fmt: skip
    fix = rule("fix", "RequireApproval", ["modify"], ["held.invoices"], approval={"groups": [LEADS]} | approval)
    fix["match"]["require"] = {"userGroups": ["finance"]}
    rules = [rule("look", "Allow", ["read"]), fix]
    await way.put(ruled(broker, way.postgres, rules, delegation=delegation))
    async with way.started() as (_, port):
        yield port


async def test_request_and_records_name_the_person_who_may_not_approve(way: Way, issuer: Issuer) -> None:
    async with running(way, issuer, **LONG) as port, await connect(port, issuer.token()) as agent:
        task = held(agent)
        name = await way.asked()
        spec = (await way.approvals.stored(name))["spec"]
        assert spec["requester"]["onBehalfOf"] == {"subject": SUBJECT, "issuer": issuer.url, "email": EMAIL}
        for user in (SUBJECT, f"oidc:{SUBJECT}", f"issuer#{SUBJECT}", EMAIL, f"oidc:{EMAIL.upper()}"):
            for decision in ("Approve", "Deny"):
                with pytest.raises(ApiError, match=r"\[own-request\]"):
                    await way.approvals.vote(user, name, decision)
        assert not task.done()
        assert way.times() == 0
        await way.approve(name, "another-user-7")
        assert (await ended(task)).rowcount == 1
        assert await way.state(name, "Used") == "Used"
    assert way.times() == 1
    found = read_records(way.folder / "spool")
    asked = [one for one in found if isinstance(one, record.ApprovalRequest)]
    assert [(one.approval, one.subject) for one in asked] == [(name, SUBJECT)]
    ended_as = [(one.approval, one.state, one.message) for one in found if isinstance(one, record.ApprovalOutcome)]
    assert ended_as == [(name, "Used", "Approved by another-user-7")]
    intents = [one for one in found if isinstance(one, record.CommandIntent) and one.approval == name]
    assert [(one.decision, one.rule, one.subject) for one in intents] == [("Allow", "fix", SUBJECT)]
    kept = b"".join(path.read_bytes() for path in (way.folder / "spool").rglob("*") if path.is_file())
    assert CANARY.encode() not in kept
    assert CANARY not in str(await way.approvals.stored(name))


async def test_person_may_approve_where_the_rule_lets_own_people_do_so(way: Way, issuer: Issuer) -> None:
    async with (
        running(way, issuer, selfApproval=True, **LONG) as port,
        await connect(port, issuer.token()) as agent,
    ):
        task = held(agent)
        name = await way.asked()
        await way.approve(name, f"oidc:{SUBJECT}")
        assert (await ended(task)).rowcount == 1
    assert way.times() == 1


async def test_only_for_persons_of_the_groups_is_anybody_asked(way: Way, issuer: Issuer) -> None:
    async with running(way, issuer, required=False, **LONG) as port:
        for token in (issuer.token(sub="user-8", groups=["staff"]), issuer.token(sub="user-9", groups=None), "none"):
            async with await connect(port, token) as agent:
                with pytest.raises(errors.InsufficientPrivilege, match="only on behalf of a user in finance"):
                    await agent.execute(FIX)
                with pytest.raises(errors.InsufficientPrivilege, match="only on behalf of a user in finance"):
                    await agent.execute("UPDATE held.invoices SET times = times + 1 WHERE id = %s", (7,))
        assert await way.requests() == []
    assert way.times() == 0


async def test_approval_for_one_person_is_none_for_another(way: Way, issuer: Issuer) -> None:
    async with (
        running(way, issuer, **SHORT) as port,
        await connect(port, issuer.token()) as agent,
        await connect(port, issuer.token(sub="user-8", email="user-8@example.com")) as second,
    ):
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await agent.execute(FIX)
        name = await way.asked()
        # Who is somebody else's user may approve, also where the agent acts for them in another session.
        await way.approve(name, "user-8")
        await way.state(name, "Approved")
        with pytest.raises(errors.InsufficientPrivilege, match="waits for approval"):
            await second.execute(FIX)
        other = await way.asked()
        assert other != name
        with pytest.raises(ApiError, match=r"\[own-request\]"):
            await way.approve(other, "user-8")
        assert way.times() == 0
        async with await connect(port, issuer.token(email=None)) as later:  # the same person, by another token
            assert (await later.execute(FIX)).rowcount == 1
        assert await way.state(name, "Used") == "Used"
        assert way.times() == 1
