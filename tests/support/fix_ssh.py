"""`ssh_target`: the real `chaperone dev` in front of a real sshd, and what clients need to reach it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from evidence_directory import read_records
from fix_opa import opa_binary
from fix_sshd import key_pair, wait_for
from manifests import identity, target
from ports import free_port

from chaperone_evidence import record

START_TIMEOUT_S = 90  # 2 s alone; the machine may be shared
SFTP_SERVER = next(
    (path for path in ("/usr/lib/openssh/sftp-server", "/usr/libexec/sftp-server") if Path(path).exists()),
    "internal-sftp",
)


@dataclass
class Host:
    """A running sshd, with a directory that agents may work in."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def host_key(self) -> str:
        """Its public key."""
        return (self.folder / "host_key.pub").read_text().strip()

    @property
    def log(self) -> str:
        """What it said."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def stop(self) -> None:
        """End it with everything it runs."""
        for pid in (self.process.pid, *_descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(20)


def _descendants(pid: int) -> list[int]:
    """Processes below one; each session of sshd leads a session of its own."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def start_host(folder: Path) -> Host:
    """A server that lets one key in as the present user."""
    folder.mkdir(exist_ok=True)
    host_key, client_key, port = key_pair(folder / "host_key"), key_pair(folder / "client_key"), free_port()
    shutil.copy(f"{client_key}.pub", folder / "authorized_keys")
    if getpass.getuser() == "root":
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    settings = {
        "ListenAddress": "127.0.0.1", "Port": port, "HostKey": host_key, "PidFile": "none", "UsePAM": "no",
        "AuthorizedKeysFile": folder / "authorized_keys", "PasswordAuthentication": "no", "StrictModes": "no",
        "PermitRootLogin": "prohibit-password", "LogLevel": "VERBOSE", "Subsystem": f"sftp {SFTP_SERVER}",
        "MaxStartups": 100, "AcceptEnv": "LANG LC_* SECRET_*",
    }  # fmt: skip
    (folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    program = shutil.which("sshd") or "/usr/sbin/sshd"
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "sshd_config")], stdout=log, stderr=log)
    wait_for(port, process, folder / "sshd.log")
    return Host(port, folder, process)


@dataclass
class SshGateway:
    """A running `chaperone dev` with one SSH target."""

    port: int
    evidence: Path
    process: subprocess.Popen[str]
    known_hosts: Path
    output: list[str] = field(default_factory=list)

    def options(self, user: str = "agent") -> list[str]:
        """Options that name the gateway to a program of OpenSSH; no key, no password, the host key known."""
        return [
            "-F", "none", "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes",
            "-o", "BatchMode=yes", "-o", "IdentityFile=none", "-o", "IdentityAgent=none", "-o", f"User={user}",
        ]  # fmt: skip

    def ssh(
        self, *command: str, options: tuple[str, ...] = (), stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command as `ssh` does."""
        return subprocess.run(
            ["ssh", *self.options(), "-p", str(self.port), *options, "127.0.0.1", *command],
            input=stdin, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def sftp(self, batch: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Run a batch of `sftp`."""
        return subprocess.run(
            ["sftp", *self.options(), *options, "-P", str(self.port), "-b", "-", "127.0.0.1"],
            input=batch.encode(), capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def scp(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Copy; `@` stands for the gateway in a word."""
        return subprocess.run(
            ["scp", *self.options(), "-P", str(self.port), *(word.replace("@", "127.0.0.1:", 1) for word in words)],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    def records(self) -> list[record.Known]:
        """All records that are in the spool."""
        return read_records(self.evidence)

    def stop(self) -> int:
        """End it as an operator would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_TIMEOUT_S)

    def verify(self) -> subprocess.CompletedProcess[str]:
        """`chaperone verify` on the evidence."""
        return subprocess.run(
            [sys.executable, "-m", "chaperone_cli.main", "verify", str(self.evidence)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip


def write_manifests(
    folder: Path, host: Host, rules: list[dict[str, object]], *, host_keys: list[str] | None = None,
    port: int | None = None, key: Path | None = None, evidence: dict[str, object] | None = None, **spec: object,
) -> None:  # fmt: skip
    """The manifests of one agent with one host."""
    policy = {
        "apiVersion": "chaperone.dev/v1alpha1", "kind": "AccessPolicy",
        "metadata": {"name": "hosts", "namespace": "agents"},
        "spec": {"subjects": [{"identity": "billing-agent"}], "targets": [{"name": "build-host"}], "rules": rules}
        | spec,
    }  # fmt: skip
    reached = target(
        name="build-host", protocol="SSH", hosts=["build.data.svc"],
        upstream={"host": "localhost", "port": port or host.port},
        credential={"secretRef": {"name": "build-host-key"}},
        ssh={"hostKeys": [host.host_key] if host_keys is None else host_keys},
    )  # fmt: skip
    reached["spec"].pop("tls", None)
    (folder / "agents.yaml").write_text(yaml.safe_dump_all([identity(evidence=evidence or {}), reached, policy]))
    private = (key or host.folder / "client_key").read_text()
    secret = {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "build-host-key"}, "type": "kubernetes.io/ssh-auth",
        "stringData": {"username": getpass.getuser(), "ssh-privatekey": private},
    }  # fmt: skip
    (folder / "secrets.yaml").write_text(yaml.safe_dump_all([secret]))


def start_gateway(folder: Path, evidence: Path) -> SshGateway:
    """Start `chaperone dev` and wait for `ready`."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "chaperone_cli.main", "dev", "--manifests", str(folder), "--identity", "billing-agent",
         "--evidence", str(evidence), "--listen", f"build-host=127.0.0.1:{port}"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"CHAPERONE_OPA": opa_binary()},
    )  # fmt: skip
    gateway = SshGateway(port, evidence, process, evidence / "ssh_known_hosts")
    is_ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            gateway.output.append(line)
            if line == "ready\n":
                is_ready.set()
        is_ready.set()

    threading.Thread(target=read, daemon=True).start()
    is_ready.wait(START_TIMEOUT_S)
    assert process.poll() is None, "".join(gateway.output)
    return gateway


@pytest.fixture(scope="module")
def ssh_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """One sshd for a module."""
    host = start_host(tmp_path_factory.mktemp("sshd"))
    yield host
    host.stop()


@pytest.fixture(scope="module")
def ssh_gateways(ssh_host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., SshGateway]]:
    """Start gateways: the rules, and keywords of `write_manifests`. Their evidence must verify in the end."""
    started: list[SshGateway] = []

    def make(rules: list[dict[str, object]], **changes: object) -> SshGateway:
        folder = tmp_path_factory.mktemp("manifests")
        write_manifests(folder, ssh_host, rules, **changes)  # type: ignore[arg-type]
        gateway = start_gateway(folder, tmp_path_factory.mktemp("evidence") / "spool")
        started.append(gateway)
        return gateway

    yield make
    for gateway in started:
        assert gateway.stop() == 0, "".join(gateway.output)
        verdict = gateway.verify()
        assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout + verdict.stderr


def listener() -> tuple[socket.socket, int]:
    """A socket that listens on a free port, for what must never arrive."""
    made = socket.create_server(("127.0.0.1", 0))
    return made, made.getsockname()[1]
