"""Milliseconds a page: lists of commands by selector, out of a log of millions.

    uv run python bench/evidence_pages.py [--commands 1000000] [--rounds 5] [--limit 500] [--data DIR]

The log is written by the collector's own writer (entries, tree, tables), without gateways' TLS and signatures, and kept
in DIR when one is named: the next run with as many commands reads it again. A page is measured from the question to the
JSON that would be sent, at the first page and at one in the middle of the log; the first round, whose pages come from
the disk's cache and not from SQLite's, is printed beside the median of the others.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from chaperone_collector.api import commands, render
from chaperone_collector.api.commands import Commands
from chaperone_collector.api.flow import Flows
from chaperone_collector.api.question import Range, read_question
from chaperone_collector.schema import open_reader, open_writer
from chaperone_collector.stream import Checked, Extension, Stored, unknown
from chaperone_collector.transaction import Transaction, Unnamed
from chaperone_evidence import entry, record, ulid
from chaperone_evidence.certificate import Subject
from chaperone_evidence.chain import Chain

CLUSTER: Final = "0b8a4b7e-0000-4000-8000-000000000001"
IDENTITIES: Final = 400
NAMESPACES: Final = 20
BATCH_COMMANDS: Final = 2000
SESSION_COMMANDS: Final = 50
START_US: Final = 1_790_000_000_000_000
EFFECTS: Final = (("read",), ("read", "modify"), ("create",), ("delete",), ("destroy",))
EFFECT_WEIGHTS: Final = (9000, 600, 300, 99, 1)
SELECTORS: Final = (
    ("", ""),
    ("", "spec.identity=agent-7"),
    ("ns-3", ""),
    ("ns-3", "spec.target=target-2"),
    ("", "spec.decision!=Allow"),
    ("ns-3", "spec.decision=Deny"),
    ("", "spec.rule=rare"),
    ("", "spec.rule=rare,spec.identity=agent-7"),
    ("", "spec.rule=rule-11"),
    ("ns-3", "spec.rule=rule-11,spec.identity=agent-3"),
    ("", "spec.effect=destroy"),
    ("", "spec.effect=modify"),
    ("ns-3", "spec.effect=delete,spec.decision=Deny"),
    ("", "spec.effect!=read"),
    ("", "spec.approval!="),
    ("", "spec.subject=user-9"),
    ("", "spec.identity=nobody"),
    ("ns-3", "spec.effect=destroy,spec.rule=rule-2,spec.target=target-1"),
)


class Pod:
    """A pod of the bench: its stream's end, and the session that is open."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.namespace, self.identity = f"ns-{number % NAMESPACES}", f"agent-{number}"
        self.stream = ulid.encode(START_US // 1000 + number, number.to_bytes(10))
        self.chain = Chain(CLUSTER, self.stream)
        self.stored: Stored = unknown(self.stream)
        self.subject = Subject(CLUSTER, self.namespace, f"pod-{number}", f"uid-{number}", self.identity, "bench")


def batch(pod: Pod, dice: Random, count: int, first_us: int) -> Extension:
    """A pod's next commands in sessions of their own, chained as a gateway does, for the writer."""
    extension = Extension(pod.stored, msgspec.structs.replace(pod.stored), [], None, pod.subject)
    wall_us = first_us

    def add(made: record.Record) -> int:
        seq = pod.chain.count
        framed = pod.chain.append_record(made)
        checked = Checked(entry.CLASS_RECORD, framed[2:], made, None, "")  # type: ignore[arg-type]
        extension.entries.append(checked)
        return seq

    if pod.chain.count == 0:
        opened = record.StreamOpen(
            seq=0, wall_us=wall_us, mono_us=0, stream=pod.stream, cluster=CLUSTER, namespace=pod.namespace,
            pod=f"pod-{pod.number}", pod_uid=f"uid-{pod.number}", identity=pod.identity, vkey="bench", certificate="",
        )  # fmt: skip
        extension.opened = opened
        add(opened)
    subject = f"user-{pod.number}" if pod.number % 10 == 9 else ""
    session, target = "", ""
    for number in range(count):
        if number % SESSION_COMMANDS == 0:
            session, target = ulid.encode(wall_us // 1000, dice.randbytes(10)), f"target-{dice.randrange(7)}"
            add(record.SessionOpen(
                seq=pod.chain.count, wall_us=wall_us, mono_us=0, session=session, target=target, protocol="PostgreSQL",
                client="10.244.0.9:41234", user="app", database="orders",
            ))  # fmt: skip
        wall_us += 1000
        (effects,) = dice.choices(EFFECTS, EFFECT_WEIGHTS)
        denied = dice.random() < 0.01
        rule = "rare" if dice.random() < 1e-5 else f"rule-{dice.randrange(50)}"
        seq = add(record.CommandIntent(
            seq=pod.chain.count, wall_us=wall_us, mono_us=0, session=session, command=session, target=target,
            kind="query", decision="Deny" if denied else "Allow", sha256="0" * 64, size_bytes=64,
            accesses=tuple(record.AccessEntry(effect, "public.orders") for effect in effects), resolution="catalog",
            policy=f"{pod.namespace}/policy", rule=rule, revision="0123456789abcdef", subject=subject,
            approval="billing-7f3c" if dice.random() < 1e-4 else "",
        ))  # fmt: skip
        if not denied:
            add(record.CommandOutcome(
                seq=pod.chain.count, wall_us=wall_us, mono_us=0, session=session, command=session, ref=seq,
                status="ok", rows=1, bytes=100, duration_us=900, subject=subject,
            ))  # fmt: skip
    extension.after.count, extension.after.link = pod.chain.count, pod.chain.link
    return extension


def fill(path: Path, commands_wanted: int) -> None:
    """Write the log."""
    database = open_writer(path)
    database.execute("PRAGMA synchronous=OFF")  # what is measured is reading
    transaction = Transaction(database, Unnamed(database), lambda: START_US)
    pods, done, began = [Pod(number) for number in range(IDENTITIES)], 0, time.monotonic()
    dice = Random(7)  # noqa: S311 - the same log in every run
    size = min(BATCH_COMMANDS, max(SESSION_COMMANDS, commands_wanted // IDENTITIES))
    while done < commands_wanted:
        pod = pods[(done // size) % IDENTITIES]
        extension = batch(pod, dice, size, START_US + done * 100)
        transaction.begin()
        pod.stored = transaction.append(extension)
        transaction.commit()
        done += size
        if done // size % 50 == 0:
            rate = done / (time.monotonic() - began)
            sys.stderr.write(f"\r{done:>10} commands written, {rate:.0f}/s")
    sys.stderr.write("\n")
    database.close()


def page_ms(reader: Commands, path: Path, namespace: str, selector: str, part: Range, rounds: int) -> list[float]:
    """The times of some rounds, each with a connection of its own as the first, then with that of the others."""
    question = read_question("commands", namespace, "", {"fieldSelector": selector} if selector else {})
    form = render.negotiate("application/json;as=Table;v=v1;g=meta.k8s.io", "")
    times = []
    connection = open_reader(path)
    for _ in range(rounds):
        began = time.perf_counter()
        page = reader.page(connection, question, part)
        msgspec.json.encode(
            render.render_list(form, "commands", commands.COLUMNS, page.found, version=part.size, more="")
        )
        times.append(1000 * (time.perf_counter() - began))
    found = len(page.found)
    connection.close()
    return [float(found), *times]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    folder = arguments.data or Path(tempfile.mkdtemp(prefix="chaperone-pages-"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"evidence-{arguments.commands}.db"
        if not path.exists():
            unfinished = folder / "unfinished.db"
            unfinished.unlink(missing_ok=True)
            fill(unfinished, arguments.commands)
            unfinished.replace(path)
        report(path, arguments)
    finally:
        if arguments.data is None:
            shutil.rmtree(folder)


def report(path: Path, arguments: argparse.Namespace) -> None:
    """Measure every selector and print."""
    connection = open_reader(path)
    size, rows = connection.execute(
        "SELECT (SELECT max(idx) + 1 FROM entry), (SELECT count(*) FROM command)"
    ).fetchone()
    connection.close()
    print(f"{rows} commands, {size} entries, {path.stat().st_size / 2**30:.1f} GiB; pages of {arguments.limit}")
    print(f"{'namespace':<10}{'selector':<58}{'from':>7}{'rows':>6}{'first ms':>10}{'median ms':>11}")
    reader = Commands(Flows(), lambda: START_US)
    slowest = 0.0
    for namespace, selector in SELECTORS:
        for where, after in (("start", -1), ("middle", size // 2)):
            found, *times = page_ms(
                reader, path, namespace, selector, Range(size, after, arguments.limit), arguments.rounds
            )
            slowest = max(slowest, *times)
            print(f"{namespace or '(all)':<10}{selector or '(none)':<58}{where:>7}{int(found):>6}"
                  f"{times[0]:>10.1f}{statistics.median(times[1:] or times):>11.1f}")  # fmt: skip
    print(f"slowest page: {slowest:.1f} ms")


if __name__ == "__main__":
    main()
