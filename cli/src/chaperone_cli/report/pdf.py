"""report.pdf: what the page says, for paper and for archives (PDF/UA-1), set by typst, which is the extra `report`.

Left out are the rows of populations, which stand in the tables; those of exceptions and samples are there.
"""

from __future__ import annotations

import importlib.resources
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from chaperone_cli.report import page, shown
from chaperone_cli.report.model import Fact, Line, Report
from chaperone_cli.report.tables import Row

TEMPLATE: Final = "report.typ"
BREAK_AFTER: Final = 30  # characters of one word, such as a hash; past it a line may break
_WIDE: Final = ("name", "sha256", "why", "detail", "effects", "reason", "shown by", "last seen", "decided", "hash")

type Json = dict[str, Any]


class CannotPrint(Exception):
    """There is no PDF; the text says why."""


def render(report: Report, folder: Path) -> bytes:
    """The PDF.

    Raises:
        CannotPrint: the extra is not installed, or the text cannot be set. BadTable: a table cannot be read.
    """
    try:
        import typst  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise CannotPrint("report.pdf needs the extra: install chaperone-cli[report]") from error
    template = (importlib.resources.files("chaperone_cli.report") / TEMPLATE).read_bytes()
    data = msgspec.json.encode(_data(report, folder)).decode()
    try:
        return typst.compile(
            template, sys_inputs={"data": data}, format="pdf", pdf_standards=["ua-1"],
            timestamp=int(datetime.fromisoformat(report.made_at).timestamp()),
        )  # fmt: skip
    except typst.TypstError as error:
        raise CannotPrint(f"report.pdf could not be set: {error}") from error


def _data(report: Report, folder: Path) -> Json:
    facts = {fact.id: fact for fact in report.facts}
    rows = shown.rows_of(folder, report.facts)
    asked_for = [line.fact for one in report.criteria for line in one.exceptions]
    named = [facts[name] for name in dict.fromkeys([*asked_for, "samples", "readers", "silent"]) if facts[name].count]
    return {
        "title": page.title(report), "lead": page.LEAD, "how": page.HOW, "root": f"Root of the log: {report.log.root}",
        "head": page.head(report), "notes": [_broken(text) for text in report.notes],
        "glance": [_item(Line("", name), facts) for name in page.FIRST],
        "criteria": [
            {
                "title": f"{one.id} {one.title}",
                "samples": [
                    {"number": f"{stratum.size} of {stratum.population}",
                     "text": f"{stratum.label.lower()}, {stratum.proved} proved"}
                    for stratum in report.strata if stratum.name in one.samples
                ] or [{"number": "", "text": "Nothing is sampled here."}],
                **{
                    part: [_item(line, facts) for line in getattr(one, part)]
                    for part in ("in_place", "population", "exceptions", "established", "not_established")
                },
            }
            for one in report.criteria
        ],
        "rows_are": f"Of exceptions, samples, readers and attested silence, the first {shown.MOST} each.",
        "tables": [_table(fact, rows[fact.id]) for fact in named],
    }  # fmt: skip


def _item(line: Line, facts: dict[str, Fact]) -> Json:
    if not line.fact:
        return {"number": "", "text": line.text}
    return {"number": page.number(facts[line.fact]), "text": facts[line.fact].label}


def _table(fact: Fact, rows: list[Row]) -> Json:
    columns = shown.COLUMNS[fact.file]
    return {
        "title": f"{fact.label}: {fact.count}", "source": f"From {fact.file}",
        "columns": [shown.heading(column) for column in columns], "wide": _WIDE,
        "rows": [[_broken(shown.moment(row[column])) for column in columns] for row in rows],
    }  # fmt: skip


def _broken(text: str) -> str:
    """The text with places to break lines at in words that have none."""
    words = text.split(" ")
    return " ".join(
        "\u200b".join(word[i : i + BREAK_AFTER // 3] for i in range(0, len(word), BREAK_AFTER // 3))
        if len(word) > BREAK_AFTER else word
        for word in words
    )  # fmt: skip
