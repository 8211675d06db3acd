"""Daemons that outlive the command that starts them: one pid file and one log file each.

A pid file holds the pid and the process's start time, so that a number the kernel gave to somebody else since is never
taken for ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chaperone_tools.progress import wait_until
from chaperone_tools.run import tail

KILL_LIMIT_S = 30.0  # a killed process leaves as soon as its system call ends; longer means a stuck disk


@dataclass(frozen=True)
class Daemon:
    """One long-running part, known by its pid file."""

    name: str
    pids: Path
    logs: Path

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.logs / f"{self.name}.log"

    def start(self, binary: Path, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start it in a session of its own, so that a terminal's end or Ctrl-C does not reach it."""
        with self.log.open("ab") as log:
            child = subprocess.Popen(
                [str(binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
                env={**os.environ, **env} if env else None,
            )
        self._pid_file.write_text(f"{child.pid} {start_time(child.pid)}\n")

    def pid(self) -> int | None:
        """Its pid while it runs, else None."""
        try:
            pid, started = (int(word) for word in self._pid_file.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        return pid if started and start_time(pid) == started else None

    def stop(self) -> None:
        """End it, if it runs, and forget it."""
        pid = self.pid()
        if pid is not None:
            end(pid)
        self._pid_file.unlink(missing_ok=True)

    def last_words(self, lines: int = 25) -> str:
        """The end of its log, named."""
        text = self.log.read_text(errors="replace") if self.log.exists() else "(no log)"
        return f"--- {self.log}\n{tail(text, lines)}"

    @property
    def _pid_file(self) -> Path:
        return self.pids / f"{self.name}.pid"


def end(pid: int) -> None:
    """Kill the process and see it leave. Without a farewell: nothing a throw-away cluster's parts hold is worth one.

    Raises:
        ToolsError: it is still there after `KILL_LIMIT_S`.
    """
    started = start_time(pid)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return

    def is_gone() -> bool:
        return not started or start_time(pid) != started

    wait_until(
        f"the end of process {pid}", KILL_LIMIT_S, is_gone, lambda: f"/proc/{pid}/stack may say what it waits for"
    )


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when there is none or only a zombie is left."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])
