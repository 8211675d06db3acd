"""`chaperone verify`: checks an evidence directory or bundle and prints what holds, for people or as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from chaperone_cli.evidence import (
    LOG_POLICY,
    MAX_TRUST_BYTES,
    TRUST,
    CannotVerify,
    Source,
    bodies,
    entries,
    open_source,
    proofs,
    segments,
)
from chaperone_cli.say import progress, say
from chaperone_evidence import policyfile
from chaperone_evidence.errors import Malformed
from chaperone_evidence.policy import Policy
from chaperone_evidence.verify import Logged, StreamReport, Verdict, find_in_log, join, verify_stream

OK, FINDINGS, CANNOT = 0, 1, 2
MAX_SHOWN: Final = 20  # lines of a kind; all of them are in the JSON


class Trust(msgspec.Struct, frozen=True):
    """The gateway CAs that a verdict rests on, and the log's keys if the log is to be looked at."""

    authorities: list[x509.Certificate]
    is_given: bool  # by --trust, not found beside the evidence
    log: Policy | None = None


def run(evidence: Path, trust: Path | None, log_policy: Path | None, *, as_json: bool) -> int:
    """Verify and print; returns the exit status."""
    try:
        with open_source(evidence) as source:
            anchor = read_trust(source, trust, log_policy)
            verdict = judge(source, anchor.authorities, anchor.log)
    except (CannotVerify, OSError) as error:
        if as_json:
            click.echo(msgspec.json.encode({"verify": "CANNOT VERIFY", "why": str(error)}))
        else:
            say(f"verify: CANNOT VERIFY: {error}")
        return CANNOT
    if as_json:
        click.echo(msgspec.json.encode(_plain(verdict, anchor)))
    else:
        _print(verdict, anchor)
    return FINDINGS if verdict.problems else OK


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
            report = verify_stream(stream, found, authorities, bodies(source, of_bodies, label))
            if log is not None:
                find_in_log(report, in_log.get(stream), log)
            elif stream in in_log:
                report.remarks.append("the proof that the log has it was not checked; give --log-policy")
            reports.append(report)
    finally:
        progress("")
    return join(reports)


def read_trust(source: Source, given: Path | None, log_policy: Path | None = None) -> Trust:
    """The CA certificates and keys to trust: those of files that the auditor brought, else those beside the evidence.

    Raises:
        CannotVerify: there is no certificate, or a file holds something else. OSError: a file cannot be read.
    """
    log = _read_policy(source, log_policy)
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


def _read_policy(source: Source, given: Path | None) -> Policy | None:
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


def _print(verdict: Verdict, trust: Trust) -> None:
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
    for problem in verdict.problems[1 : MAX_SHOWN + 1]:
        say(f"also: {problem}")
    if len(verdict.problems) > MAX_SHOWN + 1:
        say(f"also: {len(verdict.problems) - MAX_SHOWN - 1} more problems; --json shows all")
    say(f"verify: FAILED at {verdict.problems[0]}" if verdict.problems else "verify: OK")


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


def _plain(verdict: Verdict, trust: Trust) -> dict[str, object]:
    return {
        "verify": "FAILED" if verdict.problems else "OK",
        "ok": not verdict.problems,
        "problems": [msgspec.structs.asdict(problem) for problem in verdict.problems],
        "notes": verdict.notes,
        "trust": {
            "given": trust.is_given,
            "sha256": [fingerprint(certificate) for certificate in trust.authorities],
        },
        "streams": [_plain_stream(report) for report in verdict.streams],
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
        "records_without_text": report.missing_listed,
    }
