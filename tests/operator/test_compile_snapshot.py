"""The bytes of a snapshot: what gateway, OPA and broker read, and that they depend on the objects alone."""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import tarfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.compile.address import virtual_hosts
from chaperone_operator.compile.snapshot import engine
from chaperone_sidecar.config import decode

READ = rule("read", "Allow", ["read"], ["public.*", "a.b"])
CLASSIFIED = [{"columns": ["a.b.c", "a.b.d"], "class": "email"}]
MASKS = [{"columns": ["a.b.c"], "method": "Hash"}, {"detectors": ["Email", "IBAN"], "method": "Redact"}]


def compiled(**changed: Any) -> Snapshot:
    arguments: dict[str, Any] = {
        "identities": [identity(), identity("other-agent")],
        "targets": [target(), target("files-db", hosts=["files.svc", "10.1.2.3", "10.9.0.0/16"])],
        "policies": [policy([READ]), policy([rule("w", "Allow", ["modify"])], name="writers")],
        "cluster_policies": [cluster_policy([rule("never", "Deny", ["destroy"])])],
    } | changed
    return compile_namespace("agents", **arguments, namespace_labels={}, system_namespace="system")


def files(bundle: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        assert {(member.mtime, member.uid, member.mode) for member in archive} == {(0, 0, 0o644)}
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def test_bundle_holds_manifest_engine_and_data_of_one_revision() -> None:
    snapshot = compiled()
    inside = files(snapshot.bundle)
    assert set(inside) == {".manifest", "chaperone/engine.rego", "chaperone/data.json"}
    assert json.loads(inside[".manifest"]) == {"revision": snapshot.revision, "roots": ["chaperone"], "rego_version": 1}
    assert inside["chaperone/engine.rego"] == engine()
    assert json.loads(inside["chaperone/data.json"])["revision"] == snapshot.revision


def test_gateway_reads_its_configuration() -> None:
    snapshot = compiled()
    configs = {name: decode(json.dumps(raw).encode()) for name, raw in json.loads(snapshot.gateway).items()}
    config = configs["billing-agent"]
    assert (config.revision, config.system_namespace) == (snapshot.revision, "system")
    assert (config.identity.uid, config.identity.owner.name) == ("uid-of-billing-agent", "Billing on-call")
    files_db, orders_db = config.targets
    assert (orders_db.name, orders_db.port, orders_db.upstream.host) == ("orders-db", 5432, "orders-db.data.svc")
    assert (orders_db.tls.mode, orders_db.tls.server_name) == ("VerifyFull", "orders-db.data.svc")
    assert [host.name for host in files_db.hosts] == ["files.svc"]
    assert files_db.addresses == ("10.1.2.3/32", "10.9.0.0/16")
    assert {config.identity.name for config in configs.values()} == set(configs) == {"billing-agent", "other-agent"}


def test_leases_exist_only_where_a_rule_lets_something_through() -> None:
    assert json.loads(compiled().leases) == {
        "billing-agent": {"orders-db": {"secret": "orders-db-reader", "ca_secret": ""}}
    }
    with_ca = target(tls={"mode": "VerifyFull", "caSecretRef": {"name": "orders-ca"}})
    leases = json.loads(compiled(targets=[with_ca]).leases)
    assert leases["billing-agent"]["orders-db"] == {"secret": "orders-db-reader", "ca_secret": "orders-ca"}


def test_credential_that_is_made_for_each_session_is_told_to_the_broker_whole_and_to_the_gateway_as_such() -> None:
    role: Object = {"adminSecretRef": {"name": "orders-admin"}, "grants": ["app_reader"], "validFor": "1h"}
    made = target(credential={"postgresqlRole": role}, tls={"mode": "VerifyFull", "caSecretRef": {"name": "orders-ca"}})
    snapshot = compiled(targets=[made])
    reference = json.loads(snapshot.leases)["billing-agent"]["orders-db"]
    assert reference == {
        "ca_secret": "orders-ca",
        "credential": {"postgresqlRole": role},
        "place": {
            "host": "orders-db.data.svc", "port": 5432, "database": "", "tls_mode": "VerifyFull",
            "server_name": "orders-db.data.svc",
        },
    }  # fmt: skip
    assert b"orders-admin" not in snapshot.gateway
    found = json.loads(snapshot.gateway)["billing-agent"]["targets"][0]
    assert found["leased_per_session"] is True
    assert "leased_per_session" not in json.loads(compiled().gateway)["billing-agent"]["targets"][0]
    assert compiled(targets=[target(credential={"postgresqlRole": role | {"validFor": "2h"}})]) != snapshot


def test_no_name_of_a_secret_reaches_gateway_or_opa() -> None:
    snapshot = compiled()
    assert b"orders-db-reader" not in snapshot.gateway
    assert all(b"orders-db-reader" not in content for content in files(snapshot.bundle).values())


def test_binary_data_is_what_the_config_map_carries() -> None:
    snapshot = compiled()
    data = {name: base64.b64decode(text) for name, text in snapshot.binary_data().items()}
    assert data == {"bundle.tar.gz": snapshot.bundle, "gateway.json": snapshot.gateway, "leases.json": snapshot.leases}


@given(shuffle=st.randoms(use_true_random=False))
def test_bytes_do_not_depend_on_the_order_of_the_objects(shuffle: Any) -> None:
    def turned(items: list[Object]) -> list[Object]:
        return shuffle.sample(items, len(items))  # type: ignore[no-any-return]

    rules = [READ, rule("w", "Allow", ["modify"]), rule("d", "Deny", ["delete"], ["x.y"])]
    same: dict[str, Any] = {
        "identities": [identity(), identity("other-agent"), identity("third")],
        "targets": [target(classified=CLASSIFIED), target("files-db"), target("z-db")],
        "policies": [policy(rules, masks=MASKS), policy([rule("w", "Allow", ["modify"])], name="writers")],
        "cluster_policies": [
            cluster_policy([rule("n", "Deny", ["destroy"])], masks=MASKS[1:], unmaskable="Redact"),
            cluster_policy([READ], name="b"),
        ],
    }
    other = {name: turned(items) for name, items in same.items()}
    other["policies"] = [
        item | {"spec": item["spec"] | {"rules": turned(item["spec"]["rules"])}} for item in other["policies"]
    ]
    assert compiled(**same) == compiled(**other)


def test_anything_that_decides_changes_the_revision() -> None:
    secret = target(credential={"secretRef": {"name": "another"}})
    variants = [
        compiled(),
        compiled(policies=[policy([READ])]),
        compiled(policies=[policy([rule("read", "Allow", ["read"], ["public.*", "a.c"])])]),
        compiled(policies=[policy([rule("read", "Deny", ["read"], ["public.*", "a.b"])])]),
        compiled(cluster_policies=[]),
        compiled(targets=[target()]),
        compiled(targets=[secret]),
        compiled(targets=[target(classified=CLASSIFIED)]),
        compiled(policies=[policy([READ], masks=MASKS)]),
        compiled(policies=[policy([READ], masks=MASKS[1:])]),
        compiled(policies=[policy([READ], masks=MASKS, unmaskable="Redact")]),
        compiled(identities=[identity(), identity("other-agent", suspended=True)]),
    ]
    assert len({variant.revision for variant in variants}) == len(variants)


def test_status_and_labels_do_not_change_the_revision() -> None:
    noisy = policy([READ])
    noisy["metadata"] |= {"labels": {"a": "b"}, "resourceVersion": "7"}
    noisy["status"] = {"conditions": []}
    assert compiled(policies=[noisy]).revision == compiled(policies=[policy([READ])]).revision


def test_snapshot_that_no_config_map_can_hold_is_refused_and_says_so() -> None:
    rules = [
        rule(f"r{index}", "Allow", ["read"], [f"s{index}.{'x' * 200}{i}" for i in range(400)]) for index in range(40)
    ]
    many = [identity(f"agent-{index}") for index in range(100)]
    hosts = [target(f"db-{index}", hosts=[f"db-{index}-{host}.data.svc" for host in range(30)]) for index in range(30)]
    found = compiled(identities=[identity(), *many], targets=[target(), *hosts], policies=[policy(rules)])
    assert not found.is_usable
    assert [(problem.kind, problem.reason) for problem in found.problems] == [("Namespace", "SnapshotTooLarge")]


def test_virtual_addresses_are_the_same_number_in_both_ranges() -> None:
    for host in virtual_hosts(f"db-{index}.svc" for index in range(500)).values():
        v4, v6 = ipaddress.IPv4Address(host.ipv4), ipaddress.IPv6Address(host.ipv6)
        assert v4 in ipaddress.ip_network("240.240.0.0/16")
        assert v6 in ipaddress.ip_network("fd63:6861:7065::/64")
        slot = int(v4) & 0xFFFF
        assert slot == int(v6) & (2**64 - 1)
        assert 1 <= slot <= 65534


@given(st.sets(st.from_regex(r"[a-z]{1,6}\.svc", fullmatch=True), max_size=60), st.sampled_from(["new.svc", "a.svc"]))
def test_virtual_addresses_are_unique_and_hardly_move_when_a_host_comes(names: set[str], more: str) -> None:
    before, after = virtual_hosts(names), virtual_hosts(names | {more})
    assert len({host.ipv4 for host in after.values()}) == len(after)
    # Only a name whose slot the new one takes may move; the chance is below 60 in 65 534 a host.
    assert sum(before[name] != after[name] for name in names) <= 1


def test_virtual_addresses_of_known_names_never_change() -> None:
    assert virtual_hosts(["orders-db.data.svc"])["orders-db.data.svc"].ipv4 == "240.240.91.72"
