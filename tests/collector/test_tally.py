"""How often rules fire: counted with the records, once each, and served to whoever may list tallies."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from fix_collector import Collector, Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector import tally
from chaperone_collector.schema import open_writer
from chaperone_collector.tally import Tally, changes
from chaperone_evidence import record

_PATH = "/apis/evidence.chaperone.dev/v1alpha1/tallies"
_RULES = "SELECT name, rule, action, count FROM tally WHERE what = ? ORDER BY name, rule, action"


def worked(pod: Pod) -> Stream:
    """Three commands allowed, one denied, one that an observed policy would deny, one that nothing covers."""
    stream = Stream(pod)
    stream.head()
    session = stream.open_session()
    for number in range(3):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.intend(session, "DROP TABLE orders", decision="Deny", policy="guardrail", rule="never")
    stream.intend(session, "DELETE FROM orders", would=("Deny", "agents/tried", "no-deletes"))
    stream.intend(session, "SELECT * FROM other", decision="Deny", policy="", rule="uncovered")
    stream.head()
    return stream


async def test_a_rule_counts_once_for_each_record_however_often_it_is_sent_and_over_restarts(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod = Pod(gateway_ca)
    stream = worked(pod)
    frames = list(stream.frames)
    fired = [
        ("", "uncovered", "Deny", 1),
        ("agents/billing", "read-orders", "Allow", 4),
        ("guardrail", "never", "Deny", 1),
    ]
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
        assert collector.rows(_RULES, 1) == fired
        assert collector.rows(_RULES, 2) == [("agents/tried", "no-deletes", "Deny", 1)]
        assert collector.rows(_RULES, 3) == [("billing-agent", "", "Allow", 4), ("billing-agent", "", "Deny", 2)]
        for first in (0, 4, len(frames) - 2):
            assert (await sender.post(stream.id, first, b"".join(frames[first:])))[0] == 200
        assert collector.rows(_RULES, 1) == fired
    collector.kill()
    collector.start()
    async with Sender(collector, pod) as sender:
        assert (await sender.post(stream.id, 0, b"".join(frames)))[0] == 200
        assert collector.rows(_RULES, 1) == fired
        session = stream.open_session()
        stream.intend(session, "SELECT 9")
        await sender.ship(stream)
    assert collector.rows(_RULES, 1)[1] == ("agents/billing", "read-orders", "Allow", 5)
    assert collector.rows("SELECT DISTINCT namespace FROM tally") == [("agents",)]


async def test_a_gateway_cannot_be_last_in_the_future(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    session = stream.open_session()
    stream.now_us += 3600 * 10**6
    stream.intend(session)
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
    ((last_us,),) = collector.rows("SELECT DISTINCT last_us FROM tally")
    assert last_us <= time.time_ns() // 1000


def intent(rule: str, policy: str = "agents/billing") -> record.CommandIntent:
    return record.CommandIntent(
        seq=1, wall_us=5, mono_us=5, session="s", command="c", target="t", kind="query", decision="Allow", sha256="",
        size_bytes=0, policy=policy, rule=rule,
    )  # fmt: skip


def test_a_gateway_that_makes_up_names_reaches_a_bound_and_other_namespaces_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "MAX_PER_NAMESPACE", 5)
    database = open_writer(tmp_path / "evidence.db")
    for _ in range(2):  # the second begins by counting what is there
        made = Tally(database)
        for number in range(20):
            made.take(intent(f"r{number}"), "agents", "a", number, 9)
        made.take(intent("x" * 65), "other", "", 20, 9)
        made.take(intent("rule", "x" * 321), "other", "", 20, 9)
        made.take(intent("rule"), "other", "", 20, 9)
        made.flush()
    per = "SELECT namespace, count(*), max(count) FROM tally GROUP BY namespace"
    assert database.execute(per).fetchall() == [("agents", 5, 40), ("other", 1, 2)]


def test_what_changed_is_told_in_pages_that_leave_nothing_out(tmp_path: Path) -> None:
    database = open_writer(tmp_path / "evidence.db")
    database.execute("INSERT INTO entry (idx, stream, seq, class, bytes) VALUES (9, 1, 0, 0, x'00')")
    made = Tally(database)
    for number in range(10):
        made.take(intent(f"r{number}"), "agents", f"a{number}", number, 9)  # two counters change by each entry
    made.flush()
    seen: set[tuple[int, str, str]] = set()
    since = 0
    while True:
        found, size = changes(database, since, 3)
        assert size == 10
        seen |= {(one.what, one.name, one.rule) for one in found}
        if len(found) < 3:
            break
        since = found[-1].changed
    assert len(seen) == 20
    assert changes(database, size, 3)[0] == []


async def asked(api: EvidenceApi, query: str = "", **who: Any) -> Any:
    return json.loads(await asyncio.to_thread(api.kubectl, "get", "--raw", f"{_PATH}{query}", **who))


@pytest.mark.peer
async def test_tallies_are_listed_by_those_who_may_and_reading_them_leaves_no_record(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    pod = Pod(gateway_ca, namespace="tallied", identity="tallied-agent", pod_uid="uid-tallied")
    async with Sender(evidence_api.collector, pod) as sender:
        await sender.ship(worked(pod))
    reads = "SELECT count(*) FROM reading"
    before = evidence_api.collector.rows(reads)
    whole = await asked(evidence_api)
    mine = [one for one in whole["items"] if one["namespace"] == "tallied"]
    assert [(one["name"], one["count"]) for one in mine if one["rule"] == "read-orders"] == [("agents/billing", 4)]
    assert {one["what"] for one in mine} == {"Rule", "Would", "Identity"}
    assert (await asked(evidence_api, f"?changedSince={whole['metadata']['resourceVersion']}"))["items"] == []
    for query, fragment in (("?changedSince=999999999", "the log is shorter"), ("?changedSince=x", "not one of this")):
        done = await asyncio.to_thread(evidence_api.run, "get", "--raw", f"{_PATH}{query}")
        assert done.returncode != 0
        assert fragment in done.stderr.lower()
    refused = await asyncio.to_thread(evidence_api.run, "get", "--raw", _PATH, user="auditor-1", groups=("auditors",))
    assert "forbidden" in refused.stderr.lower()
    assert evidence_api.collector.rows(reads) == before


def test_an_older_database_counts_from_its_upgrade_on(tmp_path: Path) -> None:
    from chaperone_collector.schema import MIGRATIONS

    path = tmp_path / "evidence.db"
    open_writer(path, MIGRATIONS[:1]).close()
    database: sqlite3.Connection = open_writer(path)
    assert database.execute("SELECT count(*) FROM tally").fetchone() == (0,)
