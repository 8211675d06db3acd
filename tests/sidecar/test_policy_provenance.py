"""Policy that the operator did not sign for this agent, or that is old, counts for nothing, whoever hands it over."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_broker import Broker
from fix_collector import Collector
from fix_opa import Opa
from fix_postgres import Postgres
from manifests import rule
from pod_gateway import WAIT_S, compiled, connect, install, ruled, running, serving, until
from prometheus_client import REGISTRY
from psycopg import errors

from chaperone_evidence.note import Signer
from chaperone_operator import signing
from chaperone_operator.kube import CONFIG_MAPS
from chaperone_sidecar.errors import ConfigError, PolicyUntrusted
from chaperone_sidecar.policy.provenance import STATE, Provenance

KEY = Signer("cluster-uid/operator", Ed25519PrivateKey.generate())
READS = [rule("some", "Allow", ["read"])]
CONFIG, BUNDLE = b'{"revision":"0123456789abcdef"}', b"bundle"
REVISION, OTHER = "0123456789abcdef", "fedcba9876543210"


def body(
    serial: int | str = 7, *, whose: str = "agents/billing", revision: str = REVISION, config: bytes = CONFIG,
    subject: str = "chaperone.dev/policy",
) -> str:  # fmt: skip
    digests = "\n".join(signing._sha256(part) for part in (config, BUNDLE))
    return f"{subject}\n{whose}\n{serial}\n{revision}\n{digests}\n"


def provenance(folder: Path, vkey: str = KEY.verifier.vkey) -> Provenance:
    return Provenance(vkey, "agents", "billing", folder)


def refused(what: str) -> float:
    return REGISTRY.get_sample_value("chaperone_gateway_policies_refused_total", {"what": what}) or 0.0


# --- one note -----------------------------------------------------------------------------------


def test_what_the_operator_signed_is_taken(tmp_path: Path) -> None:
    found = provenance(tmp_path)
    statement = found.check(CONFIG, KEY.sign(body()))
    assert (statement.serial, statement.revision) == (7, REVISION)
    found.check_bundle(BUNDLE, statement)


@pytest.mark.parametrize(
    ("what", "note"),
    [
        ("signature", b""),
        ("signature", b"rubbish\n"),
        ("signature", body().encode() + b"\n"),
        ("signature", KEY.sign(body()).replace(b"\n7\n", b"\n8\n")),
        ("signature", Signer("cluster-uid/operator", Ed25519PrivateKey.generate()).sign(body())),
        ("identity", KEY.sign(body(whose="agents/other"))),
        ("identity", KEY.sign(body(whose="others/billing"))),
        ("note", KEY.sign(body(subject="chaperone.dev/stream"))),
        ("note", KEY.sign(body() + "more\n")),
        ("note", KEY.sign(body("-1"))),
        ("note", KEY.sign(body("07"))),
        ("note", KEY.sign(body(revision=""))),
        ("config", KEY.sign(body(config=b"another"))),
    ],
)
def test_any_other_note_is_refused_and_leaves_no_trace(tmp_path: Path, what: str, note: bytes) -> None:
    found, before = provenance(tmp_path), refused(what)
    with pytest.raises(PolicyUntrusted):
        found.check(CONFIG, note)
    assert refused(what) == before + 1
    found.check(CONFIG, KEY.sign(body(1)))


def test_every_altered_byte_of_configuration_and_bundle_is_refused(tmp_path: Path) -> None:
    found = provenance(tmp_path)
    statement = found.check(CONFIG, KEY.sign(body()))
    for place in range(len(CONFIG)):
        altered = bytes(byte ^ (index == place) for index, byte in enumerate(CONFIG))
        with pytest.raises(PolicyUntrusted):
            found.check(altered, KEY.sign(body(8)))
    for altered in (b"", BUNDLE[:-1], BUNDLE + b"\0", b"Bundle"):
        with pytest.raises(PolicyUntrusted):
            found.check_bundle(altered, statement)


def test_nothing_older_comes_back_not_even_after_a_restart(tmp_path: Path) -> None:
    found = provenance(tmp_path / "spool")
    found.check(CONFIG, KEY.sign(body(7)))
    for _ in range(2):
        for old in (body(6), body(6, revision=OTHER), body(7, revision=OTHER)):
            with pytest.raises(PolicyUntrusted):
                found.check(CONFIG, KEY.sign(old))
        found.check(CONFIG, KEY.sign(body(7)))
        found = provenance(tmp_path / "spool")
    found.check(CONFIG, KEY.sign(body(8, revision=OTHER)))


def test_what_cannot_be_kept_counts_until_the_restart(tmp_path: Path) -> None:
    found = Provenance(KEY.verifier.vkey, "agents", "billing", tmp_path / "unmade")
    (tmp_path / "unmade").write_text("no folder either")
    found.check(CONFIG, KEY.sign(body(7)))
    with pytest.raises(PolicyUntrusted):
        found.check(CONFIG, KEY.sign(body(6)))


@pytest.mark.parametrize("kept", [b"", b"{", b'{"serial": "7"}', b'{"serial": 7, "more": 1}', b"\xff"])
def test_a_memory_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / STATE).write_bytes(kept)
    with pytest.raises(ConfigError, match="Make the pod anew"):
        provenance(tmp_path)


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    for vkey in ("", "name+00000000+AAAA", KEY.verifier.vkey[:-2]):
        with pytest.raises(ConfigError):
            provenance(tmp_path, vkey)


# --- in a pod -----------------------------------------------------------------------------------


def altered(data: dict[str, str], name: str, before: bytes, after: bytes) -> dict[str, str]:
    content = base64.b64decode(data[name])
    assert before in content
    return data | {name: base64.b64encode(content.replace(before, after, 1)).decode()}


def with_header_byte(data: dict[str, str]) -> dict[str, str]:
    """Another time of making in gzip's header: the same policy, in other bytes."""
    bundle = bytearray(base64.b64decode(data["bundle.tar.gz"]))
    bundle[4] ^= 1
    return data | {"bundle.tar.gz": base64.b64encode(bundle).decode()}


def swapped(data: dict[str, str]) -> dict[str, str]:
    notes = msgspec.json.decode(base64.b64decode(data[signing.NOTES]), type=dict[str, str])
    mine, other = notes["billing-agent"], notes["other-agent"]
    return data | {
        signing.NOTES: base64.b64encode(msgspec.json.encode({"billing-agent": other, "other-agent": mine})).decode()
    }


@pytest.mark.peer
@pytest.mark.timeout(300)  # the gateway asks again with growing pauses
async def test_the_last_good_policy_stays_whatever_the_broker_hands_over(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    first, second = compiled(broker, postgres, "read"), compiled(broker, postgres, "read", "delete")
    old, suspended = broker.signed(first), ruled(broker, postgres, READS, is_suspended=True)
    looser = broker.signed(second)
    strangers = signing.Signer(f"{broker.cluster}/operator", Ed25519PrivateKey.generate())
    await broker.put_snapshot(first)
    async with running(broker, collector, opa_with(first.bundle), tmp_path, "keeps") as (gateway, port, _):

        async def still_refuses() -> None:
            assert gateway.config.revision == first.revision
            async with await connect(port) as agent:
                assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
                with pytest.raises(errors.InsufficientPrivilege):
                    await agent.execute("DELETE FROM invoices WHERE id = 91")

        namespace = broker.agents
        forged = signing.signed(second.binary_data(), namespace, second.revision, None, strangers, 10**15)
        elsewhere = signing.signed(second.binary_data(), "others", second.revision, None, broker.signer, 10**15)
        for what, data in (
            ("signature", forged),
            ("identity", swapped(broker.signed(second))),
            ("identity", elsewhere),
            ("config", altered(broker.signed(second), "gateway.json", b'"team":""', b'"team":"x"')),
            ("serial", looser),  # a policy of before that allows more
        ):
            before = refused(what)
            await broker.put_data(data)
            await until(lambda what=what, before=before: refused(what) > before)
            await still_refuses()
        before = refused("bundle")
        await broker.put_data(with_header_byte(broker.signed(second)))
        await until(lambda: refused("bundle") > before)
        await still_refuses()

        await broker.put_snapshot(suspended)  # signed too, and at once
        await until(lambda: gateway.config.suspension is not None)
        before = refused("serial")
        await broker.put_data(old)  # nobody is resumed by a policy of before
        await until(lambda: refused("serial") > before)
        with pytest.raises(psycopg.OperationalError, match="is suspended"):
            await connect(port)

        async with broker.admin() as client:  # made anew, it is later all the same
            await client.delete(CONFIG_MAPS, f"snapshot-{namespace}", broker.system)
        await broker.put_snapshot(second)
        await until(lambda: gateway.config.revision == second.revision)
        async with await connect(port) as agent:
            await agent.execute("DELETE FROM invoices WHERE id = 91")


@pytest.mark.peer
async def test_a_gateway_serves_nothing_before_signed_policy_and_no_old_one_after_a_restart(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    old, new = compiled(broker, postgres, "read", "delete"), compiled(broker, postgres, "read")
    signed_old, signed_new = broker.signed(old), broker.signed(new)
    opa, pod = opa_with(new.bundle), await broker.pod("restarts")
    unsigned = {name: part for name, part in signed_old.items() if name != signing.NOTES}
    looks = await broker.pod("looks")
    await looks.set_status(restarts=0)
    assert (await looks.exchange())[0] == 200

    for start, (what, bad) in enumerate((("signature", unsigned), ("serial", signed_old))):
        before = refused(what)
        await broker.put_data(bad)
        async with asyncio.timeout(WAIT_S):  # else the gateway may get what the broker had before
            while (await looks.call("GET", "/v1/config"))[1]["revision"] != old.revision:  # noqa: ASYNC110 - the broker's
                await asyncio.sleep(1)  # calls are counted
        gateways = serving(pod.restarted(), collector, opa, tmp_path, restarts=start)
        starting = asyncio.ensure_future(gateways.__aenter__())
        await until(lambda what=what, before=before: refused(what) > before)
        assert not starting.done()
        await broker.put_data(signed_new)
        gateway, port, _ = await starting
        try:
            assert gateway.config.revision == new.revision
            async with await connect(port) as agent:
                with pytest.raises(errors.InsufficientPrivilege):
                    await agent.execute("DELETE FROM invoices WHERE id = 92")
        finally:
            await gateways.__aexit__(None, None, None)


@pytest.mark.peer
async def test_without_opa_only_what_was_decided_before_passes(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], postgres: Postgres,
    tmp_path: Path,
) -> None:  # fmt: skip
    collector = collector_with()
    await install(broker, postgres, collector)
    snapshot = compiled(broker, postgres, "read")
    await broker.put_snapshot(snapshot)
    opa = opa_with(snapshot.bundle)
    async with (
        running(broker, collector, opa, tmp_path, "opa-ends") as (_, port, _),
        await connect(port) as agent,
    ):
        await agent.execute("SELECT count(*) FROM orders")
        with pytest.raises(errors.InsufficientPrivilege):
            await agent.execute("DELETE FROM invoices WHERE id = 93")
        opa.process.send_signal(signal.SIGSTOP)  # wedged: it accepts and does not answer
        try:
            assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
            for statement in ("SELECT count(*) FROM invoices", "UPDATE invoices SET paid = true WHERE id = 93"):
                with pytest.raises(errors.InsufficientPrivilege, match="OPA does not answer"):
                    await agent.execute(statement)
            with pytest.raises(errors.InsufficientPrivilege):
                await agent.execute("DELETE FROM invoices WHERE id = 93")
        finally:
            opa.process.send_signal(signal.SIGCONT)
        await agent.execute("SELECT count(*) FROM invoices")
        opa.process.kill()
        opa.process.wait(10)
        with pytest.raises(errors.InsufficientPrivilege, match="OPA does not answer"):
            await agent.execute("SELECT count(*) FROM customers")
        assert await (await agent.execute("SELECT count(*) FROM orders")).fetchone() == (1000,)
