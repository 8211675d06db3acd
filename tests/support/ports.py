"""Ports for programs that have to be told theirs before they run.

The kernel gives whoever asks for any port one of its own range, and a program takes seconds from its start until it
listens: a port of that range may be somebody else's by then. These are from below it.
"""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _COUNT = 20_000, 10_000  # the kernel's range begins at 32768, node ports at 30000
_numbers = itertools.count(os.getpid() * 7919)  # of each process elsewhere, and none twice in one


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment, and that nobody else is given."""
    found: list[int] = []
    while len(found) < count:
        port = _FIRST + next(_numbers) % _COUNT
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
