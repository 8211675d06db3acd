"""Commands, files and terminals over SSH, straight to a host and through the gateway: clients see the same."""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from fix_ssh import Host, SshGateway

pytestmark = pytest.mark.peer

EFFECTS: Final = ["read", "read_sensitive", "bulk_read", "create", "modify", "delete", "bulk_write", "execute_code"]
BYTES: Final = bytes(range(256)) * 4096  # 1 MiB
KILLED: Final = "python3 -c 'import os, signal; os.kill(os.getpid(), signal.{name})'"
COMMANDS: Final[tuple[tuple[str, bytes], ...]] = (
    ("echo out; echo err >&2; exit 7", b""), ("cat", b"typed\0\xff\r\n"), ("cat", BYTES), ("wc -c", BYTES),
    ("head -c 3", BYTES), ("true", b""), ("false", b""), ("head -c 700000 /dev/zero", b""), ("cat /no/such/file", b""),
    (KILLED.format(name="SIGTERM"), b""), (KILLED.format(name="SIGKILL"), b""), ("grep -c x", b"x\ny\nx\n"),
    ("printf 'ü🙂\\n\\033[1m'", b""), ("sort | uniq -c", b"b\na\nb\n"), ("grep absent /etc/hostname", b""),
    ("echo 1; echo 2 >&2; echo 3", b""), ("test -t 0 && echo terminal || echo pipe", b""), ("ls -1 / | tail -n 2", b""),
    ("python3 -c 'import sys; sys.stdout.write(\"x\" * 10**6); sys.stderr.write(\"y\" * 10**5); sys.exit(3)'", b""),
)  # fmt: skip
BATCHES: Final = (
    "mkdir {there}/a\nput {here}/bytes {there}/a/one\nput {here}/bytes {there}/a/two\nls -1 {there}/a\n",
    "rename {there}/a/two {there}/a/three\nchmod 600 {there}/a/three\nget {there}/a/three {here}/back\n",
    "-get {there}/a/none {here}/none\n-rm {there}/a/none\n-rmdir {there}/a\n-mkdir {there}/a\nls -1 {there}\n",
    "cd {there}/a\npwd\nls -1 *ee\nrm {there}/a/one\n",
    "reget {there}/a/three {here}/back\nput -a {here}/bytes {there}/a/three\nrm {there}/a/three\nrmdir {there}/a\n",
)  # fmt: skip


@dataclass
class Straight(SshGateway):
    """No gateway: the host itself, as one who has its key."""

    key: Path = Path()

    def options(self, user: str = getpass.getuser()) -> list[str]:
        """As of a gateway, but with the key."""
        given = super().options(user)
        return [word if word != "IdentityFile=none" else f"IdentityFile={self.key}" for word in given]


@pytest.fixture(scope="module")
def sides(
    ssh_gateways: Callable[..., SshGateway], ssh_host: Host, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SshGateway, SshGateway]:
    """The gateway, whose policy allows everything, and the host."""
    gateway = ssh_gateways([{"name": "all", "action": "Allow", "match": {"effects": EFFECTS}}])
    known = tmp_path_factory.mktemp("straight") / "known_hosts"
    known.write_text(f"[127.0.0.1]:{ssh_host.port} {ssh_host.host_key}\n")
    key = ssh_host.folder / "client_key"
    return gateway, Straight(ssh_host.port, known, ssh_host.process, known, key=key)


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_a_command_says_and_ends_as_without_the_gateway(sides: tuple[SshGateway, SshGateway], number: int) -> None:
    command, stdin = COMMANDS[number]
    told = [(done.returncode, done.stdout, done.stderr) for done in (one.ssh(command, stdin=stdin) for one in sides)]
    assert told[0] == told[1]


def test_a_terminal_shows_the_same(sides: tuple[SshGateway, SshGateway]) -> None:
    done = [one.ssh("echo 'ü' >&2; head -c 2000 /dev/zero; test -t 0 && exit 5", options=("-tt",)) for one in sides]
    assert done[0].returncode == done[1].returncode == 5
    assert done[0].stdout == done[1].stdout


def test_files_are_moved_as_without_the_gateway(sides: tuple[SshGateway, SshGateway], tmp_path: Path) -> None:
    told: list[list[tuple[int, str, str, bytes]]] = []
    for name, one in zip(("gateway", "host"), sides, strict=True):
        here, there = tmp_path / f"{name}-here", tmp_path / f"{name}-there"
        here.mkdir()
        there.mkdir()
        (here / "bytes").write_bytes(BYTES)
        said = []
        for batch in BATCHES:
            done = one.sftp(batch.format(here=here, there=there))
            back = (here / "back").read_bytes() if (here / "back").exists() else b""
            out, err = (text.decode().replace(name, "SIDE") for text in (done.stdout, done.stderr))
            said.append((done.returncode, out, err, back))
        for mode in ("-O", "-s"):
            for words in ((str(here / "bytes"), f"@{there}/copy"), (f"@{there}/copy", str(here / "back")),
                          ("-r", str(here), f"@{there}/tree"), (f"@{there}/none", str(here))):  # fmt: skip
                done = one.scp(mode, *words)
                err = (
                    done.stderr.decode().replace(name, "SIDE") if mode == "-s" else ""
                )  # the old protocol's has no form
                said.append((done.returncode, "", err, (here / "back").read_bytes()))
            assert (there / "tree" / "bytes").read_bytes() == BYTES
        told.append(said)
    assert told[0] == told[1]
