"""What a client asks for beside commands, shells and files: recorded, and refused as its own program expects it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import asyncssh
import paramiko
import pytest
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_CHANNEL_REQUEST
from fix_ssh import SshGateway, listener

from chaperone_evidence import record
from chaperone_sidecar.protocols.ssh import doors
from chaperone_sidecar.protocols.ssh.server import Server

pytestmark = pytest.mark.peer

ALL: dict[str, object] = {  # even who may do everything gets no door
    "name": "all", "action": "Allow",
    "match": {"effects": ["read", "bulk_read", "execute_code", "tunnel", "session", "external_io", "unknown"]},
}  # fmt: skip


@pytest.fixture(scope="module")
def gateway(ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    return ssh_gateways([ALL])


def refused(gateway: SshGateway, since: int = 0) -> list[tuple[str, str, str]]:
    """Kind, effect and object of what was refused, from the n-th record on."""
    return [
        (one.kind, one.accesses[0].effect, one.accesses[0].object)
        for one in gateway.records()[since:]
        if isinstance(one, record.CommandIntent) and one.decision == "Deny"
    ]


def connected(gateway: SshGateway) -> asyncssh.misc._ACMWrapper[asyncssh.SSHClientConnection]:
    return asyncssh.connect(
        "127.0.0.1", gateway.port, username="agent", known_hosts=str(gateway.known_hosts), client_keys=None,
        config=None, agent_path=None,
    )  # fmt: skip


@pytest.fixture
def agent_socket(tmp_path: Path) -> str:
    """A key agent, so that OpenSSH asks for it to be forwarded."""
    path = str(tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        while not Path(path).exists():
            assert process.poll() is None
            os.sched_yield()
        yield path
    finally:
        process.terminate()
        process.wait(20)


def test_openssh_forwards_neither_keys_nor_windows(gateway: SshGateway, agent_socket: str, tmp_path: Path) -> None:
    since = len(gateway.records())
    xauth = tmp_path / "xauth"
    xauth.write_text("#!/bin/sh\n")
    xauth.chmod(0o755)
    found = subprocess.run(
        ["ssh", "-o", f"IdentityAgent={agent_socket}", *gateway.options(), "-A", "-X", "-o", f"XAuthLocation={xauth}",
         "-p", str(gateway.port), "127.0.0.1", "echo ran"],
        env=os.environ | {"DISPLAY": "127.0.0.1:77"}, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert found.stdout == b"ran\n", found
    assert b"X11 forwarding request failed" in found.stderr
    assert sorted(refused(gateway, since)) == [
        ("forward", "tunnel", "forward:auth-agent"), ("forward", "tunnel", "forward:x11"),
    ]  # fmt: skip


def test_openssh_opens_no_tunnel_of_any_kind(gateway: SshGateway, tmp_path: Path) -> None:
    since = len(gateway.records())
    inside, port = listener()
    with inside:
        assert b"prohibited" in gateway.ssh(options=("-W", f"127.0.0.1:{port}")).stderr
        remote = ("-N", "-o", "ExitOnForwardFailure=yes")
        assert gateway.ssh(options=(*remote, "-R", f"0:127.0.0.1:{port}")).returncode == 255
        assert gateway.ssh(options=(*remote, "-R", f"{tmp_path}/socket:127.0.0.1:{port}")).returncode == 255
        hop = " ".join(["ssh", *gateway.options(), "-p", str(gateway.port), "-W", "%h:%p", "127.0.0.1"])
        found = gateway.ssh("true", options=("-o", f"ProxyCommand={hop}"))  # as -J does it
        assert found.returncode == 255 and b"prohibited" in found.stderr, found
        inside.settimeout(0.2)
        with pytest.raises(TimeoutError):
            inside.accept()
    assert [what for _, _, what in refused(gateway, since)] == [
        f"forward:direct-tcpip.127.0.0.1:{port}", "forward:tcpip-forward.localhost:0",
        f"forward:streamlocal-forward.{tmp_path}/socket", f"forward:direct-tcpip.127.0.0.1:{gateway.port}",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["-L", "-D"])
def test_a_local_port_of_openssh_leads_nowhere(gateway: SshGateway, tmp_path: Path, mode: str) -> None:
    since = len(gateway.records())
    path = tmp_path / "control"
    control = ("-o", f"ControlPath={path}")
    with subprocess.Popen(
        ["ssh", *gateway.options(), "-p", str(gateway.port), "-M", "-N", *control, "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            while not path.exists():
                assert process.poll() is None
            free, port = listener()
            free.close()
            to = f"127.0.0.1:{port}" + (":198.51.100.7:22" if mode == "-L" else "")
            asked = subprocess.run(
                ["ssh", *control, "-O", "forward", mode, to, "127.0.0.1"], capture_output=True, timeout=20, check=False
            )
            assert asked.returncode == 0, asked
            found = subprocess.run([sys.executable, "-c", THROUGH[mode], str(port)], capture_output=True, timeout=20,
                                   check=True)  # fmt: skip
            assert b"SSH-2.0" not in found.stdout
        finally:
            process.terminate()
    assert refused(gateway, since) == [("forward", "tunnel", "forward:direct-tcpip.198.51.100.7:22")]


THROUGH = {
    "-L": "import socket,sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(99))",
    "-D": "import socket,sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
          "s.sendall(bytes([5,1,0])); s.recv(2); s.sendall(bytes([5,1,0,1,198,51,100,7,0,22]))\n"
          "print(s.recv(10), s.recv(99))",
}  # fmt: skip


async def test_raw_clients_get_native_answers(gateway: SshGateway) -> None:
    since = len(gateway.records())
    async with connected(gateway) as connection:
        for work in (
            connection.open_connection("198.51.100.7", 22), connection.open_unix_connection("/run/docker.sock"),
            connection.open_tun(), connection.open_tap(7),
        ):  # fmt: skip
            with pytest.raises(asyncssh.ChannelOpenError):
                await work
        for work in (
            connection.forward_remote_port("", 0, "127.0.0.1", 1), connection.forward_remote_path("/tmp/x", "/tmp/y"),
        ):  # fmt: skip
            with pytest.raises((asyncssh.ChannelListenError, OSError)):
                await work
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.create_process("true", x11_forwarding=True, x11_display="127.0.0.1:7")
        assert (await connection.run("echo alive", env={"LD_PRELOAD": "x", "LC_ALL": "C"})).stdout == "alive\n"
    assert [what for _, _, what in refused(gateway, since)] == [
        "forward:direct-tcpip.198.51.100.7:22", "forward:direct-streamlocal./run/docker.sock", "forward:tun",
        "forward:tap.7", "forward:tcpip-forward.:0", "forward:streamlocal-forward./tmp/x", "forward:x11",
        "env:LD_PRELOAD",
    ]  # fmt: skip


def test_requests_and_channels_of_other_names_are_recorded_and_refused(gateway: SshGateway) -> None:
    since = len(gateway.records())
    with paramiko.Transport(("127.0.0.1", gateway.port)) as transport:
        transport.start_client(timeout=20)
        transport.auth_none("agent")
        with pytest.raises(paramiko.ChannelException) as told:
            transport.open_channel("forwarded-tcpip", ("127.0.0.1", 1), ("127.0.0.1", 2))
        assert told.value.code == 3  # SSH_OPEN_UNKNOWN_CHANNEL_TYPE
        assert not answered(transport.open_session(), "exit-status", paramiko.Message().add_int(0))
        assert not answered(
            transport.open_session(), "env", paramiko.Message().add_string("BASH_ENV").add_string("/tmp/x")
        )
        assert not answered(transport.open_session(), "env", paramiko.Message().add_string("LANG").add_string("C"))
        assert not answered(transport.open_session(), "subsystem", paramiko.Message().add_string("netconf"))
        assert not answered(transport.open_session(), "exec", paramiko.Message().add_string(b"rm \xff"))
        channel = transport.open_session()
        assert answered(channel, "exec", paramiko.Message().add_string("cat"))
        assert not answered(channel, "exec", paramiko.Message().add_string("rm -rf /"))
    assert refused(gateway, since) == [
        ("channel", "unknown", "channel:forwarded-tcpip"), ("request", "unknown", "request:exit-status"),
        ("env", "session", "env:BASH_ENV"), ("subsystem", "execute_code", "subsystem:netconf"),
        ("exec", "unknown", ""), ("request", "unknown", "request:exec"),
    ]  # fmt: skip


def answered(channel: paramiko.Channel, name: str, rest: paramiko.Message) -> bool:
    """Send a request of a channel that wants an answer; whether that is a success. After a failure paramiko closes."""
    asked = paramiko.Message()
    asked.add_byte(bytes([MSG_CHANNEL_REQUEST])).add_int(channel.remote_chanid).add_string(name).add_boolean(True)
    asked.add_bytes(rest.asbytes())
    channel.event.clear()
    channel.event_ready = False
    channel.transport._send_user_message(asked)
    try:
        channel._wait_for_event()
    except paramiko.SSHException:
        return False
    return True


async def test_answers_come_in_the_order_of_the_requests(gateway: SshGateway) -> None:
    async with connected(gateway) as connection:
        # The library sends variables without waiting for an answer; the command waits for its own behind all of them.
        found = await connection.run("echo last", env={f"V{number}": "x" for number in range(100)})
        assert found.stdout == "last\n"


def test_the_library_has_the_inside_that_doors_changes() -> None:
    channel, connection = asyncssh.SSHServerChannel, asyncssh.SSHServerConnection
    assert channel._packet_handlers[MSG_CHANNEL_REQUEST] is channel._process_request
    assert connection._packet_handlers[MSG_CHANNEL_OPEN] is connection._process_channel_open
    theirs = {name for name in dir(connection) if name.startswith("_process_") and name.endswith("_open")}
    known = {f"_process_{asyncssh.misc.map_handler_name(name)}_open" for name in doors.OPENED}
    # Those that a client serves are refused by it, and never asked for here.
    assert theirs - known <= {"_process_channel_open"}
    asked = {name for name in vars(asyncssh.SSHServer) if name.endswith("_requested")}
    assert asked <= set(vars(Server))
