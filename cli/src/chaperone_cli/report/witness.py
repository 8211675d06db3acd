"""Counters of back ends in a package: the comparisons as they were made, and a table of them by its own records.

Nothing of a comparison's result is believed: its two snapshots are reckoned again, against the sessions and commands
that the package lists. `report check` does the same once more.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chaperone_cli.report import tables
from chaperone_cli.report.period import Period
from chaperone_cli.report.tables import COMMANDS, SESSIONS, TOTALS, Row
from chaperone_cli.totals import reckon
from chaperone_cli.totals.compare import Totals, load_totals
from chaperone_cli.totals.snapshot import CannotRead

FOLDER: Final = "totals"
_OUTSIDE: Final = "the time between the snapshots is not within the period of the report"
_PARTIAL: Final = "the report is of one namespace, and others may use the role"


def write(folder: Path, files: tuple[Path, ...], period: Period, namespace: str) -> None:
    """Keep the comparisons, and write their table.

    Raises:
        CannotRead: a file is no comparison. BadTable, OSError: as they say.
    """
    if files:
        (folder / FOLDER).mkdir()
    for number, path in enumerate(files, 1):
        load_totals(path)
        shutil.copyfile(path, folder / FOLDER / f"{number:04d}.json")
    with tables.table(folder, TOTALS) as table:
        for row in rows(folder, period, namespace):
            table.add(row)


def rows(folder: Path, period: Period, namespace: str) -> Iterator[dict[str, object]]:
    """The table's rows, by what the package holds.

    Raises:
        CannotRead: a comparison is none. BadTable: as it says.
    """
    for path in sorted((folder / FOLDER).glob("*.json")):
        found = load_totals(path)
        why = _PARTIAL if namespace else "" if _is_within(found, period) else _OUTSIDE
        for one in _reckoned(folder, found):
            yield {
                "file": f"{FOLDER}/{path.name}", "server": found.before.server.system_identifier,
                "since": found.before.ended, "until": found.after.began, "targets": found.targets, "role": one.role,
                "calls": one.calls, "lookups": one.lookups, "estimates": one.estimates,
                "recorded_least": one.recorded_least, "recorded_most": one.recorded_most,
                "difference_least": one.difference_least, "difference_most": one.difference_most,
                "verdict": "NotComparable" if why else one.verdict, "why": why or one.why,
            }  # fmt: skip


def problem(folder: Path, period: Period, namespace: str) -> tuple[str, int] | None:
    """The first row that is not what the package's own records say, and its number; None: all are.

    Raises:
        BadTable: as it says.
    """
    listed = tables.read(folder, TOTALS)
    number = 0
    try:
        for number, meant in enumerate(rows(folder, period, namespace), 1):
            if next(listed, None) != {name: tables.cell(value) for name, value in meant.items()}:
                return f"{meant['role']} of {meant['file']} is not here, or not as the records say", number
    except CannotRead as error:
        return str(error), number
    return ("it holds more rows than there are comparisons of roles", number + 1) if next(listed, None) else None


def _is_within(found: Totals, period: Period) -> bool:
    return period.is_whole(found.before.began, found.after.ended)


def _reckoned(folder: Path, found: Totals) -> list[reckon.Row]:
    if not found.before.witness == found.after.witness == "pg_stat_statements":
        return []
    listed = [row for row in tables.read(folder, SESSIONS) if row["target"] in found.targets]
    sessions = [reckon.Session(row["role"], row["started_at"], row["ended_at"]) for row in listed]
    role_of = {(row["namespace"], row["name"]): row["role"] for row in listed}
    commands = (
        _command(row, role_of) for row in tables.read(folder, COMMANDS) if row["target"] in found.targets
    )  # fmt: skip
    return reckon.reckon(found.before, found.after, sessions, commands, found.named, found.skew_us)


def _command(row: Row, role_of: dict[tuple[str, str], str]) -> reckon.Command:
    try:
        return reckon.Command(
            role=role_of.get((row["namespace"], row["session"]), ""), kind=row["kind"], decision=row["decision"],
            statements=int(row["statements"].removeprefix("'")), status=row["status"], code=row["code"],
            in_transaction=row["in_transaction"] == "yes", decided=row["decided_at"],
            duration_us=int(row["duration_us"]) if row["duration_us"] else None,
        )  # fmt: skip
    except ValueError as error:
        raise tables.BadTable(COMMANDS, f"{row['name']}: {error}") from error
