"""The program opa, run over texts: the same text always gets the same answer.

It is of the version that the gateways run, and comes with the operator's image. Files are made in memory, since the
root of the container is read-only.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from typing import Any, Final

TIMEOUT_S: Final = 10.0  # a policy of full size takes some 100 ms
_MEMORY: Final = "/dev/shm"  # noqa: S108 - private to the container


class NoOpa(Exception):
    """There is no such program, or it gives no answer; the text says so."""


def program() -> str:
    """The path of opa.

    Raises:
        NoOpa: neither CHAPERONE_OPA nor PATH has one.
    """
    found = os.environ.get("CHAPERONE_OPA") or shutil.which("opa")
    if not found:
        raise NoOpa("this operator has no program opa to check it with; use the operator's own image")
    return found


def read(answer: str) -> Any:  # noqa: ANN401 - JSON
    """What opa said.

    Raises:
        NoOpa: it is no JSON.
    """
    try:
        return json.loads(answer)
    except ValueError as error:
        raise NoOpa("opa gives no answer that can be read") from error


def folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for the files of one run."""
    return tempfile.TemporaryDirectory(dir=_MEMORY)


def run(*arguments: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run opa to its end.

    Raises:
        NoOpa: it cannot be started, or does not end in time.
    """
    try:
        return subprocess.run(
            [program(), *arguments], input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise NoOpa(f"it cannot be checked ({type(error).__name__})") from error
