"""reperformed.csv: the decisions of sampled sessions, made again by the revision of policy that each record names.

It has a row for each command of these sessions that commands.csv lists, in its order. OPA and the compiler are extras:
where they are not installed nothing is asked again, and that is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.policy_history import History, Seen
from chaperone_cli.report import bundles, tables
from chaperone_cli.report.tables import COMMANDS, REPERFORMED, Row
from chaperone_cli.revisions import keep
from chaperone_cli.verify import Trust
from chaperone_evidence.errors import EvidenceError

type Place = tuple[str, str]  # namespace and session


class CannotAskAgain(Exception):
    """OPA is not here, or what asks it; the text says so."""


def rows(
    folder: Path, trust: Trust, key: Path | None, examined: Mapping[Place, bundles.Examined]
) -> Iterator[dict[str, object]]:
    """The rows of the table, as the bundles of the package give them.

    Args:
        folder: of the package.
        trust: what verdicts rest on.
        key: the operator's, in a file.
        examined: the bundles of the sampled sessions.

    Raises:
        CannotAskAgain: nothing can be asked. BadTable: commands.csv cannot be read.
    """
    found = _ask(folder, trust, key, examined)
    for row in tables.read(folder, COMMANDS):
        place = (row["namespace"], row["session"])
        if place not in examined:
            continue
        known = {name: row[name] for name in ("name", "namespace", "session", "stream", "seq", "revision")}
        made = found.get((row["stream"], row["seq"]))
        if made is None:
            why = examined[place].problem or "its record is not in the bundle"
            made = dict.fromkeys(("was", "was_rule", "again", "again_rule"), "")
            made |= {"verdict": "not repeatable", "why": why}
        yield known | made


def disagreement(kept: Iterable[Row], meant: Iterable[dict[str, object]]) -> tuple[int, str]:
    """The first row that is not as it should be, and what is wrong; 0 for none."""
    left = iter(meant)
    number = 0
    for number, row in enumerate(kept, 1):
        wanted = next(left, None)
        if wanted is None:
            return number, "it is of no command of a sampled session"
        for column in tables.COLUMNS[REPERFORMED]:
            if tables.cell(wanted[column]) != row[column]:
                what = f"{row['name']}: {column} is {row[column]}, and should be {tables.cell(wanted[column])}"
                return number, f"{what}{f' ({wanted["why"]})' if wanted['why'] else ''}"
    rest = next(left, None)
    return (0, "") if rest is None else (number + 1, f"{rest['name']} of {COMMANDS} is not here")


def _ask(
    folder: Path, trust: Trust, key: Path | None, examined: Mapping[Place, bundles.Examined]
) -> dict[tuple[str, str], dict[str, object]]:
    try:
        from chaperone_cli.policy_world import Unusable  # noqa: PLC0415 - the compiler is an extra
        from chaperone_cli.reperform import Again, Reperformance  # noqa: PLC0415 - as is the gateway's vocabulary
    except ImportError as error:
        raise CannotAskAgain(f"what asks policy again is not installed ({error.name})") from error
    found: dict[tuple[str, str], dict[str, object]] = {}

    def tell(one: Again) -> None:
        told = ("was", "was_rule", "again", "again_rule", "verdict", "why")
        found[one.stream, str(one.seq)] = {name: getattr(one, name) for name in told}

    try:
        with Reperformance(tell) as again:
            for (namespace, session), one in examined.items():
                path = folder / bundles.name_of(namespace, session)
                if one.problem or not path.is_file():
                    continue
                with open_source(path) as source:
                    kept = keep(source, (), key, trust.log)
                    again.run(_of(History(source, has_texts=True), session), kept)
    except (Unusable, CannotVerify, EvidenceError) as error:
        raise CannotAskAgain(str(error)) from error
    return found


def _of(history: Iterable[Seen], session: str) -> Iterator[Seen]:
    return (seen for seen in history if seen.intent.session == session)
