"""Running programs to their end: argument lists, a limit, and an error that shows what they said."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from chaperone_tools.errors import ToolsError

COMMAND_LIMIT_S = 120.0  # for commands that only talk to this machine; builds name their own


def run(
    *argv: str | Path,
    limit_s: float = COMMAND_LIMIT_S,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program and return what it printed.

    Raises:
        ToolsError: it failed or did not end in time; carries the end of its output.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, input=stdin, capture_output=True, text=True, timeout=limit_s, env=env, cwd=cwd, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ToolsError(f"`{_shown(words)}` did not end within {limit_s:.0f} s") from error
    except OSError as error:
        raise ToolsError(f"`{words[0]}` does not run: {error.strerror}") from error
    if done.returncode:
        raise ToolsError(f"`{_shown(words)}` ended with {done.returncode}:\n{tail(done.stdout)}\n{tail(done.stderr)}")
    return done.stdout


def succeeds(*argv: str | Path, limit_s: float = COMMAND_LIMIT_S) -> bool:
    """Whether the program exists, ends in time and with 0."""
    try:
        run(*argv, limit_s=limit_s)
    except ToolsError:
        return False
    return True


def tail(text: str, lines: int = 25) -> str:
    """The last lines of a text."""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _shown(words: Sequence[str]) -> str:
    return " ".join([Path(words[0]).name, *words[1:4]])
