"""Compiled twins of the gateway's hot modules: made from the very same sources, found by their hash.

`tools/setup.sh` compiles a few modules of the data path with mypyc into a cache outside the checkout. The folder there
is named by a hash over all sources of the packages, so another source never meets a stale twin: without a fitting one
the sources run as they are, at half the speed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import Final

PACKAGES: Final = ("chaperone_evidence", "chaperone_sidecar")
READY: Final = "ready"  # a file that is written when the folder is complete
KEY_LENGTH: Final = 16


def source(package: str) -> Path:
    """The folder of a package's sources, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def folder() -> Path:
    """Where the twins of these sources are, or would be."""
    total = hashlib.sha256(f"{sys.implementation.cache_tag} {platform.machine()}".encode())
    for package in PACKAGES:
        root = source(package)
        for path in sorted(root.rglob("*.py")):
            total.update(str(path.relative_to(root)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    cache = Path(os.environ.get("CHAPERONE_CACHE") or Path.home() / ".cache" / "chaperone")
    return cache / "compiled" / total.hexdigest()[:KEY_LENGTH]


def prefer() -> None:
    """Import the packages from their compiled twins from now on, where there are any."""
    try:
        found = folder()
    except (ImportError, OSError):
        return
    if (found / READY).exists():
        sys.path.insert(0, str(found))
