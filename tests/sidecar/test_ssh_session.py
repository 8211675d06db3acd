"""SSH through `chaperone dev` with real clients and a real sshd: what is let through, refused, recorded."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pty
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import asyncssh
import paramiko
import pytest
from fix_ssh import Host, SshGateway, listener
from recordings import read_parts

from chaperone_evidence import frames, record

pytestmark = pytest.mark.peer

CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which agents may write."""
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def gateway(ssh_gateways: Callable[..., SshGateway], place: Path) -> SshGateway:
    """Reads everywhere but in secrets, writes in `place`."""
    files = ["command:*", f"path:{place}/*", f"path:{place}"]
    return ssh_gateways(
        [
            {"name": "read", "action": "Allow", "match": {"effects": ["read", "bulk_read"]}},
            {"name": "work", "action": "Allow",
             "match": {"effects": ["create", "modify", "delete", "bulk_write"], "objects": files}},
            {"name": "shells", "action": "Allow",
             "match": {"effects": ["execute_code"], "objects": ["shell", "command:python"]}},
            {"name": "never", "action": "Deny", "match": {"effects": ["destroy"]}, "message": "Ask the host's owner."},
        ],
        evidence={"results": "Full", "maxResultBytes": "1Mi"},
    )  # fmt: skip


def intents(gateway: SshGateway) -> list[record.CommandIntent]:
    return [one for one in gateway.records() if isinstance(one, record.CommandIntent)]


def outcome(gateway: SshGateway, intent: record.CommandIntent) -> record.CommandOutcome:
    found = [
        one for one in gateway.records() if isinstance(one, record.CommandOutcome) and one.command == intent.command
    ]
    assert len(found) == 1
    return found[0]


def eventually[T](look: Callable[[], T]) -> T:
    """What `look` finds, within thirty seconds."""
    ends = time.monotonic() + 30
    while not (found := look()) and time.monotonic() < ends:
        time.sleep(0.05)
    return found


def test_a_command_runs_and_its_bytes_and_status_come_back(gateway: SshGateway, place: Path) -> None:
    found = gateway.ssh("cat - | tr a-z A-Z", stdin=b"hello\n" * 5000)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"HELLO\n" * 5000, b"")
    assert gateway.ssh(f"ls {place}/nothing").returncode == 2
    assert gateway.ssh("sh -c 'exit 42'").returncode == 42


def test_a_refusal_names_the_rule_and_nothing_runs(gateway: SshGateway, place: Path) -> None:
    kept = place / "kept"
    kept.write_text("x")
    found = gateway.ssh(f"echo first > {place}/first; rm -rf {kept}")
    assert found.returncode == 126
    assert b'refused by rule "never" of policy "agents/hosts": Ask the host\'s owner.' in found.stderr
    assert kept.exists() and not (place / "first").exists()
    assert intents(gateway)[-1].decision == "Deny"


@pytest.mark.parametrize("text", ["cat $HOME/x", "frobnicate", "cat /srv/*", "perl -e 1", "cat /etc/shadow"])
def test_what_is_not_granted_is_refused(gateway: SshGateway, text: str) -> None:
    found = gateway.ssh(text)
    assert found.returncode == 126
    assert found.stderr.startswith(b"chaperone: refused:"), found.stderr


def test_a_path_from_the_home_is_judged_as_the_whole_path(gateway: SshGateway) -> None:
    assert gateway.ssh("ls ~").returncode == 0
    assert intents(gateway)[-1].accesses[-1].object == f"path:{Path.home()}"


def test_the_reason_of_a_command_not_understood_is_told(gateway: SshGateway) -> None:
    assert b"$ expands to what only the shell knows" in gateway.ssh("cat $HOME/x").stderr


def test_the_intent_is_recorded_before_the_command_and_the_outcome_before_its_end(gateway: SshGateway) -> None:
    assert gateway.ssh("echo recorded").returncode == 0
    last = intents(gateway)[-1]
    assert (last.kind, last.rule, last.decision) == ("exec", "read", "Allow")
    ended = outcome(gateway, last)
    assert (ended.status, ended.bytes) == ("ok", len("recorded\n"))
    opened = [one for one in gateway.records() if isinstance(one, record.SessionOpen)][-1]
    assert (opened.protocol, opened.user, opened.target) == ("SSH", "agent", "build-host")


def test_sftp_is_judged_file_by_file_and_content_is_known_by_its_hash(gateway: SshGateway, place: Path) -> None:
    content = os.urandom(700_000)
    (place / "source").write_bytes(content)
    found = gateway.sftp(f"put {place}/source {place}/sent\nget {place}/sent {place}/got\nls {place}\n")
    assert found.returncode == 0, found
    assert (place / "sent").read_bytes() == (place / "got").read_bytes() == content
    opened = [one for one in intents(gateway) if one.kind == "sftp.open"][-2:]
    assert [one.accesses[0].effect for one in opened] == ["create", "read"]
    for one in opened:
        assert one.accesses[0].object == f"path:{place}/sent"
        ended = outcome(gateway, one)
        assert (ended.code, ended.bytes) == (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def test_sftp_refuses_a_file_with_its_own_status_and_says_why(gateway: SshGateway, place: Path) -> None:
    found = gateway.sftp(f"get /etc/shadow {place}/shadow\n")
    assert found.returncode != 0 and not (place / "shadow").exists()
    assert b"chaperone: refused:" in found.stderr
    outside = place.parent / "outside"
    assert gateway.sftp(f"put {place}/nothing-here {outside}\nput /etc/hostname {outside}\n").returncode != 0
    assert not outside.exists()


def test_a_link_is_judged_by_where_it_leads(gateway: SshGateway, place: Path) -> None:
    (place / "harmless").symlink_to("/etc/shadow")
    assert gateway.sftp(f"get {place}/harmless {place}/gotten\n").returncode != 0
    assert not (place / "gotten").exists()
    assert gateway.sftp(f"symlink /etc/passwd {place}/mine\n").returncode != 0
    assert not (place / "mine").is_symlink()


@pytest.mark.parametrize("mode", [("-O",), ("-s",)], ids=["old", "sftp"])
def test_scp_both_ways_and_refused(gateway: SshGateway, place: Path, mode: tuple[str, ...]) -> None:
    content = os.urandom(100_000)
    name = f"scp{mode[0]}"
    (place / name).write_bytes(content)
    found = gateway.scp(*mode, f"{place}/{name}", f"@{place}/{name}.up")
    assert found.returncode == 0, found
    found = gateway.scp(*mode, f"@{place}/{name}.up", f"{place}/{name}.down")
    assert found.returncode == 0, found
    assert (place / f"{name}.down").read_bytes() == content
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    assert outcome(gateway, [one for one in intents(gateway) if one.kind == "sftp.open"][-1]).code == digest
    assert gateway.scp(*mode, "/etc/hostname", "@/etc/not-mine").returncode != 0
    assert not Path("/etc/not-mine").exists()


def test_scp_with_something_after_it_is_no_copy(gateway: SshGateway) -> None:
    assert gateway.ssh("scp -t /tmp; id").returncode == 126
    assert gateway.ssh("scp /etc/hostname other:/tmp").returncode == 126


def terminal(gateway: SshGateway, typed: list[tuple[bytes, bytes]]) -> bytes:
    """What an interactive `ssh` shows; each text is typed once the one before it has been seen."""
    screen, end = pty.openpty()
    process = subprocess.Popen(
        ["ssh", *gateway.options(), "-tt", "-p", str(gateway.port), "127.0.0.1"], stdin=end, stdout=end, stderr=end
    )
    os.close(end)
    shown = b""
    steps = list(typed)
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        if steps and steps[0][0] in shown:
            os.write(screen, steps.pop(0)[1])
        if select.select([screen], [], [], 0.1)[0]:
            try:
                piece = os.read(screen, 4096)
            except OSError:
                break
            if not piece:
                break
            shown += piece
    os.close(screen)
    process.wait(20)
    return shown


def test_a_shell_is_a_grant_of_its_own_and_is_recorded_both_ways(gateway: SshGateway) -> None:
    shown = terminal(gateway, [(b"", b"PS1='%'; stty size; echo $((6*7))ok\n"), (b"42ok", b"exit 3\n")])
    assert b"42ok" in shown
    shells = [one for one in intents(gateway) if one.kind == "shell"]
    assert [(one.effect, one.object) for one in shells[-1].accesses] == [("execute_code", "shell")]
    assert outcome(gateway, shells[-1]).code == "exit 3"
    kinds = {type(frame) for frame in recorded(gateway, shells[-1])}
    assert {frames.Resize, frames.Input, frames.Output} <= kinds
    typed = b"".join(_raw(frame.data) for frame in recorded(gateway, shells[-1]) if isinstance(frame, frames.Input))
    assert b"exit 3" in typed


def recorded(gateway: SshGateway, intent: record.CommandIntent) -> list[frames.Known]:
    """The frames of one command."""
    return [frame for one, found in read_parts(gateway.evidence) if one.command == intent.command for frame in found]


def _raw(data: str | frames.Bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data.raw


def test_no_door_is_opened_through_the_connection(gateway: SshGateway) -> None:
    inside, port = listener()
    with inside:
        found = gateway.ssh(options=("-W", f"127.0.0.1:{port}"), stdin=b"x")
        assert found.returncode != 0 and b"administratively prohibited" in found.stderr, found
        found = gateway.ssh("echo", "ran", options=("-R", "0:127.0.0.1:1", "-o", "ExitOnForwardFailure=yes"))
        assert found.returncode != 0 and b"remote port forwarding failed" in found.stderr
        inside.settimeout(0.3)
        with pytest.raises(TimeoutError):
            inside.accept()
    doors = [one.accesses[0] for one in intents(gateway) if one.kind == "forward"]
    assert [(one.effect, one.object) for one in doors] == [
        ("tunnel", f"forward:direct-tcpip.127.0.0.1:{port}"),
        ("tunnel", "forward:tcpip-forward.localhost:0"),
    ]


def test_subsystems_that_are_not_known_are_refused(gateway: SshGateway) -> None:
    with paramiko.Transport(("127.0.0.1", gateway.port)) as transport:
        transport.start_client(timeout=20)
        transport.auth_none("agent")
        with pytest.raises(paramiko.SSHException):
            transport.open_session().invoke_subsystem("netconf")
        channel = transport.open_session()
        channel.exec_command("env")
        assert channel.recv_exit_status() == 126
    assert eventually(lambda: [one for one in intents(gateway) if one.kind == "subsystem"])[-1].decision == "Deny"


def test_nothing_is_opened_before_the_log_in_and_the_key_exchange_is_strict(gateway: SshGateway) -> None:
    with paramiko.Transport(("127.0.0.1", gateway.port)) as transport:
        transport.start_client(timeout=20)
        assert transport.agreed_on_strict_kex
        with pytest.raises(paramiko.SSHException):
            transport.open_session(timeout=10)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + os.urandom(5000))
        with contextlib.suppress(ConnectionResetError):
            while client.recv(65536):
                pass
    assert gateway.ssh("echo alive").stdout == b"alive\n"


def test_variables_of_the_client_do_not_reach_the_target(gateway: SshGateway) -> None:
    found = subprocess.run(
        ["ssh", *gateway.options(), "-o", "SendEnv=SECRET_X", "-p", str(gateway.port), "127.0.0.1", "echo run"],
        env=os.environ | {"SECRET_X": "leaks"}, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert found.stdout == b"run\n"
    assert [one.accesses[0].object for one in intents(gateway) if one.kind == "env"] == ["env:SECRET_X"]


async def test_signals_and_sizes_of_terminals_go_both_ways(gateway: SshGateway, ssh_host: Host) -> None:
    async with asyncssh.connect(
        "127.0.0.1",
        gateway.port,
        username="anyone",
        known_hosts=str(gateway.known_hosts),
        client_keys=None,
        config=None,
    ) as connection:
        process = await connection.create_process("python3 -c 'import os; os.kill(os.getpid(), 15)'")
        await process.wait(check=False)
        assert process.exit_signal is not None and process.exit_signal[0] == "TERM"
        waiting = await connection.create_process("sleep 5")
        waiting.send_signal("USR1")
        await waiting.wait(check=False)
        # A server that logs a root user in signals nothing, but says that it was asked.
        assert waiting.exit_signal is not None or "signal" in ssh_host.log
        shell = await connection.create_process(None, term_type="vt100", term_size=(80, 24))
        shell.change_terminal_size(101, 33)
        shell.stdin.write("stty size; exit\n")
        shown = await shell.stdout.read()
        assert "33 101" in shown


def test_paramiko_with_password_and_sftp(gateway: SshGateway, place: Path) -> None:
    client = paramiko.SSHClient()
    client.load_host_keys(str(gateway.known_hosts))
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    name = f"[127.0.0.1]:{gateway.port}"
    words = gateway.known_hosts.read_text().splitlines()[-1].split()
    client.get_host_keys().add(name, words[1], paramiko.Ed25519Key(data=base64.b64decode(words[2])))
    client.connect("127.0.0.1", gateway.port, "agent", "any password", look_for_keys=False, allow_agent=False)
    with client, client.open_sftp() as sftp:
        with sftp.open(f"{place}/paramiko", "w") as file:
            file.write("one\ntwo\n")
        sftp.rename(f"{place}/paramiko", f"{place}/renamed")
        assert sftp.stat(f"{place}/renamed").st_size == 8
        with pytest.raises(PermissionError):
            sftp.chown(f"{place}/renamed", 0, 0)
        sftp.remove(f"{place}/renamed")


async def test_asyncssh_copies_both_ways_lists_and_has_a_bounded_number_of_handles(
    gateway: SshGateway, place: Path
) -> None:
    content = os.urandom(300_000)
    (place / "local").write_bytes(content)
    async with (
        asyncssh.connect(
            "127.0.0.1", gateway.port, username="anyone", known_hosts=str(gateway.known_hosts), client_keys=None,
            config=None, agent_path=None,
        ) as connection,
        connection.start_sftp_client() as sftp,
    ):  # fmt: skip
        await sftp.put(str(place / "local"), f"{place}/asyncssh")
        await sftp.get(f"{place}/asyncssh", str(place / "back"))  # it asks where the file has holes
        assert (place / "back").read_bytes() == content
        assert "asyncssh" in await sftp.listdir(str(place))
        for _ in range(200):  # each handle of a directory is given back
            assert await sftp.listdir(str(place))
        with (place / "sparse").open("wb") as sparse:
            sparse.truncate(1 << 30)
        async with sftp.open(f"{place}/sparse", "rb") as file:
            data, _ = await sftp._handler.read(file.handle, 0, 2**32 - 1)
        assert data == bytes(4 << 20)  # as much as is kept at once, and a client asks for the rest
        with pytest.raises(asyncssh.SFTPFailure, match="64 directories"):
            for _ in range(65):
                await sftp._handler.opendir(str(place).encode())


def test_git_clones_and_pushes_where_it_may(gateway: SshGateway, place: Path, tmp_path: Path) -> None:
    bare, other, clone = place / "app.git", tmp_path / "other.git", place / "clone"
    options = " ".join(["ssh", *gateway.options(), "-p", str(gateway.port)])

    def git(*words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *words],
            env=os.environ | {"GIT_SSH_COMMAND": options}, capture_output=True, timeout=60, check=False,
        )  # fmt: skip

    for made in (bare, other):
        assert git("init", "-q", "--bare", str(made)).returncode == 0
    assert git("clone", "-q", f"127.0.0.1:{bare}", str(clone)).returncode == 0
    assert git("-C", str(clone), "commit", "-q", "--allow-empty", "--message=by an agent").returncode == 0
    found = git("-C", str(clone), "push", "-q", "origin", "HEAD:main")
    assert found.returncode == 0, found.stderr
    assert git("--git-dir", str(bare), "log", "--format=%s", "main").stdout == b"by an agent\n"
    found = git("-C", str(clone), "push", f"127.0.0.1:{other}", "HEAD:main")
    assert found.returncode != 0 and f"modify on path:{other}".encode() in found.stderr, found
    assert git("--git-dir", str(other), "rev-list", "--all").stdout == b""
    asked = [(one.decision, one.accesses[-1].object) for one in intents(gateway) if one.kind == "exec"][-3:]
    assert asked == [("Allow", f"path:{bare}"), ("Allow", f"path:{bare}"), ("Deny", f"path:{other}")]


def test_rsync_copies_a_tree_and_makes_no_links(gateway: SshGateway, place: Path) -> None:
    options = " ".join(["ssh", *gateway.options(), "-p", str(gateway.port)])
    if shutil.which("rsync") is None:
        pytest.fail("rsync is not installed; tools/setup.sh installs it")
    (place / "tree").mkdir()
    (place / "tree" / "leaf").write_text("leaf")
    found = subprocess.run(
        ["rsync", "-r", "-e", options, f"127.0.0.1:{place}/tree/", f"{place}/tree2/"],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert (place / "tree2" / "leaf").read_text() == "leaf"
    for mode, is_let in (("-rt", True), ("-a", False)):  # the latter would make links
        found = subprocess.run(
            ["rsync", mode, "-e", options, f"{place}/tree/", f"127.0.0.1:{place}/up{mode}/"],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (found.returncode == 0) == is_let, found
        assert (place / f"up{mode}" / "leaf").exists() == is_let


def test_many_channels_on_one_connection(gateway: SshGateway, tmp_path: Path) -> None:
    control = ("-o", f"ControlPath={tmp_path}/c", "-o", "ControlMaster=auto", "-o", "ControlPersist=10")
    first = subprocess.Popen(
        ["ssh", *gateway.options(), "-p", str(gateway.port), *control, "127.0.0.1", "sleep 2"],
        stdout=subprocess.DEVNULL,
    )
    assert eventually((tmp_path / "c").exists)
    assert gateway.ssh("echo second", options=control).stdout == b"second\n"
    assert first.wait(30) == 0
    subprocess.run(["ssh", *control, "-O", "exit", "127.0.0.1"], capture_output=True, timeout=10, check=False)


def test_a_client_that_goes_takes_its_command_with_it(gateway: SshGateway, ssh_host: Host) -> None:
    process = subprocess.Popen(["ssh", *gateway.options(), "-p", str(gateway.port), "127.0.0.1", "sleep 77"])
    assert eventually(lambda: b"sleep\x0077" in _command_lines())
    process.kill()
    process.wait()
    last = intents(gateway)[-1]
    assert eventually(lambda: [one for one in gateway.records() if isinstance(one, record.SessionClose)][-1:])
    assert eventually(
        lambda: [o for o in gateway.records() if isinstance(o, record.CommandOutcome) and o.command == last.command]
    )
    assert outcome(gateway, last).status == "aborted"


def _command_lines() -> bytes:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return b"\n".join(found)
