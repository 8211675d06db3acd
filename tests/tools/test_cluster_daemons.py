"""Daemons known by pid files: found again, ended, and never mistaken for somebody else's process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaperone_tools.cluster import lock, machine
from chaperone_tools.cluster.process import Daemon, start_time
from chaperone_tools.errors import ToolsError
from chaperone_tools.progress import wait_until

STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = Daemon("part", tmp_path, tmp_path)
    yield made
    made.stop()


def test_a_daemon_is_found_by_its_pid_file_alone(daemon: Daemon):
    daemon.start(Path("/bin/sleep"), ["600"])
    again = Daemon("part", daemon.pids, daemon.logs)
    assert again.pid() == daemon.pid() is not None
    again.stop()
    assert daemon.pid() is None


def test_a_daemon_that_does_not_listen_is_made_to_end(daemon: Daemon):
    daemon.start(Path(sys.executable), ["-c", STUBBORN])
    wait_until("its first words", 20, lambda: "deaf" in daemon.log.read_text(), daemon.last_words)
    pid = daemon.pid()
    assert pid
    daemon.stop()
    assert start_time(pid) == 0


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(daemon: Daemon):
    with subprocess.Popen(["/bin/sleep", "600"]) as stranger:
        (daemon.pids / "part.pid").write_text(f"{stranger.pid} {start_time(stranger.pid) - 1}\n")
        assert daemon.pid() is None
        daemon.stop()
        assert stranger.poll() is None
        stranger.kill()


def test_a_half_written_pid_file_is_no_process(daemon: Daemon):
    (daemon.pids / "part.pid").write_text(str(os.getpid()))
    assert daemon.pid() is None


def test_a_wait_that_fails_ends_and_shows_the_log():
    with pytest.raises(ToolsError, match=r"the moon did not happen within 0 s\nno moon tonight"):
        wait_until("the moon", 0, lambda: False, lambda: "no moon tonight")


def test_two_commands_at_once_are_refused(tmp_path: Path):
    with (
        lock.exclusive(tmp_path),
        pytest.raises(ToolsError, match="another chaperone-cluster"),
        lock.exclusive(tmp_path),
    ):
        pass
    with lock.exclusive(tmp_path):
        pass


def test_another_cluster_is_seen(tmp_path: Path):
    for name in ("dev", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "lock").touch()
    assert lock.others(tmp_path, "dev") == ["other"]


def test_a_folder_without_mounts_has_none(tmp_path: Path):
    assert machine.mounts_under(tmp_path) == []
    assert Path("/proc") in machine.mounts_under(Path("/proc"))
