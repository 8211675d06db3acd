"""The example of docs/guides/recordings.md: a real agent at a real database, and its replay as the guide has it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner
from fix_dev import Gateway
from fix_postgres import Postgres

from chaperone_cli.main import main
from chaperone_evidence import record

pytestmark = pytest.mark.peer

GUIDE = (Path(__file__).parents[2] / "docs/guides/recordings.md").read_text()
(EXAMPLE,) = re.findall(r"^    \$ chaperone replay --bundle evidence SESSION\n((?:    .*\n)+)", GUIDE, re.MULTILINE)
RULES = [{"name": "all", "action": "Allow", "match": {"effects": ["read", "bulk_read"]}}]


@pytest.fixture
def people(postgres: Postgres) -> Iterator[None]:
    with postgres.admin() as admin:
        admin.execute(
            "CREATE TABLE people (id int, name text, motto text); ALTER TABLE people OWNER TO agent_rw;"
            "INSERT INTO people SELECT g, 'Quorbly ' || g, 'motto ' || g FROM generate_series(1, 5) g"
        )
    yield
    with postgres.admin() as admin:
        admin.execute("DROP TABLE people")


def same(text: str) -> list[str]:
    """Lines without what differs from run to run."""
    text = re.sub(r"^ +\d+\.\d{3} ", " " * 11, text, flags=re.MULTILINE)
    text = re.sub(r"\d+\.\d ms", "MS", text)
    return [line.strip() for line in text.splitlines()]


def test_a_replay_says_what_the_guide_says(gateway_with: Callable[..., Gateway], people: None) -> None:
    gateway = gateway_with(
        rules=RULES,
        classified=[{"columns": ["public.people.name"], "class": "person"}],
        masks=[{"columns": ["public.people.name"], "method": "Redact"}],
        evidence={"results": "Full"},
    )
    with gateway.connect(application_name="guide") as agent:
        agent.execute("SELECT id, name, motto FROM people ORDER BY id LIMIT 2").fetchall()
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as refused:
            agent.execute("DROP TABLE people")
    assert gateway.stop() == 0
    (opened,) = [one for one in gateway.records() if isinstance(one, record.SessionOpen)]
    (stream,) = [one for one in gateway.records() if isinstance(one, record.StreamOpen)]
    done = CliRunner().invoke(main, ["replay", "--bundle", str(gateway.evidence), opened.session])
    told = done.stdout + done.stderr.splitlines()[-1]
    for found, name in (
        (opened.session, "SESSION"), (stream.stream, "STREAM"), (stream.pod, "POD"),
        (refused.value.diag.message_primary, "MESSAGE"),
    ):  # fmt: skip
        told = told.replace(str(found), name)
    told = re.sub(r"opened \S+ at", "opened TIME at", told)
    told = "\n".join(line for line in told.splitlines() if not re.search(r"! (DETAIL|HINT):", line))
    assert same(told) == same(EXAMPLE)
