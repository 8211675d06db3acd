"""A program that passes bytes on and knows nothing (socat): what a plain proxy costs."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ports import free_port


@contextmanager
def relay(port: int, buffer_bytes: int = 8192) -> Iterator[int]:
    """A port of this machine that leads to another one; socat's own buffer unless told.

    Raises:
        RuntimeError: socat does not run.
    """
    here = free_port()
    words = ["socat", "-b", str(buffer_bytes), f"TCP-LISTEN:{here},bind=127.0.0.1,fork,reuseaddr,nodelay"]
    process = subprocess.Popen([*words, f"TCP:127.0.0.1:{port},nodelay"])
    try:
        _wait_for(here, process)
        yield here
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)  # between two looks: it says nothing when it listens
    raise RuntimeError("socat does not run")
