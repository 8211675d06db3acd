"""What is tampered with: bundles of a real collector over streams of gateways; and both verifiers, to be asked."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
from click.testing import CliRunner
from gateway_stream import CLUSTER, Pod, Stream
from pki import Authority
from sealed_bundle import VERIFIER, Sealed, pack, seal

from chaperone_cli.main import main
from chaperone_collector.checkpoint import LogKeys
from chaperone_evidence import entry, record

ORIGIN = f"chaperone.dev/log/{CLUSTER}"
HOUR_US = 3_600_000_000

type Files = dict[str, bytes]
type Verdict = tuple[str, str, int]  # word, stream and record; "" and -1 where none is named
OK: Verdict = ("OK", "", -1)
CANNOT: Verdict = ("CANNOT VERIFY", "", -1)


class Try(msgspec.Struct, frozen=True):
    """A changed bundle, and what has to be said of it; `note` is a pattern of a line that has to be there."""

    files: Files
    expected: Verdict
    note: str = ""
    companion: Verdict | None = None  # where the small verifier says something else by design
    policy: str = ""
    bundle: bytes = b""  # instead of the files


class Scene:
    """Streams in a real collector's log: `first` was killed and `second` follows it, `third` was closed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = Authority("gateway CA")
        self.first = _killed(Pod(self.ca))
        self.second = Stream(Pod(self.ca), previous=self.first)
        self.second.head()
        self.other = Pod(self.ca, pod="reports-0", pod_uid="6f1f0a52-0000-4000-8000-000000000002")
        self.third, self.session = _closed(self.other)
        self.ahead, ahead = _clocked(self.other, HOUR_US)
        self.behind, behind = _clocked(self.other, -HOUR_US)
        streams = [self.first, self.second, self.third, self.ahead, self.behind]
        self.sessions = {
            "restarted": self.first_session, "stopped": self.session, "ahead": ahead, "behind": behind,
        }  # fmt: skip
        self.sealed: Sealed = seal(folder / "store", self.ca, streams, self.sessions)
        self.restarted = self.sealed.bundles["restarted"]
        self.stopped = self.sealed.bundles["stopped"]
        self.keys = LogKeys(folder / "store", may_make=False).signers(ORIGIN)
        (folder / "ca.pem").write_text(self.ca.pem)

    @property
    def first_session(self) -> str:
        """The session of `first` whose bundle is taken."""
        return _sessions(self.first)[0]


class Judges:
    """Both verifiers, asked about the same bytes."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        spec = importlib.util.spec_from_file_location("companion_verify", VERIFIER)
        assert spec is not None
        assert spec.loader is not None
        self._companion = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self._companion)

    def ask(self, tried: Try) -> tuple[tuple[Verdict, str], tuple[Verdict, str]]:
        """Verdict and output of `chaperone verify`, and of verify.py."""
        folder = self._scene.folder
        (folder / "bundle.tar").write_bytes(tried.bundle or pack(tried.files))
        (folder / "log.policy").write_text(tried.policy or self._scene.sealed.policy)
        arguments = [str(folder / "bundle.tar"), "--trust", str(folder / "ca.pem")]
        arguments += ["--log-policy", str(folder / "log.policy")]
        done = CliRunner().invoke(main, ["verify", *arguments])
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            status = self._companion.main(arguments)
        return _verdict(done.exit_code, done.output), _verdict(status, printed.getvalue())


def _verdict(status: int, output: str) -> tuple[Verdict, str]:
    last = output.splitlines()[-1]
    match = re.match(r"verify: (OK|FAILED|CANNOT VERIFY)(?: at stream (\S+) record (\d+))?", last)
    assert match is not None, output
    assert ("OK", "FAILED", "CANNOT VERIFY")[status] == match[1], output
    return (match[1], match[2] or "", int(match[3] or -1)), output


def failed(stream: Stream, seq: int) -> Verdict:
    """The verdict that names this record."""
    return "FAILED", stream.id, seq


# The streams


def _killed(pod: Pod) -> Stream:
    stream = Stream(pod)
    stream.head()
    ours = stream.open_session()
    stream.conclude(ours, stream.intend(ours, "SELECT 1"))
    other = stream.open_session("ledger-db", "MySQL")
    stream.intend(other, "SELECT 'its text is not in the bundle'")
    stream.intend(ours, "DROP TABLE orders", decision="Deny", rule="never")
    stream.head()
    stream.intend(ours, "SELECT 2")
    return stream


def _closed(pod: Pod) -> tuple[Stream, str]:
    stream = Stream(pod)
    stream.head()
    session = stream.open_session()
    for number in range(3, 5):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.close_session(session, 2)
    stream.close()
    return stream, session


def _clocked(pod: Pod, step_us: int) -> tuple[Stream, str]:
    """A stream in whose middle the clock was set."""
    stream = Stream(pod)
    stream.head()
    session = stream.open_session()
    stream.now_us += step_us
    stamped = record.SessionClose(
        seq=stream.chain.count, wall_us=stream.now_us, mono_us=stream.now_us - step_us - 10**15, session=session,
        reason="client closed",
    )  # fmt: skip
    stream.frames.append(stream.chain.append_record(stamped))
    stream.head("closed")
    return stream, session


def _sessions(stream: Stream) -> list[str]:
    found = (record.decode(one[entry.PREFIX_BYTES :]) for one in entries(stream) if one[1] == entry.CLASS_RECORD)
    return [one.session for one in found if isinstance(one, record.SessionOpen)]


def entries(stream: Stream) -> list[bytes]:
    """The entries of a stream."""
    return list(entry.frames(b"".join(stream.frames)))


# Their files


def segment(stream: Stream) -> str:
    """The file of a stream's entries; they are few."""
    return f"streams/{stream.id}/{0:016d}.seg"


def texts(stream: Stream) -> str:
    """The file of a stream's texts."""
    return f"bodies/{stream.id}/{0:08d}.seg"


def proof_of(stream: Stream) -> str:
    """The file of a stream's proof."""
    return f"log/{stream.id}.tlog-proof"


def bundles(scene: Scene) -> Iterator[tuple[Files, Stream, list[bytes]]]:
    """Each stream that is whole in a bundle, with its frames there."""
    for files, stream in (
        (scene.restarted, scene.first),
        (scene.restarted, scene.second),
        (scene.stopped, scene.third),
    ):
        yield files, stream, [entry.frame(one) for one in entry.frames(files[segment(stream)])]


def put(files: Files, stream: Stream, frames: list[bytes]) -> Files:
    return files | {segment(stream): b"".join(frames)}
