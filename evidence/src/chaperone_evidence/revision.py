"""Revisions of policy: what decided, as the operator signed it, so that every decision can be made again from the log.

Three files are kept of a snapshot that came into force: `bundle` (what OPA worked with), `gateway` (JSON: identity →
configuration of its gateways) and `notes` (JSON: identity → C2SP signed note by the operator's key,
`<cluster uid>/operator`). The body of a note is lines:

    chaperone.dev/policy
    <namespace>/<identity>
    <serial, from 1 on; the same for all identities of a snapshot, and higher in each later one of the namespace>
    <revision: 16 hex digits>
    <SHA-256 of the identity's configuration, hex>
    <SHA-256 of the bundle, hex>

So each identity's note binds its configuration and the bundle; nothing here is believed without one. The entry of a
revision (class 5) says namespace, revision and serial, and commits to the three files, which are bodies of the log.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from chaperone_evidence import canonical, entry, statement
from chaperone_evidence.canonical import MAX_INTEGER
from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed
from chaperone_evidence.note import Verifier, open_note
from chaperone_evidence.record import Commitment
from chaperone_evidence.statement import PolicyRevision

SUBJECT: Final = "chaperone.dev/policy"
FILES: Final = ("bundle", "gateway", "notes")  # in this order their bodies stand in a bundle of evidence
MAX_FILE_BYTES: Final = entry.MAX_BODY_BYTES - entry.SALT_BYTES  # a snapshot has at most 900 000 bytes

_BODY: Final = re.compile(
    r"(?P<subject>[^\n]+)\n(?P<namespace>[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)/(?P<identity>[^/\n]+)\n"
    r"(?P<serial>[1-9][0-9]{0,15})\n(?P<revision>[0-9a-f]{16})\n(?P<config>[0-9a-f]{64})\n(?P<bundle>[0-9a-f]{64})\n"
)


class Files(msgspec.Struct, frozen=True):
    """The files of a snapshot, as they are kept."""

    bundle: bytes
    gateway: bytes
    notes: bytes


class Revision(msgspec.Struct, frozen=True):
    """A snapshot of which every note holds."""

    cluster: str
    namespace: str
    revision: str
    serial: int
    identities: tuple[str, ...]
    files: Files

    def statement(self, salts: Sequence[bytes], wall_us: int) -> PolicyRevision:
        """What its entry says; one salt for each file."""
        sizes = [len(getattr(self.files, name)) for name in FILES]
        if len(salts) != len(FILES):
            raise ValueError("each file has a salt of its own")
        made = [
            Commitment(base64.b64encode(entry.body_commit(body)).decode(), size)
            for body, size in zip(self.bodies(salts), sizes, strict=True)
        ]
        return PolicyRevision(
            wall_us=wall_us, namespace=self.namespace, revision=self.revision, serial=self.serial,
            identities=len(self.identities), bundle_sha256=_sha256(self.files.bundle), bundle=made[0],
            gateway=made[1], notes=made[2],
        )  # fmt: skip

    def bodies(self, salts: Sequence[bytes]) -> list[bytes]:
        """Salt and content of each file."""
        return [salt + getattr(self.files, name) for salt, name in zip(salts, FILES, strict=True)]


def open_files(files: Files, verifier: Verifier) -> Revision:
    """The revision of files that this key has signed for each identity that is in them.

    Raises:
        Malformed: not a snapshot in its one form, or one that names nobody. BadSignature: a note is another key's, or
            of other bytes than these. EvidenceError: a note is none.
    """
    configs = _read(files.gateway, msgspec.Raw, "configurations")
    notes = _read(files.notes, str, "notes")
    if not notes or notes.keys() != configs.keys():
        raise Malformed("The snapshot does not have one note for each identity.")
    said: set[tuple[str, str, str]] = set()
    for identity, note in notes.items():
        body = _BODY.fullmatch(_open(note, verifier, identity))
        if body is None or body["subject"] != SUBJECT:
            raise Malformed(f"The note of {identity} is none about policy.")
        if body["identity"] != identity:
            raise BadSignature(f"The note of {identity} was made for {body['identity']}.")
        if body["config"] != _sha256(bytes(configs[identity])):
            raise BadSignature(f"The configuration of {identity} is not the one that was signed.")
        if body["bundle"] != _sha256(files.bundle):
            raise BadSignature("The bundle is not the one that was signed.")
        said.add((body["namespace"], body["serial"], body["revision"]))
    if len(said) != 1:
        raise BadSignature("The notes are of several snapshots.")
    ((namespace, serial, revision),) = said
    if int(serial) > MAX_INTEGER:
        raise Malformed("The serial is out of range.")
    cluster, _, role = verifier.name.rpartition("/")
    if not cluster or role != "operator":
        raise Malformed("The key is that of no operator.")
    return Revision(cluster, namespace, revision, int(serial), tuple(sorted(notes)), files)


def read_entry(data: bytes) -> PolicyRevision:
    """The statement of an entry.

    Raises:
        EvidenceError: it is the entry of something else.
    """
    found = statement.decode(entry.decode(data))
    if not isinstance(found, PolicyRevision):
        raise Malformed("The entry is that of no revision of policy.")
    return found


def open_bodies(said: PolicyRevision, bodies: Sequence[bytes], verifier: Verifier) -> Revision:
    """The revision of an entry whose bodies (salt and content) are given in the order of `FILES`.

    Raises:
        Malformed: a body is missing, is not the one that the entry commits to, or says something else than the entry.
        EvidenceError: as `open_files`.
    """
    if len(bodies) != len(FILES):
        raise Malformed(f"It has {len(bodies)} files, not {len(FILES)}.")
    for name, body in zip(FILES, bodies, strict=True):
        named: Commitment = getattr(said, name)
        if entry.body_commit(body) != canonical.decode_base64(named.commit):
            raise Malformed(f"The file {name} is not the one that the entry commits to.")
    found = open_files(Files(*(body[entry.SALT_BYTES :] for body in bodies)), verifier)
    if (found.namespace, found.revision, found.serial, len(found.identities), _sha256(found.files.bundle)) != (
        said.namespace, said.revision, said.serial, said.identities, said.bundle_sha256,
    ):  # fmt: skip
        raise Malformed("The entry does not say what the operator signed.")
    return found


def _read[Value](data: bytes, kind: type[Value], what: str) -> dict[str, Value]:
    try:
        found: dict[str, Value] = msgspec.json.decode(data, type=dict[str, kind])  # type: ignore[valid-type]
        is_canonical = msgspec.json.encode(dict(sorted(found.items()))) == data  # so nothing stands there twice
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Malformed(f"The {what} of the snapshot are no JSON object: {error}.") from error
    if not is_canonical:
        raise Malformed(f"The {what} of the snapshot are not in the form that the operator gives them.")
    return found


def _open(note: str, verifier: Verifier, identity: str) -> str:
    try:
        return open_note(note.encode(), verifier)
    except UnicodeEncodeError as error:
        raise Malformed(f"The note of {identity} is no text.") from error
    except BadSignature as error:
        raise BadSignature(f"The note of {identity} is not signed by {verifier.vkey}: {error}") from error
    except EvidenceError as error:
        raise Malformed(f"The note of {identity} cannot be read: {error}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
