"""What statements do, as gateways find it out: said by a program of the gateway's package, which is run, not imported.

Its parser is C code that a hostile text may bring down. It gets the texts and nothing else: no environment, no more
memory and processor time than it takes (it limits itself), and no longer than `TIMEOUT_S`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

PROGRAM: Final = ("-I", "-m", "chaperone_sidecar.protocols.postgresql.facts")
TIMEOUT_S: Final = 10.0  # 0.2 s to start, then some 100 µs a text; the machine may be busy


class NoFacts(Exception):
    """A text cannot be read; the message says why.

    Attributes:
        index: which of the texts; those after it are not read either.
    """

    def __init__(self, index: int, why: str) -> None:
        super().__init__(why)
        self.index = index


class Facts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the policy engine is asked about a text; `why` something in it is unknown, or the text does not parse."""

    resolution: Literal["catalog", "syntactic", "none", "unresolved"]
    accesses: list[dict[str, Any]]
    why: str
    parses: bool


def read(texts: Sequence[str], command: Sequence[str] | None = None, timeout_s: float = TIMEOUT_S) -> list[Facts]:
    """Facts of PostgreSQL's texts, in their order.

    Args:
        texts: of at most 32 KiB each; a longer one is unread.
        command: what is run in place of the program.
        timeout_s: how long it may take; the API server gives up after 5 s, and compiling waits.

    Raises:
        NoFacts: the program does not come to its end.
    """
    try:
        done = subprocess.run(
            command or [sys.executable, *PROGRAM],
            input=msgspec.json.encode(texts), capture_output=True, timeout=timeout_s, check=False, env={},
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        written, ended = error.stdout or b"", f"its reader takes longer than {timeout_s:g} s"
    except OSError as error:
        raise NoFacts(0, f"its reader cannot be started ({type(error).__name__})") from error
    else:
        written, ended = done.stdout, _ended(done.returncode)
    whole = written.split(b"\n")[:-1]  # what follows the last end of a line was not written to its end
    found = [_facts(index, line) for index, line in enumerate(whole[: len(texts)])]
    if len(found) < len(texts):
        raise NoFacts(len(found), ended)
    return found


def _facts(index: int, line: bytes) -> Facts:
    try:
        return msgspec.json.decode(line, type=Facts)
    except msgspec.DecodeError as error:
        raise NoFacts(index, "its reader gives no answer that can be read") from error


def _ended(status: int) -> str:
    if status >= 0:
        return f"its reader ended with status {status}"
    return f"its reader was ended by a signal ({signal.strsignal(-status)})"
