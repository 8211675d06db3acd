"""Requirements, windows of time and mode Observe: what the compiler refuses, and what a real OPA decides."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from fix_opa import Opa
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace

READ = rule("read", "Allow", ["read"])
DROP = rule("drop", "Deny", ["destroy"])
WORK = {"days": ["Mon-Fri"], "from": "07:00", "to": "19:00", "timezone": "Europe/Berlin"}
NIGHT = {"days": ["Fri"], "from": "22:00", "to": "06:00", "timezone": "Europe/Berlin"}


def requiring(name: str, effects: list[str], objects: list[str] | None = None, **require: Any) -> Object:
    made = rule(name, "Allow", effects, objects)
    made["match"]["require"] = require
    return made


def compiled(*policies: Object, cluster: tuple[Object, ...] = ()) -> Snapshot:
    return compile_namespace("agents", [identity()], [target()], list(policies), list(cluster), namespace_labels={})


@pytest.mark.parametrize(
    ("made", "reason", "fragment"),
    [
        (requiring("r", ["read"]), "NoRequirement", "spec.rules[0].match.require: empty; name one of where, limit"),
        (requiring("r", ["read"], where=False), "BadRequirement", "false requires nothing"),
        (requiring("r", ["read"], limit=-1), "BadRequirement", "limit: -1 is not between 0 and"),
        (requiring("r", ["read"], maxRepeats={"count": 0, "per": "1h"}), "BadRequirement", "count: 0 is not between"),
        (requiring("r", ["read"], maxRepeats={"count": 1, "per": "1s"}), "BadRequirement", "per: '1s' is not a number"),
        (requiring("r", ["read"], maxRepeats={"count": 1, "per": "32d"}), "BadRequirement", "at most 31d"),
        (requiring("r", ["create"], where=True), "RuleNeverFires", "where: no effect of the rule has it"),
        (requiring("r", ["modify"], limit=5), "RuleNeverFires", "it is known of read, read_sensitive"),
        (requiring("r", ["read"], where=True) | {"action": "Deny"}, "RequireInDeny", "require it in the Allow"),
        (READ | {"windows": []}, "NoWindow", "spec.rules[0].windows: empty, so it is never in force"),
        (READ | {"windows": [WORK | {"days": []}]}, "EmptyWindow", "windows[0].days: empty"),
        (READ | {"windows": [WORK | {"days": ["Mo"]}]}, "BadWindow", "days: 'Mo' is not Mon, Tue"),
        (READ | {"windows": [WORK | {"days": ["Mon-"]}]}, "BadWindow", "days: 'Mon-' is not Mon, Tue"),
        (READ | {"windows": [WORK | {"from": "7:00"}]}, "BadWindow", "from: '7:00' is no time"),
        (READ | {"windows": [WORK | {"to": "24:01"}]}, "BadWindow", "to: '24:01' is no time"),
        (READ | {"windows": [WORK | {"to": "07:00"}]}, "EmptyWindow", "a whole day is 00:00 to 24:00"),
        (READ | {"windows": [WORK | {"timezone": "Berlin"}]}, "UnknownTimezone", "'Berlin' is no time zone"),
        (READ | {"windows": [WORK] * 11}, "TooManyWindows", "windows: more than 10"),
        (READ | {"windows": [{"from": "07:00"}]}, "InvalidSpec", "missing required field `to`"),
    ],
)
def test_conditions_that_say_nothing_are_refused_in_words(made: Object, reason: str, fragment: str) -> None:
    found = compiled(policy([made])).problems
    assert [one.reason for one in found] == [reason]
    assert fragment in found[0].message


def test_observing_without_rules_and_windows_of_a_policy_are_checked_too() -> None:
    nothing = compiled(policy([], mode="Observe", limits={"connections": 1}))
    assert [one.reason for one in nothing.problems] == ["NothingToObserve"]
    assert "spec.windows[0].from" in compiled(policy([READ], windows=[WORK | {"from": "x"}])).problems[0].message


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (policy([rule("a", "Allow", ["read"], ["a.b"]), rule("d", "Deny", ["*"], ["a.*"])]), "RuleNeverFires"),
        (policy([rule("a", "Allow", ["read"], ["a.b*"]), rule("d", "Deny", ["*"], ["*.*"])]), "RuleNeverFires"),
        (policy([rule("a", "Allow", ["read"], ["a.*"]), rule("d", "Deny", ["*"], ["a.b*"])]), ""),
        (policy([rule("a", "Allow", ["read"], ["a.b", "b.c"]), rule("d", "Deny", ["*"], ["a.*"])]), ""),
        (policy([rule("a", "Allow", ["read"], ["orders"])]), "ObjectNotReachable"),
        (policy([rule("a", "Allow", ["read"], ["db.public.orders"])]), "ObjectNotReachable"),
        (policy([rule("a", "Allow", ["read_sensitive"], ["public.people.email"])]), ""),
        (policy([rule("a", "Allow", ["*"], ["public.people.email"])]), ""),
        (policy([rule("a", "Allow", ["read_sensitive"], ["db.public.people.email"])]), "ObjectNotReachable"),
        (policy([rule("a", "Allow", ["session"], ["setting:app.user", "file:/a.b.c", "*"])]), ""),
        (policy([READ | {"windows": [WORK | {"days": ["Sat-Sun"]}]}], windows=[WORK]), "RuleNeverFires"),
        (policy([READ | {"windows": [NIGHT]}], windows=[WORK]), "RuleNeverFires"),
        (policy([READ | {"windows": [WORK | {"from": "18:59", "to": "06:00"}]}], windows=[WORK]), ""),
        (policy([READ | {"windows": [WORK | {"timezone": "UTC", "days": ["Sat"]}]}], windows=[WORK]), ""),
    ],
)
def test_a_rule_that_can_never_fire_is_refused(made: Object, reason: str) -> None:
    assert [one.reason for one in compiled(made).problems] == ([reason] if reason else [])


def test_a_deny_of_some_hours_shadows_nothing() -> None:
    assert not compiled(policy([READ, rule("no", "Deny", ["read"], windows=[WORK])])).problems
    assert [one.reason for one in compiled(policy([READ, rule("no", "Deny", ["read"])])).problems] == ["RuleNeverFires"]


# --- with OPA -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opa(opa_with: Callable[[bytes], Opa]) -> Opa:
    return opa_with(compiled(policy([READ])).bundle)


type Ask = Callable[..., Object]


@pytest.fixture
def ask(opa: Opa) -> Ask:
    """The whole answer to a question about some accesses: effect, object, and facts of the access."""

    def ask(snapshot: Snapshot, *accesses: tuple[str, str] | tuple[str, str, Object], **facts: Any) -> Object:
        assert snapshot.is_usable, snapshot.problems
        opa.replace(snapshot.bundle, snapshot.revision)
        asked = [{"effect": one[0], "object": one[1], **(one[2] if len(one) > 2 else {})} for one in accesses]
        return opa.decide(
            {
                "identity": "billing-agent",
                "target": "orders-db",
                "protocol": "PostgreSQL",
                "resolution": "catalog",
                "accesses": asked,
            }
            | facts
        )

    return ask


ORDERS = "public.orders"
CASES: list[tuple[str, Object, tuple[str, str, Object], Object, str]] = [
    ("where", {"where": True}, ("read", ORDERS, {"where": True}), {}, "Allow"),
    ("no where", {"where": True}, ("read", ORDERS, {}), {}, "Deny"),
    ("where of another kind", {"where": True}, ("read", ORDERS, {"where": "yes"}), {}, "Deny"),
    ("limit", {"limit": 10}, ("read", ORDERS, {"limit": 10}), {}, "Allow"),
    ("limit over it", {"limit": 10}, ("read", ORDERS, {"limit": 11}), {}, "Deny"),
    ("no limit", {"limit": 10}, ("read", ORDERS, {}), {}, "Deny"),
    ("limit of null", {"limit": 10}, ("read", ORDERS, {"limit": None}), {}, "Deny"),
    ("limit below nothing", {"limit": 10}, ("read", ORDERS, {"limit": -1}), {}, "Deny"),
    ("rows", {"maxEstimatedRows": 10}, ("read", ORDERS, {}), {"rows": 10}, "Allow"),
    ("too many rows", {"maxEstimatedRows": 10}, ("read", ORDERS, {}), {"rows": 11}, "Deny"),
    ("rows of null", {"maxEstimatedRows": 10}, ("read", ORDERS, {}), {"rows": None}, "Deny"),
    ("rows are not known", {"maxEstimatedRows": 10}, ("read", ORDERS, {}), {}, "Deny"),
    ("both", {"where": True, "limit": 1}, ("read", ORDERS, {"where": True, "limit": 1}), {}, "Allow"),
    ("one of both", {"where": True, "limit": 1}, ("read", ORDERS, {"limit": 1}), {}, "Deny"),
    ("what touches nothing has no size", {"where": True, "limit": 1}, ("read", "", {}), {}, "Allow"),
    ("nor has a transaction", {"where": True, "maxEstimatedRows": 1}, ("transaction", "", {}), {}, "Allow"),
]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("require", "access", "facts", "expected"), [one[1:] for one in CASES], ids=[one[0] for one in CASES]
)
def test_what_is_required_holds_or_there_is_no_leave(
    ask: Ask, require: Object, access: tuple[str, str, Object], facts: Object, expected: str
) -> None:
    found = ask(compiled(policy([requiring("r", ["read"], **require)])), access, **facts)
    assert found["action"] == expected
    assert found["rule"] == ("r" if expected == "Allow" else "uncovered")


@pytest.mark.peer
def test_requirement_holds_for_each_access_that_the_rule_covers(ask: Ask) -> None:
    snapshot = compiled(policy([requiring("r", ["read", "modify"], where=True)]))
    there, not_there = {"where": True}, dict[str, Any]()
    assert ask(snapshot, ("read", "a.b", there), ("modify", "a.b", there))["action"] == "Allow"
    assert ask(snapshot, ("read", "a.b", there), ("modify", "a.b", not_there))["action"] == "Deny"


@pytest.mark.peer
def test_who_is_denied_for_a_requirement_reads_which(ask: Ask) -> None:
    snapshot = compiled(policy([requiring("few", ["read"], where=True, limit=10)]))
    told = ask(snapshot, ("read", ORDERS))["message"]
    assert told == (
        "Rule few of agents/billing allows billing-agent to read on public.orders at orders-db, but only with a "
        "LIMIT of at most 10, written as a number, and only with a WHERE that is not always true, in the query or "
        "statement that names it."
    )


@pytest.mark.peer
def test_an_estimate_is_asked_for_only_where_the_answer_depends_on_it(ask: Ask) -> None:
    few = requiring("few", ["modify"], maxEstimatedRows=10)
    snapshot = compiled(policy([few, READ, DROP]))
    assert ask(snapshot, ("modify", ORDERS))["needs"] == ["rows"]
    assert ask(snapshot, ("modify", ORDERS))["lasts"] == "never"
    assert "needs" not in ask(snapshot, ("read", ORDERS))
    assert "needs" not in ask(snapshot, ("modify", ORDERS), ("destroy", ORDERS))
    assert "needs" not in ask(snapshot, ("modify", ORDERS), ("delete", ORDERS))
    assert "needs" not in ask(snapshot, ("modify", ORDERS), rows=3)
    free = compiled(policy([few, rule("any", "Allow", ["modify"])]))
    assert "needs" not in ask(free, ("modify", ORDERS))


@pytest.mark.peer
def test_uses_are_counted_where_nothing_gives_leave_without(ask: Ask) -> None:
    some = requiring("some", ["create"], maxRepeats={"count": 3, "per": "24h"})
    snapshot = compiled(policy([some, READ]))
    used = [{"rule": "agents/billing/some", "count": 3, "per_s": 86400}]
    assert ask(snapshot, ("create", ORDERS), repeats={})["counts"] == used
    assert ask(snapshot, ("create", ORDERS), repeats={"agents/billing/some": 2})["counts"] == used
    full = ask(snapshot, ("create", ORDERS), repeats={"agents/billing/some": 3})
    assert full["action"] == "Deny"
    assert "only 3 times in 1440 minutes" in full["message"]
    assert "counts" not in full
    for odd in (None, [], {"agents/billing/some": None}, {"agents/billing/some": "1"}):
        assert ask(snapshot, ("create", ORDERS), repeats=odd)["action"] == "Deny"
    assert ask(snapshot, ("create", ORDERS))["action"] == "Deny"
    assert "counts" not in ask(snapshot, ("read", ORDERS), repeats={})
    free = compiled(policy([some, rule("any", "Allow", ["create"])]))
    found = ask(free, ("create", ORDERS), repeats={})
    assert (found["action"], "counts" in found, found["lasts"]) == ("Allow", False, "never")


def minute(text: str) -> int:
    """The Unix minute of a moment in UTC."""
    return int(datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()) // 60


# 2026-03-29 and 2026-10-25 change the clocks in Berlin; 2026-07-03 is a Friday.
TIMES = [
    (WORK, "2026-07-03 04:59", False),
    (WORK, "2026-07-03 05:00", True),
    (WORK, "2026-07-03 16:59", True),
    (WORK, "2026-07-03 17:00", False),
    (WORK, "2026-07-04 10:00", False),
    (WORK, "2026-01-05 05:30", False),
    (WORK, "2026-01-05 06:00", True),
    (NIGHT, "2026-07-03 19:59", False),
    (NIGHT, "2026-07-03 20:00", True),
    (NIGHT, "2026-07-04 03:59", True),
    (NIGHT, "2026-07-04 04:00", False),
    (NIGHT, "2026-07-03 01:00", False),
    (NIGHT, "2026-07-04 20:30", False),
    (NIGHT | {"days": ["Sat-Sun"]}, "2026-07-06 00:00", True),
    (NIGHT | {"days": ["Sun"]}, "2026-07-06 00:00", True),
    (NIGHT | {"days": ["Mon"]}, "2026-07-06 00:00", False),
    (NIGHT | {"days": ["Sat-Mon"]}, "2026-07-05 21:00", True),
    (WORK | {"days": ["Sun"], "from": "02:30", "to": "04:00"}, "2026-03-29 01:00", True),
    (WORK | {"days": ["Sun"], "from": "02:30", "to": "04:00"}, "2026-03-29 00:59", False),
    (WORK | {"days": ["Sun"], "from": "02:00", "to": "02:30"}, "2026-10-25 00:10", True),
    (WORK | {"days": ["Sun"], "from": "02:00", "to": "02:30"}, "2026-10-25 01:10", True),
    (WORK | {"days": ["Sun"], "from": "02:00", "to": "02:30"}, "2026-10-25 00:40", False),
    (WORK | {"from": "00:00", "to": "24:00"}, "2026-07-03 21:59", True),
    (WORK | {"from": "00:00", "to": "24:00"}, "2026-07-03 22:00", False),
    (WORK | {"timezone": "Asia/Kathmandu", "days": ["Sat"], "from": "00:00", "to": "00:01"}, "2026-07-03 18:15", True),
    ({"from": "07:00", "to": "19:00", "timezone": "UTC"}, "2026-07-04 07:00", True),
]


@pytest.mark.peer
@pytest.mark.parametrize(("window", "moment", "is_inside"), TIMES)
def test_windows_go_by_the_clock_on_the_wall(ask: Ask, window: Object, moment: str, is_inside: bool) -> None:
    now = minute(moment)
    of_policy = compiled(policy([READ], windows=[window]))
    found = ask(of_policy, ("read", ORDERS), minute=now)
    assert (found["action"], found["lasts"]) == ("Allow" if is_inside else "Deny", "minute")
    of_rule = compiled(policy([rule("no", "Deny", ["read"], windows=[window]), READ]))
    found = ask(of_rule, ("read", ORDERS), minute=now)
    assert (found["action"], found["lasts"]) == ("Deny" if is_inside else "Allow", "minute")


@pytest.mark.peer
def test_windows_of_policy_and_rule_hold_both_and_one_of_a_list_is_enough(ask: Ask) -> None:
    late = WORK | {"from": "18:00", "to": "23:00"}
    snapshot = compiled(policy([READ | {"windows": [late]}], windows=[WORK]))
    noon, evening, night = (minute(f"2026-07-03 {hour}") for hour in ("10:00", "16:30", "18:00"))
    assert [ask(snapshot, ("read", ORDERS), minute=now)["action"] for now in (noon, evening, night)] == [
        "Deny", "Allow", "Deny",
    ]  # fmt: skip
    either = compiled(policy([READ], windows=[WORK, late]))
    assert [ask(either, ("read", ORDERS), minute=now)["action"] for now in (noon, evening, night)] == ["Allow"] * 3


@pytest.mark.peer
def test_without_the_time_nothing_passes_where_windows_are(ask: Ask) -> None:
    snapshot = compiled(policy([rule("no", "Deny", ["modify"], windows=[WORK]), READ]))
    for facts in ({}, {"minute": None}, {"minute": "now"}):
        found = ask(snapshot, ("read", ORDERS), **facts)
        assert (found["action"], found["rule"], found["policy"]) == ("Deny", "clock", "")


@pytest.mark.peer
def test_a_decision_that_no_window_touches_stands_for_its_revision(ask: Ask) -> None:
    snapshot = compiled(policy([rule("no", "Deny", ["modify"], windows=[WORK]), READ]))
    assert "lasts" not in ask(snapshot, ("read", ORDERS), minute=minute("2026-07-03 10:00"))


@pytest.mark.peer
def test_select_1_and_begin_find_an_allow_that_is_open_behind_one_that_is_not(ask: Ask) -> None:
    first = rule("a-late", "Allow", ["read"], windows=[NIGHT])
    snapshot = compiled(policy([first, rule("b", "Allow", ["read"], [ORDERS])]))
    now = minute("2026-07-03 10:00")
    assert ask(snapshot, ("read", ""), minute=now)["rule"] == "b"
    assert ask(snapshot, ("transaction", ""), minute=now)["rule"] == "b"


# --- mode Observe -----------------------------------------------------------------------------------

OBSERVED = policy([READ, rule("no-secrets", "Deny", ["read"], ["public.secrets"])], "tried", mode="Observe")
ENFORCED = policy([rule("orders", "Allow", ["read"], [ORDERS, "public.secrets"])], "billing")
GUARDRAIL = cluster_policy([DROP])
OPEN = cluster_policy([rule("all", "Allow", ["*"])], "open")
TRIED_CLUSTER = cluster_policy([rule("none", "Deny", ["*"])], "tried", mode="Observe")
DENIALS = policy([DROP], "tried", mode="Observe")
TRIED_LEAVE = cluster_policy([rule("all", "Allow", ["*"])], "tried", mode="Observe")
ORDERS_ALLOWED, SECRETS_DENIED = "Allow agents/billing orders", "Deny agents/tried no-secrets"
UNCOVERED, NONE_DENIED, READ_TRIED = "Deny  uncovered", "Deny tried none", "Allow agents/tried read"
SECRETS = ("read", "public.secrets")
MODES: list[tuple[str, list[Object], list[Object], tuple[str, str], str, str]] = [
    ("allowed", [OBSERVED], [], ("read", ORDERS), "Allow agents/tried read", ""),
    ("denied, if it were in force", [OBSERVED], [], SECRETS, "Allow  observed", SECRETS_DENIED),
    ("uncovered, if it were in force", [OBSERVED], [], ("modify", ORDERS), "Allow  observed", UNCOVERED),
    ("critical and observed", [OBSERVED], [], ("destroy", ORDERS), "Allow  observed", UNCOVERED),
    ("unknown is refused", [OBSERVED], [], ("unknown", ""), UNCOVERED, ""),
    ("a guardrail is in force", [OBSERVED], [GUARDRAIL], ("destroy", ORDERS), "Deny guardrail drop", ""),
    ("beside a guardrail", [OBSERVED], [GUARDRAIL], ("modify", ORDERS), "Allow  observed", UNCOVERED),
    ("granted in force", [OBSERVED, ENFORCED], [], ("read", ORDERS), ORDERS_ALLOWED, ""),
    ("granted in force, denied in trial", [OBSERVED, ENFORCED], [], SECRETS, ORDERS_ALLOWED, SECRETS_DENIED),
    ("uncovered in force stays so", [OBSERVED, ENFORCED], [], ("read", "a.b"), UNCOVERED, READ_TRIED),
    ("uncovered by both", [OBSERVED, ENFORCED], [], ("modify", "a.b"), UNCOVERED, ""),
    ("a cluster's grants are in force", [OBSERVED], [OPEN], ("modify", "a.b"), "Allow open all", ""),
    ("a guardrail in trial denies nobody", [ENFORCED], [TRIED_CLUSTER], ("read", ORDERS), ORDERS_ALLOWED, NONE_DENIED),
    ("a guardrail in trial opens nothing", [ENFORCED], [TRIED_CLUSTER], ("modify", ORDERS), UNCOVERED, NONE_DENIED),
    ("denials in trial open nothing", [DENIALS], [], ("modify", ORDERS), UNCOVERED, ""),
    ("a cluster policy in trial opens nothing", [], [TRIED_LEAVE], ("modify", ORDERS), UNCOVERED, "Allow tried all"),
    ("transactions", [OBSERVED], [], ("transaction", ""), "Allow agents/tried read", ""),
]  # fmt: skip


@pytest.mark.peer
@pytest.mark.parametrize(
    ("own", "cluster", "access", "expected", "would"), [one[1:] for one in MODES], ids=[one[0] for one in MODES]
)
def test_what_is_observed_is_said_and_not_done(
    ask: Ask, own: list[Object], cluster: list[Object], access: tuple[str, str], expected: str, would: str
) -> None:
    found = ask(compiled(*own, cluster=tuple(cluster)), access)
    assert f"{found['action']} {found['policy']} {found['rule']}" == expected
    said = found.get("would")
    different = would if would.split(" ", maxsplit=1)[0] != expected.split(" ", maxsplit=1)[0] else ""
    assert (f"{said['action']} {said['policy']} {said['rule']}" if said else "") == different


@pytest.mark.peer
def test_a_rule_that_is_named_like_a_refusal_is_a_rule(ask: Ask) -> None:
    guard = cluster_policy([rule("uncovered", "Deny", ["modify"])])
    found = ask(compiled(OBSERVED, cluster=(guard,)), ("modify", ORDERS))
    assert (found["action"], found["policy"]) == ("Deny", "guardrail")


def test_an_observed_identity_gets_its_credential_and_keeps_its_limits() -> None:
    snapshot = compiled(policy([READ], mode="Observe", limits={"connections": 2}))
    assert b"orders-db-reader" in snapshot.leases
    assert compiled(policy([DROP], mode="Observe")).leases == b"{}"
    assert compiled(cluster=(cluster_policy([READ], mode="Observe"),)).leases == b"{}"
    assert b'"connections":{"max":2' in snapshot.gateway
