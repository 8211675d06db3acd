"""Bundles of sampled sessions: verified as `chaperone verify` does it, and rows held against the records in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from chaperone_cli.evidence import CannotVerify, Source, entries, open_source, segments
from chaperone_cli.report.rows import of_record
from chaperone_cli.report.tables import Row, cell
from chaperone_cli.verify import Trust, judge
from chaperone_evidence import entry, record
from chaperone_evidence.errors import EvidenceError

FOLDER: Final = "evidence"


class Examined(msgspec.Struct):
    """What a bundle shows. `commands` holds the records that were asked for; `said` each command of each stream."""

    problem: str = ""
    commands: dict[tuple[str, int], record.CommandIntent] = {}
    said: dict[tuple[str, int], int] = {}  # → when it was decided, µs
    roots: dict[int, bytes] = {}  # of the log, by its size


def name_of(namespace: str, session: str) -> str:
    """The file of a session's bundle; a session's id is unique within its namespace."""
    return f"{FOLDER}/{namespace}.{session}.tar"


def examine(path: Path, trust: Trust, wanted: set[tuple[str, int]]) -> Examined:
    """Verify a bundle, and read the commands in it.

    Args:
        path: of the bundle.
        trust: what the verdict rests on.
        wanted: stream and number of the records to keep.
    """
    found = Examined()
    try:
        with open_source(path) as source:
            verdict = judge(source, trust.authorities, trust.log)
            if verdict.problems:
                found.problem = str(verdict.problems[0])
                return found
            if trust.log is None:
                found.problem = "that the log has it was not checked, for want of the log's keys"
            for report in verdict.streams:
                if report.logged is not None:
                    found.roots[report.logged.size] = report.logged.root
            for stream, seq, said in _commands(source):
                found.said[stream, seq] = said.wall_us
                if (stream, seq) in wanted:
                    found.commands[stream, seq] = said
    except (CannotVerify, EvidenceError, OSError) as error:
        found.problem = str(error) or "it cannot be read"
    return found


def doubt(row: Row, found: Examined) -> str:
    """What speaks against a row of a sampled command; empty when the bundle proves it."""
    if found.problem:
        return found.problem
    said = found.commands.get((row["stream"], int(row["seq"]) if row["seq"].isdecimal() else -1))
    if said is None:
        return "its record is not in the bundle"
    for column, value in of_record(said).items():
        if row[column] != cell(value):
            return f"the record says another {column}: {cell(value)}"
    return ""


def _commands(source: Source) -> Iterator[tuple[str, int, record.CommandIntent]]:
    for stream, (names, _) in segments(source).items():
        for seq, data in enumerate(entries(source, names, f"commands of stream {stream}")):
            cls, _, header = entry.split(data)
            if cls == entry.CLASS_RECORD and isinstance(said := record.decode(header), record.CommandIntent):
                yield stream, seq, said
