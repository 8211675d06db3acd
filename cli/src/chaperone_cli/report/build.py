"""`chaperone report soc2`: makes the package, in a directory that is new or empty."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import secrets
import shutil
from pathlib import Path

import msgspec

from chaperone_cli.evidence import CannotVerify
from chaperone_cli.export import CannotExport, fetch_bundle, fetch_policy, fetch_trust, proof_path
from chaperone_cli.kubectl import EVERYWHERE, LOG_PATH, CannotAsk, Cluster, ask, place
from chaperone_cli.report import (
    again,
    anchor,
    attested,
    bundles,
    criteria,
    drawing,
    gather,
    oscal,
    page,
    pdf,
    tables,
    witness,
)
from chaperone_cli.report.asking import Asking
from chaperone_cli.report.files import listing
from chaperone_cli.report.model import (
    CHECKPOINT,
    FORMAT,
    MANIFEST,
    MODEL,
    OPERATOR_FILE,
    OSCAL,
    PAGE,
    PDF,
    POLICY_FILE,
    SAMPLES,
    TRUST_FILE,
    Fact,
    Log,
    Manifest,
    Parameters,
    Report,
)
from chaperone_cli.report.period import BadPeriod, Period, days, now
from chaperone_cli.say import progress, say
from chaperone_cli.totals.snapshot import CannotRead
from chaperone_cli.verify import Trust


class Options(msgspec.Struct, frozen=True):
    """What is wanted, as it was typed."""

    first: str
    last: str
    namespace: str
    nonce: str
    sample: int
    output: Path
    system_namespace: str
    trust: Path | None = None
    log_policy: Path | None = None
    totals: tuple[Path, ...] = ()
    operator_key: Path | None = None


class CannotReport(Exception):
    """No package was made; the text says why."""


def run(cluster: Cluster, options: Options) -> int:
    """Make the package, and say what is in it; returns the exit status."""
    try:
        report = make(cluster, options)
        digest = seal(options.output, report)
    except (
        CannotReport, CannotAsk, BadPeriod, anchor.CannotAnchor, tables.BadTable, CannotRead, OSError
    ) as error:  # fmt: skip
        say(f"report: FAILED: {error}", err=True)
        return 1
    finally:
        progress("")
    for text in report.notes:
        say(f"note: {text}")
    for stratum in report.strata:
        say(f"sample: {stratum.size} of {stratum.population} ({stratum.label.lower()}), {stratum.proved} proved")
    say(f"checkpoint: {report.log.size} entries, root {report.log.root}, {len(report.log.witnesses)} witnesses")
    say(f"manifest: {options.output / MANIFEST} SHA-256 {digest}")
    say(f"next: chaperone report check {options.output}")
    return 0


def make(cluster: Cluster, options: Options) -> Report:
    """Everything but the manifest.

    Raises:
        CannotReport: the directory is in use. CannotAsk: the cluster does not give what a report cannot do without.
        BadPeriod, CannotAnchor, BadTable, CannotRead, OSError: as they say.
    """
    period = days(options.first, options.last)
    folder = options.output
    if folder.exists() and any(folder.iterdir()):
        raise CannotReport(f"{folder} is not empty; name a directory that is new.")
    for name in ("populations", "evidence", "oscal"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    namespace = "" if options.namespace == EVERYWHERE else place(cluster, options.namespace)
    notes = _fetch_trust(cluster, options)
    trust = anchor.read_trust(folder / TRUST_FILE, folder / POLICY_FILE, is_given=options.trust is not None)
    data = ask(cluster, "get", "--raw", f"{LOG_PATH}/checkpoint")
    log = anchor.open_log(data, trust)
    (folder / CHECKPOINT).write_bytes(data)
    root = base64.b64decode(log.root)
    nonce = options.nonce or secrets.token_hex(16)
    asking = Asking(cluster, namespace)
    draws = gather.draws(nonce, root, options.sample)
    found = gather.Gathering(asking, folder, period, log.size, draws).run()
    witness.write(folder, options.totals, period, namespace)
    if not options.totals:
        found.unlisted.add(tables.TOTALS)
    proved, examined = _sample(cluster, folder, trust, found, nonce, root)
    found.notes += _attest(cluster, options, trust)
    found.notes += _ask_again(folder, trust, found, examined)
    report = Report(
        format=FORMAT, version=version(), made_at=now(),
        parameters=_parameters(options, period, namespace, nonce), log=log,
        versions={"commands, reads, populations": str(log.size)} | {
            name: version for name, version in asking.versions.items()
            if name not in ("commands", "reads", "populations")
        },
        notes=[*notes, *found.notes, *_doubts(log, period)], facts=_facts(folder, found.unlisted), criteria=[],
        strata=drawing.strata(draws, lambda name, index: (name, index) in proved),
    )  # fmt: skip
    report.criteria = criteria.criteria(report.missing)
    write(folder, report)
    return report


def _facts(folder: Path, unlisted: set[str]) -> list[Fact]:
    found = criteria.facts()
    counts = tables.count(folder, found)
    for fact in found:
        fact.count, fact.is_known = counts[fact.id], fact.file not in unlisted
    return found


def write(folder: Path, report: Report) -> None:
    """The model, and what is drawn of it."""
    (folder / MODEL).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    (folder / PAGE).write_text(page.render(report, folder), encoding="utf-8")
    (folder / OSCAL).write_bytes(oscal.render(report, folder))
    try:
        (folder / PDF).write_bytes(pdf.render(report, folder))
    except pdf.CannotPrint as error:
        say(f"note: {error}")


def seal(folder: Path, report: Report) -> str:
    """Write the manifest over all that is there; returns its SHA-256."""
    manifest = Manifest(
        format=FORMAT, version=report.version, parameters=report.parameters, log=report.log, files=listing(folder)
    )
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def version() -> str:
    """Of this program."""
    return importlib.metadata.version("chaperone-cli")


def _parameters(options: Options, period: Period, namespace: str, nonce: str) -> Parameters:
    return Parameters(
        since=period.since, until=period.until, namespace=namespace, nonce=nonce, is_nonce_given=bool(options.nonce),
        sample=options.sample,
    )  # fmt: skip


def _doubts(log: Log, period: Period) -> list[str]:
    found = []
    if not log.is_verified:
        found.append("the log's keys were not to be had: neither the checkpoint nor the samples are verified")
    if log.signed_at and log.signed_at < period.until:
        found.append(f"the checkpoint is of {log.signed_at}: what the period holds after it is not here")
    return found


def _fetch_trust(cluster: Cluster, options: Options) -> list[str]:
    """The CA and the log's keys into the package; returns what could not be had."""
    notes = []
    trust, policy = options.output / TRUST_FILE, options.output / POLICY_FILE
    try:
        if options.trust is not None:
            shutil.copyfile(options.trust, trust)
        else:
            fetch_trust(cluster, options.system_namespace, trust)
    except (CannotExport, CannotAsk) as error:
        notes.append(f"the gateway CA was not fetched (give --trust): {error}")
    try:
        if options.log_policy is not None:
            shutil.copyfile(options.log_policy, policy)
        else:
            fetch_policy(cluster, policy)
    except (CannotExport, CannotAsk) as error:
        notes.append(f"the log's keys were not fetched (give --log-policy): {error}")
    if not notes and (options.trust is None or options.log_policy is None):
        notes.append("CA or keys of the log came from the cluster itself; compare them with copies from elsewhere")
    return notes


def _sample(
    cluster: Cluster, folder: Path, trust: Trust, found: gather.Gathered, nonce: str, root: bytes
) -> tuple[set[tuple[str, int]], dict[tuple[str, str], bundles.Examined]]:
    """Draw, fetch and verify; returns which stratum and place are proved, and what each session's bundle shows."""
    drawn = drawing.ranks(found.draws)
    by_index = drawing.rows_of(folder, drawn)
    examined: dict[tuple[str, str], bundles.Examined] = {}
    for number, ((namespace, session), wanted) in enumerate(drawing.by_bundle(by_index).items(), 1):
        progress(f"bundle {number}")
        try:
            path = folder / bundles.name_of(namespace, session)
            fetch_bundle(cluster, proof_path(cluster, session, namespace), path)
            examined[namespace, session] = bundles.examine(path, trust, wanted)
        except (CannotExport, CannotAsk, CannotVerify) as error:
            examined[namespace, session] = bundles.Examined(f"its bundle was not given: {error}")
    proved = set()
    with tables.table(folder, SAMPLES) as table:
        for rank in drawn:
            row = by_index[rank[2]]
            why = bundles.doubt(row, examined[row["namespace"], row["session"]])
            table.add(drawing.sampled(rank, row, nonce, root, why))
            if not why:
                proved.add((rank[0], rank[2]))
    return proved, examined


def _attest(cluster: Cluster, options: Options, trust: Trust) -> list[str]:
    """Populations with their signatures, and coverage.csv; returns what could not be had."""
    folder = options.output
    notes = list(attested.fetch(cluster, folder))
    if options.operator_key is not None:
        shutil.copyfile(options.operator_key, folder / OPERATOR_FILE)
    elif key := attested.operator_key(folder):
        (folder / OPERATOR_FILE).write_bytes(key)
        notes.append("the operator's key came from the cluster itself; compare it with a copy from elsewhere")
    with tables.table(folder, tables.COVERAGE) as table:
        for row in attested.rows(folder, trust, operator_file(folder)):
            table.add(row)
    return notes


def _ask_again(
    folder: Path, trust: Trust, found: gather.Gathered, examined: dict[tuple[str, str], bundles.Examined]
) -> list[str]:
    """reperformed.csv; returns what could not be had."""
    with tables.table(folder, tables.REPERFORMED) as table:
        try:
            for row in again.rows(folder, trust, operator_file(folder), examined):
                table.add(row)
        except again.CannotAskAgain as error:
            found.unlisted.add(tables.REPERFORMED)
            return [f"no decision was made again: {error}"]
    return []


def operator_file(folder: Path) -> Path | None:
    """The operator's key of a package, if it has one."""
    return folder / OPERATOR_FILE if (folder / OPERATOR_FILE).is_file() else None
