"""`chaperone redact`: texts go, the proof stays; both verifiers agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gateway_stream import Pod, Stream
from pki import Authority
from sealed_bundle import VERIFIER, pack, seal, unpack

from chaperone_cli.main import main

SECRETS = [f"SELECT 'secret-{number}'" for number in range(3)]


class Office:
    """A bundle of one session with three statements, and what an auditor has besides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ca = Authority("gateway CA")
        stream = Stream(Pod(ca))
        session = stream.open_session()
        self.numbers = []
        for text in SECRETS:
            intent = stream.intend(session, text)
            stream.conclude(session, intent)
            self.numbers.append(intent[0])
        stream.close_session(session, len(SECRETS))
        stream.close()
        self.stream = stream.id
        sealed = seal(folder / "store", ca, [stream], {"it": session})
        (folder / "whole.tar").write_bytes(pack(sealed.bundles["it"]))
        (folder / "ca.pem").write_text(ca.pem)
        (folder / "log.policy").write_text(sealed.policy)
        self.trust = ("--trust", str(folder / "ca.pem"), "--log-policy", str(folder / "log.policy"))

    def redact(self, *arguments: str) -> Result:
        whole, out = str(self.folder / "whole.tar"), str(self.folder / "out.tar")
        return CliRunner().invoke(main, ["redact", whole, "-o", out, *arguments])

    def files(self, name: str = "out.tar") -> dict[str, bytes]:
        return unpack((self.folder / name).read_bytes())

    def verdicts(self) -> list[tuple[int, str]]:
        """What both verifiers say of the new bundle."""
        ours = CliRunner().invoke(main, ["verify", str(self.folder / "out.tar"), *self.trust])
        theirs = subprocess.run(
            [sys.executable, str(VERIFIER), str(self.folder / "out.tar"), *self.trust], capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        return [(ours.exit_code, ours.stdout), (theirs.returncode, theirs.stdout)]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_without_any_text_the_proof_still_holds(office: Office) -> None:
    done = office.redact()
    assert done.exit_code == 0, done.stderr
    assert "0 texts kept, 3 left out" in done.stdout
    data = (office.folder / "out.tar").read_bytes()
    assert b"secret-" in (office.folder / "whole.tar").read_bytes()
    assert b"secret-" not in data
    for status, said in office.verdicts():
        assert (status, said.splitlines()[-1]) == (0, "verify: OK")
        assert "3 texts" in said
    kept = {name: data for name, data in office.files("whole.tar").items() if not name.startswith("bodies/")}
    assert office.files() == kept


def test_chosen_records_keep_their_texts(office: Office) -> None:
    done = office.redact("--keep", str(office.numbers[1]), "--keep", f"{office.stream}/{office.numbers[2]}")
    assert "2 texts kept, 1 left out" in done.stdout
    data = b"".join(office.files().values())
    assert [text.encode() in data for text in SECRETS] == [False, True, True]
    for status, said in office.verdicts():
        assert (status, said.splitlines()[-1]) == (0, "verify: OK")


@pytest.mark.parametrize("keep", ["x", "99999", "0", "01aaaaaaaaaaaaaaaaaaaaaaaa/1", "-1", "1 "])
def test_what_names_no_text_is_refused_and_nothing_is_written(office: Office, keep: str) -> None:
    done = office.redact(f"--keep={keep}")
    assert done.exit_code == 2
    assert "redact: FAILED" in done.stderr
    assert not (office.folder / "out.tar").exists()


def test_a_text_that_was_put_in_place_of_another_is_found_as_ever(office: Office) -> None:
    office.redact("--keep", str(office.numbers[0]))
    files = office.files()
    (bodies,) = [name for name in files if name.startswith("bodies/")]
    files[bodies] = files[bodies].replace(b"secret-0", b"secret-9")
    (office.folder / "out.tar").write_bytes(pack(files))
    assert [status for status, _ in office.verdicts()] == [1, 1]
