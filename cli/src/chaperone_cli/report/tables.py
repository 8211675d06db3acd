"""Tables of a package: CSV (RFC 4180, UTF-8), whose cells neither a spreadsheet nor a terminal obeys.

What begins like a formula gets an apostrophe in front, control characters are replaced, and long cells are cut. A value
is compared in the form that it has in a cell.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from chaperone_cli.report.model import SAMPLES, Fact
from chaperone_cli.say import printable

MAX_CELL: Final = 4000  # characters; a list of objects may be long, and spreadsheets end at 32 767
_FORMULA: Final = tuple("=+-@＝＋－＠")  # also in the wide forms that some programs take for the same

IDENTITIES: Final = "populations/identities.csv"
PODS: Final = "populations/pods.csv"
SESSIONS: Final = "populations/sessions.csv"
COMMANDS: Final = "populations/commands.csv"
REFUSED: Final = "populations/refused.csv"
APPROVALS: Final = "populations/approvals.csv"
READS: Final = "populations/reads.csv"
READERS: Final = "populations/readers.csv"
OBJECTS: Final = "populations/objects.csv"
REVISIONS: Final = "populations/revisions.csv"
EPOCHS: Final = "populations/epochs.csv"
COVERAGE: Final = "populations/coverage.csv"
REPERFORMED: Final = "populations/reperformed.csv"
GAPS: Final = "populations/gaps.csv"
SILENCE: Final = "populations/silence.csv"
TOTALS: Final = "populations/totals.csv"

_COMMAND: Final = (
    "name", "index", "namespace", "session", "identity", "target", "kind", "effects", "objects", "decision", "policy",
    "rule", "revision", "approval", "subject", "masked", "sha256", "size_bytes", "status", "rows", "bytes",
    "decided_at", "stream", "seq", "statements", "in_transaction", "code", "duration_us", "class",
)  # fmt: skip
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    IDENTITIES: (
        "namespace", "name", "uid", "owner", "owner_email", "purpose", "created_at", "generation", "suspended",
        "suspended_by", "ready", "covered", "has_owner",
    ),
    PODS: (
        "namespace", "pod", "uid", "identity", "state", "reason", "named", "stream", "streams", "last_seq", "last_seen",
        "expected_since", "ended_at", "exit_code", "gaps",
    ),
    SESSIONS: (
        "name", "namespace", "identity", "owner", "target", "protocol", "user", "database", "subject", "pod", "pod_uid",
        "stream", "state", "started_at", "ended_at", "commands", "denied", "bytes_out", "has_findings",
        "has_chain_breaks", "counted", "total", "role",
    ),
    COMMANDS: _COMMAND,
    REFUSED: _COMMAND,
    APPROVALS: (
        "name", "namespace", "identity", "owner", "created_by", "on_behalf_of", "target", "session", "effects",
        "policy", "rule", "revision", "binding", "state", "approved_by", "denied_by", "reasons", "created_at",
        "used_at", "self_approved", "commands",
    ),
    READS: ("name", "index", "read_at", "user", "groups", "verb", "resource", "namespace", "object", "given", "query"),
    READERS: ("user", "reads", "objects_given", "first_at", "last_at"),
    OBJECTS: ("kind", "namespace", "name", "uid", "generation", "mode", "created_at", "changed_at", "changed_with",
              "ready", "detail"),
    REVISIONS: ("namespace", "revision", "commands", "first_command", "first_at", "last_command", "last_at"),
    EPOCHS: ("namespace", "epoch", "index", "hash", "pods", "received_at", "follows"),
    COVERAGE: ("namespace", "bundle", "first_epoch", "last_epoch", "as_of", "pods", "heard", "operator", "proved",
               "why"),
    REPERFORMED: ("name", "namespace", "session", "stream", "seq", "revision", "was", "was_rule", "again",
                  "again_rule", "verdict", "why"),
    GAPS: ("namespace", "pod", "uid", "identity", "state", "from", "until"),
    SILENCE: ("namespace", "identity", "commands", "sessions", "pods", "verdict", "why"),
    TOTALS: ("file", "server", "since", "until", "targets", "role", "calls", "lookups", "estimates", "recorded_least",
             "recorded_most", "difference_least", "difference_most", "verdict", "why"),
    SAMPLES: ("stratum", "rank", "score", "index", "name", "namespace", "session", "stream", "seq", "decision",
              "policy", "rule", "revision", "sha256", "bundle", "proved", "why"),
}  # fmt: skip

LISTED_AS: Final = {  # the tables that a resource fills
    "agentidentities": (IDENTITIES,), "coverages": (PODS, GAPS), "populations": (EPOCHS, COVERAGE),
    "reads": (READS, READERS),
    "approvalrequests": (APPROVALS,), "accesspolicies": (OBJECTS,), "clusteraccesspolicies": (OBJECTS,),
    "accesstargets": (OBJECTS,),
}  # fmt: skip

type Row = dict[str, str]


class BadTable(Exception):
    """A table is not as it was written; `parts` are the file, what is wrong, and the row, 0 for none."""

    def __init__(self, file: str, what: str, row: int = 0) -> None:
        super().__init__(f"{file}{f' row {row}' if row else ''}: {what}")
        self.parts = (file, what, row)


def cell(value: object) -> str:
    """A value as it stands in a table; a cell stays as it is."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        value = ", ".join(str(one) for one in value)
    text = printable(str(value))
    if text.lstrip().startswith(_FORMULA):
        text = "'" + text
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"


class Table:
    """A table that is being written."""

    def __init__(self, name: str, path: Path) -> None:
        self.columns = COLUMNS[name]
        self._file = path.open("w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(self.columns)

    def add(self, row: Mapping[str, object]) -> None:
        """Write a row; every column is named."""
        self._writer.writerow([cell(row[name]) for name in self.columns])

    def close(self) -> None:
        """Nothing follows."""
        self._file.close()


@contextmanager
def table(folder: Path, name: str) -> Iterator[Table]:
    """A new table of the package."""
    found = Table(name, folder / name)
    try:
        yield found
    finally:
        found.close()


def read(folder: Path, name: str) -> Iterator[Row]:
    """The rows of a table.

    Raises:
        BadTable: it is not there, or is no table of this name.
    """
    columns = COLUMNS[name]
    try:
        with (folder / name).open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            if tuple(next(lines, ())) != columns:
                raise BadTable(name, "its columns are not those of this table")
            for number, line in enumerate(lines, 1):
                if len(line) != len(columns):
                    raise BadTable(name, f"it has {len(line)} cells, not {len(columns)}", number)
                yield dict(zip(columns, line, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadTable(name, f"it cannot be read: {error}") from error


def fits(row: Row, where: Mapping[str, list[str]]) -> bool:
    """Whether a row is one of those that a fact counts."""
    return all(
        (row[column.removeprefix("!")] in values) is not column.startswith("!") for column, values in where.items()
    )


def count(folder: Path, facts: Iterable[Fact]) -> dict[str, int]:
    """The count of each fact, by its id; every table is read once.

    Raises:
        BadTable: as `read`, or a fact is about no table or column.
    """
    by_file: dict[str, list[Fact]] = {}
    for fact in facts:
        if not {one.removeprefix("!") for one in fact.where} <= set(COLUMNS.get(fact.file, ())):
            raise BadTable(fact.file, f"there is no such table, or not with the columns of {fact.id}")
        by_file.setdefault(fact.file, []).append(fact)
    found = {fact.id: 0 for these in by_file.values() for fact in these}
    for name, these in by_file.items():
        for row in read(folder, name):
            for fact in these:
                found[fact.id] += fits(row, fact.where)
    return found
