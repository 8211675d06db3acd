"""Recordings as they lie in an evidence directory."""

from __future__ import annotations

from pathlib import Path

from evidence_directory import read_records

from chaperone_evidence import canonical, entry, frames, record

type Part = tuple[record.RecordingChunk, list[frames.Known]]


def read_bodies(folder: Path) -> dict[bytes, bytes]:
    """The bodies without their salts, by commitment."""
    found = {}
    for path in sorted((folder / "bodies").glob("*/*.seg")):
        data, position = path.read_bytes(), 0
        while length := int.from_bytes(data[position : position + 4], "big"):
            body = data[position + 4 : position + 4 + length]
            found[entry.body_commit(body)] = body[entry.SALT_BYTES :]
            position += 4 + length
    return found


def read_parts(folder: Path) -> list[Part]:
    """All chunks in the order of their records, each with its frames."""
    chunks = [one for one in read_records(folder) if isinstance(one, record.RecordingChunk)]
    bodies = read_bodies(folder)  # after the records: a gateway that still writes keeps a body before its record
    return [(one, frames.read(bodies[canonical.decode_base64(one.body.commit)], one)) for one in chunks]


def read_frames(folder: Path, kind: type[frames.Frame] = frames.Frame) -> list[frames.Known]:
    """All frames of a kind."""
    return [frame for _, found in read_parts(folder) for frame in found if isinstance(frame, kind)]


def read_rows(folder: Path) -> list[tuple[frames.Cell, ...]]:
    """All rows."""
    return [row for frame in read_frames(folder, frames.Rows) if isinstance(frame, frames.Rows) for row in frame.rows]


def every_byte(folder: Path) -> bytes:
    """All that is in the directory, as it lies there and decompressed."""
    lying = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())
    return lying + b"".join(frames.encode(frame) for frame in read_frames(folder))
