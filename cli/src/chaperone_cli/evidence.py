"""Where evidence is read from: a directory, or the same as a tar.

Everything that is read is hostile: names must have the layout's form, sizes are capped, nothing is written to disk. The
tar reader knows plain files and directories and refuses everything else by name, so that no two programs can read one
bundle differently.

Layout: `trust.pem` · `log.policy` · `streams/<stream>/<first seq>.seg` · `bodies/<stream>/<n>.seg` ·
`log/<stream>.tlog-proof`. A bundle of coverage also has `operator.vkey` ·
`populations/<namespace>/<epoch>.seg` · `populations/<namespace>/newest.entry` · `log/populations.tlog-proof` ·
`ends/<stream>.seg`. One of a session whose texts were erased has `certificates/<index>.entry` and `.tlog-proof`.
Of the policy that decided its commands one has `revisions/<namespace>/<serial>.entry`, `.seg` and
`.tlog-proof`, `revisions/operator.vkey` and, of those that it does not have, `revisions/absent.txt`.
Bundles also hold `README.txt` and `verify.py` for people; they are neither read nor run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from chaperone_cli.say import progress
from chaperone_evidence import entry
from chaperone_evidence.errors import EvidenceError

MAX_SEGMENT_BYTES: Final = 64 << 20  # segments are 1 or 2 MiB; a bundle's may be larger, never this large
MAX_FILES: Final = 1_000_000  # a terabyte of segments
MAX_TRUST_BYTES: Final = 1 << 20
MAX_REVISION_BYTES: Final = 4 << 20  # three files of at most a megabyte
MAX_EXTENDED_BYTES: Final = 64 << 10  # a tar's extended header: times and owners
MAX_TAIL_BYTES: Final = 1 << 20  # zeros after the end of a tar; tar pads to 10 KiB

LAYOUT: Final = re.compile(r"(streams|bodies)/([0-7][0-9a-hjkmnp-tv-z]{25})/([0-9]{1,16})\.seg\Z")
PROOF: Final = re.compile(r"log/([0-7][0-9a-hjkmnp-tv-z]{25})\.tlog-proof\Z")
ENDS: Final = re.compile(r"ends/([0-7][0-9a-hjkmnp-tv-z]{25})\.seg\Z")
POPULATIONS: Final = re.compile(r"populations/([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)/([0-9]{16}\.seg|newest\.entry)\Z")
CERTIFICATE: Final = re.compile(r"certificates/([0-9]{16})\.(entry|tlog-proof)\Z")
REVISION: Final = re.compile(r"revisions/([a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)/([0-9]{16})\.(entry|seg|tlog-proof)\Z")
REVISION_KEY: Final = "revisions/operator.vkey"
ABSENT: Final = "revisions/absent.txt"
POPULATION_PROOF: Final = "log/populations.tlog-proof"
OPERATOR_KEY: Final = "operator.vkey"
TRUST: Final = "trust.pem"
LOG_POLICY: Final = "log.policy"
COMPANIONS: Final = frozenset({"README.txt", "verify.py"})

_FOLDERS: Final = ("streams/*", "bodies/*", "populations/*", "ends", "certificates", "log", "revisions/*")
_BESIDE: Final = (TRUST, LOG_POLICY, OPERATOR_KEY, REVISION_KEY, ABSENT)
_FILES: Final = frozenset({*_BESIDE, POPULATION_PROOF, *COMPANIONS})
_SPARE: Final = re.compile(r"streams/[^/]+/spare\Z")  # room that a gateway made for its next segment: empty
_BLOCK: Final = 512
_OCTAL: Final = re.compile(rb" *([0-7]{1,11})[ \0]*\Z")
_EXTENDED: Final = re.compile(rb"([0-9]{1,6}) ([^=\n]+)=")
_MEANINGLESS: Final = frozenset(
    {b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment", b"charset"}
)


class CannotVerify(Exception):
    """The evidence cannot be judged at all; the text says what to do."""


class Source(Protocol):
    """Where files of the layout come from."""

    def names(self) -> list[str]:
        """Relative paths of all files, sorted.

        Raises:
            CannotVerify: there are too many.
        """
        ...

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A file's bytes.

        Raises:
            CannotVerify: the file is longer than the limit.
        """
        ...


class Directory:
    """An evidence directory. What lies beside the files of the layout is not looked at."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """See `Source`."""
        found = []
        for pattern in (*_BESIDE, *(f"{one}/*" for one in _FOLDERS)):
            for path in self._root.glob(pattern):
                name = path.relative_to(self._root).as_posix()
                if path.is_symlink() or not path.is_file():
                    raise CannotVerify(f"{name} is not a plain file.")
                if not _SPARE.match(name):
                    found.append(name)
                if len(found) > MAX_FILES:
                    raise CannotVerify(f"There are more than {MAX_FILES} files.")
        return sorted(found)

    def read(self, name: str, limit_bytes: int) -> bytes:
        """See `Source`."""
        with (self._root / name).open("rb") as file:
            return _capped(file.read(limit_bytes + 1), name, limit_bytes)


class Tar:
    """A bundle: POSIX.1-1988 or GNU tar, not compressed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        self._members: dict[str, tuple[int, int]] = {}
        position = 0
        while True:
            header = self._at(position, _BLOCK)
            position += _BLOCK
            if not header.strip(b"\0"):
                break
            position = self._member(header, position)
        self._need_zeros(position)

    def names(self) -> list[str]:
        """See `Source`."""
        return sorted(self._members)

    def read(self, name: str, limit_bytes: int) -> bytes:
        """See `Source`."""
        position, size = self._members[name]
        return _capped(self._at(position, min(size, limit_bytes + 1)), name, limit_bytes)

    def _member(self, header: bytes, position: int) -> int:
        """Take a member in; returns where the next header stands."""
        name, kind, size = _header(header)
        if kind in (b"0", b"\0"):
            if name in self._members:
                raise CannotVerify(f"The bundle holds {name!r} twice.")
            if len(self._members) >= MAX_FILES:
                raise CannotVerify(f"The bundle holds more than {MAX_FILES} files.")
            self._members[name] = (position, size)
        elif kind in (b"x", b"g"):
            if size > MAX_EXTENDED_BYTES:
                raise CannotVerify("The bundle holds an extended header that is too long.")
            _need_meaningless(self._at(position, size))
        elif kind != b"5" or size:
            raise CannotVerify(f"The bundle holds {name!r}, which is neither a plain file nor a directory.")
        following = position + size + (-size % _BLOCK)
        if following > self._size:
            raise CannotVerify(f"The bundle is cut in the middle of {name!r}; export it again.")
        return following

    def _need_zeros(self, position: int) -> None:
        rest = self._size - position
        if rest > MAX_TAIL_BYTES or self._at(position, rest).strip(b"\0"):
            raise CannotVerify("Something follows the end of the bundle.")

    def _at(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        data = self._file.read(size)
        if len(data) != size:
            raise CannotVerify("The bundle is cut; export it again.")
        return data


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The evidence at a path.

    Raises:
        CannotVerify: it is neither a directory nor a tar that can be read whole. OSError: as the system says.
    """
    if path.is_dir():
        yield Directory(path)
        return
    with path.open("rb") as file:
        yield Tar(file)


def segments(source: Source) -> dict[str, tuple[list[str], list[str]]]:
    """The segments of entries, and of bodies, by stream.

    Raises:
        CannotVerify: no stream, or files that do not belong to the layout.
    """
    found: dict[str, tuple[list[str], list[str]]] = {}
    for name in source.names():
        match = LAYOUT.match(name)
        if match is not None:
            found.setdefault(match[2], ([], []))[match[1] == "bodies"].append(name)
        elif name not in _FILES and not any(
            form.match(name) for form in (PROOF, ENDS, POPULATIONS, CERTIFICATE, REVISION)
        ):
            raise CannotVerify(f"The file {name} does not belong to the layout.")
    if not found and not {OPERATOR_KEY, REVISION_KEY} & set(source.names()):
        raise CannotVerify("There is no stream here; is this an evidence directory or a bundle?")
    return dict(sorted(found.items()))


def ends(source: Source) -> dict[str, Iterator[bytes]]:
    """The entries of streams of which only the ends are here, by stream.

    Raises:
        CannotVerify: a stream is here as a whole, too.
    """
    found = {}
    for name in source.names():
        match = ENDS.match(name)
        if match is not None:
            if any(other.startswith(f"streams/{match[1]}/") for other in source.names()):
                raise CannotVerify(f"Stream {match[1]} is here twice.")
            found[match[1]] = entry.frames(source.read(name, MAX_SEGMENT_BYTES))
    return found


def certificates(source: Source) -> dict[str, tuple[bytes, bytes]]:
    """Entries that state an erasure, and the proofs that the log has them, by their place in it.

    Raises:
        CannotVerify: one lacks its other half.
    """
    names = {match[1] for name in source.names() if (match := CERTIFICATE.match(name)) is not None}
    found = {}
    for name in sorted(names):
        pair = [f"certificates/{name}.entry", f"certificates/{name}.tlog-proof"]
        if not set(pair) <= set(source.names()):
            raise CannotVerify(f"The certificate {name} is not here whole.")
        found[name] = (source.read(pair[0], MAX_TRUST_BYTES), source.read(pair[1], MAX_TRUST_BYTES))
    return found


def populations(source: Source) -> tuple[str, list[str]]:
    """The namespace whose populations are here, and the segments of them; "" and none without any.

    Raises:
        CannotVerify: they are of several namespaces.
    """
    found: dict[str, list[str]] = {}
    for name in source.names():
        match = POPULATIONS.match(name)
        if match is not None:
            found.setdefault(match[1], []).extend([name] if name.endswith(".seg") else [])
    if len(found) > 1:
        raise CannotVerify(f"There are populations of {len(found)} namespaces; a bundle is of one.")
    return next(iter(found.items()), ("", []))


def revisions(source: Source) -> Iterator[tuple[tuple[str, int], dict[str, bytes]]]:
    """Namespace and serial of each revision of policy that is here, and its files by their ending.

    Raises:
        CannotVerify: a file is too long.
    """
    names: dict[tuple[str, int], dict[str, str]] = {}
    for name in source.names():
        match = REVISION.match(name)
        if match is not None:
            names.setdefault((match[1], int(match[2])), {})[match[3]] = name
    for place, files in sorted(names.items()):
        yield place, {ending: source.read(name, MAX_REVISION_BYTES) for ending, name in files.items()}


def proofs(source: Source) -> dict[str, bytes]:
    """The proofs of the log, by stream.

    Raises:
        CannotVerify: one is too long.
    """
    return {
        match[1]: source.read(name, MAX_TRUST_BYTES)
        for name in source.names()
        if (match := PROOF.match(name)) is not None
    }


def entries(source: Source, names: list[str], label: str) -> Iterator[bytes]:
    """The entries of a stream, in order.

    Raises:
        EvidenceError: a segment is missing, or cannot be read. CannotVerify: it is too long.
    """
    count = 0
    for name in names:
        progress(f"{label}: {count} records")
        match = LAYOUT.match(name)
        if match is None or int(match[3]) != count:
            raise EvidenceError(f"it should be in a segment of its own number; the segment here is {name}")
        for data in entry.frames(source.read(name, MAX_SEGMENT_BYTES)):
            yield data
            count += 1


def bodies(source: Source, names: list[str], label: str) -> Iterator[bytes]:
    """The bodies of a stream, in order.

    Raises:
        EvidenceError: they cannot be read. CannotVerify: a segment is too long.
    """
    count = 0
    for name in names:
        progress(f"{label}: {count} texts")
        for data in entry.body_frames(source.read(name, MAX_SEGMENT_BYTES)):
            yield data
            count += 1


def _header(block: bytes) -> tuple[str, bytes, int]:
    """Name, kind and size of a member (POSIX.1-1988 ustar; GNU differs in what follows the magic)."""
    if block[257:262] != b"ustar":
        raise CannotVerify("This is not a bundle (a tar that is not compressed); if it is compressed, unpack it first.")
    if _octal(block[148:156]) != sum(block[:148]) + 8 * ord(" ") + sum(block[156:]):
        raise CannotVerify("A header of the bundle is damaged.")
    name = block[:100].rstrip(b"\0")
    prefix = block[345:500].rstrip(b"\0") if block[262] == 0 else b""
    full = prefix + b"/" + name if prefix else name
    if not full.isascii() or b"\0" in full:
        raise CannotVerify("The bundle holds a name that is not ASCII.")
    return full.decode("ascii").removeprefix("./"), block[156:157], _octal(block[124:136])


def _octal(field: bytes) -> int:
    match = _OCTAL.match(field)
    if match is None:
        raise CannotVerify("A header of the bundle is damaged, or a file in it is too large.")
    return int(match[1], 8)


def _need_meaningless(data: bytes) -> None:
    """Refuse an extended header that changes more than times and owners: it could rename or resize what follows."""
    position = 0
    while position < len(data):
        match = _EXTENDED.match(data, position)
        length = int(match[1]) if match is not None else 0
        if (
            match is None
            or match[2] not in _MEANINGLESS
            or not match.end() - position <= length <= len(data) - position
        ):
            raise CannotVerify("The bundle holds an extended header that is not understood; export it again.")
        position += length


def _capped(data: bytes, name: str, limit_bytes: int) -> bytes:
    if len(data) > limit_bytes:
        raise CannotVerify(f"The file {name} is longer than {limit_bytes} bytes.")
    return data
