"""One local cluster at a time: its bridge, addresses and kube-proxy's tables exist once a machine."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chaperone_tools.errors import ToolsError


@contextmanager
def exclusive(state: Path) -> Iterator[None]:
    """Hold the machine's lock while a command changes clusters.

    Raises:
        ToolsError: another command holds it.
    """
    state.mkdir(parents=True, exist_ok=True, mode=0o711)
    with (state / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ToolsError("another chaperone-cluster command is at work: wait for its end") from error
        yield


def others(state: Path, name: str) -> list[str]:
    """Names of other clusters that have a folder here."""
    return sorted(path.name for path in state.iterdir() if path.is_dir() and path.name != name)
