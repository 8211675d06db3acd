"""Which rows a reader is shown for a number, and the command that shows the record behind a row."""

from __future__ import annotations

import shlex
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from chaperone_cli.report import tables
from chaperone_cli.report.model import SAMPLES, Fact
from chaperone_cli.report.tables import Row

MOST: Final = 50  # rows of a number; the table has all of them
_COMMAND: Final = ("name", "namespace", "identity", "target", "effects", "decision", "rule", "status", "decided_at")
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    tables.IDENTITIES: ("namespace", "name", "owner", "generation", "suspended", "ready", "created_at"),
    tables.PODS: ("namespace", "pod", "identity", "state", "reason", "named", "last_seen", "gaps"),
    tables.SESSIONS: ("name", "namespace", "identity", "target", "state", "started_at", "commands", "denied", "total"),
    tables.COMMANDS: _COMMAND,
    tables.REFUSED: _COMMAND,
    tables.APPROVALS: ("name", "namespace", "identity", "effects", "rule", "state", "approved_by", "denied_by"),
    tables.READS: ("name", "read_at", "user", "verb", "resource", "namespace", "given"),
    tables.READERS: ("user", "reads", "objects_given", "first_at", "last_at"),
    tables.OBJECTS: ("kind", "namespace", "name", "generation", "mode", "ready", "changed_at", "detail"),
    tables.REVISIONS: ("namespace", "revision", "commands", "first_command", "first_at", "last_at"),
    tables.EPOCHS: ("namespace", "epoch", "pods", "received_at", "follows", "hash"),
    tables.COVERAGE: ("namespace", "first_epoch", "last_epoch", "as_of", "pods", "heard", "proved", "why"),
    tables.REPERFORMED: ("name", "namespace", "was", "was_rule", "again", "again_rule", "verdict", "why"),
    tables.GAPS: ("namespace", "pod", "identity", "state", "from", "until"),
    tables.SILENCE: ("namespace", "identity", "pods", "sessions", "verdict", "why"),
    tables.TOTALS: (
        "role",
        "targets",
        "since",
        "until",
        "calls",
        "recorded_least",
        "recorded_most",
        "difference_least",
        "difference_most",
        "verdict",
    ),
    SAMPLES: ("rank", "name", "namespace", "stratum", "decision", "rule", "sha256", "proved", "why"),
}
NUMBERS: Final = frozenset({"generation", "gaps", "commands", "denied", "reads", "objects_given", "given", "epoch",
                            "first_epoch", "last_epoch", "heard",
                            "pods", "sessions", "rank", "calls", "recorded_least",
                            "recorded_most", "difference_least", "difference_most"})  # fmt: skip
TIMES: Final = frozenset({"decided_at", "created_at", "started_at", "changed_at", "received_at", "first_at", "last_at",
                          "read_at", "last_seen", "as_of", "from", "until", "since"})  # fmt: skip
HEADINGS: Final = {"decided_at": "decided", "created_at": "created", "started_at": "started", "changed_at": "changed",
                   "received_at": "received", "first_at": "first", "last_at": "last", "read_at": "read"}  # fmt: skip
_RESOURCES: Final = {
    tables.IDENTITIES: "agentidentity", tables.SESSIONS: "session", tables.COMMANDS: "command",
    tables.REFUSED: "command", tables.APPROVALS: "approvalrequest", tables.EPOCHS: "population", SAMPLES: "command",
    tables.REPERFORMED: "command",
}  # fmt: skip


def rows_of(folder: Path, facts: list[Fact]) -> dict[str, list[Row]]:
    """The first rows of each fact; every table is read once.

    Raises:
        BadTable: as `tables.read`.
    """
    found: dict[str, list[Row]] = {fact.id: [] for fact in facts}
    for name in dict.fromkeys(fact.file for fact in facts):
        these = [fact for fact in facts if fact.file == name]
        for row in tables.read(folder, name):
            for fact in these:
                if len(found[fact.id]) < MOST and tables.fits(row, fact.where):
                    found[fact.id].append(row)
    return found


def heading(column: str) -> str:
    """A column's name for people."""
    return HEADINGS.get(column, column).replace("_", " ")


def moment(text: str) -> str:
    """A time to the second."""
    return f"{text[:10]} {text[11:19]}" if len(text) >= 20 and text[10] == "T" and text.endswith("Z") else text


def days(since: str, until: str) -> str:
    """A period by its first and its last day."""
    last = date.fromisoformat(until[:10]) - timedelta(days=1)
    return f"{since[:10]} to {last}"


def asked_by(file: str, row: Row) -> str:
    """The kubectl command that shows the record or object of a row; empty where there is none.

    People paste it, and some names come out of records: each is one word of a shell.
    """
    row = {column: shlex.quote(text) if text else "" for column, text in row.items()}
    if file == tables.READS:
        where = f"-n {row['namespace']}" if row["namespace"] else "-A"
        return f"kubectl get reads {where} --field-selector metadata.name={row['name']} -o yaml"
    if file in (tables.PODS, tables.GAPS):
        return f"kubectl get coverage -n {row['namespace']} {row['uid']} -o yaml"
    if file == tables.OBJECTS:
        where = f" -n {row['namespace']}" if row["namespace"] else ""
        return f"kubectl get {row['kind'].lower()}{where} {row['name']} -o yaml"
    if file == tables.REVISIONS:
        return f"kubectl get command -n {row['namespace']} {row['first_command']} -o yaml"
    if file in _RESOURCES:
        name = row["epoch"] if file == tables.EPOCHS else row["name"]
        return f"kubectl get {_RESOURCES[file]} -n {row['namespace']} {name} -o yaml"
    return ""
