"""Benches are run by hand and seldom: what they import has to be there all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = sorted((Path(__file__).parents[2] / "bench").glob("*.py"))


@pytest.mark.parametrize("bench", BENCHES, ids=lambda path: path.stem)
def test_a_bench_says_how_it_is_used(bench: Path) -> None:
    run = subprocess.run([sys.executable, bench, "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert "usage:" in run.stdout
