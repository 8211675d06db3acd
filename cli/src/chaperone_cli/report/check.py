"""`chaperone report check`: does a package hold? Offline; everything in it is hostile until it was computed again.

In this order, for the first bad place is named first: the files against the manifest; the model against what this
program says and counts; the checkpoint; the tables against themselves; the samples drawn again; their bundles;
populations by their signatures; decisions, made again; and what was drawn for people, drawn again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path
from typing import Final

import click
import msgspec

from chaperone_cli.evidence import CannotVerify
from chaperone_cli.report import (
    again,
    anchor,
    attested,
    build,
    bundles,
    criteria,
    drawing,
    gather,
    oscal,
    page,
    tables,
    witness,
)
from chaperone_cli.report.files import listing, sha256
from chaperone_cli.report.model import (
    CHECKPOINT,
    FORMAT,
    MANIFEST,
    MODEL,
    OSCAL,
    PAGE,
    PDF,
    POLICY_FILE,
    SAMPLES,
    TRUST_FILE,
    Manifest,
    Report,
)
from chaperone_cli.report.period import Period, micros
from chaperone_cli.report.rows import class_of, log_index
from chaperone_cli.report.sampling import Draw
from chaperone_cli.report.tables import (
    COMMANDS,
    COVERAGE,
    EPOCHS,
    REFUSED,
    REPERFORMED,
    SESSIONS,
    TOTALS,
    BadTable,
    Row,
)
from chaperone_cli.report.tallying import Tally
from chaperone_cli.say import progress, say
from chaperone_cli.verify import CANNOT, FINDINGS, MAX_SHOWN, OK, Trust
from chaperone_evidence.ulid import is_ulid

MAX_MODEL_BYTES: Final = 16 << 20


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong, and where; `row` 0: in no row."""

    file: str
    what: str
    row: int = 0

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.file}{f' row {self.row}' if self.row else ''}: {self.what}"


class CannotCheck(Exception):
    """The package cannot be judged at all; the text says why."""


class Verdict(msgspec.Struct):
    """What was found out."""

    problems: list[Problem] = []
    notes: list[str] = []
    report: Report | None = None
    manifest_sha256: str = ""


def run(folder: Path, trust: Path | None, log_policy: Path | None, operator_key: Path | None, *, as_json: bool) -> int:
    """Check and print; returns the exit status."""
    try:
        verdict = check(folder, trust, log_policy, operator_key)
    except (CannotCheck, anchor.CannotAnchor, OSError) as error:
        if as_json:
            click.echo(msgspec.json.encode({"check": "CANNOT CHECK", "why": str(error)}))
        else:
            say(f"report check: CANNOT CHECK: {error}")
        return CANNOT
    finally:
        progress("")
    word = "FAILED" if verdict.problems else "OK"
    if as_json:
        problems = [msgspec.structs.asdict(one) for one in verdict.problems]
        said = {"check": word, "problems": problems, "notes": verdict.notes, "manifest": verdict.manifest_sha256}
        click.echo(msgspec.json.encode(said))
    else:
        _print(verdict)
    return FINDINGS if verdict.problems else OK


def check(
    folder: Path, given_trust: Path | None = None, given_policy: Path | None = None, given_key: Path | None = None
) -> Verdict:
    """Check a package.

    Raises:
        CannotCheck: there is no manifest or model of this format. CannotAnchor: CA, keys or checkpoint cannot be read.
    """
    manifest, digest = _manifest(folder)
    verdict = Verdict([], [], None, digest)
    trust = anchor.read_trust(
        given_trust or folder / TRUST_FILE, given_policy or folder / POLICY_FILE, is_given=given_trust is not None
    )
    if None in (given_trust, given_policy, given_key):
        verdict.notes.append(
            "CA, keys of the log or the operator's key lay in the package; give --trust, --log-policy and "
            "--operator-key of your own"
        )
    verdict.problems += _files(folder, manifest)
    report = _model(folder)
    verdict.report = report
    try:
        verdict.problems += _texts(report, manifest)
        verdict.problems += _counts(folder, report)
        root = _checkpoint(folder, report, trust, verdict)
        draws = gather.draws(report.parameters.nonce, root, report.parameters.sample)
        verdict.problems += _commands(folder, report, draws)
        verdict.problems += _totals(folder)
        verdict.problems += _witness(folder, report)
        examined: dict[tuple[str, str], bundles.Examined] = {}
        verdict.problems += _samples(folder, report, trust, draws, root, examined)
        key = given_key or build.operator_file(folder)
        verdict.problems += _attested(folder, trust, key)
        verdict.problems += _again(folder, report, trust, key, examined, verdict)
        verdict.problems += _drawn(folder, report, verdict)
    except BadTable as error:
        verdict.problems.append(Problem(*error.parts))
    if (folder / PDF).exists():
        verdict.notes.append(f"{PDF} is held by its hash alone: it is not set again; {PAGE} is")
    verdict.notes += [f"the report says: {text}" for text in report.notes]
    return verdict


def _manifest(folder: Path) -> tuple[Manifest, str]:
    try:
        data = (folder / MANIFEST).read_bytes()
        found = msgspec.json.decode(data, type=Manifest, strict=True)
    except (OSError, msgspec.DecodeError) as error:
        raise CannotCheck(f"{MANIFEST} cannot be read: {error}") from error
    if found.format != FORMAT:
        raise CannotCheck(f"{MANIFEST} is not of the format {FORMAT}.")
    return found, sha256(folder / MANIFEST)


def _model(folder: Path) -> Report:
    try:
        with (folder / MODEL).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_MODEL_BYTES), type=Report)
    except (OSError, msgspec.DecodeError) as error:
        raise CannotCheck(f"{MODEL} cannot be read: {error}") from error


def _files(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            yield Problem(path.relative_to(folder).as_posix(), "it is a link, not a file")
    here = listing(folder)
    for name, listed in manifest.files.items():
        found = here.get(name)
        if found is None:
            yield Problem(name, f"{MANIFEST} names it, and it is not here")
        elif found != listed:
            yield Problem(name, f"it is not what {MANIFEST} names: {found.size} bytes, SHA-256 {found.sha256}")
    for name in sorted(here.keys() - manifest.files.keys()):
        yield Problem(name, f"{MANIFEST} does not name it")


def _texts(report: Report, manifest: Manifest) -> Iterator[Problem]:
    """The model says of the criteria what this program says, and of itself what the manifest says."""
    if (report.format, report.version, report.parameters, report.log) != (
        manifest.format, manifest.version, manifest.parameters, manifest.log,
    ):  # fmt: skip
        yield Problem(MODEL, f"version, parameters or log are not those of {MANIFEST}")
    if report.version != build.version():
        return  # said by `_drawn`
    meant = {fact.id: (fact.label, fact.file, fact.where) for fact in criteria.facts()}
    if meant != {fact.id: (fact.label, fact.file, fact.where) for fact in report.facts}:
        yield Problem(MODEL, "its facts are not those that this version counts")
    if report.criteria != criteria.criteria(report.missing):
        yield Problem(MODEL, "its criteria do not say what this version says")


def _counts(folder: Path, report: Report) -> Iterator[Problem]:
    counts = tables.count(folder, report.facts)
    for fact in report.facts:
        if fact.count != counts[fact.id]:
            what = f"it says {fact.count} for “{fact.label}” ({fact.id}); {fact.file} has {counts[fact.id]}"
            yield Problem(MODEL, what)


def _checkpoint(folder: Path, report: Report, trust: Trust, verdict: Verdict) -> bytes:
    log = anchor.open_log((folder / CHECKPOINT).read_bytes(), trust)
    if (log.origin, log.size, log.root) != (report.log.origin, report.log.size, report.log.root):
        verdict.problems.append(Problem(CHECKPOINT, f"origin, size or root are not those of {MODEL}"))
    if not log.is_verified:
        verdict.notes.append("no keys of the log were there to verify the checkpoint by; give --log-policy")
    elif (log.signed_at, log.witnesses) != (report.log.signed_at, report.log.witnesses):
        verdict.notes.append(
            f"by your keys the checkpoint is of {log.signed_at or 'no time'}, witnesses: {log.witnesses}"
        )
    return base64.b64decode(log.root)


def _commands(folder: Path, report: Report, draws: dict[str, Draw]) -> Iterator[Problem]:
    """Commands stand in the order of the log, within the period and below the checkpoint; refused ones once more."""
    period = Period(report.parameters.since, report.parameters.until)
    refused = tables.read(folder, REFUSED)
    last = -1
    for number, row in enumerate(tables.read(folder, COMMANDS), 1):
        index = int(row["index"]) if row["index"].isdecimal() else -1
        wrong = _wrong(row, index, last, report.log.size, period)
        if wrong:
            yield Problem(COMMANDS, wrong, number)
            return
        last = index
        draws[row["class"]].add(index)
        if row["class"] == "refused" and next(refused, None) != row:
            yield Problem(REFUSED, f"{row['name']} of {COMMANDS} is not here, or not in its place")
            return
    if next(refused, None) is not None:
        yield Problem(REFUSED, f"it holds more commands than {COMMANDS} has refused")


def _totals(folder: Path) -> Iterator[Problem]:
    """Each session has as many commands in the list as its row says."""
    with closing(Tally()) as listed:
        for row in tables.read(folder, COMMANDS):
            listed.add(f"{row['namespace']} {row['session']}")
        for number, row in enumerate(tables.read(folder, SESSIONS), 1):
            count = listed.count(f"{row['namespace']} {row['name']}")
            is_agreeing = row["total"] != "agrees" or row["commands"] == row["counted"]
            if str(count) != row["counted"] or not is_agreeing:
                what = f"session {row['name']} has {count} commands in {COMMANDS}; its row says {row['counted']}"
                yield Problem(SESSIONS, f"{what}, and {row['commands']} by itself", number)
                return


def _witness(folder: Path, report: Report) -> Iterator[Problem]:
    """Counters of back ends are reckoned again against the commands here."""
    asked = report.parameters
    wrong = witness.problem(folder, Period(asked.since, asked.until), asked.namespace)
    if wrong is not None:
        yield Problem(TOTALS, *wrong)


def _wrong(row: Row, index: int, last: int, size: int, period: Period) -> str:
    if index != log_index(row["name"]):
        return f"{row['name']} does not stand at place {row['index']} of the log"
    if index <= last:
        return f"{row['name']} is not in the order of the log"
    if index >= size:
        return f"{row['name']} is not below the checkpoint"
    if not period.holds(row["decided_at"]):
        return f"{row['name']} is not of this period"
    if row["class"] != class_of(row["decision"], bool(row["approval"])):
        return f"{row['name']} is not of the class {row['class']}"
    return ""


def _attested(folder: Path, trust: Trust, key: Path | None) -> Iterator[Problem]:
    """Populations, verified anew by the operator's key."""
    meant = list(attested.rows(folder, trust, key))
    kept = list(tables.read(folder, COVERAGE))
    for number, (row, wanted) in enumerate(zip_longest(kept, meant), 1):
        if row is None or wanted is None:
            yield Problem(COVERAGE, f"it does not have the namespaces of {EPOCHS}, each once", number)
            return
        for column in tables.COLUMNS[COVERAGE]:
            if row[column] != tables.cell(wanted[column]):
                what = f"{row['namespace']}: {column} is {row[column]}, and should be {tables.cell(wanted[column])}"
                yield Problem(COVERAGE, f"{what}{f' ({wanted["why"]})' if wanted['why'] else ''}", number)
                break


def _again(
    folder: Path, report: Report, trust: Trust, key: Path | None, examined: dict[tuple[str, str], bundles.Examined],
    verdict: Verdict,
) -> Iterator[Problem]:  # fmt: skip
    """Decisions, made again."""
    if not report.fact("reperformed").is_known:
        return
    try:
        number, what = again.disagreement(tables.read(folder, REPERFORMED), again.rows(folder, trust, key, examined))
    except again.CannotAskAgain as error:
        verdict.notes.append(f"decisions were not made again here, their table is held by its hash: {error}")
        return
    if number:
        yield Problem(REPERFORMED, what, number)


def _samples(
    folder: Path, report: Report, trust: Trust, draws: dict[str, Draw], root: bytes,
    examined: dict[tuple[str, str], bundles.Examined],
) -> Iterator[Problem]:  # fmt: skip
    drawn = drawing.ranks(draws)
    by_index = drawing.rows_of(folder, drawn)
    named = list(tables.read(folder, SAMPLES))
    for number, ((stratum, _, index), row) in enumerate(zip(drawn, named, strict=False), 1):
        if (row["stratum"], row["index"]) != (stratum, str(index)):
            yield Problem(SAMPLES, f"not {row['name']}, but {by_index[index]['name']} is drawn here", number)
            return
    if len(named) != len(drawn):
        yield Problem(SAMPLES, f"{len(drawn)} commands are drawn, and {len(named)} are here")
        return
    for number, (place, wanted) in enumerate(drawing.by_bundle(by_index).items(), 1):
        progress(f"bundle {number}")
        examined[place] = _examined(folder, place, trust, wanted)
        yield from _against_log(bundles.name_of(*place), examined[place], report.log.size, root)
    proved = set()
    for number, (rank, kept) in enumerate(zip(drawn, named, strict=True), 1):
        row = by_index[rank[2]]
        why = bundles.doubt(row, examined[row["namespace"], row["session"]])
        meant = drawing.sampled(rank, row, report.parameters.nonce, root, why)
        proved |= set() if why else {(rank[0], rank[2])}
        for column in tables.COLUMNS[SAMPLES]:
            is_same = tables.cell(meant[column]) == kept[column] or (column == "why" and why and kept["why"])
            if not is_same:
                what = f"{row['name']}: {column} is {kept[column]}, and should be {tables.cell(meant[column])}"
                yield Problem(SAMPLES, f"{what}{f' ({why})' if why else ''}", number)
                break
    yield from _listed(folder, report, examined)
    if report.strata != drawing.strata(draws, lambda name, index: (name, index) in proved):
        yield Problem(MODEL, "it says another number of sampled or proved commands")


def _examined(folder: Path, place: tuple[str, str], trust: Trust, wanted: set[tuple[str, int]]) -> bundles.Examined:
    path = folder / bundles.name_of(*place)
    if not is_ulid(place[1]) or path.parent != folder / bundles.FOLDER or not path.is_file():
        return bundles.Examined("its bundle is not in the package")
    try:
        return bundles.examine(path, trust, wanted)
    except CannotVerify as error:
        return bundles.Examined(str(error))


def _against_log(name: str, found: bundles.Examined, size: int, root: bytes) -> Iterator[Problem]:
    """One log has one root at each size."""
    if found.roots.get(size, root) != root:
        yield Problem(name, f"the log was forked: it signed another root of {size} entries")


def _listed(folder: Path, report: Report, examined: dict[tuple[str, str], bundles.Examined]) -> Iterator[Problem]:
    """Every command of a sampled stream up to its last that is listed has to be listed."""
    there: dict[str, set[int]] = {stream: set() for found in examined.values() for stream, _ in found.said}
    for row in tables.read(folder, COMMANDS):
        if row["stream"] in there and row["seq"].isdecimal():
            there[row["stream"]].add(int(row["seq"]))
    period = Period(report.parameters.since, report.parameters.until)
    for place, found in examined.items():
        for (stream, seq), wall_us in found.said.items():
            is_due = seq < max(there[stream], default=-1) and period.holds(micros(wall_us))
            if is_due and seq not in there[stream]:
                what = f"record {seq} of stream {stream} is a command of this period, and no row names it"
                yield Problem(COMMANDS, f"{what} (see {bundles.name_of(*place)})")
                return


def _drawn(folder: Path, report: Report, verdict: Verdict) -> Iterator[Problem]:
    """What people read is what this version draws of the model and the tables."""
    if report.version != build.version():
        verdict.notes.append(f"made by version {report.version}: texts and page are not compared with this version's")
        return
    if (folder / PAGE).read_text(encoding="utf-8", errors="replace") != page.render(report, folder):
        yield Problem(PAGE, f"it does not show what {MODEL} and the tables say")
    if (folder / OSCAL).read_bytes() != oscal.render(report, folder):
        yield Problem(OSCAL, f"it does not say what {MODEL} says")


def _print(verdict: Verdict) -> None:
    for text in verdict.notes[:MAX_SHOWN]:
        say(f"note: {text}")
    report = verdict.report
    if report is not None:
        for stratum in report.strata:
            say(f"sample: {stratum.size} of {stratum.population} ({stratum.label.lower()}), {stratum.proved} proved")
    for problem in verdict.problems[1 : MAX_SHOWN + 1]:
        say(f"also: {problem}")
    say(f"manifest: SHA-256 {verdict.manifest_sha256}")
    say(f"report check: FAILED at {verdict.problems[0]}" if verdict.problems else "report check: OK")
