"""What a real gateway records is enough to make its decisions again: minute, estimate and uses among it."""

from __future__ import annotations

import contextlib
import gzip
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from fix_dev import Gateway
from manifests import rule

from chaperone_cli.evidence import open_source
from chaperone_cli.policy_ask import Engine
from chaperone_cli.policy_history import History
from chaperone_cli.policy_world import Unusable, from_directory, set_local_aside
from chaperone_cli.reperform import Again, Reperformance
from chaperone_cli.revisions import Kept
from chaperone_evidence import record
from chaperone_evidence.revision import Files, Revision
from chaperone_operator.compile.snapshot import bundle

pytestmark = pytest.mark.peer

RULES: list[dict[str, Any]] = [
    {"name": "once", "action": "Allow", "match": {
        "effects": ["read", "bulk_read"], "objects": ["public.invoices"],
        "require": {"maxRepeats": {"count": 2, "per": "1d"}}}},
    {"name": "few", "action": "Allow", "match": {
        "effects": ["read", "bulk_read"], "objects": ["public.orders"], "require": {"maxEstimatedRows": 1000000}}},
    {"name": "none", "action": "Deny", "match": {
        "effects": ["read"], "objects": ["public.customers"]}},
    rule("sessions", "Allow", ["session"]),
]  # fmt: skip


def kept(manifests: Path) -> Kept:
    """The policy of `chaperone dev` as a bundle would have it; nobody signs it there."""
    world = from_directory(manifests, "billing-agent")
    set_local_aside(world.objects["AccessTarget"])
    made = world.snapshot("agents")
    files = Files(made.bundle, made.gateway, b"{}")
    found = Revision("dev", "agents", made.revision, 1, ("billing-agent",), files)
    return Kept({("agents", made.revision): found})


def test_what_a_gateway_decided_is_decided_again(gateway_with: Callable[..., Gateway], tmp_path: Path) -> None:
    gateway = gateway_with(rules=RULES)
    texts = [
        *["SELECT * FROM invoices"] * 3, "SELECT * FROM orders", "SELECT id FROM orders WHERE id = 1",
        "SELECT * FROM customers", "DROP TABLE orders", "SELECT 1", "SELEC 1", "SET application_name = 'x'",
    ]  # fmt: skip
    with gateway.connect() as connection:
        for text in texts:
            with contextlib.suppress(psycopg.Error):
                connection.execute(text)
    gateway.stop()
    intents = [one for one in gateway.records() if isinstance(one, record.CommandIntent)]
    around = [one.circumstances for one in intents if isinstance(one.circumstances, record.Circumstances)]
    assert any(isinstance(one.rows, int) for one in around)
    assert {tuple(use.count for use in one.uses) for one in around if one.uses} >= {(1,), (2,)}
    assert [one.decision for one in intents[:3]] == ["Allow", "Allow", "Deny"]

    told: list[Again] = []
    with open_source(gateway.evidence) as source, Reperformance(told.append) as again:
        result = again.run(History(source, has_texts=True), kept(tmp_path / "manifests-0"))
    assert [one for one in told if one.verdict != "agrees"] == []
    assert (result.commands, result.reperformed, result.differences) == (len(intents), len(intents), 0)


def test_policy_of_evidence_reaches_nothing_outside_it() -> None:
    """Whose key signed a bundle is the auditor's to say; whatever it says, it is asked and does nothing else."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(2.0)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        text = f'decision := {{"action": "Allow"}} if http.send({{"method": "GET", "url": "{url}"}}).status_code == 200'
        made = bundle({"grants": {}, "identities": {}}, "0" * 16, b"package chaperone\n" + text.encode(), {})
        with Engine(made) as engine:
            assert engine.decide([{"identity": "a"}]) == [None]
        with pytest.raises(TimeoutError):
            listening.accept()


@pytest.mark.parametrize(
    "data",
    [b"", b"x", gzip.compress(b"x"), gzip.compress(bytes(65 << 20)), b"\x1f\x8b\x08"],
    ids=["empty", "no gzip", "no tar", "a bomb", "cut"],
)
def test_what_is_no_bundle_is_said(data: bytes) -> None:
    with pytest.raises(Unusable):
        Engine(data)
