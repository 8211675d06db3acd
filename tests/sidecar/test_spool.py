"""The spool's files, read as a verifier reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_evidence import entry
from chaperone_sidecar.recording.spool import BODY_SEGMENT_BYTES, Spool


@pytest.mark.parametrize("rest", range(10))
def test_a_segment_of_bodies_is_readable_however_little_room_is_left_in_it(tmp_path: Path, rest: int) -> None:
    spool = Spool(tmp_path, "01m884w43fqp9f5cs3e1ztjat1", 64 << 20)
    half = BODY_SEGMENT_BYTES // 2
    frames = [entry.body_frame(bytes(range(32)), b"x" * (size - 36)) for size in (half, half - rest, 500)]
    for frame in frames:
        spool.append_body(frame)
    read = [
        body for path in sorted(tmp_path.glob("bodies/*/*.seg")) for body in entry.body_frames(path.read_bytes())
    ]  # fmt: skip
    assert [len(body) for body in read] == [len(frame) - 4 for frame in frames]
