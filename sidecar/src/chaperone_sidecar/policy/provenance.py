"""Whether what the broker hands over is policy that the operator made, for this agent, and no older than what was seen.

The operator signs a note (C2SP signed-note) for each identity: whose it is, a serial, the revision, and digests of
configuration and bundle. Its public key comes with the pod from admission, so the broker is trusted with none of this.
Nothing is read out of a configuration before its note holds. The highest serial is kept on the spool's volume, so that
neither another answer nor a restart brings back a policy of before; a new pod has no memory, and begins with what it is
given.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Final

import msgspec

from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.note import open_note, parse_vkey
from chaperone_sidecar import metrics
from chaperone_sidecar.errors import ConfigError, PolicyUntrusted

SUBJECT: Final = "chaperone.dev/policy"
STATE: Final = "policy-serial.json"
_BODY: Final = re.compile(
    r"(?P<subject>[^\n]+)\n(?P<whose>[^\n]+)\n(?P<serial>[1-9][0-9]{0,15})\n(?P<revision>[0-9a-f]{16})\n"
    r"(?P<config>[0-9a-f]{64})\n(?P<bundle>[0-9a-f]{64})\n"
)

logger = logging.getLogger(__name__)


class Statement(msgspec.Struct, frozen=True):
    """What a note that holds says: digests are SHA-256, in hex."""

    serial: int
    revision: str
    bundle: str


class Newest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The highest serial that was seen and the revision that had it."""

    serial: int = 0
    revision: str = ""


class Provenance:
    """Judges what comes from the broker, for one agent.

    Args:
        vkey: the operator's public key.
        namespace: of this pod.
        identity: of this pod.
        folder: on a volume that lives as long as the pod.

    Raises:
        ConfigError: the key is none, or what was kept cannot be read.
    """

    def __init__(self, vkey: str, namespace: str, identity: str, folder: Path) -> None:
        try:
            self._verifier = parse_vkey(vkey)
        except EvidenceError as error:
            raise ConfigError(f"The key of policy cannot be read: {error}") from error
        self._whose = f"{namespace}/{identity}"
        self._state = folder / STATE
        self._newest = self._kept()

    def check(self, config: bytes, note: bytes) -> Statement:
        """What the operator says of a configuration; from now on nothing older is taken.

        Raises:
            PolicyUntrusted: the note or the bytes are not what the operator made for this agent now.
        """
        try:
            body = _BODY.fullmatch(open_note(note, self._verifier))
        except EvidenceError as error:
            raise _refused("signature", f"It is not signed by the operator: {error}") from error
        if body is None or body["subject"] != SUBJECT:
            raise _refused("note", "The operator's note does not have the form that this gateway knows.")
        if body["whose"] != self._whose:
            raise _refused("identity", f"It was made for {body['whose']}, and this is {self._whose}.")
        if hashlib.sha256(config).hexdigest() != body["config"]:
            raise _refused("config", "The configuration is not the one that the operator signed.")
        self._take(Newest(int(body["serial"]), body["revision"]))
        return Statement(self._newest.serial, body["revision"], body["bundle"])

    def check_bundle(self, bundle: bytes, statement: Statement) -> None:
        """Whether OPA may have these bytes.

        Raises:
            PolicyUntrusted: they are not those of the statement.
        """
        if hashlib.sha256(bundle).hexdigest() != statement.bundle:
            raise _refused("bundle", f"The bundle is not the one that the operator signed as {statement.revision}.")

    def _take(self, found: Newest) -> None:
        known = self._newest
        if found.serial < known.serial:
            raise _refused("serial", f"It is older ({found.serial}) than one that was seen ({known.serial}).")
        if found == known:
            return
        if found.serial == known.serial:
            raise _refused("serial", f"Its serial {found.serial} is that of revision {known.revision}.")
        self._newest = found
        try:
            self._keep(found)
        except OSError as error:
            # It counts all the same: what is newer may take something away, and commands need the disk themselves.
            logger.error("the newest policy's serial cannot be kept, a restart would forget it: %s", error.strerror)

    def _keep(self, newest: Newest) -> None:
        """Durable when this returns; a crash before leaves what was there."""
        self._state.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._state.with_suffix(".new")
        with fresh.open("wb") as file:
            file.write(msgspec.json.encode(newest))
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self._state)
        folder = os.open(self._state.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _kept(self) -> Newest:
        try:
            return msgspec.json.decode(self._state.read_bytes(), type=Newest)
        except FileNotFoundError:
            return Newest()
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{self._state} cannot be read, so an old policy could pass. Make the pod anew."
            ) from error


def _refused(what: str, why: str) -> PolicyUntrusted:
    metrics.policy_refused(what)
    return PolicyUntrusted(f"The policy is refused. {why}")
