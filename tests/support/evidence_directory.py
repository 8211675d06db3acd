"""Evidence directories as a gateway leaves them: streams and bodies in segments, zeros after a segment's end."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from gateway_stream import Stream

from chaperone_evidence import entry, record

PREALLOCATED_BYTES = 64  # zeros after the last frame, as in a segment that was made before it was filled


def write_stream(folder: Path, stream: Stream, *, segment_records: int = 2500) -> None:
    """Write what the stream holds; its frames and bodies stay where they are."""
    write_frames(folder, stream.id, stream.frames, segment_records=segment_records)
    write_bodies(folder, stream.id, list(stream.bodies.values()))


def write_frames(folder: Path, stream: str, frames: list[bytes], *, segment_records: int = 2500) -> None:
    """Write a stream's frames, so many in a segment."""
    directory = folder / "streams" / stream
    directory.mkdir(parents=True, exist_ok=True)
    for first in range(0, max(len(frames), 1), segment_records):
        data = b"".join(frames[first : first + segment_records]) + bytes(PREALLOCATED_BYTES)
        (directory / f"{first:016d}.seg").write_bytes(data)


def write_bodies(folder: Path, stream: str, bodies: list[bytes]) -> None:
    """Write a stream's bodies into segments of one hundred."""
    directory = folder / "bodies" / stream
    directory.mkdir(parents=True, exist_ok=True)
    for number, first in enumerate(range(0, max(len(bodies), 1), 100)):
        frames = [framed_body(body) for body in bodies[first : first + 100]]
        (directory / f"{number:08d}.seg").write_bytes(b"".join(frames) + bytes(PREALLOCATED_BYTES))


def framed_body(body: bytes) -> bytes:
    """The frame of a body given as salt and plain text."""
    return entry.body_frame(body[: entry.SALT_BYTES], body[entry.SALT_BYTES :])


def pack(folder: Path) -> bytes:
    """The directory as a bundle: a plain tar of its files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(folder.glob("*/*/*.seg")):
            info = tarfile.TarInfo(str(path.relative_to(folder)))
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    return buffer.getvalue()


def read_records(folder: Path) -> list[record.Known]:
    """All records of all streams; one that a gateway is writing just now, whose last byte comes last, is none yet."""
    found = []
    for path in sorted((folder / "streams").glob("*/*.seg")):
        data, position = path.read_bytes(), 0
        while length := int.from_bytes(data[position : position + 2], "big"):
            kept = data[position + 2 : position + 2 + length]
            if kept[-1] == 0:
                break
            position += 2 + length
            if kept[1] == 1:
                decoded = record.decode(kept[entry.PREFIX_BYTES :])
                assert not isinstance(decoded, record.Unknown)
                found.append(decoded)
    return found
