"""Every target is fuzzed for a while in a process of its own, with the same inputs each time.

`make fuzz` looks for what nobody has seen: for longer, and at a seed of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz" / "fuzz.py"
SECONDS = float(os.environ.get("CHAPERONE_FUZZ_S", "60"))
IS_SEARCH = "CHAPERONE_SEARCH" in os.environ
NICE = 10  # tests that run beside it wait for what their own processes do, and these are twenty that never wait
SEED, MOST = (time.time_ns(), sys.maxsize) if IS_SEARCH else (1, 20_000)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 240)
def test_nothing_is_found_by_fuzzing(tmp_path: Path) -> None:
    sys.path.insert(0, str(FUZZ.parent))
    from fuzz import last_input
    from targets import TARGETS

    running = {
        name: subprocess.Popen(
            ["nice", "-n", str(NICE), sys.executable, str(FUZZ), name, str(SECONDS), str(SEED), str(tmp_path / name),
             str(MOST)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in TARGETS
    }  # fmt: skip
    found = {}
    for name, process in running.items():
        output, _ = process.communicate(timeout=SECONDS + 200)
        print(output[-2000:])
        if process.returncode < 0:
            found[name] = f"ended by signal {-process.returncode} at {last_input(tmp_path / name)!r}"
        elif process.returncode:
            found[name] = output[-4000:]
    assert found == {}
