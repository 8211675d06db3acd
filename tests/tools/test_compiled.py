"""The compiled twins of the data path: the same tests hold for them, and they never stand for other sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chaperone_cli import compiled
from chaperone_tools.compile import MODULES, built, extensions

pytestmark = pytest.mark.timeout(1500)  # the twins are made here when nobody did: minutes where the machine is shared

ROOT = Path(__file__).parents[2]
RUN_TIMEOUT_S = 600.0  # 20 s alone
SHARED_TESTS = (
    "tests/sidecar/test_pg_codec.py",
    "tests/sidecar/test_pg_rowmask_cells.py",
    "tests/sidecar/test_spool.py",
    "tests/evidence/test_notes_and_entries.py",
    "tests/evidence/test_canonical_form.py",
)


def run(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the twins before the sources."""
    environment = os.environ | {"PYTHONPATH": str(home)}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=RUN_TIMEOUT_S,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home() -> Path:
    """The folder of the twins of this checkout."""
    found = built()
    assert found is not None, "no C compiler, or no headers of this Python; `make setup` installs the first"
    return found


def test_every_module_of_the_data_path_is_compiled(home: Path) -> None:
    names = ", ".join(module.removesuffix(".py").replace("/", ".") for module in MODULES)
    files = "[m.__file__.endswith('.so') for n, m in sys.modules.items() if n in names]"
    done = run(
        "-c", f"import sys, {names}; names = {names.split(', ')!r}; print(all({files}), len({files}))", home=home
    )
    assert done.stdout.split() == ["True", str(len(MODULES))], done.stderr
    assert len(extensions(home)) == len(MODULES) + 1  # and the group that they share


def test_the_twins_pass_the_tests_of_their_sources(home: Path) -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *SHARED_TESTS, home=home)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_another_source_never_meets_these_twins(home: Path, tmp_path: Path) -> None:
    for package in compiled.PACKAGES:
        shutil.copytree(compiled.source(package), tmp_path / package)
    ask = "from chaperone_cli import compiled; print(compiled.folder())"
    assert run("-c", ask, home=tmp_path).stdout.strip() == str(home)
    with (tmp_path / "chaperone_evidence" / "chain.py").open("a") as changed:
        changed.write("# another source\n")
    other = Path(run("-c", ask, home=tmp_path).stdout.strip())
    assert other != home
    assert not other.exists()
