"""`chaperone-compile`: compiles the modules of the gateway's data path with mypyc, into the cache.

The sources stay what is edited, tested and read; the compiled twins are the same code at twice the speed. Modules whose
coroutines are told by their type (the driver) and those that only call C (the parser) stay as they are.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from chaperone_cli.compiled import PACKAGES, READY, folder, source
from chaperone_tools.errors import ToolsError
from chaperone_tools.progress import phase
from chaperone_tools.run import run, tail

MODULES: Final = (
    "chaperone_evidence/chain.py",
    "chaperone_evidence/entry.py",
    "chaperone_evidence/ulid.py",
    "chaperone_sidecar/masking/checks.py",
    "chaperone_sidecar/masking/engine.py",
    "chaperone_sidecar/masking/mask.py",
    "chaperone_sidecar/masking/values.py",
    "chaperone_sidecar/policy/cache.py",
    "chaperone_sidecar/protocols/postgresql/codec.py",
    "chaperone_sidecar/protocols/postgresql/column.py",
    "chaperone_sidecar/protocols/postgresql/copyin.py",
    "chaperone_sidecar/protocols/postgresql/extended.py",
    "chaperone_sidecar/protocols/postgresql/flight.py",
    "chaperone_sidecar/protocols/postgresql/gate.py",
    "chaperone_sidecar/protocols/postgresql/messages.py",
    "chaperone_sidecar/protocols/postgresql/outgoing.py",
    "chaperone_sidecar/protocols/postgresql/prepared.py",
    "chaperone_sidecar/protocols/postgresql/rowmask.py",
    "chaperone_sidecar/protocols/postgresql/session.py",
    "chaperone_sidecar/protocols/postgresql/upstream_side.py",
    "chaperone_sidecar/recording/ids.py",
    "chaperone_sidecar/recording/recorder.py",
    "chaperone_sidecar/recording/spool.py",
)
COMPILE_LIMIT_S: Final = 600.0  # 20 s alone


def main() -> int:
    """Entry point; prints the folder, or why nothing is compiled."""
    try:
        print(built() or "nothing is compiled: there is no C compiler, or no header of this Python")
    except ToolsError as error:
        print(f"chaperone-compile: {error}", file=sys.stderr)
        return 1
    return 0


def built() -> Path | None:
    """The folder with the compiled twins of these sources, made now if need be; None where nothing can be compiled.

    Raises:
        ToolsError: the compiler failed.
    """
    home = folder()
    if (home / READY).exists():
        return home
    if not _can_compile():
        return None
    home.parent.mkdir(parents=True, exist_ok=True)
    with phase("compiling the data path"), tempfile.TemporaryDirectory(dir=home.parent) as name:
        work = Path(name)
        for package in PACKAGES:
            shutil.copytree(source(package), work / package, ignore=shutil.ignore_patterns("__pycache__"))
        _compile(work)
        if not (home / READY).exists():  # else another was faster, and its twins may be in use by now
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(work, home)
            (home / READY).touch()  # last: whoever sees it takes all the rest for there
    return home


def extensions(home: Path) -> list[Path]:
    """The compiled files below a folder that `built` gave."""
    return sorted(home.rglob("*.so"))


def _can_compile() -> bool:
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which("cc") is not None and headers.exists()


def _compile(work: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypyc", "--ignore-missing-imports", *MODULES],  # RE2's package has no types
        cwd=work, capture_output=True, text=True, timeout=COMPILE_LIMIT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise ToolsError(f"mypyc ended with {done.returncode}:\n{tail(done.stdout)}\n{tail(done.stderr)}")
    shutil.rmtree(work / "build", ignore_errors=True)
    shutil.rmtree(work / ".mypy_cache", ignore_errors=True)
    for extension in extensions(work):
        run("strip", "--strip-debug", extension)
