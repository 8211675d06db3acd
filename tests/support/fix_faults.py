"""`faults`: what is preloaded into a process so that its system calls fail and its wall clock is wrong (faults.c).

`small_disk`: a disk that becomes full.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from pathlib import Path

import pytest

from chaperone_tools.cache import cache, filled
from chaperone_tools.run import run

SOURCE = Path(__file__).with_name("faults.c")


class Faults:
    """Environments of processes under test."""

    def __init__(self, library: Path) -> None:
        self._library = library

    def failing(self, call: str, path: str, number: int, nth: int, count: int = 1) -> dict[str, str]:
        """From the nth on, so many of these calls on files with `path` in their name fail with that errno."""
        return self._env(
            FAULTS_CALL=call, FAULTS_PATH=path, FAULTS_ERRNO=str(number), FAULTS_NTH=str(nth), FAULTS_COUNT=str(count)
        )

    def clocked(self, clock: Path) -> dict[str, str]:
        """The wall clock is wrong by what `set_clock` writes into that file, also while the process runs."""
        return self._env(FAULTS_CLOCK=str(clock))

    def _env(self, **told: str) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(self._library), **told}


def set_clock(clock: Path, wrong_by_s: int) -> None:
    """Change the wall clock of processes that look at this file, in place: they have it mapped."""
    with clock.open("r+b" if clock.exists() else "w+b") as file:
        file.write(struct.pack("=q", wrong_by_s))


@pytest.fixture(scope="session")
def faults() -> Faults:
    """Compiled once, into the cache."""

    def fill(scratch: Path) -> Path:
        (scratch / "made").mkdir()
        run("gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", scratch / "made" / "faults.so", SOURCE, "-ldl")
        return scratch / "made"

    key = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    return Faults(filled(cache() / "tools" / f"faults-{key}", fill) / "faults.so")


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 8 MiB, so that the spool meets a disk that is really full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True, timeout=10)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)
