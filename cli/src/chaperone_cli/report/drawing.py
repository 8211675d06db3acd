"""samples.csv: which commands were drawn, in which order, and whether their bundles prove them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from chaperone_cli.report import bundles, sampling, tables
from chaperone_cli.report.model import Stratum
from chaperone_cli.report.sampling import STRATA, Draw
from chaperone_cli.report.tables import Row

type Rank = tuple[str, int, int]  # stratum, rank, place in the log


def ranks(draws: Mapping[str, Draw]) -> list[Rank]:
    """All draws, stratum by stratum."""
    return [
        (name, rank, index) for name in STRATA for rank, index in enumerate(draws[name].sample(), 1)
    ]  # fmt: skip


def rows_of(folder: Path, drawn: list[Rank]) -> dict[int, Row]:
    """The rows of the drawn commands, by their place in the log.

    Raises:
        BadTable: the table cannot be read.
    """
    wanted = {str(index) for _, _, index in drawn}
    return {int(row["index"]): row for row in tables.read(folder, tables.COMMANDS) if row["index"] in wanted}


def sampled(rank: Rank, row: Row, nonce: str, root: bytes, why: str) -> dict[str, object]:
    """A row of samples.csv; `why` says what speaks against it."""
    stratum, place, index = rank
    kept = ("name", "namespace", "session", "stream", "seq", "decision", "policy", "rule", "revision", "sha256")
    return {
        "stratum": stratum, "rank": place, "score": sampling.score(nonce, root, index).hex(), "index": index,
        **{name: row[name] for name in kept},
        "bundle": bundles.name_of(row["namespace"], row["session"]), "proved": not why, "why": why,
    }  # fmt: skip


def by_bundle(rows: Mapping[int, Row]) -> dict[tuple[str, str], set[tuple[str, int]]]:
    """Which records are wanted of which session's bundle, by namespace and session."""
    found: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for row in rows.values():
        seq = int(row["seq"]) if row["seq"].isdecimal() else -1
        found.setdefault((row["namespace"], row["session"]), set()).add((row["stream"], seq))
    return found


def strata(draws: Mapping[str, Draw], is_proved: Callable[[str, int], bool]) -> list[Stratum]:
    """How much of each population was drawn, and how much of that is proved; `is_proved` of stratum and place."""
    return [
        Stratum(
            name=name, label=label, fact=name, population=draws[name].population, size=len(draws[name].sample()),
            proved=sum(is_proved(name, index) for index in draws[name].sample()),
        )
        for name, label in STRATA.items()
    ]  # fmt: skip
