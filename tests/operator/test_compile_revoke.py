"""What is withdrawn takes effect even while the namespace's policy does not compile."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from fix_opa import Opa
from manifests import Object, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace, revoke

IDENTITIES = [identity(), identity("other-agent")]
TARGETS = [target(), target("files-db")]
POLICIES = [
    policy(
        [rule("read", "Allow", ["read"])],
        subjects=[{"identity": "billing-agent"}, {"identity": "other-agent"}],
        targets=[{"name": "orders-db"}, {"name": "files-db"}],
    )
]


def last() -> Snapshot:
    return compile_namespace("agents", IDENTITIES, TARGETS, POLICIES, [], namespace_labels={})


def revoked(identities: list[Object] | None = None, targets: list[Object] | None = None) -> Snapshot:
    return revoke(
        last().binary_data(),
        "agents",
        IDENTITIES if identities is None else identities,
        TARGETS if targets is None else targets,
        namespace_labels={},
    )


def targets_of(snapshot: Snapshot, name: str) -> list[str]:
    return [one["name"] for one in json.loads(snapshot.gateway)[name]["targets"]]


def test_nothing_withdrawn_gives_the_same_bytes() -> None:
    assert revoked() == last()


@pytest.mark.parametrize(
    "identities",
    [
        [identity(suspended=True), identity("other-agent")],
        [identity("other-agent")],
        [identity(suspended=True, owner=7), identity("other-agent")],
        [identity(suspended="yes"), identity("other-agent")],
    ],
    ids=["suspended", "deleted", "suspended and broken", "suspended in other words"],
)
def test_identity_is_out_of_force_at_once(identities: list[Object]) -> None:
    snapshot = revoked(identities)
    assert snapshot.revision != last().revision
    assert targets_of(snapshot, "billing-agent") == []
    assert targets_of(snapshot, "other-agent") == ["files-db", "orders-db"]
    assert json.loads(snapshot.leases).keys() == {"other-agent"}


@pytest.mark.parametrize(
    "targets",
    [[target()], [target(), target("files-db", allowedNamespaces={"names": ["elsewhere"]})]],
    ids=["deleted", "does not admit the namespace any more"],
)
def test_target_is_out_of_force_at_once(targets: list[Object]) -> None:
    snapshot = revoked(targets=targets)
    for name in ("billing-agent", "other-agent"):
        assert targets_of(snapshot, name) == ["orders-db"]
        assert json.loads(snapshot.leases)[name].keys() == {"orders-db"}


def test_target_that_cannot_be_read_stays_as_it_was() -> None:
    assert revoked(targets=[target(), target("files-db", port="x")]) == last()


def test_nothing_new_comes_in_by_this_way() -> None:
    assert revoked([*IDENTITIES, identity("new")], [*TARGETS, target("new-db")]) == last()


def test_suspension_is_not_lifted_by_this_way() -> None:
    suspended = revoked([identity(suspended=True), identity("other-agent")])
    again = revoke(suspended.binary_data(), "agents", IDENTITIES, TARGETS, namespace_labels={})
    assert targets_of(again, "billing-agent") == []
    assert json.loads(again.leases).keys() == {"other-agent"}


def test_last_snapshot_that_cannot_be_read_is_an_error() -> None:
    broken = last().binary_data() | {"bundle.tar.gz": "AAAA"}
    with pytest.raises(ValueError, match="cannot be read"):
        revoke(broken, "agents", IDENTITIES, TARGETS, namespace_labels={})


@pytest.mark.peer
def test_opa_denies_what_was_withdrawn(opa_with: Callable[[bytes], Opa]) -> None:
    snapshot = revoked([identity(suspended=True), identity("other-agent")], [target()])
    opa = opa_with(snapshot.bundle)

    def rule_of(name: str, wanted: str) -> str:
        accesses = [{"effect": "read", "object": "public.orders"}]
        question = {"identity": name, "target": wanted, "protocol": "PostgreSQL", "resolution": "syntactic"}
        found: str = opa.decide(question | {"accesses": accesses})["rule"]
        return found

    assert rule_of("billing-agent", "orders-db") == "suspended"
    assert rule_of("other-agent", "orders-db") == "read"
    assert rule_of("other-agent", "files-db") == "uncovered"
