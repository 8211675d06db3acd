"""`chaperone verify`: checks an evidence directory or bundle and prints what holds, for people or as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from chaperone_cli import completeness, revisions
from chaperone_cli.completeness import Completeness
from chaperone_cli.evidence import (
    LOG_POLICY,
    MAX_TRUST_BYTES,
    TRUST,
    CannotVerify,
    Source,
    bodies,
    certificates,
    ends,
    entries,
    open_source,
    proofs,
    segments,
)
from chaperone_cli.revisions import Kept
from chaperone_cli.say import progress, say
from chaperone_evidence import policyfile
from chaperone_evidence.completeness import Finding
from chaperone_evidence.erasure import explain, read_certificate
from chaperone_evidence.errors import EvidenceError, Malformed
from chaperone_evidence.policy import Policy
from chaperone_evidence.verify import (
    Logged,
    Problem,
    StreamReport,
    Verdict,
    find_in_log,
    join,
    verify_ends,
    verify_stream,
)

OK, FINDINGS, CANNOT = 0, 1, 2
MAX_SHOWN: Final = 20  # lines of a kind; all of them are in the JSON


class Trust(msgspec.Struct, frozen=True):
    """The gateway CAs that a verdict rests on, and the log's keys if the log is to be looked at."""

    authorities: list[x509.Certificate]
    is_given: bool  # by --trust, not found beside the evidence
    log: Policy | None = None


class Question(msgspec.Struct, frozen=True):
    """What is asked of a bundle of a namespace's coverage: by the operator of this key, and whether one did nothing."""

    operator_key: Path | None = None
    identity: str = ""
    begin: str = ""
    end: str = ""


def run(
    evidence: Path, trust: Path | None, log_policy: Path | None, question: Question | None = None, *, as_json: bool
) -> int:
    """Verify and print; returns the exit status."""
    question = question or Question()
    try:
        asked = completeness.read_asked(question.identity, question.begin, question.end)
        with open_source(evidence) as source:
            anchor = read_trust(source, trust, log_policy)
            verdict = judge(source, anchor.authorities, anchor.log)
            found = completeness.cover(source, verdict, question.operator_key, anchor.log, asked)
            kept = revisions.keep(source, verdict.streams, question.operator_key, anchor.log)
    except (CannotVerify, OSError) as error:
        if as_json:
            click.echo(msgspec.json.encode({"verify": "CANNOT VERIFY", "why": str(error)}))
        else:
            say(f"verify: CANNOT VERIFY: {error}")
        return CANNOT
    if as_json:
        click.echo(msgspec.json.encode(_plain(verdict, anchor, found, kept)))
    else:
        _print(verdict, anchor, found, kept)
    return FINDINGS if _problems(verdict, found, kept) or not _is_answered(found) else OK


def _problems(verdict: Verdict, found: Completeness | None, kept: Kept) -> list[Problem | Finding]:
    """Everything that is wrong. Populations that are no chain come first: nothing can be held against them."""
    of_coverage = found.coverage.problems if found is not None else []
    if found is not None and not found.coverage.as_of_us:
        return [*of_coverage, *verdict.problems, *kept.problems]
    return [*verdict.problems, *of_coverage, *kept.problems]


def _is_answered(found: Completeness | None) -> bool:
    return found is None or found.answer is None or found.answer.is_proved


def judge(source: Source, authorities: list[x509.Certificate], log: Policy | None = None) -> Verdict:
    """Verify all streams of a source, and that the log has them if its keys are given.

    Raises:
        CannotVerify: no stream, or files that do not belong to the layout.
    """
    names = segments(source)
    in_log = proofs(source)
    reports = []
    try:
        for number, (stream, (of_entries, of_bodies)) in enumerate(names.items(), 1):
            label = f"stream {number} of {len(names)}"
            found = entries(source, of_entries, label)
            reports.append(verify_stream(stream, found, authorities, bodies(source, of_bodies, label)))
        reports += [verify_ends(stream, found, authorities) for stream, found in ends(source).items()]
        _explain(source, reports, log)
        for report in reports:
            if log is not None:
                find_in_log(report, in_log.get(report.stream), log)
            elif report.stream in in_log:
                report.remarks.append("the proof that the log has it was not checked; give --log-policy")
    finally:
        progress("")
    return join(reports)


def _explain(source: Source, reports: list[StreamReport], log: Policy | None) -> None:
    """Say of missing texts that they were erased, where certificates of the log say so. A false one is a problem."""
    for name, (data, proof) in certificates(source).items():
        for report in reports:
            if report.opened is None or not report.bodies_missing:
                continue
            try:
                found = read_certificate(data, proof, log, report.opened.cluster)
            except EvidenceError as error:
                what = f"the certificate {int(name)} gives no reason for it: {error}"
                report.problems.append(
                    Problem(report.stream, min(report.missing.values()), f"its text is missing, and {what}")
                )
                continue
            explain(report, found)


def read_trust(source: Source, given: Path | None, log_policy: Path | None = None) -> Trust:
    """The CA certificates and keys to trust: those of files that the auditor brought, else those beside the evidence.

    Raises:
        CannotVerify: there is no certificate, or a file holds something else. OSError: a file cannot be read.
    """
    log = read_policy(source, log_policy)
    if given is not None:
        pem = given.read_bytes()
    elif TRUST in source.names():
        pem = source.read(TRUST, MAX_TRUST_BYTES)
    else:
        raise CannotVerify("No gateway CA is given; use --trust FILE (ConfigMap chaperone-trust, key gateway-ca.crt).")
    try:
        return Trust(x509.load_pem_x509_certificates(pem), given is not None, log)
    except ValueError as error:
        raise CannotVerify("The file with the gateway CA holds no certificate (PEM).") from error


def read_policy(source: Source, given: Path | None) -> Policy | None:
    """The log's keys: those of a file that the auditor brought, else those beside the evidence.

    Raises:
        CannotVerify: a file holds something else. OSError: it cannot be read.
    """
    if given is None and LOG_POLICY not in source.names():
        return None
    data = given.read_bytes() if given is not None else source.read(LOG_POLICY, MAX_TRUST_BYTES)
    try:
        return policyfile.parse(data.decode())
    except (Malformed, UnicodeDecodeError) as error:
        raise CannotVerify(f"The file with the log's keys is no tlog-policy: {error}") from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _print(verdict: Verdict, trust: Trust, found: Completeness | None, kept: Kept) -> None:
    for certificate in trust.authorities[:MAX_SHOWN]:
        say(f"trust: {certificate.subject.rfc4514_string()} SHA-256 {fingerprint(certificate)}")
    if not trust.is_given:
        say("note: this gateway CA lay beside the evidence; give --trust to check against a copy of your own")
    for report in verdict.streams:
        say(_line(report))
        if report.logged is not None:
            say(_logged(report, report.logged))
    for remark in verdict.notes[:MAX_SHOWN]:
        say(f"note: {remark}")
    if len(verdict.notes) > MAX_SHOWN:
        say(f"note: {len(verdict.notes) - MAX_SHOWN} more notes; --json shows all")
    for line in (*(completeness.lines(found) if found is not None else ()), *revisions.lines(kept)):
        say(line)
    problems = _problems(verdict, found, kept)
    for problem in problems[1 : MAX_SHOWN + 1]:
        say(f"also: {problem}")
    if len(problems) > MAX_SHOWN + 1:
        say(f"also: {len(problems) - MAX_SHOWN - 1} more problems; --json shows all")
    if problems:
        say(f"verify: FAILED at {problems[0]}")
    else:
        say("verify: OK" if _is_answered(found) else "verify: FAILED at the question, see silence")


def _line(report: StreamReport) -> str:
    opened = report.opened
    whose = f"{opened.namespace}/{opened.pod} as {opened.identity}" if opened is not None else "of nobody known"
    return (
        f"stream {report.stream} {whose}: {report.entries} records, {report.signed} signed, {report.sessions} sessions,"
        f" {report.commands} commands ({report.denied} refused), {report.bodies_checked} texts, end {report.end}"
    )


def _logged(report: StreamReport, found: Logged) -> str:
    when = f", signed {datetime.fromtimestamp(found.time_s, UTC):%Y-%m-%dT%H:%M:%SZ}" if found.time_s else ""
    return (
        f"log: record {report.entries - 1} of stream {report.stream} is entry {found.index} of {found.size}{when}, "
        f"{found.witnesses} witnesses"
    )


def _plain(verdict: Verdict, trust: Trust, found: Completeness | None, kept: Kept) -> dict[str, object]:
    is_ok = not _problems(verdict, found, kept) and _is_answered(found)
    return {
        "verify": "OK" if is_ok else "FAILED",
        "ok": is_ok,
        "problems": [msgspec.structs.asdict(problem) for problem in verdict.problems],
        "notes": verdict.notes,
        "trust": {
            "given": trust.is_given,
            "sha256": [fingerprint(certificate) for certificate in trust.authorities],
        },
        "streams": [_plain_stream(report) for report in verdict.streams],
        "policies": revisions.plain(kept),
        **(
            {}
            if found is None
            else {
                "coverage": completeness.plain(found) | {"problems": [str(one) for one in found.coverage.problems]},
            }
        ),
    }


def _plain_stream(report: StreamReport) -> dict[str, object]:
    opened = report.opened
    who = ("cluster", "namespace", "pod", "pod_uid", "identity", "identity_uid", "owner", "vkey")
    return {
        "stream": report.stream,
        "end": report.end,
        **({"log": msgspec.structs.asdict(report.logged)} if report.logged is not None else {}),
        **{name: getattr(opened, name) for name in who if opened is not None},
        **{
            name: getattr(report, name)
            for name in ("entries", "signed", "sessions", "commands", "denied", "open_intents", "unknown")
        },
        "last_link": report.link.hex(),
        "last_head_us": report.head_us,
        "without_outcome": [msgspec.structs.asdict(one) for one in report.open_listed],
        "texts": report.bodies_checked,
        "texts_missing": report.bodies_missing,
        "texts_erased": report.bodies_erased,
        "records_without_text": report.missing_listed,
    }
