"""`chaperone redact`: a bundle without texts, or with some of them, that verifies as the whole one does.

Records hold salted commitments of statements, parameters and recordings, not these themselves: what is left out cannot
be guessed from what is left, and what is left cannot be anything else. Verifiers say how many texts are not there.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import IO, Final

from chaperone_cli import durable
from chaperone_cli.evidence import (
    LAYOUT,
    MAX_SEGMENT_BYTES,
    CannotVerify,
    Source,
    entries,
    open_source,
    segments,
)
from chaperone_cli.say import progress, say
from chaperone_evidence import canonical, entry, record
from chaperone_evidence.errors import EvidenceError

CANNOT: Final = 2
_RECORD: Final = re.compile(r"(?:([0-7][0-9a-hjkmnp-tv-z]{25})/)?(0|[1-9][0-9]{0,15})\Z")


def run(bundle: Path, output: Path, keep: tuple[str, ...]) -> int:
    """Write the redacted bundle; returns the exit status."""
    try:
        with open_source(bundle) as source:
            kept = _commitments(source, keep)
            with durable.beside(output) as file:
                left, gone = _copy(source, file, kept)
    except (CannotVerify, EvidenceError, OSError) as error:
        say(f"redact: FAILED: {error}", err=True)
        return CANNOT
    finally:
        progress("")
    say(f"bundle: {output}, {left} texts kept, {gone} left out")
    say(f"next: chaperone verify {output} --trust FILE --log-policy FILE")
    return 0


def _commitments(source: Source, keep: tuple[str, ...]) -> set[bytes]:
    """What the records commit to whose texts stay.

    Raises:
        CannotVerify: one is not there, or commits to nothing. EvidenceError: a segment cannot be read.
    """
    streams = segments(source)
    wanted: dict[str, set[int]] = {}
    for text in keep:
        match = _RECORD.match(text)
        stream = match[1] or (next(iter(streams)) if len(streams) == 1 else "") if match is not None else ""
        if match is None or stream not in streams:
            raise CannotVerify(f"{text} names no record here: it is a number, or STREAM/NUMBER; see spec.stream and "
                               "spec.seq of a command.")  # fmt: skip
        wanted.setdefault(stream, set()).add(int(match[2]))
    found: set[bytes] = set()
    for stream, numbers in wanted.items():
        commands: set[str] = set()
        for seq, data in enumerate(entries(source, streams[stream][0], f"stream {stream}")):
            cls, _, header = entry.split(data)
            if cls != entry.CLASS_RECORD:
                continue
            said = record.decode(header)
            is_shown = isinstance(said, record.RecordingChunk) and said.command in commands
            if seq not in numbers and not is_shown:
                continue
            if isinstance(said, record.CommandIntent):
                commands.add(said.command)
            found.update(canonical.decode_base64(one.commit) for one in record.commitments(said))
            if record.commitments(said):
                numbers.discard(seq)
        if numbers:
            raise CannotVerify(f"Record {min(numbers)} of stream {stream} has no text, or is not there.")
    return found


def _copy(source: Source, file: IO[bytes], kept: set[bytes]) -> tuple[int, int]:
    """Copy everything but the texts that go; how many are left, and how many are gone."""
    left = gone = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in source.names():
            progress(name)
            data = source.read(name, MAX_SEGMENT_BYTES)
            match = LAYOUT.match(name)
            if match is not None and match[1] == "bodies":
                bodies = list(entry.body_frames(data))
                some = [one for one in bodies if entry.body_commit(one) in kept]
                left, gone = left + len(some), gone + len(bodies) - len(some)
                data = b"".join(entry.body_frame(one[: entry.SALT_BYTES], one[entry.SALT_BYTES :]) for one in some)
                if not some:
                    continue
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o444
            tar.addfile(info, io.BytesIO(data))
    return left, gone
