"""Periodic reports: made up when a collector starts, read by kubectl, and never made anew."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fix_apiserver import running
from fix_evidence_api import EvidenceApi, served
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector import reporting
from chaperone_collector.archive.replay import Replay
from chaperone_collector.metrics import Metrics
from chaperone_collector.schema import open_writer
from chaperone_collector.store import Store
from chaperone_collector.stream import extend, unknown
from chaperone_evidence import canonical, entry, record, statement

pytestmark = [pytest.mark.peer, pytest.mark.timeout(200)]

PATH = "/apis/evidence.chaperone.dev/v1alpha1/evidencereports"
LAST = datetime.now(UTC).date().replace(day=1) - timedelta(days=1)  # of the month before
BEFORE = LAST - timedelta(days=1)
YESTERDAY = datetime.now(UTC).date() - timedelta(days=1)
MADE_WITHIN_S = 60.0


def at(day: date, hour: int) -> int:
    """A moment, in microseconds since 1970."""
    return int(datetime(day.year, day.month, day.day, hour, tzinfo=UTC).timestamp()) * 1_000_000


def busy(ca: Authority) -> Stream:
    """Four commands of the first day: allowed, refused, held, released; and an outcome of nothing."""
    stream = Stream(Pod(ca, pod="billing-0", pod_uid="uid-billing"), start_us=at(BEFORE, 9))
    session = stream.open_session()
    stream.conclude(session, stream.intend(session, "SELECT 1"))
    stream.intend(session, "DROP TABLE orders", decision="Deny")
    stream.intend(session, "UPDATE orders SET total = 0", decision="RequireApproval")
    stream.conclude(session, stream.intend(session, "UPDATE orders SET total = 1", approval="apr-1"))
    stream.add(record.CommandOutcome(seq=0, wall_us=0, mono_us=0, session=session, command="c", ref=2, status="ok"))
    stream.close_session(session, 4, 2)
    stream.close()
    return stream


def late(ca: Authority) -> Stream:
    """One command, of another identity and namespace, on the last day of the month."""
    pod = Pod(ca, namespace="elsewhere", identity="late-agent", pod="late-0", pod_uid="uid-late")
    stream = Stream(pod, start_us=at(LAST, 23))
    session = stream.open_session()
    stream.conclude(session, stream.intend(session, "SELECT 2"))
    stream.close()
    return stream


async def write_past(directory: Path, ca: Authority) -> None:
    """What a collector stored last month, by its own clock of then."""
    now = [at(BEFORE, 9)]
    store = Store(directory, Metrics(), lambda: now[0])
    for stream, moment in ((busy(ca), at(BEFORE, 9)), (late(ca), at(LAST, 23))):
        now[0] = moment
        entries = [frame[2:] for frame in stream.frames]
        extension = extend(unknown(stream.id), entries, stream.pod.subject(), None)
        await store.write(lambda tx, one=extension: tx.append(one))  # type: ignore[misc]
        read = statement.EvidenceRead(wall_us=moment, user="ann", verb="list", resource="commands", rows=1,
                                      namespace="agents")  # fmt: skip
        await store.write(lambda tx, one=read: tx.say(one))  # type: ignore[misc]
    await store.close()


class Reports:
    """A collector that was away since last month, behind an API server."""

    def __init__(self, api: EvidenceApi) -> None:
        self.api = api

    def wait(self) -> list[dict[str, Any]]:
        """All reports, once yesterday's and the last month's are there."""
        pause, ends = threading.Event(), time.monotonic() + MADE_WITHIN_S
        while True:
            items = self.api.get(PATH)["items"]
            if {YESTERDAY.isoformat(), f"{LAST:%Y-%m}"} <= {one["spec"]["period"] for one in items}:
                return items
            assert time.monotonic() < ends, self.api.collector.log.read_text()[-2000:]
            pause.wait(0.3)

    def of(self, period: str) -> dict[str, Any]:
        """The report of a period."""
        (found,) = self.api.get(f"{PATH}?fieldSelector=spec.period={period}")["items"]
        return found

    def restart(self) -> None:
        """As after an upgrade."""
        self.api.collector.start()
        self.api.register()


@pytest.fixture(scope="module")
def reports(gateway_ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reports]:
    folder = tmp_path_factory.mktemp("evidence-api")
    asyncio.run(write_past(folder / "data", gateway_ca))
    with (
        running(tmp_path_factory.mktemp("api-server")) as server,
        served(server, gateway_ca, folder) as api,
    ):
        found = Reports(api)
        found.wait()
        yield found


def _row(one: dict[str, Any], namespace: str) -> dict[str, Any]:
    (row,) = [row for row in one["status"]["namespaces"] if row["name"] == namespace]
    return row


def test_days_that_were_missed_are_made_up_and_hold_each_entry_once(reports: Reports) -> None:
    items = reports.wait()
    expected = [(BEFORE + timedelta(days=n)).isoformat() for n in range((YESTERDAY - BEFORE).days + 1)]
    days = [one for one in items if one["spec"]["kind"] == "Daily"][: len(expected)]  # midnight may pass meanwhile
    assert [one["spec"]["period"] for one in days] == expected
    assert days[0]["spec"]["first"] == 0
    assert all(one["spec"]["end"] == other["spec"]["first"] for one, other in pairwise(days))
    assert [one["status"]["rows"] > 0 for one in days] == [True, True] + [False] * (len(days) - 2)
    assert [one["spec"]["period"] for one in items if one["spec"]["kind"] == "Monthly"] == [f"{LAST:%Y-%m}"]


def test_a_day_and_a_month_say_what_the_log_holds(reports: Reports) -> None:
    first, last, month = reports.of(BEFORE.isoformat()), reports.of(LAST.isoformat()), reports.of(f"{LAST:%Y-%m}")
    counts = {"sessions": 1, "commands": 4, "denied": 1, "held": 1, "approved": 1, "identities": 1, "findings": 1}
    assert _row(first, "agents").items() >= (counts | {"reads": 1, "chainBreaks": 0}).items()
    assert [row["name"] for row in first["status"]["namespaces"]] == ["agents"]
    assert _row(last, "elsewhere").items() >= {"commands": 1, "sessions": 1, "identities": 1, "reads": 0}.items()
    assert _row(last, "agents")["reads"] == 1
    assert _row(month, "agents").items() >= (counts | {"reads": 2}).items()
    assert _row(month, "elsewhere").items() >= {"commands": 1, "identities": 1}.items()
    assert month["status"]["rows"] == first["status"]["rows"] + last["status"]["rows"]
    assert _row(first, "agents")["pods"]["unknown"] == 1  # no population has ever named it
    assert first["status"]["exceptions"] >= 2


def test_a_report_is_an_entry_of_the_signed_log(reports: Reports) -> None:
    one = reports.of(BEFORE.isoformat())
    text, salt = one["spec"]["report"].encode(), base64.b64decode(one["spec"]["salt"])
    assert hashlib.sha256(text).hexdigest() == one["status"]["sha256"]
    assert canonical.encode(canonical.decode(text)) == text
    ((raw,),) = reports.api.collector.rows("SELECT bytes FROM entry WHERE idx = ?", one["status"]["index"])
    found = entry.decode(bytes(raw))
    said = statement.decode(found)
    assert isinstance(said, statement.ReportMade)
    assert found.cls == statement.CLASS_OPERATION
    assert base64.b64decode(said.body.commit) == entry.body_commit(salt + text)
    assert (said.size, said.root) == (one["spec"]["size"], one["spec"]["root"])
    assert one["metadata"]["name"] == f"daily-{BEFORE}-{said.size}"
    (note,) = reports.api.collector.rows("SELECT note FROM checkpoint WHERE size = ?", said.size)
    assert said.root in bytes(note[0]).decode()


def test_kubectl_lists_gets_explains_and_watches_and_reads_are_recorded(reports: Reports) -> None:
    api = reports.api
    head, *rows = api.kubectl("get", "evidencereports").splitlines()
    assert head.split() == ["NAME", "KIND", "PERIOD", "ROWS", "EXCEPTIONS", "SIZE", "AGE"]
    name = rows[0].split()[0]
    assert name.startswith(f"daily-{BEFORE}-")
    monthly = api.kubectl("get", "evidencereports", "--field-selector", "spec.kind=Monthly", "-o", "name").split()
    assert len(monthly) == 1
    assert "Findings, chain breaks" in api.eventually("explain", "evidencereports.status.exceptions")
    assert api.run("get", "evidencereports", "daily-2000-01-01-1").returncode == 1
    lines = api.kubectl("get", "--raw", f"{PATH}?watch=true&timeoutSeconds=1&resourceVersion=0").splitlines()
    assert {json.loads(line)["type"] for line in lines} == {"ADDED"}
    assert len(lines) == len(rows)
    for words in (("delete", "evidencereport", name), ("annotate", "evidencereport", name, "a=b")):
        refused = api.run(*words)
        assert refused.returncode == 1
        assert "read-only" in refused.stderr or "does not allow this method" in refused.stderr, refused.stderr
    read = api.kubectl("get", "reads", "-A", "--field-selector", "spec.resource=evidencereports", "-o", "json")
    assert {one["spec"]["verb"] for one in json.loads(read)["items"]} >= {"get", "list", "watch"}


def test_only_who_may_reads_them(reports: Reports) -> None:
    api = reports.api
    done = api.run("get", "evidencereports", user="stranger", groups=("people",))
    assert done.returncode == 1
    assert "Forbidden" in done.stderr
    api.kubectl("create", "clusterrole", "reports", "--verb=list", "--resource=evidencereports.evidence.chaperone.dev")
    api.kubectl("create", "clusterrolebinding", "reports", "--clusterrole=reports", "--group=accountants")
    pause, ends = threading.Event(), time.monotonic() + 30
    while (done := api.run("get", "evidencereports", user="bob", groups=("accountants",))).returncode:
        assert time.monotonic() < ends, done.stderr
        pause.wait(0.2)
    assert "Daily" in done.stdout


def test_a_text_that_was_changed_is_noticed_and_no_report_is_made_anew(reports: Reports) -> None:
    before = {one["metadata"]["name"]: one["status"]["sha256"] for one in reports.wait()}
    one = reports.of(LAST.isoformat())
    collector = reports.api.collector
    collector.stop()
    changed = one["spec"]["report"].replace('"commands":1', '"commands":0').encode()
    assert changed != one["spec"]["report"].encode()
    with contextlib.closing(sqlite3.connect(collector.data / "evidence.db")) as db:
        body = base64.b64decode(one["spec"]["salt"]) + changed
        done = db.execute("UPDATE body SET bytes = ? WHERE hash = ?", (body, base64.b64decode(one["status"]["commit"])))
        assert done.rowcount == 1
        db.commit()
    reports.restart()
    found = reports.of(LAST.isoformat())
    assert found["status"]["altered"] is True
    assert "namespaces" not in found["status"]
    assert "report" not in found["spec"]
    row = reports.api.kubectl("get", "evidencereport", found["metadata"]["name"]).splitlines()[1]
    assert "<altered>" in row
    assert "is not what the log holds" in collector.log.read_text()
    assert {one["metadata"]["name"]: one["status"]["sha256"] for one in reports.wait()} == before


def test_a_restored_log_has_the_same_reports(reports: Reports, tmp_path: Path) -> None:
    collector = reports.api.collector
    db = open_writer(tmp_path / "evidence.db")
    replay = Replay(db)
    replay.put_bodies({bytes(row[0]): bytes(row[1]) for row in collector.rows("SELECT hash, bytes FROM body")})
    times = dict(collector.rows("SELECT idx, wall_us FROM received"))
    at_us, batch = 0, []
    for idx, stream, raw in collector.rows("SELECT idx, stream, bytes FROM entry ORDER BY idx"):
        if idx in times and batch:
            replay.store(at_us, batch)
            batch = []
        at_us = times.get(idx, at_us)
        batch.append((stream, bytes(raw)))
    replay.store(at_us, batch)
    assert db.execute("SELECT * FROM report ORDER BY idx").fetchall() == collector.rows(
        "SELECT * FROM report WHERE idx < ? ORDER BY idx", replay.size
    )
    db.close()


def test_what_is_due_follows_the_calendar(tmp_path: Path) -> None:
    """A month after its last day and before the next one; nothing before its time; not fifty years at once."""
    db = open_writer(tmp_path / "evidence.db")
    assert reporting.due(db, at(date(2026, 3, 1), 1)) is None
    db.execute("INSERT INTO received (idx, wall_us) VALUES (0, ?)", (at(date(2026, 2, 27), 9),))
    order = []
    now_us = at(date(2026, 3, 2), 0)
    while (period := reporting.due(db, now_us + reporting.GRACE_US)) is not None:
        order.append(period.name)
        said = reporting.make(period, (0, 1), (1, "root"), 0, b"{}", now_us).said
        reporting.keep(db, said, len(order))
    assert order == ["2026-02-27", "2026-02-28", "2026-02", "2026-03-01"]
    assert reporting.due(db, at(date(2026, 3, 3), 0) + reporting.GRACE_US - 1) is None
    assert msgspec.structs.asdict(reporting.day(date(2026, 2, 27)))["until_us"] == at(date(2026, 2, 28), 0)
    db.execute("DELETE FROM report")
    db.execute("UPDATE received SET wall_us = 0")
    first = reporting.due(db, now_us)
    assert first is not None
    assert date(2026, 3, 1) - date.fromisoformat(first.name) == timedelta(days=reporting.MAX_MADE_UP)
    db.close()
