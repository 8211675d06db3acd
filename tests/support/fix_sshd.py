"""A real sshd on a free loopback port that trusts one CA's user certificates and nothing else."""

from __future__ import annotations

import contextlib
import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ports import free_port

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Sshd:
    """Where the server is."""

    port: int
    folder: Path
    user: str

    @property
    def log(self) -> str:
        """What it said."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def run(self, key: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the `ssh` program does, with a key and the certificate beside it."""
        return subprocess.run(
            ["ssh", "-F", "none", "-p", str(self.port), "-i", str(key), "-o", "IdentitiesOnly=yes",
             "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
             "-o", f"UserKnownHostsFile={self.folder / 'known_hosts'}",
             *options, f"{self.user}@127.0.0.1", command],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip


def key_pair(path: Path, *kind: str) -> Path:
    """A key pair as ssh-keygen makes it, Ed25519 unless another kind is named."""
    kind = kind or ("-t", "ed25519")
    subprocess.run(["ssh-keygen", "-q", *kind, "-N", "", "-f", str(path)], check=True, timeout=30)
    return path


@contextlib.contextmanager
def running(folder: Path, authority: Path) -> Iterator[Sshd]:
    """A server that trusts the CA whose public key is in a file."""
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    host_key, port = key_pair(folder / "host_key"), free_port()
    privileges = Path("/run/sshd")  # where sshd of a root user drops its privileges
    if getpass.getuser() == "root":
        privileges.mkdir(mode=0o755, exist_ok=True)
    settings = {
        "ListenAddress": "127.0.0.1", "Port": port, "HostKey": host_key, "PidFile": "none", "UsePAM": "no",
        "TrustedUserCAKeys": authority, "AuthorizedKeysFile": "none", "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password", "StrictModes": "no", "LogLevel": "VERBOSE",
    }  # fmt: skip
    config = folder / "sshd_config"
    config.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stdout=log, stderr=log)
    try:
        wait_for(port, process, folder / "sshd.log")
        yield Sshd(port, folder, getpass.getuser())
    finally:
        process.terminate()
        process.wait(20)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    ends = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    raise RuntimeError(f"sshd does not start:\n{log.read_text()}")
