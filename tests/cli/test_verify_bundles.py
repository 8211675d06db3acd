"""Bundles: every honest tar is read, and nothing that a tar can hold besides."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from evidence_directory import pack, write_stream
from gateway_stream import Pod, Stream
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import Authority

from chaperone_cli import evidence
from chaperone_cli.evidence import CannotVerify, Tar, open_source
from chaperone_cli.verify import judge

CA = Authority("gateway CA")


def _folder(path: Path) -> Path:
    stream = Stream(Pod(CA))
    session = stream.open_session()
    for number in range(3):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.close_session(session, 3)
    stream.close()
    write_stream(path, stream, segment_records=4)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _folder(tmp_path_factory.mktemp("evidence"))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> bytes:
    return pack(folder)


def _read(data: bytes) -> dict[str, bytes]:
    source = Tar(io.BytesIO(data))
    return {name: source.read(name, evidence.MAX_SEGMENT_BYTES) for name in source.names()}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*/*")}


def test_a_bundle_verifies_like_its_directory(folder: Path, bundle: bytes, tmp_path: Path) -> None:
    assert _read(bundle) == _files(folder)
    (tmp_path / "bundle.tar").write_bytes(bundle)
    with open_source(tmp_path / "bundle.tar") as source:
        assert judge(source, [CA.certificate]).problems == []


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_tars_of_tar_itself_are_read(folder: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / "bundle.tar"
    subprocess.run(["tar", f"--format={form}", "-cf", target, "-C", folder, "."], check=True, timeout=60)
    assert _read(target.read_bytes()) == _files(folder)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_python_are_read(folder: Path, form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in ("streams", "bodies"):
            tar.add(folder / name, arcname=name)
    assert _read(buffer.getvalue()) == _files(folder)


def _tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
        tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, b"V", b"M", b"\xff",
    ],
)  # fmt: skip
def test_whatever_is_no_plain_file_is_refused(kind: bytes) -> None:
    with pytest.raises(CannotVerify, match="neither a plain file"):
        _read(_tar((_member("streams/a/0.seg", kind, linkname="/etc/passwd"), b"")))


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(CannotVerify, match="twice"):
        _read(_tar((_member("trust.pem"), b"a"), (_member("trust.pem"), b"b")))
    with pytest.raises(CannotVerify, match="twice"):
        _read(_tar((_member("trust.pem"), b"a"), (_member("./trust.pem"), b"b")))


@pytest.mark.parametrize(
    "headers",
    [
        {"path": "streams/other/0.seg"},
        {"size": "1"},
        {"linkpath": "x"},
        {"GNU.sparse.realsize": "1000000000000"},
        {"hdrcharset": "BINARY"},
        {"comment": "x" * 100_000},
    ],
)
def test_an_extended_header_that_renames_or_resizes_is_refused(headers: dict[str, str]) -> None:
    data = _tar((_member("trust.pem", pax_headers=headers), b"data"), form=tarfile.PAX_FORMAT)
    with pytest.raises(CannotVerify, match="extended header"):
        _read(data)


def test_more_files_or_bytes_than_the_caps_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = _tar(*((_member(f"file-{number}"), b"x" * 600) for number in range(3)))
    with pytest.raises(CannotVerify, match="longer than 599"):
        Tar(io.BytesIO(data)).read("file-0", 599)
    assert len(Tar(io.BytesIO(data)).read("file-0", 600)) == 600
    (tmp_path / "streams" / "x").mkdir(parents=True)
    (tmp_path / "streams" / "x" / "0.seg").write_bytes(b"x" * 600)
    with pytest.raises(CannotVerify, match="longer than 599"):
        evidence.Directory(tmp_path).read("streams/x/0.seg", 599)


def test_a_size_that_is_not_there_is_refused_without_reading_it(tmp_path: Path) -> None:
    huge = bytearray(_tar((_member("trust.pem"), b"data")))
    huge[124:136] = b"77777777777\0"
    huge[148:156] = b" " * 8
    huge[148:156] = f"{sum(huge[:512]):06o}\0 ".encode()
    with pytest.raises(CannotVerify, match="cut in the middle"):
        _read(bytes(huge))
    binary = bytearray(huge)
    binary[124:136] = b"\x80" + bytes(10) + b"\x04"
    binary[148:156] = b" " * 8
    binary[148:156] = f"{sum(binary[:512]):06o}\0 ".encode()
    with pytest.raises(CannotVerify, match="damaged"):
        _read(bytes(binary))


def test_a_bundle_that_is_cut_anywhere_cannot_be_verified(bundle: bytes) -> None:
    end = len(bundle.rstrip(b"\0")) // 512 * 512 + 512
    for cut in {*range(0, end, 97), *range(0, end + 1, 512)}:
        with pytest.raises(CannotVerify):
            _read(bundle[:cut])
    assert _read(bundle[: end + 512]) == _read(bundle)


def test_something_after_the_end_is_refused(bundle: bytes) -> None:
    for more in (b"x", bytes(600) + b"x", bundle):
        with pytest.raises(CannotVerify, match="follows the end"):
            _read(bundle + more)


@pytest.mark.parametrize("data", [b"", b"not a tar", bytes(100), b"\x1f\x8b" + bytes(600), b"PK\x03\x04" + bytes(600)])
def test_what_is_no_tar_cannot_be_verified(data: bytes) -> None:
    with pytest.raises(CannotVerify):
        _read(data)


@settings(max_examples=300)
@given(position=st.integers(0, 511), value=st.integers(0, 255), member=st.integers(0, 5))
def test_a_header_that_is_changed_is_refused_or_says_the_same(position: int, value: int, member: int) -> None:
    files = [(f"streams/a/{number}.seg", bytes(700)) for number in range(6)]
    data = bytearray(_tar(*((_member(name), content) for name, content in files)))
    changed_at = member * (512 + 1024) + position
    data[changed_at] = value
    try:
        found = _read(bytes(data))
    except CannotVerify:
        return
    assert found == dict(files)


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_never_crash_the_reader(data: bytes) -> None:
    for tried in (data, data + bytes(-len(data) % 512) + bytes(1024)):
        try:
            _read(tried)
        except CannotVerify:
            continue


def test_links_in_a_directory_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "evidence")
    segment = sorted((folder / "streams").glob("*/*"))[0]
    moved = tmp_path / "elsewhere.seg"
    segment.rename(moved)
    segment.symlink_to(moved)
    with pytest.raises(CannotVerify, match="not a plain file"):
        evidence.Directory(folder).names()
