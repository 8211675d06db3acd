"""What a package rests on: the gateway CA, the log's keys, and one checkpoint of the log."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from chaperone_cli.report.model import Log
from chaperone_cli.verify import Trust
from chaperone_evidence import checkpoint, note, policyfile
from chaperone_evidence.errors import EvidenceError, Malformed
from chaperone_evidence.policy import open_checkpoint


class CannotAnchor(Exception):
    """There is nothing to rest on; the text says why."""


def read_trust(trust: Path, policy: Path, *, is_given: bool) -> Trust:
    """The CA and the log's keys of these files; what is not there is not trusted.

    Raises:
        CannotAnchor: a file holds something else.
    """
    try:
        authorities = x509.load_pem_x509_certificates(trust.read_bytes()) if trust.exists() else []
        log = policyfile.parse(policy.read_text()) if policy.exists() else None
    except (OSError, ValueError, Malformed) as error:
        raise CannotAnchor(f"CA or keys of the log cannot be read: {error}") from error
    return Trust(authorities, is_given, log)


def open_log(data: bytes, trust: Trust) -> Log:
    """The log at a checkpoint, believed if there are keys to verify it by.

    Raises:
        CannotAnchor: it is no checkpoint, or not one that the keys have signed.
    """
    try:
        if trust.log is None:
            said = checkpoint.parse_body(note.parse(data).body)
            return _log(said, [], "", is_verified=False)
        opened = open_checkpoint(data, trust.log)
    except EvidenceError as error:
        raise CannotAnchor(f"the checkpoint of the log does not hold: {error}") from error
    times = max((one.time_s or 0 for one in opened.signatures), default=0)
    witnesses = sorted({one.key.name for one in opened.signatures if one.key in trust.log.witnesses})
    signed = f"{datetime.fromtimestamp(times, UTC):%Y-%m-%dT%H:%M:%SZ}" if times else ""
    return _log(opened.checkpoint, witnesses, signed, is_verified=True)


def _log(said: checkpoint.Checkpoint, witnesses: list[str], signed_at: str, *, is_verified: bool) -> Log:
    return Log(
        origin=said.origin, size=said.size, root=base64.b64encode(said.root).decode(), signed_at=signed_at,
        witnesses=witnesses, is_verified=is_verified,
    )  # fmt: skip
