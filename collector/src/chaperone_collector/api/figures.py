"""What the log holds of a period, by namespace, as a periodic report says it; counted in steps, on a reader's thread.

Cost: each entry is looked at once, in the range of its period and by primary keys, `STEP` of them in one read, and a
month is added up of its days. What is judged, not counted (whether pods are heard), is as of when the report is made,
for pods that were there in the period.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final

from chaperone_collector import reporting
from chaperone_collector.api.coverages import RESOURCE as COVERAGES
from chaperone_collector.api.coverages import Coverages
from chaperone_collector.api.names import micros
from chaperone_collector.api.question import MAX_PAGE, Found, Question, Range
from chaperone_collector.database import Connection
from chaperone_collector.errors import StoreBusy
from chaperone_collector.project import ALLOW, DECISIONS
from chaperone_collector.reporting import DAILY, Altered, Made, Period
from chaperone_collector.store import Store
from chaperone_collector.transaction import Transaction
from chaperone_evidence import canonical
from chaperone_evidence.coverage import State

log = logging.getLogger(__name__)

PERIOD_S: Final = 60.0  # between two looks for a period that is over
UNSIGNED_S: Final = 2.0  # until a checkpoint is there, at the first start
STEP: Final = 100_000  # entries in one read: some 100 ms
COUNTED: Final = ("sessions", "commands", "denied", "held", "approved", "reads", "findings", "chain_breaks")
STATES: Final = tuple(state.lower() for state in State)
HEARD: Final = ("covered", "ended")
_HELD: Final = DECISIONS["RequireApproval"]
_ALL: Final = Question(COVERAGES, "", (), (), "", "")


class Figures:
    """Counts of one period as they grow."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.flows: set[int] = set()
        self.identities: set[tuple[str, str]] = set()

    def of(self, namespace: str) -> Counter[str]:
        """The counts of a namespace; "" is what belongs to none."""
        return self.counts.setdefault(namespace, Counter())

    def add_entries(self, db: Connection, first: int, until: int) -> None:
        """Count what the log holds from `first` to before `until`."""
        bounds = (first, until)
        for flow, namespace, decision, is_approved, count in db.execute(
            "SELECT n.flow, f.namespace, n.decision, n.approved, n.count FROM ("
            "SELECT flow, decision, CASE WHEN approval <> '' THEN 1 ELSE 0 END AS approved, count(*) AS count "
            "FROM command WHERE idx >= ? AND idx < ? GROUP BY flow, decision, 3) n JOIN flow f ON f.id = n.flow",
            bounds,
        ):
            found = self.of(namespace)
            found["commands"] += count
            found["approved"] += count if is_approved and decision == ALLOW else 0
            found["held"] += count if decision == _HELD else 0
            found["denied"] += count if decision not in (ALLOW, _HELD) else 0
            self.flows.add(flow)
        for query, name in (
            ("SELECT namespace, count(*) FROM session WHERE idx >= ? AND idx < ? GROUP BY namespace", "sessions"),
            ("SELECT namespace, count(*) FROM reading WHERE idx >= ? AND idx < ? GROUP BY namespace", "reads"),
        ):
            for namespace, count in db.execute(query, bounds):
                self.of(namespace)[name] += count

    def add_doubts(self, db: Connection, period: Period) -> None:
        """Count what gateways said that cannot be, and who tried to break a chain; these have times alone."""
        bounds = (period.since_us, period.until_us)
        for query, name in (
            ("SELECT coalesce((SELECT min(s.namespace) FROM stream s WHERE s.name = d.stream), ''), count(*) "
             "FROM finding d WHERE d.wall_us >= ? AND d.wall_us < ? GROUP BY 1", "findings"),
            ("SELECT coalesce((SELECT min(s.namespace) FROM stream s WHERE s.pod_uid = d.pod_uid), ''), count(*) "
             "FROM quarantine d WHERE d.wall_us >= ? AND d.wall_us < ? GROUP BY 1", "chain_breaks"),
        ):  # fmt: skip
            for namespace, count in db.execute(query, bounds):
                self.of(namespace)[name] += count

    def add_day(self, text: bytes) -> None:
        """Add up what a daily report says, but for what is judged."""
        for one in canonical.decode(text)["namespaces"]:  # type: ignore[union-attr]
            if isinstance(one, dict):
                found = self.of(str(one["name"]))
                for name in COUNTED:
                    found[name] += int(one[name])  # type: ignore[arg-type]

    def know_identities(self, db: Connection, bounds: tuple[int, int] | None = None) -> None:
        """Whose commands these were; with `bounds` by looking into them, flow by flow."""
        rows = db.execute("SELECT id, namespace, identity FROM flow").fetchall()
        for flow, namespace, identity in rows:
            is_active = flow in self.flows
            if bounds is not None:
                looked = "SELECT 1 FROM command WHERE flow = ? AND idx >= ? AND idx < ? LIMIT 1"
                is_active = db.execute(looked, (flow, *bounds)).fetchone() is not None
            if is_active:
                self.identities.add((namespace, identity))

    def judge(self, one: Found, period: Period) -> None:
        """Count a pod by whether it is heard, and the times of the period without proof."""
        since, until = micros(period.since_us), micros(period.until_us)
        status = one.value["status"]
        if one.value["metadata"]["creationTimestamp"] >= until or status.get("endedAt", until) < since:
            return
        found = self.of(one.value["metadata"]["namespace"])
        found[str(status["state"]).lower()] += 1
        found["gaps"] += sum(gap["from"] < until and gap.get("until", until) > since for gap in status["gaps"])

    def rows(self) -> list[canonical.Value]:
        """The report's rows, by namespace."""
        active = Counter(namespace for namespace, _ in self.identities)
        return [
            {
                "name": namespace, "identities": active[namespace], "gaps": found["gaps"],
                **{name: found[name] for name in COUNTED}, "pods": {state: found[state] for state in STATES},
            }
            for namespace, found in sorted(self.counts.items())
        ]  # fmt: skip

    def exceptions(self) -> int:
        """What somebody has to look at: findings, chain breaks, pods that are not heard, times without proof."""
        return sum(
            found["findings"] + found["chain_breaks"] + found["gaps"]
            + sum(found[state] for state in STATES if state not in HEARD)
            for found in self.counts.values()
        )  # fmt: skip


async def report(store: Store, period: Period, now_us: Callable[[], int]) -> Made | None:
    """The report of a period; None while no checkpoint covers all that it is about.

    Raises:
        StoreBusy: try again. Altered: a daily report that a month is added up of is not what the log holds.
    """
    size, root = await store.read(_checkpoint)
    if not size:
        return None
    first, until = await store.read(lambda db: reporting.place(db, period, size))
    found = Figures()
    if period.kind == DAILY:
        for at in range(first, until, STEP):
            end = min(at + STEP, until)
            await store.read(lambda db, a=at, z=end: found.add_entries(db, a, z))  # type: ignore[misc]
        await store.read(lambda db: found.add_doubts(db, period))
        await store.read(found.know_identities)
    else:
        for text in await store.read(lambda db: reporting.days_of(db, period)):
            found.add_day(text)
        await store.read(lambda db: found.know_identities(db, (first, until)))
    await _judge(store, found, period, now_us)
    at_us = now_us()
    text = canonical.encode({
        "kind": period.kind, "period": period.name, "since": micros(period.since_us), "until": micros(period.until_us),
        "first": first, "end": until, "size": size, "root": root, "made_at": micros(at_us),
        "exceptions": found.exceptions(), "namespaces": found.rows(),
    })  # fmt: skip
    return reporting.make(period, (first, until), (size, root), found.exceptions(), text, at_us)


async def _judge(store: Store, found: Figures, period: Period, now_us: Callable[[], int]) -> None:
    coverages, after = Coverages(now_us, store.started_us), -1
    while True:
        part = Range(store.size, after, MAX_PAGE)
        page = await store.read(lambda db, a=part: coverages.page(db, _ALL, a))  # type: ignore[misc]
        for one in page.found:
            found.judge(one, period)
        if page.more_after is None:
            return
        after = page.more_after


def _checkpoint(db: Connection) -> tuple[int, str]:
    row = db.execute("SELECT size, root FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
    return (int(row[0]), base64.b64encode(bytes(row[1])).decode()) if row else (0, "")


async def keep_reports(store: Store, now_us: Callable[[], int], period_s: float = PERIOD_S) -> None:
    """Make the reports of periods that are over, until cancelled."""
    broken: set[str] = set()
    while True:
        pause_s = period_s
        try:
            while (period := await store.read(lambda db: reporting.due(db, now_us(), broken))) is not None:
                made = await report(store, period, now_us)
                if made is None:
                    pause_s = UNSIGNED_S
                    break
                await store.write(lambda tx, one=made: _store(tx, one))  # type: ignore[misc]
                log.info("%s report of %s: %d exceptions", period.kind, period.name, made.said.exceptions)
        except StoreBusy as error:
            log.warning("a report was not made: %s", error)
        except Altered as error:
            log.critical("a monthly report cannot be made: %s", error)
            broken.add(error.month)
            continue
        await asyncio.sleep(pause_s)


def _store(tx: Transaction, made: Made) -> int:
    tx.on(lambda db: reporting.store_body(db, made))
    return tx.say(made.said)
