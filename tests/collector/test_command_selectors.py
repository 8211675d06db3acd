"""Selectors of commands: whatever index serves one, the answer is what looking at every command gives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector.api import command_rows as reading
from chaperone_collector.api.commands import Commands
from chaperone_collector.api.flow import Flows
from chaperone_collector.api.question import Found, Question, Range, read_question
from chaperone_collector.project import EFFECTS
from chaperone_collector.schema import MIGRATIONS, open_writer
from chaperone_collector.stream import extend, unknown
from chaperone_collector.transaction import Transaction, Unnamed
from chaperone_evidence import entry
from chaperone_sidecar.command import Effect

PODS: Final = (("agents", "billing"), ("agents", "support"), ("elsewhere", "billing"))
WORDS: Final = (("read",), ("read", "modify"), ("destroy",), ("of_a_later_version",), ("read", "unknown", "modify"), ())
COMMANDS: Final = 240


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """A log of a few hundred commands of all kinds."""
    database = open_writer(tmp_path_factory.mktemp("log") / "evidence.db")
    _fill(database)
    yield database
    database.close()


@pytest.fixture(scope="module")
def everything(log: sqlite3.Connection) -> list[Found]:
    """All of them, in the order of the log."""
    found = _pages(log, read_question("commands", "", "", {}), 1000)
    assert len(found) == COMMANDS
    return found


def _fill(database: sqlite3.Connection) -> None:
    """The same commands each time, but for their ids."""
    random, authority = Random(7), Authority("gateway CA")  # noqa: S311 - the same cases in every run
    transaction = Transaction(database, Unnamed(database), lambda: 1)
    for number, (namespace, identity) in enumerate(PODS):
        pod = Pod(authority, namespace=namespace, identity=identity, pod_uid=f"pod-{number}")
        stream = Stream(pod)
        for _ in range(4):
            target, subject = random.choice(("orders-db", "ledger")), random.choice(("", "ada", "bob"))
            session = stream.open_session(target)
            for count in range(COMMANDS // 12):
                decision = random.choices(("Allow", "Deny", "RequireApproval", "Later"), (20, 2, 1, 1))[0]
                stream.intend(
                    session, f"SELECT {count}", target=target, decision=decision, subject=subject,
                    rule=random.choices(("", "common", "rare"), (1, 9, 1))[0],
                    approval=random.choices(("", "billing-abc"), (9, 1))[0], effects=random.choice(WORDS),
                )  # fmt: skip
        batch = list(entry.frames(stream.take()[1]))
        extension = extend(unknown(stream.id), batch, pod.subject(), [authority.certificate])
        transaction.begin()
        transaction.append(extension)
        transaction.commit()


def _pages(database: sqlite3.Connection, question: Question, limit: int) -> list[Found]:
    reader, size = Commands(Flows(), lambda: 1), _size(database)
    found, after = [], -1
    while True:
        page = reader.page(database, question, Range(size, after, limit))
        found += page.found
        if page.more_after is None:
            return found
        assert page.more_after > after
        after = page.more_after


def _size(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT max(idx) + 1 FROM entry").fetchone()[0])


def _values(found: Found, field: str) -> list[str]:
    spec: dict[str, Any] = found.value["spec"]
    match field:
        case "spec.effect":
            return [*spec.get("effects", [])]
        case "metadata.namespace":
            return [found.value["metadata"]["namespace"]]
        case "metadata.name":
            return [found.value["metadata"]["name"]]
    return [spec.get(field.removeprefix("spec."), "")]


SELECTORS: Final = (
    "", "spec.effect=destroy", "spec.effect=modify", "spec.effect=read", "spec.effect!=read", "spec.effect!=modify",
    "spec.effect=nonsense", "spec.effect!=nonsense", "spec.effect=unknown,spec.effect=modify",
    "spec.effect=destroy,spec.identity=billing", "spec.effect=destroy,spec.target=ledger,spec.decision!=Allow",
    "spec.approval=billing-abc", "spec.approval!=", "spec.approval=", "spec.approval!=billing-abc",
    "spec.approval=nothing", "spec.subject=ada", "spec.subject!=ada", "spec.subject=", "spec.subject!=",
    "spec.subject=bob,spec.effect=modify", "spec.rule=rare", "spec.rule!=rare", "spec.rule=absent", "spec.rule=common",
    "spec.rule=rare,spec.identity=support", "spec.rule=common,spec.effect=destroy", "spec.decision=Deny",
    "spec.decision!=Allow", "spec.decision=Allow,spec.effect=modify", "spec.identity=nobody,spec.effect=destroy",
)  # fmt: skip


@pytest.mark.parametrize("namespace", ["", "agents"])
@pytest.mark.parametrize("text", SELECTORS)
@pytest.mark.parametrize(
    "bounds", [(50_000, 512, 64), (5, 512, 64), (5, 512, 1), (48, 512, 1), (50_000, 1, 64), (5, 1, 1)]
)
def test_a_selector_finds_what_looking_at_every_command_finds(
    log: sqlite3.Connection, everything: list[Found], text: str, namespace: str, bounds: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    most, merged, window = bounds
    monkeypatch.setattr(reading, "MAX_SCANNED", most)
    monkeypatch.setattr(reading, "MAX_MERGED_FLOWS", merged)
    monkeypatch.setattr(reading, "MIN_WINDOW", window)
    question = read_question("commands", namespace, "", {"fieldSelector": text})
    wanted = [
        one.idx
        for one in everything
        if namespace in ("", one.value["metadata"]["namespace"])
        and all((term.value in _values(one, term.field)) is term.is_equal for term in question.fields)
    ]
    assert [one.idx for one in _pages(log, question, 7)] == wanted


def test_the_collector_knows_each_effect_by_the_gateways_name() -> None:
    assert [*EFFECTS] == [effect.value for effect in Effect]
    assert [*EFFECTS.values()] == [*range(1, len(EFFECTS) + 1)]


def test_an_older_database_is_indexed_as_a_fresh_one(log: sqlite3.Connection, tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    older = open_writer(path, MIGRATIONS[:3])
    for table in ("entry", "flow", "rule"):
        rows = log.execute(f"SELECT * FROM {table}").fetchall()
        older.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
    rows = log.execute("SELECT idx, flow, session, decision, rule FROM command").fetchall()
    older.executemany("INSERT INTO command (idx, flow, session, decision, rule) VALUES (?,?,?,?,?)", rows)
    older.close()
    upgraded = open_writer(path)
    for table in ("command", "effect"):
        select = f"SELECT * FROM {table} ORDER BY idx, 1"
        assert upgraded.execute(select).fetchall() == log.execute(select).fetchall()
    upgraded.close()
