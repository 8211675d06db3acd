"""`chaperone verify` as an auditor types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from evidence_directory import pack, write_frames, write_stream
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_cli.main import main
from chaperone_evidence.chain import Chain


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("gateway CA")


def _closed(ca: Authority, commands: int = 3) -> Stream:
    stream = Stream(Pod(ca))
    session = stream.open_session()
    for number in range(commands):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.intend(session, "DROP TABLE orders", decision="Deny", rule="never")
    stream.close_session(session, commands + 1, 1)
    stream.close()
    return stream


@pytest.fixture
def folder(tmp_path: Path, ca: Authority) -> Path:
    path = tmp_path / "evidence"
    write_stream(path, _closed(ca))
    (path / "trust.pem").write_text(ca.pem)
    return path


@pytest.fixture
def trust(tmp_path: Path, ca: Authority) -> Path:
    path = tmp_path / "gateway-ca.crt"
    path.write_text(ca.pem)
    return path


def _verify(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def test_what_holds_ends_in_verify_ok(folder: Path, trust: Path) -> None:
    done = _verify(folder, "--trust", trust)
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[-1] == "verify: OK"
    assert lines[0].startswith("trust: CN=gateway CA SHA-256 ")
    assert lines[1].endswith(
        "agents/billing-0 as billing-agent: 12 records, 12 signed, 1 sessions, 4 commands (1 refused), 4 texts, "
        "end closed"
    )


def test_a_bundle_is_verified_alike(folder: Path, trust: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar"
    bundle.write_bytes(pack(folder))
    assert _verify(bundle, "--trust", trust).output == _verify(folder, "--trust", trust).output


def test_the_fingerprint_is_that_of_openssl(folder: Path, trust: Path) -> None:
    shown = subprocess.run(
        ["openssl", "x509", "-in", trust, "-noout", "-fingerprint", "-sha256"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert shown.stdout.strip().split("=")[1] in _verify(folder, "--trust", trust).output


def test_trust_that_lies_beside_the_evidence_is_used_and_said(folder: Path) -> None:
    done = _verify(folder)
    assert done.exit_code == 0
    assert "note: this gateway CA lay beside the evidence" in done.output
    assert done.output.endswith("verify: OK\n")


def test_trust_that_is_given_goes_before_the_one_beside_the_evidence(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text(Authority("gateway CA").pem)
    done = _verify(folder, "--trust", other)
    assert done.exit_code == 1
    assert "record 0: The certificate was not issued by the trusted gateway CA." in done.output.splitlines()[-1]


def test_the_first_bad_record_is_named_last(folder: Path, trust: Path) -> None:
    (segment,) = (folder / "streams").glob("*/*.seg")
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b'"rows":1', b'"rows":9', 1))
    done = _verify(folder, "--trust", trust)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == (
        f"verify: FAILED at stream {segment.parent.name} record 3: its link does not follow from the record before it"
    )


def test_json_says_the_same(folder: Path, trust: Path) -> None:
    good = json.loads(_verify(folder, "--trust", trust, "--json").output)
    assert (good["verify"], good["problems"], good["trust"]["given"]) == ("OK", [], True)
    (stream,) = good["streams"]
    assert (stream["end"], stream["entries"], stream["texts"], stream["pod"]) == ("closed", 12, 4, "billing-0")
    (segment,) = (folder / "streams").glob("*/*.seg")
    segment.write_bytes(segment.read_bytes()[:-200])
    done = _verify(folder, "--trust", trust, "--json")
    bad = json.loads(done.output)
    assert (done.exit_code, bad["verify"], bad["ok"]) == (1, "FAILED", False)
    assert bad["problems"][0]["stream"] == stream["stream"]


@pytest.mark.parametrize("as_json", [False, True])
def test_what_cannot_be_verified_is_neither_ok_nor_failed(tmp_path: Path, trust: Path, *, as_json: bool) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    text = tmp_path / "text"
    text.write_text("no evidence")
    more = ["--json"] if as_json else []
    for path in (empty, text, trust):
        done = _verify(path, "--trust", trust, *more)
        assert done.exit_code == 2
        assert "CANNOT VERIFY" in done.output
        assert "verify: OK" not in done.output
        if as_json:
            assert json.loads(done.output)["verify"] == "CANNOT VERIFY"


def test_without_any_trust_nothing_is_verified(folder: Path, tmp_path: Path) -> None:
    (folder / "trust.pem").unlink()
    done = _verify(folder)
    assert done.exit_code == 2
    assert "--trust FILE" in done.output
    no_pem = tmp_path / "no.pem"
    no_pem.write_text("hello")
    assert _verify(folder, "--trust", no_pem).exit_code == 2
    assert _verify(folder, "--trust", tmp_path / "absent").exit_code == 2
    assert _verify(tmp_path / "absent").exit_code == 2


def test_files_outside_the_layout_cannot_be_verified(folder: Path, trust: Path) -> None:
    (stream,) = (folder / "streams").iterdir()
    (stream / "note.txt").write_text("x")
    assert _verify(folder, "--trust", trust).exit_code == 2


def test_the_spare_segment_of_a_running_gateway_is_no_evidence(folder: Path, trust: Path) -> None:
    (stream,) = (folder / "streams").iterdir()
    (stream / "spare").write_bytes(bytes(1 << 20))
    assert _verify(folder, "--trust", trust).exit_code == 0


def test_nothing_in_evidence_can_command_the_terminal(tmp_path: Path) -> None:
    """Somebody else's CA can certify anything; its names are shown, so they must be harmless."""
    ca = Authority("evil\x1b]0;title\x07\nverify: OK")
    pod = Pod(ca)
    stream = Stream(pod)
    opened = msgspec.structs.replace(stream.stream_open(), pod="x\x1b[2J\nverify: OK\n\x9b", wall_us=stream.now_us)
    path = tmp_path / "evidence"
    write_frames(path, stream.id, [Chain(pod.cluster, stream.id).append_record(opened)])
    session = stream.open_session()
    stream.intend("\x1b[31m\r\nverify: OK")
    stream.close_session(session, 1)
    stream.head("closed")
    write_frames(tmp_path / "second", stream.id, stream.frames)
    for one in (path, tmp_path / "second"):
        (one / "trust.pem").write_text(ca.pem)
        done = _verify(one)
        assert done.exit_code == 1
        assert all(character.isprintable() or character == "\n" for character in done.output)
        assert "verify: OK" not in done.output.splitlines()
        assert done.output.splitlines()[-1].startswith("verify: FAILED at stream ")


def test_many_findings_are_shown_in_part_and_counted(tmp_path: Path, ca: Authority, trust: Path) -> None:
    for number in range(30):
        stream = Stream(Pod(ca, pod_uid=f"uid-{number}"))
        stream.head()
        stream.open_session()
        write_stream(tmp_path / "evidence", stream)
    done = _verify(tmp_path / "evidence", "--trust", trust)
    assert done.exit_code == 1
    assert "also: 9 more problems; --json shows all" in done.output
    assert len(json.loads(_verify(tmp_path / "evidence", "--trust", trust, "--json").output)["problems"]) == 30


def test_verify_needs_neither_the_gateway_nor_a_parser_of_any_protocol(folder: Path, trust: Path) -> None:
    program = (
        "import sys; sys.argv[0] = 'chaperone'\n"
        "from chaperone_cli.main import main\n"
        "try: main()\n"
        "finally: print(sorted(name for name in sys.modules if name.split('.')[0] in"
        " ('chaperone_sidecar', 'chaperone_operator', 'chaperone_collector', 'aiohttp', 'yaml', 'uvloop', 'ssl')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "verify", folder, "--trust", trust],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("verify: OK\n[]\n")
