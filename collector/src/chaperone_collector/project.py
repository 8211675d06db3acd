"""What the tables say of a stream's records: sessions, commands, outcomes. Runs in the writer's thread.

A projection never refuses an entry: what does not fit (an outcome without its intent, a session opened twice) is stored
and becomes a finding. Caches hold ids only; after a transaction was rolled back the owner makes a new projection, and
after other collectors wrote it says which streams (`forget`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from chaperone_collector.database import Connection, add
from chaperone_collector.stream import Extension
from chaperone_collector.tally import Tally
from chaperone_evidence import record

MAX_OPEN_INTENTS: Final = 200_000  # intents kept in memory for their outcome (about 30 MiB); others are looked up
MAX_CACHED_SESSIONS: Final = 50_000  # open sessions kept in memory; others are looked up
MAX_CACHED_NAMES: Final = 20_000  # flows and rules
NO_SESSION: Final = -1

ALLOW: Final = 1
DECISIONS: Final = {"Allow": ALLOW, "Deny": 2, "RequireApproval": 3}
OTHER_DECISION: Final = 0  # a word of a later version
REFUSALS: Final = (OTHER_DECISION, 2, 3)

# Numbers of effects in the tables; only ever added to. Most commands read, so that reading alone has no index.
EFFECTS: Final = {
    word: number
    for number, word in enumerate(
        (
            "read", "read_sensitive", "create", "modify", "delete", "bulk_read", "bulk_write", "schema", "destroy",
            "privilege", "execute_code", "external_io", "tunnel", "session", "transaction", "maintain", "unknown",
        ),
        1,
    )
}  # fmt: skip
READ: Final = EFFECTS["read"]
OTHER_EFFECT: Final = 0  # a word of a later version


class SessionTally:
    """What one transaction adds to a session."""

    __slots__ = ("changed", "close_idx", "commands", "denied", "ended_us")

    def __init__(self) -> None:
        self.commands = 0
        self.denied = 0
        self.changed = 0
        self.ended_us: int | None = None
        self.close_idx: int | None = None


class Projection:
    """Reads entries into tables; one per run of the writer."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection
        self._rule_tally = Tally(connection)
        self._flows: dict[tuple[str, ...], int] = {}
        self._rules: dict[str, int] = {}
        self._sessions: dict[tuple[int, str], tuple[int, int]] = {}  # stream, name → idx of session.open, flow
        self._intents: dict[tuple[int, int], tuple[int, str]] = {}  # stream, seq → idx, command
        self._namespace = ""
        self._tallies: dict[int, SessionTally] = {}
        self._commands: list[tuple[int, int, int, int, int, int, str, str]] = []
        self._effects: list[tuple[int, int, int]] = []
        self._outcomes: list[tuple[int, int]] = []
        self._chunks: list[tuple[int, int]] = []
        self._findings: list[tuple[int, str, int, str]] = []

    def forget(self, streams: set[int]) -> None:
        """Another collector wrote these: what it may have changed is looked up again; flows and rules never change."""
        self._rule_tally = Tally(self._db)
        self._sessions = {key: found for key, found in self._sessions.items() if key[0] not in streams}
        self._intents = {key: found for key, found in self._intents.items() if key[0] not in streams}

    def apply(self, extension: Extension, stream: int, first_idx: int, now_us: int) -> None:
        """Take in the entries of one batch, stored from `first_idx` on."""
        name, seq = extension.before.name, extension.before.count
        namespace, identity = extension.subject.namespace, extension.subject.identity
        self._namespace = namespace
        for idx, checked in enumerate(extension.entries, first_idx):
            flaw = checked.flaw
            match checked.record:
                case record.CommandIntent() as found:
                    self._rule_tally.take(found, namespace, identity, idx, now_us)
                    flaw = self._intent(found, idx, stream, namespace, identity)
                case record.CommandOutcome() as found:
                    flaw = self._outcome(found, idx, stream)
                case record.RecordingChunk() as found:
                    flaw = self._chunk(found, idx, stream)
                case record.SessionOpen() as found:
                    flaw = self._open(found, idx, stream, namespace, identity)
                case record.SessionClose() as found:
                    flaw = self._close(found, idx, stream)
                case _:
                    pass
            if flaw:
                self._findings.append((now_us, name, seq + idx - first_idx, flaw))

    def flush(self) -> None:
        """Write what `apply` collected; before the transaction ends."""
        db = self._db
        self._rule_tally.flush()
        if self._commands:
            columns = "idx, flow, session, decision, rule, effects, approval, subject"
            add(db, "command", columns, self._commands)
        if self._effects:
            add(db, "effect", "effect, flow, idx", self._effects)
        if self._outcomes:
            add(db, "outcome", "idx, command", self._outcomes)
        if self._chunks:
            add(db, "chunk", "idx, session", self._chunks)
        if self._tallies:
            db.executemany(
                "UPDATE session SET commands = commands + ?, denied = denied + ?, changed = ?, "
                "ended_us = coalesce(?, ended_us), close_idx = coalesce(?, close_idx) WHERE idx = ?",
                [(t.commands, t.denied, t.changed, t.ended_us, t.close_idx, idx) for idx, t in self._tallies.items()],
            )
        if self._findings:
            add(db, "finding", "wall_us, stream, seq, what", self._findings)
        self._commands, self._effects, self._outcomes, self._chunks = [], [], [], []
        self._tallies, self._findings = {}, []
        for cache, cap in (
            (self._intents, MAX_OPEN_INTENTS), (self._sessions, MAX_CACHED_SESSIONS),
            (self._flows, MAX_CACHED_NAMES), (self._rules, MAX_CACHED_NAMES),
        ):  # fmt: skip
            if len(cache) > cap:
                cache.clear()

    def _intent(self, found: record.CommandIntent, idx: int, stream: int, namespace: str, identity: str) -> str:
        known = self._session(stream, found.session)
        decision = DECISIONS.get(found.decision, OTHER_DECISION)
        if known is None:
            session, flow = NO_SESSION, self._flow(namespace, identity, found.target, "")
        else:
            session, flow = known
            tally = self._tally(session, idx)
            tally.commands += 1
            tally.denied += decision != ALLOW
        effects = {EFFECTS.get(access.effect, OTHER_EFFECT) for access in found.accesses}
        self._effects.extend((effect, flow, idx) for effect in effects if effect != READ)
        bits = sum(1 << effect for effect in effects)
        rule = self._rule(found.rule)
        self._commands.append((idx, flow, session, decision, rule, bits, found.approval, found.subject))
        self._intents[stream, found.seq] = (idx, found.command)
        return "" if known else f"The session {found.session[:40]} of this command is not open."

    def _outcome(self, found: record.CommandOutcome, idx: int, stream: int) -> str:
        known = self._intents.pop((stream, found.ref), None)
        if known is None:
            self.flush()
            row = self._db.execute(
                "SELECT c.idx FROM entry e JOIN command c ON c.idx = e.idx LEFT JOIN outcome o ON o.command = c.idx "
                "WHERE e.stream = ? AND e.seq = ? AND o.idx IS NULL",
                (stream, found.ref),
            ).fetchone()
            if row is None:
                return f"It is the outcome of record {found.ref}, which is no command that waits for one."
            command = int(row[0])
        else:
            command = known[0]
            if known[1] != found.command:
                return f"It is the outcome of record {found.ref}, which is another command."
        self._outcomes.append((idx, command))
        session = self._session(stream, found.session)
        if session is not None:
            self._tally(session[0], idx)
        return ""

    def _chunk(self, found: record.RecordingChunk, idx: int, stream: int) -> str:
        known = self._session(stream, found.session)
        if known is None:
            return f"The session {found.session[:40]} that this is a recording of is not open."
        self._chunks.append((idx, known[0]))
        self._tally(known[0], idx)
        return ""

    def _open(self, found: record.SessionOpen, idx: int, stream: int, namespace: str, identity: str) -> str:
        flow = self._flow(namespace, identity, found.target, found.protocol)
        subject = found.delegated.subject if isinstance(found.delegated, record.Delegated) else ""
        added = self._db.execute(
            "INSERT INTO session (idx, name, namespace, flow, stream, changed, started_us, subject) "
            "VALUES (?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
            (idx, found.session, namespace, flow, stream, idx, found.wall_us, subject),
        )
        if added.rowcount != 1:
            return f"The session {found.session[:40]} was opened before."
        self._sessions[stream, found.session] = (idx, flow)
        return ""

    def _close(self, found: record.SessionClose, idx: int, stream: int) -> str:
        known = self._session(stream, found.session)
        if known is None:
            return f"The session {found.session[:40]} that ends here is not open."
        tally = self._tally(known[0], idx)
        tally.ended_us, tally.close_idx = found.wall_us, idx
        self.flush()
        del self._sessions[stream, found.session]
        counted = self._db.execute("SELECT commands, denied FROM session WHERE idx = ?", (known[0],)).fetchone()
        if counted != (found.commands, found.denied):
            return (
                f"The session says that it had {found.commands} commands, {found.denied} of them refused; "
                f"the log holds {counted[0]} and {counted[1]}."
            )
        return ""

    def _session(self, stream: int, name: str) -> tuple[int, int] | None:
        known = self._sessions.get((stream, name))
        if known is None:
            known = self._db.execute(
                "SELECT idx, flow FROM session WHERE namespace = ? AND name = ? AND stream = ? AND ended_us IS NULL",
                (self._namespace, name, stream),
            ).fetchone()
            if known is not None:
                self._sessions[stream, name] = known
        return known

    def _tally(self, session: int, idx: int) -> SessionTally:
        tally = self._tallies.get(session)
        if tally is None:
            tally = self._tallies[session] = SessionTally()
        tally.changed = idx
        return tally

    def _flow(self, *key: str) -> int:
        known = self._flows.get(key)
        if known is None:
            where = "namespace = ? AND identity = ? AND target = ? AND protocol = ?"
            added = "INSERT INTO flow (namespace, identity, target, protocol) VALUES (?,?,?,?) ON CONFLICT DO NOTHING"
            self._db.execute(added, key)
            known = int(self._db.execute(f"SELECT id FROM flow WHERE {where}", key).fetchone()[0])  # noqa: S608
            self._flows[key] = known
        return known

    def _rule(self, name: str) -> int:
        known = self._rules.get(name)
        if known is None:
            self._db.execute("INSERT INTO rule (name) VALUES (?) ON CONFLICT DO NOTHING", (name,))
            known = int(self._db.execute("SELECT id FROM rule WHERE name = ?", (name,)).fetchone()[0])
            self._rules[name] = known
        return known


def named_bodies(extension: Extension) -> Iterator[str]:
    """The commitments (base64) that the batch's commands and recordings name."""
    for checked in extension.entries:
        if checked.record is not None:
            for commitment in record.commitments(checked.record):
                yield commitment.commit
