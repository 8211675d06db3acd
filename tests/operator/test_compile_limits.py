"""Limits of several policies become one: the lowest, for each identity at each target, and the gateway can read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.compile.limits import duration_ms, size_bytes
from chaperone_sidecar.config import Limit, Limits, decode

READ = rule("read", "Allow", ["read"])
OTHER = {"subjects": [{"identity": "other-agent"}]}
BOTH = {"targets": [{"name": "orders-db"}, {"name": "files-db"}]}


def compiled(*policies: Object) -> Snapshot:
    found = compile_namespace(
        "agents", [identity(), identity("other-agent")], [target(), target("files-db")],
        [one for one in policies if one["kind"] == "AccessPolicy"],
        [one for one in policies if one["kind"] == "ClusterAccessPolicy"],
        namespace_labels={},
    )  # fmt: skip
    assert found.is_usable, found.problems
    return found


def in_force(snapshot: Snapshot, agent: str = "billing-agent", at: str = "orders-db") -> Limits:
    """What the gateway of an agent reads, with its own reader."""
    config = decode(json.dumps(json.loads(snapshot.gateway)[agent]).encode())
    return next(one.limits for one in config.targets if one.name == at)


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([policy([READ])], Limits()),
        ([policy([READ], limits={"connections": 8})], Limits(connections=Limit(8, "agents/billing"))),
        (
            [policy([READ], limits={"connections": 8}), policy([READ], "strict", limits={"connections": 3})],
            Limits(connections=Limit(3, "agents/strict")),
        ),
        (
            [policy([READ], limits={"connections": 8}), cluster_policy([], limits={"connections": 20})],
            Limits(connections=Limit(8, "agents/billing")),
        ),
        (
            [policy([READ], limits={"connections": 20}), cluster_policy([], limits={"connections": 8})],
            Limits(connections=Limit(8, "guardrail")),
        ),
        (
            [policy([READ], limits={"connections": 8}), cluster_policy([], limits={"connections": 8})],
            Limits(connections=Limit(8, "guardrail")),
        ),
        (
            [policy([READ], limits={"rowsPerCommand": 5}), policy([READ], "b", limits={"commandsPerMinute": 9})],
            Limits(rows_per_command=Limit(5, "agents/billing"), commands_per_minute=Limit(9, "agents/b")),
        ),
        (
            [policy([READ], limits={"bytesPerSession": "1Mi"}), policy([READ], "b", limits={"bytesPerSession": "1M"})],
            Limits(bytes_per_session=Limit(1_000_000, "agents/b")),
        ),
        (
            [policy([READ], limits={"commandDuration": "1m"}), policy([READ], "b", limits={"commandDuration": "61s"})],
            Limits(command_duration_ms=Limit(60_000, "agents/billing")),
        ),
        ([policy([READ]), policy([READ], "b", limits={"connections": 1}, **OTHER)], Limits()),
        ([policy([READ]), policy([READ], "b", limits={"connections": 1}, targets=[{"name": "files-db"}])], Limits()),
        ([cluster_policy([], limits={"connections": 1}, subjects=[{"identity": "*", "namespace": "x"}])], Limits()),
        (
            [cluster_policy([], limits={"connections": 1}, subjects=[{"identity": "billing-agent"}])],
            Limits(connections=Limit(1, "guardrail")),
        ),
    ],
)  # fmt: skip
def test_the_lowest_limit_of_all_policies_that_bind_counts(policies: list[Object], expected: Limits) -> None:
    assert in_force(compiled(*policies)) == expected
    assert in_force(compiled(*reversed(policies))) == expected


def test_limits_are_those_of_one_identity_at_one_target() -> None:
    snapshot = compiled(
        policy([READ], limits={"connections": 4}, **BOTH), policy([READ], "b", limits={"connections": 2}, **OTHER)
    )
    found = {
        (agent, at): in_force(snapshot, agent, at).connections
        for agent in ("billing-agent", "other-agent")
        for at in ("orders-db", "files-db")
    }
    assert found == {
        ("billing-agent", "orders-db"): Limit(4, "agents/billing"),
        ("billing-agent", "files-db"): Limit(4, "agents/billing"),
        ("other-agent", "orders-db"): Limit(2, "agents/b"),
        ("other-agent", "files-db"): None,
    }


def test_a_limit_grants_nothing() -> None:
    snapshot = compiled(cluster_policy([], limits={"connections": 4}))
    assert json.loads(snapshot.leases) == {}


def test_a_target_without_limits_says_nothing_of_them() -> None:
    assert b"limits" not in compiled(policy([READ])).gateway


def test_limits_change_the_revision() -> None:
    stated: list[Any] = [None, {"connections": 8}, {"connections": 9}, {"commandDuration": "9s"}]
    assert len({compiled(policy([READ], limits=one)).revision for one in stated}) == len(stated)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (1, 1), ("1024", 1024), ("64Ki", 65536), ("50Mi", 52428800), ("2Gi", 1 << 31), ("5k", 5000), ("5M", 5 * 10**6),
        ("1G", 10**9), (0, None), ("0Mi", None), ("-1", None), ("1.5Gi", None), ("5m", None), ("5 Mi", None),
        ("", None), ("٥Mi", None), ("9999999Gi", None), (10**13, None),
    ],
)  # fmt: skip
def test_a_size_is_a_kubernetes_quantity(quantity: int | str, expected: int | None) -> None:
    assert size_bytes(quantity) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1s", 1000), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000), ("0s", None), ("500ms", None), ("30", None)],
)
def test_a_duration_is_whole_seconds_minutes_or_hours(text: str, expected: int | None) -> None:
    assert duration_ms(text) == expected
