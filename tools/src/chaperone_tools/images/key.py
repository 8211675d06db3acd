"""The key of an image: a hash over everything that decides its content. Equal inputs, equal key, no build."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

KEY_LENGTH = 16
_LEFT_OUT = {"__pycache__"}


def key_of(inputs: Iterable[tuple[str, bytes]]) -> str:
    """A key over named inputs; their order does not matter, their names and lengths do."""
    total = hashlib.sha256()
    for name, content in sorted(inputs):
        for piece in (name.encode(), content):
            total.update(len(piece).to_bytes(8, "big"))
            total.update(piece)
    return total.hexdigest()[:KEY_LENGTH]


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def tree(root: Path) -> Iterator[tuple[str, bytes]]:
    """Each file below a folder: its path from there with its mode, and its digest. Byte code is left out."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and not _LEFT_OUT & set(path.relative_to(root).parts):
            executable = "x" if path.stat().st_mode & 0o100 else "-"
            yield f"{path.relative_to(root)} {executable}", digest_of(path)
