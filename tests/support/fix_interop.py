"""`interop`, `reflector`: programs of others' implementations, built from the folders of tests/interop.

go.mod and go.sum pin their parts; the Go that `tools/setup.sh` finds or installs builds each, once, into the cache.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

import pytest

from chaperone_tools.cache import binary, cache, filled
from chaperone_tools.run import run

SOURCES: Final = Path(__file__).parents[1] / "interop"
BUILD_LIMIT_S: Final = 600.0


@pytest.fixture(scope="session")
def interop() -> Path:
    """Logs: Go's sumdb, Tessera's fsck."""
    return built(SOURCES / "go", "interop")


@pytest.fixture(scope="session")
def reflector() -> Path:
    """client-go's reflector."""
    return built(SOURCES / "reflector", "reflector")


def built(source: Path, name: str) -> Path:
    """The Go program of a folder, built from pinned sources into the cache."""
    go = binary("go")
    made_of = b"".join((source / file).read_bytes() for file in ("go.mod", "go.sum", "main.go"))
    key = hashlib.sha256(made_of + run(go, "version").encode()).hexdigest()[:16]

    def fill(scratch: Path) -> Path:
        (scratch / "made").mkdir()
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
        run(go, "build", "-trimpath", "-o", scratch / "made" / name, ".", limit_s=BUILD_LIMIT_S, env=env, cwd=source)
        return scratch / "made"

    return filled(cache() / "tools" / f"{name}-{key}", fill) / name
