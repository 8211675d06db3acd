"""report.html: one page that needs no network and no script, for screens and for paper."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from chaperone_cli.report import sampling, shown
from chaperone_cli.report.look import SHEET
from chaperone_cli.report.markup import Html, style, tag
from chaperone_cli.report.model import CHECKPOINT, MANIFEST, Criterion, Fact, Line, Report
from chaperone_cli.report.tables import READERS, SILENCE, Row

TITLE: Final = "What agents did: evidence for SOC 2"
LEAD: Final = (
    "Which agents had access to what, what they did, what was refused, and how far that is proved. "
    "This is evidence for an auditor, and no opinion."
)
HOW: Final = (
    "Each number leads to its rows; each row names its record and the command that shows it. "
    f"All rows are in the tables under populations. {CHECKPOINT} is the log's checkpoint, {MANIFEST} the hash of "
    "each file. “chaperone report check” counts, draws and verifies again, offline."
)
LONG_WORD: Final = 32  # characters of a word that may be broken; a session's id has 26
FIRST: Final = (
    "identities", "pods", "heard", "unheard", "sessions", "commands", "allowed", "approved", "refused", "gaps",
    "totals-differ", "unproved",
)  # fmt: skip


def render(report: Report, folder: Path) -> str:
    """The page.

    Raises:
        BadTable: a table of the package cannot be read.
    """
    facts = {fact.id: fact for fact in report.facts}
    rows = shown.rows_of(folder, report.facts)
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"), tag("title", title(report)), style(SHEET),
    )  # fmt: skip
    main = tag(
        "main", _summary(report, facts), *[_criterion(one, report, facts) for one in report.criteria],
        _samples(report), _readers(facts["readers"], rows["readers"]), _silence(facts, rows), _appendix(report, rows),
        id="main",
    )  # fmt: skip
    skip = tag("a", "Skip to the report", href="#main", class_="skip")
    body = tag("body", skip, _header(report), _contents(report), main)
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


def title(report: Report) -> str:
    """Of page and PDF."""
    return f"{TITLE}, {shown.days(report.parameters.since, report.parameters.until)}"


def head(report: Report) -> list[tuple[str, str]]:
    """What was asked, of which log, and when: name and value."""
    asked, log = report.parameters, report.log
    signed = log.signed_at or "no signature says when"
    verified = "verified with the log's keys" if log.is_verified else "NOT verified, for want of the log's keys"
    listed = ", ".join(f"{name} at {version or 'no version'}" for name, version in report.versions.items())
    return [
        ("Period", f"{shown.days(asked.since, asked.until)} (UTC)"), ("Namespace", asked.namespace or "all"),
        ("Log", log.origin), ("Checkpoint", f"{log.size} entries, {verified}, signed {signed}"), ("Root", log.root),
        ("Witnesses", ", ".join(log.witnesses) or "none"),
        ("Nonce", f"{asked.nonce} ({'given' if asked.is_nonce_given else 'drawn by the program'})"),
        ("Listed", listed), ("Made", f"{shown.moment(report.made_at)} UTC, chaperone {report.version}"),
    ]  # fmt: skip


def number(fact: Fact) -> str:
    """The count of a fact, for people."""
    if not fact.is_known and not fact.count:
        return "not known"
    return f"{fact.count:,}".replace(",", "\u202f") + ("" if fact.is_known else " or more")


def _header(report: Report) -> Html:
    return tag(
        "header", tag("h1", TITLE), tag("p", LEAD, class_="lead"),
        tag("dl", *[tag("div", tag("dt", name), tag("dd", value)) for name, value in head(report)]),
        *[tag("p", f"Note: {text}", class_="note") for text in report.notes],
    )  # fmt: skip


def _contents(report: Report) -> Html:
    links = [(one.id, f"{one.id} {one.title}") for one in report.criteria]
    links += [("samples", "Samples"), ("readers", "Who read the evidence"), ("silence", "Silence"), ("rows", "Rows")]
    items = [tag("li", tag("a", text, href=f"#{name}")) for name, text in links]
    return tag("nav", tag("h2", "Contents"), tag("ul", *items), aria_label="Contents")


def _summary(report: Report, facts: dict[str, Fact]) -> Html:
    cards = [tag("li", _number(facts[name]), tag("span", facts[name].label)) for name in FIRST]
    return tag(
        "section", tag("h2", "At a glance", id="glance"), tag("ul", *cards, class_="cards"), tag("p", HOW),
        aria_labelledby="glance",
    )  # fmt: skip


def _number(fact: Fact) -> Html:
    if not fact.count:
        return tag("span", number(fact), class_="n none")
    return tag("a", number(fact), href=f"#rows-{fact.id}", class_="n")


def _criterion(one: Criterion, report: Report, facts: dict[str, Fact]) -> Html:
    strata = [stratum for stratum in report.strata if stratum.name in one.samples]
    drawn = [
        tag("li", tag("a", f"{stratum.size} of {stratum.population}", href=f"#sample-{stratum.name}", class_="n"),
            f" {stratum.label.lower()}, {stratum.proved} proved")
        for stratum in strata
    ]  # fmt: skip
    none = [tag("li", "Nothing is sampled here: the whole population is shown.")]
    return tag(
        "section", tag("h2", tag("span", one.id, class_="id"), f" {one.title}", id=one.id),
        _part("In place", _lines(one.in_place, facts)), _part("Population", _lines(one.population, facts)),
        _part("Sample", drawn or none),
        _part("Exceptions, and what people decided", _lines(one.exceptions, facts), "look"),
        _part("How completeness and accuracy were established", _lines(one.established, facts)),
        _part("Not established", _lines(one.not_established, facts), "open"), aria_labelledby=one.id,
    )  # fmt: skip


def _part(title: str, items: list[Html], kind: str = "") -> Html:
    return tag("div", tag("h3", title), tag("ul", *items), class_=f"part {kind}".strip())


def _lines(lines: list[Line], facts: dict[str, Fact]) -> list[Html]:
    return [
        tag("li", _number(facts[one.fact]), f" {facts[one.fact].label}") if one.fact else tag("li", one.text)
        for one in lines
    ]  # fmt: skip


def _samples(report: Report) -> Html:
    bounds = [f"up to {most}" for most, _ in sampling.TABLE] + [f"more than {sampling.TABLE[-1][0]}"]
    sizes = [str(size) if size else "all" for _, size in sampling.TABLE] + [str(sampling.MOST)]
    asked = report.parameters.sample
    how = f"{asked} of each population, as it was asked for." if asked else "By the size of the population:"
    rule = [_table(("population", "sample"), [list(pair) for pair in zip(bounds, sizes, strict=True)])]
    drawn = [
        tag("p", tag("strong", stratum.label), f": {stratum.size} of {stratum.population}, {stratum.proved} proved by "
            f"their bundles. ", tag("a", "Rows", href="#rows-samples"), id=f"sample-{stratum.name}")
        for stratum in report.strata
    ]  # fmt: skip
    return tag(
        "section", tag("h2", "Samples", id="samples"),
        tag("p", "Nobody chose them. A command's score is HMAC-SHA-256, with the nonce as key, over the root of the "
            "log and the command's place in the log (8 bytes, big-endian). The lowest scores of a population are "
            "its sample. An auditor who gives a nonce after witnesses have signed the checkpoint leaves nobody a "
            "choice."),
        tag("p", how), *([] if asked else rule), *drawn, aria_labelledby="samples",
    )  # fmt: skip


def _readers(fact: Fact, rows: list[Row]) -> Html:
    return tag(
        "section", tag("h2", "Who read the evidence", id="readers"),
        tag("p", "Each read is an entry of the log, written before the answer is given."),
        _rows_table(READERS, rows) if rows else tag("p", "Nothing is known of reads in this period."),
        tag("p", _number(fact), f" {fact.label}"), aria_labelledby="readers",
    )  # fmt: skip


def _silence(facts: dict[str, Fact], rows: dict[str, list[Row]]) -> Html:
    parts = [tag("p", _number(facts[name]), f" {facts[name].label}") for name in ("silent", "unknown")]
    both = rows["silent"] + rows["unknown"]
    return tag(
        "section", tag("h2", "Silence", id="silence"),
        tag("p", "That nothing was recorded proves nothing by itself. Silence is attested where populations name, "
            "without a break, which pods of the identity there were, each was heard, and the log has no command."),
        *parts, *([_rows_table(SILENCE, both)] if both else []), aria_labelledby="silence",
    )  # fmt: skip


def _appendix(report: Report, rows: dict[str, list[Row]]) -> Html:
    parts = []
    for fact in report.facts:
        if not fact.count:
            continue
        of = rows[fact.id]
        more = f" The first {len(of)} are shown." if fact.count > len(of) else ""
        parts.append(tag(
            "section", tag("h3", f"{fact.label}: {fact.count}", id=f"rows-{fact.id}"),
            tag("p", "From ", tag("a", fact.file, href=fact.file), f"{_where(fact)}.{more}", class_="from"),
            _rows_table(fact.file, of), aria_labelledby=f"rows-{fact.id}",
        ))  # fmt: skip
    return tag("section", tag("h2", "Rows", id="rows"), *parts, aria_labelledby="rows", class_="rows")


def _where(fact: Fact) -> str:
    said = [
        f"{name.removeprefix('!')} is {'not ' if name.startswith('!') else ''}"
        f"{' or '.join(value or 'empty' for value in values)}"
        for name, values in fact.where.items()
    ]
    return ", where " + " and ".join(said) if said else ""


def _rows_table(file: str, rows: list[Row]) -> Html:
    columns = shown.COLUMNS[file]
    by = [shown.asked_by(file, row) for row in rows]
    names = (*columns, "shown by") if any(by) else columns
    cells = [
        [shown.moment(row[column]) for column in columns] + ([command] if any(by) else [])
        for row, command in zip(rows, by, strict=True)
    ]  # fmt: skip
    return _table(names, cells)


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> Html:
    head = tag("tr", *[_heading(column) for column in columns])
    body = [tag("tr", *[_cell(column, text) for column, text in zip(columns, row, strict=True)]) for row in rows]
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label="Table")


def _heading(column: str) -> Html:
    kind = {"class_": "r"} if column in shown.NUMBERS else {}
    return tag("th", shown.heading(column), scope="col", **kind)


def _cell(column: str, text: str) -> Html:
    if column == "shown by":
        return tag("td", tag("code", *_broken(text)), class_="by")
    if column in shown.NUMBERS:
        return tag("td", text, class_="r")
    if column in shown.TIMES:
        return tag("td", text, class_="t")
    is_code = column in ("name", "sha256", "revision", "hash", "first_command", "stratum") and text
    return tag("td", tag("code", *_broken(text))) if is_code else tag("td", *_broken(text))


def _broken(text: str) -> list[Html | str]:
    """The text, with places to break lines at in words that are long, such as hashes."""
    parts: list[Html | str] = []
    for word in re.split(r"(?<= )", text):
        if len(word) <= LONG_WORD:
            parts.append(word)
            continue
        for first in range(0, len(word), LONG_WORD // 2):
            parts += [word[first : first + LONG_WORD // 2], tag("wbr")]
    return parts
