"""A stream with one session of which everything is recorded that a recording can hold, and one beside it."""

from __future__ import annotations

from pathlib import Path

from evidence_directory import write_stream
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import frames, record

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
RESULT: list[frames.Known] = [
    frames.Columns(t_us=1_500_000, columns=(frames.Column("id", "23"), frames.Column("name", "25", True))),
    frames.Rows(t_us=1_500_000, rows=((frames.Bytes("AAAAKg=="), "Q***"), (None, EVIL), ("7", "w" * 100))),
    frames.Message(t_us=1_600_000, severity="COMPLETE", text="SELECT 3"),
]
ERROR: list[frames.Known] = [
    frames.Message(t_us=4_000_000, severity="ERROR", code="22012", text="division by zero", hint="Do not.\x1b[1m")
]
COPY: list[frames.Known] = [
    frames.Data(t_us=7_000_000, data="1\tone\n2\ttwo\n"),
    frames.Cut(t_us=7_000_000, why="maxResultBytes", kept_bytes=12),
]


class Recorded:
    """The stream, its session, and the session beside it."""

    def __init__(self, ca: Authority, identity: str = "billing-agent") -> None:
        self.pod = Pod(ca, identity=identity, pod=f"{identity}-0", pod_uid=f"uid-{identity}")
        self.stream = stream = Stream(self.pod)
        person = record.Delegated("https://login.example.com", "user-7", "user-7@example.com")
        self.session, self.other = stream.open_session(delegated=person), stream.open_session("ledger-db")
        first = stream.intend(self.session, f"SELECT id, name\nFROM people -- {EVIL}")
        stream.show(self.session, RESULT, command=first[1])
        stream.conclude(self.session, first, rows=3)
        other = stream.intend(self.other, "SELECT 'of another session'")
        stream.show(self.other, [frames.Output(t_us=1, data="of another session")], command=other[1])
        stream.conclude(self.other, other)
        stream.now_us += 3_000_000
        failing = stream.intend(self.session, "SELECT 1 / 0")
        stream.show(self.session, ERROR, command=failing[1], number=1)
        stream.conclude(self.session, failing, "error", 0)
        stream.intend(self.session, "DROP TABLE people", decision="Deny", rule="never")
        stream.add(
            record.ApprovalRequest(
                seq=0, wall_us=0, mono_us=0, session=self.session, approval="apr-1", target="orders-db", binding="b",
                policy="agents/billing", rule="ask", revision="r",
            )
        )  # fmt: skip
        stream.add(
            record.ApprovalOutcome(
                seq=0, wall_us=0, mono_us=0, session=self.session, approval="apr-1", state="Used", message="by ann: ok"
            )
        )
        copying = stream.intend(self.session, "COPY people TO STDOUT", rule="ask", approval="apr-1")
        stream.show(self.session, COPY, command=copying[1], number=2)
        stream.conclude(self.session, copying, rows=2)
        stream.close_session(self.session, 4, 1)
        stream.close_session(self.other, 1)

    def write(self, folder: Path, ca: Authority) -> Path:
        """The evidence directory; the stream is closed."""
        self.stream.close()
        write_stream(folder / "evidence", self.stream)
        (folder / "evidence" / "trust.pem").write_text(ca.pem)
        return folder / "evidence"
