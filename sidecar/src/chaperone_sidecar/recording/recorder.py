"""The recorder: turns what sessions do into the records of one stream.

It owns the chain, the spool and the clock; a session gets a `Receipt` only from here, after its record is in the
spool. Bodies (statement texts, parameters) are kept beside the records, under a salted commitment; a text
that a session repeats is kept once.
"""

from __future__ import annotations

import binascii
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_evidence import canonical, entry, record
from chaperone_evidence.chain import Chain, HeadState
from chaperone_evidence.note import Signer
from chaperone_sidecar.approval.desk import Request
from chaperone_sidecar.command import Access, Command, Facts
from chaperone_sidecar.config import Durability, Suspension
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import Intent, Receipt
from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.recording.assurance import Assurance, Witness
from chaperone_sidecar.recording.circumstance import told
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.spool import MAX_BODY_BYTES, Spool
from chaperone_sidecar.recording.syncer import Syncer
from chaperone_sidecar.user import User

VERSION: Final = "0.1.0"
HEAD_RECORDS: Final = 1000  # a head is signed at the latest after this many records
MAX_KNOWN_BODIES: Final = 256  # repeated texts of one session that are kept once
MAX_KNOWN_BODY_BYTES: Final = 4096  # longer texts are kept each time: remembering them would cost more
MAX_KNOWN_FACTS: Final = 1024  # facts whose form in records is remembered; about 1 KiB each
MAX_RECORDED_ACCESSES: Final = 100  # what the command names comes first; the text, which is kept whole, says the rest
MAX_MESSAGE_CHARACTERS: Final = 1024  # of who decided an approval, and why
MAX_ACCESSES_BYTES: Final = 12 << 10  # of them as JSON: a record is at most 16 KiB, and names may be long


class SessionLog:
    """What the recorder remembers of one session: its id, counts, and the bodies it already kept."""

    __slots__ = ("bodies", "bytes_in", "bytes_out", "chunks", "commands", "denied", "id", "opened_us", "target", "user")

    def __init__(self, session_id: str, target: str) -> None:
        self.id = session_id
        self.target = target
        self.user: User | None = None
        self.commands = 0
        self.denied = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.chunks = 0
        self.opened_us = 0  # monotonic
        self.bodies: OrderedDict[bytes, record.Commitment] = OrderedDict()


class Recorder:
    """Writes one stream.

    Args:
        chain: the stream's chain; nobody else appends to it.
        spool: where frames go.
        signer: the key of the stream's heads.
        ids: makes ULIDs.
        wall_ns, mono_ns: clocks.
    """

    def __init__(
        self,
        chain: Chain,
        spool: Spool,
        signer: Signer,
        ids: Ids,
        wall_ns: Callable[[], int] = time.time_ns,
        mono_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._chain = chain
        self._spool = spool
        self._signer = signer
        self._ids = ids
        self._wall_ns = wall_ns
        self._mono_ns = mono_ns
        self._since_head = 0
        self._entries: dict[int, tuple[Facts, tuple[record.AccessEntry, ...]]] = {}
        self._syncer: Syncer | None = None
        self.assurance: Assurance | None = None
        """What is asked of a record beyond being written; None for nothing."""
        self.is_closed = False

    def assure(self, durability: Durability, witness: Witness | None) -> None:
        """From now on a record has to be that sure before anything depends on it.

        Raises:
            ConfigError: nobody witnesses here.
        """
        if durability == "Written":
            self.assurance = None
            return
        if durability == "Witnessed" and witness is None:
            raise ConfigError(
                "spec.evidence.durability Witnessed needs a collector, whose log signs each record, and there is none "
                "here; use Synced or Written."
            )
        self._spool.is_synced = True
        self._syncer = self._syncer or Syncer(self._spool)
        self.assurance = Assurance(self._syncer, witness if durability == "Witnessed" else None)

    @property
    def next_seq(self) -> int:
        """The number of the next record: everything below is in the spool."""
        return self._chain.count

    def open_stream(self, opened: record.StreamOpen, stream: str, previous: str, previous_link: str) -> None:
        """Write the stream's first record and sign it at once.

        The head right after it makes the end of the stream before this one provable from the first moment.

        Raises:
            SpoolFull: no room.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        first = msgspec.structs.replace(
            opened,
            seq=seq,
            wall_us=wall_us,
            mono_us=mono_us,
            stream=stream,
            previous=previous,
            previous_link=previous_link,
            vkey=self._signer.verifier.vkey,
            gateway_version=VERSION,
        )
        self._append(first)
        self.head("open")

    def new_session(self, target: str) -> SessionLog:
        """A log for a session that is about to open; nothing is written yet."""
        return SessionLog(self._ids.ulid(), target)

    def open_session(
        self, log: SessionLog, *, protocol: str, client: str, upstream: str, user: str, database: str,
        application: str, role: str = "",
    ) -> Receipt:  # fmt: skip
        """Record that a session opens.

        Raises:
            SpoolFull: no room.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        log.opened_us = mono_us
        return self._append(
            record.SessionOpen(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=log.id, target=log.target, protocol=protocol,
                client=client, upstream=upstream, user=user, database=database, application=application,
                role=role, delegated=_delegated(log.user),
            )
        )  # fmt: skip

    def close_session(self, log: SessionLog, reason: str) -> None:
        """Record that a session ended.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        seq, wall_us, mono_us = self._next(owed=True)
        self._append(
            record.SessionClose(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=log.id, reason=reason, commands=log.commands,
                denied=log.denied, bytes_in=log.bytes_in, bytes_out=log.bytes_out,
            )
        )  # fmt: skip

    def intend(self, log: SessionLog, command: Command, decision: Decision) -> Intent:
        """Record a command before it takes effect, or its refusal before it is told.

        Raises:
            SpoolFull: no room; the command must not run.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        command_id = self._ids.ulid()
        text = command.text if command.shown_text is None else command.shown_text
        params = command.params if command.shown_params is None else command.shown_params
        facts = command.facts if command.shown_facts is None else command.shown_facts
        would = decision.would
        receipt = self._append(
            record.CommandIntent(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=log.id, command=command_id, target=log.target,
                kind=command.kind, decision=decision.action.value, sha256=hashlib.sha256(text).hexdigest(),
                size_bytes=len(text), accesses=self._accesses(facts),
                resolution=command.facts.resolution.value, policy=decision.policy, rule=decision.rule,
                revision=decision.revision, would=would.action.value if would else "",
                would_policy=would.policy if would else "", would_rule=would.rule if would else "",
                approval=decision.approval, in_transaction=command.in_transaction, statements=command.statements,
                is_masked=text is not command.text or params is not command.params,
                body=self._keep(log, text),
                params=self._keep(log, params) if params else msgspec.UNSET, subject=_subject(log.user),
                circumstances=told(decision.circumstances),
            )
        )  # fmt: skip
        log.commands += 1
        if decision.action is not Action.ALLOW:
            log.denied += 1
        return Intent(command_id, receipt, mono_us)

    def conclude(
        self, log: SessionLog, intent: Intent, status: str, code: str = "", rows: int = 0, size_bytes: int = 0
    ) -> Receipt:
        """Record how a command ended, before the client is told.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        seq, wall_us, mono_us = self._next(owed=True)
        return self._append(
            record.CommandOutcome(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=log.id, command=intent.command_id,
                ref=intent.receipt.seq, status=status, code=code, rows=rows, bytes=size_bytes,
                duration_us=mono_us - intent.started_us, subject=_subject(log.user),
            )
        )  # fmt: skip

    def since_open_us(self, log: SessionLog) -> int:
        """Time since the session was opened, by the monotonic clock."""
        return self._mono_ns() // 1000 - log.opened_us

    def keep_chunk(
        self, log: SessionLog, command: str, packed: bytes, codec: str, frames: int, first_us: int, last_us: int
    ) -> None:
        """Record what the client is about to be shown; `command` is "" where it belongs to none.

        Raises:
            SpoolFull: no room; it must not be shown.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        self._append(
            record.RecordingChunk(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=log.id, command=command, number=log.chunks,
                frames=frames, first_us=first_us, last_us=last_us, codec=codec, body=self._commit(packed),
            )
        )  # fmt: skip
        log.chunks += 1

    def request_approval(self, session: str, name: str, request: Request) -> None:
        """Record that people are asked.

        Raises:
            SpoolFull: no room.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        self._append(
            record.ApprovalRequest(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=session, approval=name, target=request.target,
                binding=request.binding, policy=request.policy, rule=request.rule, revision=request.revision,
                accesses=_entries(request.accesses), subject=_subject(request.user),
            )
        )  # fmt: skip

    def resolve_approval(self, session: str, name: str, state: str, message: str) -> None:
        """Record what came of it, as far as the session waited.

        Raises:
            SpoolFull: no room.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        self._append(
            record.ApprovalOutcome(
                seq=seq, wall_us=wall_us, mono_us=mono_us, session=session, approval=name, state=state,
                message=message[:MAX_MESSAGE_CHARACTERS],
            )
        )  # fmt: skip

    def note_suspension(self, suspension: Suspension | None, revision: str, sessions: int) -> None:
        """Record that every access is taken away, or (None) given again.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        seq, wall_us, mono_us = self._next(owed=True)
        what = suspension or Suspension()
        self._append(
            record.IdentitySuspension(
                seq=seq, wall_us=wall_us, mono_us=mono_us, state="Resumed" if suspension is None else "Suspended",
                by=what.by, at=what.at, reason=what.reason, revision=revision, sessions=sessions,
            )
        )  # fmt: skip

    def deny_egress(self, network: str, address: str, port: int, reason: str, count: int) -> None:
        """Record connections to an undeclared destination.

        Raises:
            SpoolFull: no room.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        self._append(
            record.EgressDenied(
                seq=seq, wall_us=wall_us, mono_us=mono_us, network=network, address=address, port=port, reason=reason,
                count=count,
            )
        )  # fmt: skip

    def deny_dns(self, name: str, qtype: str, count: int) -> None:
        """Record questions for an undeclared name.

        Raises:
            SpoolFull: no room.
        """
        seq, wall_us, mono_us = self._next(owed=False)
        self._append(record.DnsDenied(seq=seq, wall_us=wall_us, mono_us=mono_us, name=name, qtype=qtype, count=count))

    def head(self, state: HeadState) -> None:
        """Sign what is there.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        self._spool.admit(owed=True)
        self._spool.append(self._chain.append_head(self._signer, self._wall_ns() // 1000, state))
        self._since_head = 0

    def tick(self) -> None:
        """Called at fixed intervals: a head also when nothing happened, so that silence is attested.

        Raises:
            SpoolFull: even the room for owed records is gone.
        """
        self.head("open" if self._since_head else "idle")

    def close(self, reason: str) -> None:
        """Write the stream's last record and its closing head."""
        if self.is_closed:
            return
        self.is_closed = True
        seq, wall_us, mono_us = self._next(owed=True)
        self._append(record.StreamClose(seq=seq, wall_us=wall_us, mono_us=mono_us, reason=reason))
        self.head("closed")
        self._spool.close()

    def _next(self, *, owed: bool) -> tuple[int, int, int]:
        """Make room for the next record; its number and its two times (µs)."""
        if self._since_head >= HEAD_RECORDS:
            self.head("open")
        self._spool.admit(owed=owed)
        return self._chain.count, self._wall_ns() // 1000, self._mono_ns() // 1000

    def _append(self, stamped: record.Record) -> Receipt:
        self._since_head += 1
        return Receipt(self._spool.append(self._chain.append_record(stamped)))

    def _accesses(self, facts: Facts) -> tuple[record.AccessEntry, ...]:
        """The facts as a record says them; facts are shared by all commands with one text, and so is this."""
        found = self._entries.get(id(facts))
        if found is not None:
            return found[1]
        entries = _entries(facts.accesses)
        if len(self._entries) >= MAX_KNOWN_FACTS:
            self._entries.clear()
        self._entries[id(facts)] = (facts, entries)  # holding the facts keeps their id theirs
        return entries

    def _keep(self, log: SessionLog, plain: bytes) -> record.Commitment:
        """Keep a body beside the records; a text that the session used before is named again."""
        known = log.bodies.get(plain)
        if known is not None:
            log.bodies.move_to_end(plain)
            self._spool.pin_body()
            return known
        commitment = self._commit(plain[:MAX_BODY_BYTES])
        if len(plain) <= MAX_KNOWN_BODY_BYTES:
            log.bodies[plain] = commitment
            if len(log.bodies) > MAX_KNOWN_BODIES:
                log.bodies.popitem(last=False)
        return commitment

    def _commit(self, kept: bytes) -> record.Commitment:
        salt = self._ids.random(entry.SALT_BYTES)
        self._spool.append_body(entry.body_frame(salt, kept))
        commit = binascii.b2a_base64(entry.body_commit(salt + kept), newline=False).decode("ascii")
        return record.Commitment(commit, len(kept))


def _subject(user: User | None) -> str:
    return user.subject if user is not None else ""


def _delegated(user: User | None) -> record.Delegated | msgspec.UnsetType:
    return record.Delegated(user.issuer, user.subject, user.email) if user is not None else msgspec.UNSET


def _entries(accesses: tuple[Access, ...]) -> tuple[record.AccessEntry, ...]:
    """The first accesses, as many as a record has room for."""
    entries: list[record.AccessEntry] = []
    size_bytes = 0
    for access in accesses[:MAX_RECORDED_ACCESSES]:
        one = record.AccessEntry(access.effect.value, access.object, access.through)
        size_bytes += len(canonical.encode(one)) + 1
        if size_bytes > MAX_ACCESSES_BYTES:
            break
        entries.append(one)
    return tuple(entries)
