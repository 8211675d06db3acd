"""TCP ports of loopback for programs that have to be told theirs before they run.

A program takes seconds from its start until it listens. A port of the range from which the kernel serves whoever asks
for any may be somebody else's by then; these are from below it, and no two workers of a run have one in common.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Final

FIRST: Final = 20_000
END: Final = 30_000  # Kubernetes gives node ports from here on, the kernel any from 32768 on


def free_port() -> int:
    """A port that nothing listens on, and that nobody else is given."""
    while True:
        port = next(_numbers)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def free_ports(count: int) -> list[int]:
    """So many of them."""
    return [free_port() for _ in range(count)]


def _numbered() -> Iterator[int]:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    mine = range(FIRST + worker, END, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    start = os.getpid() * 97 % len(mine)  # elsewhere than another run that goes on beside this one
    while True:
        yield from mine[start:]
        yield from mine[:start]


_numbers: Final = _numbered()
