"""The decider against a real OPA: how long a decision stands, and what is counted and asked for on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from fix_opa import Opa
from manifests import Object, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_sidecar.command import Access, Command, Effect, Extent, Facts, Resolution
from chaperone_sidecar.decision import Action, Decision, Would, changed_meanwhile
from chaperone_sidecar.policy.cache import DecisionCache
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.policy.repeats import Repeats, Use

MONDAY_9 = 1_783_933_200.0  # 2026-07-13 09:00 UTC


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = MONDAY_9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def command(effect: Effect = Effect.READ, kind: str = "query", **extent: Any) -> Command:
    extents = (Extent(**extent),) if extent else ()
    facts = Facts((Access(effect, "public.orders"),), Resolution.CATALOG, extents=extents)
    return Command(kind, b"", facts)


def compiled(*rules: Object, **spec: Any) -> Snapshot:
    made = [policy(list(rules), **spec)]
    snapshot = compile_namespace("agents", [identity()], [target()], made, [], namespace_labels={})
    assert snapshot.is_usable, snapshot.problems
    return snapshot


def requiring(effect: str, **require: Any) -> Object:
    return {"name": "some", "action": "Allow", "match": {"effects": [effect], "require": require}}


# --- what is kept -----------------------------------------------------------------------------------

ALLOW = Decision(Action.ALLOW, "p", "r", "", "1")


def test_a_decision_about_a_minute_stands_for_that_minute_alone() -> None:
    clock = Clock()
    cache = DecisionCache(wall_s=clock)
    asked = command()
    cache.clear("1")
    cache.keep("t", asked, ALLOW, cache.minute())
    again = command()
    assert cache.find("t", asked) == cache.find("t", again) == ALLOW
    clock.now += 59
    assert cache.find("t", asked) == ALLOW
    for now in (MONDAY_9 + 60, MONDAY_9 - 1, MONDAY_9 - 86400):
        clock.now = now
        assert cache.find("t", asked) is cache.find("t", again) is None
    clock.now = MONDAY_9
    cache.keep("t", asked, ALLOW)
    clock.now += 86400
    assert cache.find("t", asked) == ALLOW


def test_who_was_approved_in_vain_hears_why() -> None:
    held = Decision(Action.ALLOW, "agents/billing", "fix", "", "r1", approval="apr-1")
    changed = 'policy or the backend has changed since request "apr-1" was made'
    for fresh, why in (
        (Decision(Action.ALLOW, "agents/billing", "other", "", "r2"), "."),
        (Decision(Action.DENY, "agents/billing", "other", "", "r2"), "."),
        (Decision(Action.DENY, "", "policy-unavailable", "OPA does not answer.", ""), ": OPA does not answer."),
    ):
        found = changed_meanwhile(held, fresh)
        assert (found.action, found.rule, found.message) == (Action.DENY, "fix", changed + why)
        assert "the approval is spent" in found.hint


def test_commands_of_other_extents_share_no_decision() -> None:
    cache = DecisionCache()
    cache.clear("1")
    cache.keep("t", command(limit=10), ALLOW)
    assert cache.find("t", command(limit=10)) == ALLOW
    assert cache.find("t", command(limit=11)) is None
    assert cache.find("t", command()) is None


# --- what is counted -----------------------------------------------------------------------------------


def test_uses_are_counted_within_any_span_and_all_or_none() -> None:
    clock = Clock(0.0)
    repeats = Repeats(clock)
    often, seldom = Use("p/often", 3, 100), Use("p/seldom", 1, 1000)
    assert repeats.take("t", [often, seldom])
    assert not repeats.take("t", [often, seldom])
    assert repeats.of("t") == {"p/often": 1, "p/seldom": 1}
    assert repeats.of("u") == {}
    clock.now = 50
    assert repeats.take("t", [often])
    assert repeats.take("t", [often])
    assert not repeats.take("t", [often])
    clock.now = 100
    assert repeats.of("t") == {"p/often": 2, "p/seldom": 1}
    assert repeats.take("t", [often])
    clock.now = 10_000
    assert repeats.of("t") == {}


# --- with OPA -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opa(opa_with: Callable[[bytes], Opa]) -> Opa:
    return opa_with(compiled(rule("r", "Allow", ["read"])).bundle)


@asynccontextmanager
async def deciding(opa: Opa, snapshot: Snapshot, clock: Clock) -> AsyncIterator[Decider]:
    opa.replace(snapshot.bundle, snapshot.revision)
    decider = Decider("billing-agent", opa.socket, clock, clock)
    await decider.start()
    assert await decider.wait_for_revision(snapshot.revision, 10)
    yield decider
    await decider.stop()


async def ask(decider: Decider, asked: Command, **more: Any) -> Decision:
    return await decider.decide("orders-db", "PostgreSQL", asked, **more)


@pytest.mark.peer
async def test_a_window_that_closes_ends_what_was_remembered(opa: Opa) -> None:
    clock = Clock()
    window = {"from": "08:00", "to": "09:01", "timezone": "UTC"}
    snapshot = compiled(rule("r", "Allow", ["read"], windows=[window]))
    async with deciding(opa, snapshot, clock) as decider:
        assert (await ask(decider, command())).action is Action.ALLOW
        assert decider.remembered("orders-db", command()) is not None
        clock.now += 60
        assert decider.remembered("orders-db", command()) is None
        assert (await ask(decider, command())).action is Action.DENY
        clock.now += 23 * 3600
        assert (await ask(decider, command())).action is Action.ALLOW


@pytest.mark.peer
async def test_where_and_limit_of_a_command_reach_policy(opa: Opa) -> None:
    snapshot = compiled(requiring("read", where=True, limit=10))
    async with deciding(opa, snapshot, Clock()) as decider:
        assert (await ask(decider, command(has_where=True, limit=10))).action is Action.ALLOW
        assert (await ask(decider, command(has_where=True, limit=11))).action is Action.DENY
        assert (await ask(decider, command(limit=10))).action is Action.DENY
        assert (await ask(decider, command())).action is Action.DENY


@pytest.mark.peer
async def test_a_rule_is_used_no_more_often_than_it_may_be_whoever_asks_at_once(opa: Opa) -> None:
    clock = Clock()
    snapshot = compiled(requiring("create", maxRepeats={"count": 5, "per": "1h"}))
    async with deciding(opa, snapshot, clock) as decider:
        prepared = [await ask(decider, command(Effect.CREATE, "parse")) for _ in range(8)]
        assert {one.action for one in prepared} == {Action.ALLOW}
        asked = [ask(decider, command(Effect.CREATE)) for _ in range(20)]
        found = await asyncio.gather(*asked)
        assert [one.action for one in found].count(Action.ALLOW) == 5
        assert "only 5 times in 60 minutes" in (await ask(decider, command(Effect.CREATE, "parse"))).message
        assert decider.remembered("orders-db", command(Effect.CREATE)) is None
        clock.now += 3600
        assert (await ask(decider, command(Effect.CREATE))).action is Action.ALLOW


@pytest.mark.peer
@pytest.mark.parametrize(("rows", "expected"), [(10, Action.ALLOW), (11, Action.DENY), (None, Action.DENY)])
async def test_rows_are_estimated_where_policy_asks_for_them(opa: Opa, rows: int | None, expected: Action) -> None:
    asked: list[int] = []

    async def estimate() -> int | None:
        asked.append(1)
        return rows

    snapshot = compiled(requiring("modify", maxEstimatedRows=10), rule("r", "Allow", ["read"]))
    async with deciding(opa, snapshot, Clock()) as decider:
        assert (await ask(decider, command(), estimate=estimate)).action is Action.ALLOW
        assert not asked
        assert (await ask(decider, command(Effect.MODIFY), estimate=estimate)).action is expected
        assert len(asked) == 1
        assert (await ask(decider, command(Effect.MODIFY))).action is Action.DENY
        assert decider.remembered("orders-db", command(Effect.MODIFY)) is None


@pytest.mark.peer
async def test_what_would_be_is_told_and_remembered(opa: Opa) -> None:
    async with deciding(opa, compiled(rule("r", "Allow", ["read"]), mode="Observe"), Clock()) as decider:
        found = await ask(decider, command(Effect.MODIFY))
        assert (found.action, found.rule) == (Action.ALLOW, "observed")
        assert found.would == Would(Action.DENY, "", "uncovered")
        assert decider.remembered("orders-db", command(Effect.MODIFY)) == found


@pytest.mark.peer
@pytest.mark.parametrize(
    "text",
    [
        'deny contains "no" if to_number("seven") > 8',
        """
        deny contains "no" if {
            digits := {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
            some a, b, c, d, e, f, g, h in digits
            a + b + c + d + e + f + g + h > 100
        }
        """.replace(
            "some a, b, c, d, e, f, g, h in digits", "\n".join(f"some {name} in digits" for name in "abcdefgh")
        ),
    ],
    ids=["an error", "too long"],
)
async def test_rego_that_fails_or_does_not_end_denies(opa: Opa, text: str) -> None:
    async with deciding(opa, compiled(rule("r", "Allow", ["read"]), rego=text), Clock()) as decider:
        found = await ask(decider, command())
        assert (found.action, found.rule) == (Action.DENY, "policy-unavailable")
        assert decider.remembered("orders-db", command()) is None


@pytest.mark.peer
async def test_what_runs_code_is_given_to_no_planner(opa: Opa) -> None:
    code = {"name": "code", "action": "Allow", "match": {"effects": ["execute_code"], "objects": ["public.f"]}}
    asked: list[int] = []

    async def estimate() -> int | None:
        asked.append(1)
        return 0

    async with deciding(opa, compiled(requiring("read", maxEstimatedRows=5), code), Clock()) as decider:
        one = command()
        accesses = (*one.facts.accesses, Access(Effect.EXECUTE_CODE, "public.f"))
        calling = msgspec.structs.replace(one, facts=Facts(accesses, Resolution.CATALOG))
        for kind in ("query", "parse"):
            decision = await decider.decide(
                "orders-db", "PostgreSQL", msgspec.structs.replace(calling, kind=kind), estimate
            )
            assert decision.action is Action.DENY
        assert not asked
        assert (await decider.decide("orders-db", "PostgreSQL", one, estimate)).action is Action.ALLOW
        assert asked
