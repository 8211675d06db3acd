"""The files of a package and their hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from chaperone_cli.report.model import MANIFEST, Listed


def listing(folder: Path) -> dict[str, Listed]:
    """Every plain file of a package but the manifest, by its path.

    Raises:
        OSError: one cannot be read.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): Listed(sha256(path), path.stat().st_size) for path in paths}


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
