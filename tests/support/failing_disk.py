"""A disk that fails under a gateway of this process."""

from __future__ import annotations

import os
from pathlib import Path


def fail_disk(spool: Path) -> int:
    """Put a pipe, which cannot be synced, in the place of every open segment; how many there were."""
    reader, writer = os.pipe()
    found = 0
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            path = link.readlink()
        except OSError:
            continue  # of the listing itself
        if path.is_relative_to(spool) and path.name.endswith((".seg", "spare")):
            os.dup2(writer, int(link.name))
            found += 1
    os.close(reader)
    os.close(writer)
    return found
