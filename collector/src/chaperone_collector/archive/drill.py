"""The drill: does the bucket refuse what it has to? Locks that are accepted and not enforced are real.

A probe is stored and kept for one day; then all is tried that would make away with it. Two things count: each answer is
a refusal, and the probe and its lock are what they were. A bucket that is not locked is left as it was found.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Final

from chaperone_collector.archive.bucket import Answered, Bucket, Kept
from chaperone_collector.errors import ArchiveFailed
from chaperone_evidence.statement import DrillAttempt, WormDrill

FOLDER: Final = "drills"
KEPT_FOR: Final = timedelta(days=1)
DONE: Final = "done"
LOST: Final = "lost or changed"
# A client error says no; these say that there was no decision.
_NO_DECISION: Final = {HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}


def run(bucket: Bucket, now_us: int) -> WormDrill:
    """Store a probe and try; one thing after the other.

    Raises:
        ArchiveFailed: the bucket did not answer, so that nothing can be said.
    """
    attempts, options = _Drill(bucket, now_us).run(), bucket.options
    return WormDrill(
        wall_us=now_us, endpoint=options.endpoint, bucket=options.bucket, mode=options.mode, attempts=attempts,
        enforced=all(one.refused for one in attempts),
    )  # fmt: skip


def summary(said: WormDrill) -> str:
    """What was not refused, in a line."""
    return ", ".join(f"{one.action}: {one.answer}" for one in said.attempts if not one.refused)


def table(said: WormDrill) -> str:
    """All attempts, for people."""
    width = max(len(one.action) for one in said.attempts)
    lines = [f"{'ATTEMPT':{width}}  REFUSED  ANSWER"]
    lines += [f"{one.action:{width}}  {'yes' if one.refused else 'NO':7}  {one.answer}" for one in said.attempts]
    return "\n".join(lines)


class _Drill:
    """One probe and what is tried at it."""

    def __init__(self, bucket: Bucket, now_us: int) -> None:
        self._bucket = bucket
        self._mode = bucket.options.mode
        self._now = datetime.fromtimestamp(now_us // 1_000_000, UTC)
        self._until = self._now + KEPT_FOR
        self._key = bucket.options.key(FOLDER, f"{self._now:%Y%m%dT%H%M%SZ}-{os.urandom(4).hex()}")
        self._data = os.urandom(64)
        self._attempts: list[DrillAttempt] = []

    def run(self) -> list[DrillAttempt]:
        """All of it."""
        try:
            stored = self._bucket.call(
                "put_object", Key=self._key, Body=self._data, ObjectLockMode=self._mode,
                ObjectLockRetainUntilDate=self._until, IfNoneMatch="*",
            )  # fmt: skip
        except Answered as error:
            self._say("store-locked", error.code, is_refused=False)  # nothing can be locked here
            return self._attempts
        version = str(stored.get("VersionId", ""))
        if not version:
            self._say("store-locked", "no version", is_refused=False)
            return self._attempts
        one = {"Key": self._key, "VersionId": version}
        short = {"Mode": self._mode, "RetainUntilDate": self._now + timedelta(minutes=5)}
        other = {"Mode": "GOVERNANCE", "RetainUntilDate": self._until}
        self._try("delete-version", "delete_object", **one)
        self._try("delete-bypass-governance", "delete_object", **one, BypassGovernanceRetention=True)
        self._try("shorten-retention", "put_object_retention", **one, Retention=short)
        self._try(
            "shorten-bypass-governance", "put_object_retention", **one, Retention=short, BypassGovernanceRetention=True
        )
        if self._mode == "COMPLIANCE":
            self._try("change-mode", "put_object_retention", **one, Retention=other, BypassGovernanceRetention=True)
        self._try("store-again", "put_object", Key=self._key, Body=b"other", IfNoneMatch="*")
        if self._try("suspend-versioning", "put_bucket_versioning", VersioningConfiguration={"Status": "Suspended"}):
            self._undo("resume-versioning", "put_bucket_versioning", VersioningConfiguration={"Status": "Enabled"})
        self._held(one)
        self._check(version)
        return self._attempts

    def _held(self, one: dict[str, str]) -> None:
        """A hold that this collector may set has to hold; it is taken off again, for only the date is ours."""
        try:
            self._bucket.call("put_object_legal_hold", **one, LegalHold={"Status": "ON"})
        except Answered as error:
            self._say("set-legal-hold", error.code, is_refused=_is_refusal(error))
            return
        self._try("delete-under-legal-hold", "delete_object", **one, BypassGovernanceRetention=True)
        self._undo("lift-legal-hold", "put_object_legal_hold", **one, LegalHold={"Status": "OFF"})

    def _check(self, version: str) -> None:
        """Whatever was answered: is the probe what it was? Overwriting it in place must not have reached it."""
        with contextlib.suppress(Answered):  # a policy may refuse it; a bucket with versions stores another one
            added = self._bucket.call("put_object", Key=self._key, Body=b"over it").get("VersionId", version)
            if added != version:
                self._bucket.call("delete_object", Key=self._key, VersionId=added)
        try:
            is_there = self._bucket.get(self._key, version) == self._data
            is_there = is_there and self._bucket.lock(self._key, version) == Kept(self._mode, self._until)
        except ArchiveFailed:
            is_there = False
        self._say("overwrite", "the probe is what it was" if is_there else LOST, is_refused=is_there)

    def _try(self, action: str, method: str, **arguments: object) -> bool:
        """Try it; whether it was done."""
        try:
            self._bucket.call(method, **arguments)
        except Answered as error:
            self._say(action, error.code, is_refused=_is_refusal(error))
            return False
        self._say(action, DONE, is_refused=False)
        return True

    def _undo(self, action: str, method: str, **arguments: object) -> None:
        """Put back what a try has changed; said only where it fails."""
        try:
            self._bucket.call(method, **arguments)
        except Answered as error:
            self._say(action, error.code, is_refused=False)

    def _say(self, action: str, answer: str, *, is_refused: bool) -> None:
        self._attempts.append(DrillAttempt(action, answer, is_refused))


def _is_refusal(error: Answered) -> bool:
    is_client = HTTPStatus.BAD_REQUEST <= error.status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_client and error.status not in _NO_DECISION
