"""`chaperone verify`: reads an evidence directory or bundle and prints what holds.

Everything that is read is hostile: names must have the layout's form, sizes are capped, nothing is extracted to disk.
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

import click
import msgspec
from cryptography import x509

from chaperone_evidence import entry, ulid
from chaperone_evidence.verify import StreamReport, Verdict, join, verify_stream

MAX_SEGMENT_BYTES: Final = 64 << 20  # segments are 1 or 2 MiB; a bundle's may be larger, never this large
MAX_FILES: Final = 1_000_000
MAX_TRUST_BYTES: Final = 1 << 20

OK, FINDINGS, CANNOT = 0, 1, 2


class CannotVerify(Exception):
    """The evidence cannot be judged at all; the text says what to do."""


class Source(Protocol):
    """Where files of the layout come from."""

    def names(self) -> list[str]:
        """Relative paths of all files, sorted."""
        ...

    def read(self, name: str, limit_bytes: int) -> bytes:
        """A file's bytes.

        Raises:
            CannotVerify: the file is longer than the limit.
        """
        ...


class Directory:
    """An evidence directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def names(self) -> list[str]:
        """See `Source`."""
        found = (path for pattern in ("trust.pem", "streams/*/*", "bodies/*/*") for path in self._root.glob(pattern))
        return sorted(str(path.relative_to(self._root)) for path in found if path.is_file() and not path.is_symlink())

    def read(self, name: str, limit_bytes: int) -> bytes:
        """See `Source`."""
        with (self._root / name).open("rb") as file:
            return _capped(file.read(limit_bytes + 1), name, limit_bytes)


class Tar:
    """A bundle."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._members: dict[str, tarfile.TarInfo] = {}
        for member in archive:
            if not member.isfile() or member.name in self._members or len(self._members) >= MAX_FILES:
                raise CannotVerify(
                    f"The bundle holds {member.name!r}, which is no plain file, twice there, or one too many."
                )
            self._members[member.name] = member

    def names(self) -> list[str]:
        """See `Source`."""
        return sorted(self._members)

    def read(self, name: str, limit_bytes: int) -> bytes:
        """See `Source`."""
        file = self._archive.extractfile(self._members[name])
        return _capped(file.read(limit_bytes + 1) if file is not None else b"", name, limit_bytes)


def run(evidence: Path, trust: Path | None, *, as_json: bool) -> int:
    """Verify and print; returns the exit status."""
    try:
        with _open(evidence) as source:
            verdict = judge(source, _authorities(source, trust))
    except (CannotVerify, tarfile.TarError, OSError, ValueError) as error:
        click.echo(f"verify: CANNOT VERIFY: {error}")
        return CANNOT
    if as_json:
        click.echo(msgspec.json.encode(_plain(verdict)))
    else:
        _print(verdict)
    return FINDINGS if verdict.problems else OK


def judge(source: Source, authorities: list[x509.Certificate]) -> Verdict:
    """Verify all streams of a source.

    Raises:
        CannotVerify: no stream, or files that do not belong to the layout.
    """
    streams: dict[str, list[str]] = {}
    bodies: dict[str, list[str]] = {}
    for name in source.names():
        parts = PurePosixPath(name).parts
        if len(parts) == 3 and parts[0] in ("streams", "bodies") and ulid.is_ulid(parts[1]):
            if parts[2].endswith(".seg"):
                (streams if parts[0] == "streams" else bodies).setdefault(parts[1], []).append(name)
            elif parts[2] != "spare":
                raise CannotVerify(f"The file {name} does not belong to the layout.")
        elif name != "trust.pem":
            raise CannotVerify(f"The file {name} does not belong to the layout.")
    if not streams:
        raise CannotVerify("There is no stream here; is this an evidence directory or a bundle?")
    reports = []
    for number, (stream, names) in enumerate(sorted(streams.items()), 1):
        _progress(f"stream {number} of {len(streams)}")
        reports.append(_stream(source, stream, names, bodies.get(stream, []), authorities))
    _progress("")
    return join(reports)


def _stream(
    source: Source, stream: str, names: list[str], body_names: list[str], authorities: list[x509.Certificate]
) -> StreamReport:
    texts = (body for name in body_names for body in entry.body_frames(source.read(name, MAX_SEGMENT_BYTES)))
    return verify_stream(stream, _entries(source, names), authorities, texts)


def _entries(source: Source, names: list[str]) -> Iterator[bytes]:
    for name in names:
        yield from entry.frames(source.read(name, MAX_SEGMENT_BYTES))


@contextmanager
def _open(evidence: Path) -> Iterator[Source]:
    if evidence.is_dir():
        yield Directory(evidence)
        return
    with tarfile.open(evidence, "r:*") as archive:
        yield Tar(archive)


def _authorities(source: Source, trust: Path | None) -> list[x509.Certificate]:
    if trust is not None:
        pem = trust.read_bytes()
    elif "trust.pem" in source.names():
        pem = source.read("trust.pem", MAX_TRUST_BYTES)
        click.echo(
            "Trusting the gateway CA that lies beside the evidence; give --trust to pin your own copy.", err=True
        )
    else:
        raise CannotVerify("No gateway CA is given; use --trust FILE (ConfigMap chaperone-trust, key gateway-ca.crt).")
    return x509.load_pem_x509_certificates(pem)


def _print(verdict: Verdict) -> None:
    for report in verdict.streams:
        opened = report.opened
        whose = f"{opened.namespace}/{opened.pod} as {opened.identity}" if opened is not None else "unknown"
        click.echo(
            f"stream {report.stream}  {whose}: {report.entries} records, {report.signed} signed,"
            f" {report.sessions} sessions, {report.commands} commands ({report.denied} refused),"
            f" {report.bodies_checked} texts, end {report.end}"
        )
        if report.bodies_missing:
            click.echo(f"note: stream {report.stream}: {report.bodies_missing} texts that records name are not here")
    for remark in verdict.notes:
        click.echo(f"note: {remark}")
    if verdict.problems:
        for problem in verdict.problems[1:]:
            click.echo(f"also: {problem}")
        click.echo(f"verify: FAILED at {verdict.problems[0]}")
    else:
        click.echo("verify: OK")


def _plain(verdict: Verdict) -> dict[str, object]:
    return {
        "ok": not verdict.problems,
        "problems": [msgspec.structs.asdict(problem) for problem in verdict.problems],
        "notes": verdict.notes,
        "streams": [
            {
                "stream": report.stream,
                "entries": report.entries,
                "signed": report.signed,
                "sessions": report.sessions,
                "commands": report.commands,
                "denied": report.denied,
                "end": report.end,
            }
            for report in verdict.streams
        ],
    }


def _capped(data: bytes, name: str, limit_bytes: int) -> bytes:
    if len(data) > limit_bytes:
        raise CannotVerify(f"The file {name} is longer than {limit_bytes} bytes.")
    return data


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
