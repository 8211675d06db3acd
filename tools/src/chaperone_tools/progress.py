"""What a person sees while a slow command works: each phase, how long it took, and waits that end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chaperone_tools.errors import ToolsError

POLL_S = 0.1
SLOW_POLL_S = 0.5  # for questions that cost a process


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Print the phase and, when it ends, its seconds."""
    print(f"  {name:<44}", end="", file=sys.stderr, flush=True)
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        print(f" failed after {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
        raise
    print(f" {time.monotonic() - begun:6.1f} s", file=sys.stderr, flush=True)


def wait_until(
    what: str, limit_s: float, is_so: Callable[[], bool], explain: Callable[[], str], every_s: float = POLL_S
) -> None:
    """Ask until `is_so`, at most `limit_s` seconds.

    Raises:
        ToolsError: it did not become so; carries what `explain` says (a log's end, usually).
    """
    pause = threading.Event()
    ends = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() >= ends:
            raise ToolsError(f"{what} did not happen within {limit_s:.0f} s\n{explain()}")
        pause.wait(every_s)
