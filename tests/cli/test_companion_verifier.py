"""The verifier that lies in each bundle: it needs nothing of Chaperone, and says what `chaperone verify` says."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from gateway_stream import Pod, Stream
from pki import Authority
from sealed_bundle import VERIFIER, Sealed, pack, seal, unpack

from chaperone_cli.main import main
from chaperone_evidence import frames

WITHOUT_ML_DSA = """
import runpy, sys
from cryptography import x509
from cryptography.hazmat.primitives import asymmetric
del asymmetric.mldsa
sys.modules["cryptography.hazmat.primitives.asymmetric.mldsa"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Auditor:
    """A bundle, and what an auditor has from elsewhere."""

    def __init__(self, folder: Path, ca: Authority, sealed: Sealed, bundle: dict[str, bytes]) -> None:
        self.folder = folder
        (folder / "ca.pem").write_text(ca.pem)
        (folder / "log.policy").write_text(sealed.policy)
        (folder / "bundle.tar").write_bytes(pack(bundle))
        (folder / "verify.py").write_bytes(bundle["verify.py"])
        self.arguments = ["bundle.tar", "--trust", "ca.pem", "--log-policy", "log.policy"]

    def run(self, *before: str) -> subprocess.CompletedProcess[str]:
        """Run the verifier of the bundle, apart from this environment's packages of ours."""
        command = [sys.executable, "-P", *(before or ["verify.py"]), *self.arguments]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def auditor(tmp_path: Path) -> Auditor:
    ca = Authority("gateway CA")
    stream = Stream(Pod(ca))
    session = stream.open_session()
    stream.conclude(session, stream.intend(session, "SELECT 1"))
    stream.close_session(session, 1)
    stream.close()
    sealed = seal(tmp_path / "store", ca, [stream], {"it": session})
    return Auditor(tmp_path, ca, sealed, sealed.bundles["it"])


def test_a_bundle_carries_its_verifier_and_what_it_is_in_words(auditor: Auditor) -> None:
    done = auditor.run()
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "verify: OK", "")
    assert (auditor.folder / "verify.py").read_bytes() == VERIFIER.read_bytes()
    readme = VERIFIER.with_name("README.txt").read_text()
    for name in _files(auditor):
        assert name.split("/")[0] in readme
    assert "WHAT IT DOES NOT MEAN" in readme


def test_both_verifiers_find_a_changed_part_of_a_recording(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    stream = Stream(Pod(ca))
    session = stream.open_session()
    first = stream.intend(session, "SELECT 1")
    stream.show(session, [frames.Rows(t_us=1, rows=(("of the first part",),))], command=first[1])
    stream.show(session, [frames.Rows(t_us=2, rows=(("of the second part",),))], command=first[1], number=1)
    stream.conclude(session, first)
    stream.close_session(session, 1)
    stream.close()
    sealed = seal(tmp_path / "store", ca, [stream], {"it": session})
    auditor = Auditor(tmp_path, ca, sealed, sealed.bundles["it"])
    arguments = [str(tmp_path / one) if "." in one else one for one in auditor.arguments]
    assert auditor.run().stdout.endswith("verify: OK\n")
    assert CliRunner().invoke(main, ["verify", *arguments]).output.endswith("verify: OK\n")
    files = _files(auditor)
    (name,) = [name for name in files if name.startswith("bodies/")]
    files[name] = files[name][:-1] + bytes([files[name][-1] ^ 1])
    (tmp_path / "bundle.tar").write_bytes(pack(files))
    for output in (auditor.run().stdout, CliRunner().invoke(main, ["verify", *arguments]).output):
        assert output.splitlines()[-1].startswith(f"verify: FAILED at stream {stream.id} record 4: ")


def test_chaperone_verify_never_looks_at_what_a_bundle_brings_to_be_run(auditor: Auditor) -> None:
    bundle = {"verify.py": b"raise SystemExit(0)", "README.txt": b"\xff\x1b[2J"}
    arguments = [str(auditor.folder / one) if "." in one else one for one in auditor.arguments]
    bad = auditor.folder / "bundle.tar"
    kept = {name: data for name, data in _files(auditor).items() if name not in bundle}
    bad.write_bytes(pack(bundle | kept))
    done = CliRunner().invoke(main, ["verify", *arguments])
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "verify: OK")
    assert "\x1b" not in done.output


def _files(auditor: Auditor) -> dict[str, bytes]:
    return unpack((auditor.folder / "bundle.tar").read_bytes())


def test_it_imports_nothing_but_the_standard_library_and_one_for_signatures() -> None:
    tree = ast.parse(VERIFIER.read_text(), feature_version=(3, 11))
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in found}
    assert roots - sys.stdlib_module_names == {"cryptography"}
    assert roots.isdisjoint({"os", "subprocess", "socket", "importlib", "ctypes", "pickle"})


def test_a_signature_that_it_cannot_check_is_named(auditor: Auditor) -> None:
    done = auditor.run("-c", WITHOUT_ML_DSA, "verify.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search("note: .*the ML-DSA-44 signature by chaperone.dev/log/.* was not checked", done.stdout)
    policy = auditor.folder / "log.policy"
    only_ml_dsa = [line for line in policy.read_text().splitlines() if len(line) > 1000 or "quorum" in line]
    policy.write_text("\n".join(only_ml_dsa))
    assert auditor.run().returncode == 0
    done = auditor.run("-c", WITHOUT_ML_DSA, "verify.py")
    assert (done.returncode, done.stdout.startswith("verify: CANNOT VERIFY")) == (2, True)
