"""Beginning a stream: its key, its first record, and what a former process of the same pod left behind."""

from __future__ import annotations

import base64
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chaperone_evidence import chain, entry, record, ulid
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.note import Signer
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.recorder import Recorder
from chaperone_sidecar.recording.spool import Spool


def make_signer(cluster: str, pod_uid: str) -> Signer:
    """A new key for the heads of one stream; it lives in this process alone."""
    return Signer(f"{cluster}/gateway/{pod_uid}", Ed25519PrivateKey.generate())


def begin_stream(
    root: Path, limit_bytes: int, signer: Signer, opened: record.StreamOpen, ids: Ids
) -> tuple[Recorder, Spool]:
    """Begin the stream that `opened` describes; its `stream`, `previous` and times are set here.

    Raises:
        SpoolFull: the spool has no room for a stream.
    """
    # What a former process left is shipped because it sorts before this one: also if the clock was set back meanwhile.
    stream = ids.ulid(after=max(_streams(root), default=""))
    previous, link = last_stream(root)
    spool = Spool(root, stream, limit_bytes)
    recorder = Recorder(chain.Chain(opened.cluster, stream), spool, signer, ids)
    recorder.open_stream(opened, stream, previous, base64.b64encode(link).decode() if previous else "")
    return recorder, spool


def last_stream(root: Path) -> tuple[str, bytes]:
    """The newest stream in an evidence directory and its last link; ("", b"") when there is none.

    Ids sort by time. A torn frame at the end (the node crashed) ends the stream before it.
    """
    for stream in sorted(_streams(root), reverse=True):
        link = b""
        for segment in sorted((root / "streams" / stream).glob("*.seg")):
            link = _last_link(segment.read_bytes()) or link
        if link:
            return stream, link
    return "", b""


def _streams(root: Path) -> list[str]:
    return [path.name for path in (root / "streams").glob("*") if ulid.is_ulid(path.name)]


def _last_link(data: bytes) -> bytes:
    link = b""
    try:
        for framed in entry.frames(data):
            link = entry.decode(framed).link
    except EvidenceError:
        pass  # torn: what came before it is the end
    return link
