"""Where everything that is built lives: never in the checkout.

`CHAPERONE_CACHE`, by default `~/.cache/chaperone`; `bin/` in it holds links to the tools that `tools/setup.sh` builds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from chaperone_tools.errors import ToolsError


def cache() -> Path:
    """The cache folder of this user."""
    return Path(os.environ.get("CHAPERONE_CACHE") or Path.home() / ".cache" / "chaperone")


def filled(folder: Path, fill: Callable[[Path], Path]) -> Path:
    """A folder of the cache; where it is missing, one that `fill` makes in a scratch folder takes its place at once."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = fill(Path(scratch))
        try:
            made.rename(folder)
        except OSError:  # another run was faster
            if not folder.is_dir():
                raise
    return folder


def binary(name: str) -> Path:
    """The program of that name: the pinned build from the cache, else the machine's own.

    Raises:
        ToolsError: there is neither.
    """
    pinned = cache() / "bin" / name
    if os.access(pinned, os.X_OK):
        return pinned
    # Daemons live in sbin, which the PATH of an ordinary shell may lack.
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    if found is None:
        raise ToolsError(f"there is no {name} on this machine: `tools/setup.sh cluster` builds or installs it")
    return Path(found)


def checkout() -> Path:
    """The root of the checkout this package runs from (it is only ever installed editable)."""
    root = Path(__file__).resolve().parents[3]
    if not (root / "uv.lock").is_file():
        raise ToolsError(f"{root} is not a checkout of Chaperone: run this from the workspace with `uv run`")
    return root
