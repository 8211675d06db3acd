"""`interop`: a program of others' implementations of logs, built from tests/interop/go.

go.mod and go.sum pin its parts; the Go that `tools/setup.sh` finds or installs builds it, once, into the cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import pytest

from chaperone_tools.cache import binary, cache, filled
from chaperone_tools.run import run

SOURCE: Final = Path(__file__).parents[1] / "interop" / "go"
BUILD_LIMIT_S: Final = 600.0


@pytest.fixture(scope="session")
def interop() -> Path:
    """The Go program, built from pinned sources into the cache."""
    go = binary("go")
    made_of = b"".join((SOURCE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go"))
    key = hashlib.sha256(made_of + run(go, "version").encode()).hexdigest()[:16]

    def fill(scratch: Path) -> Path:
        (scratch / "made").mkdir()
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
        out = scratch / "made" / "interop"
        run(go, "build", "-trimpath", "-o", out, ".", limit_s=BUILD_LIMIT_S, env=env, cwd=SOURCE)
        return scratch / "made"

    return filled(cache() / "tools" / f"interop-{key}", fill) / "interop"
