"""Peers of SSH that mean harm: agents that ask and do not listen, hosts that say too much or never answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

import asyncssh
import paramiko
import pytest
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_CHANNEL_REQUEST, MSG_GLOBAL_REQUEST
from fix_ssh import SshGateway
from process_usage import peak_rss_mib, resident_mib

from chaperone_evidence import record

pytestmark = pytest.mark.peer

CARD = "4111 1111 1111 1111"
READ: dict[str, object] = {"name": "read", "action": "Allow", "match": {"effects": ["read", "bulk_read"]}}
MASKS = [{"detectors": ["PaymentCard"], "method": "Redact"}]
SENT_BYTES = 48 << 20
KEPT_MIB = 96  # that a gateway may need beside what it had: far less than what these peers would have it keep
LIMIT_S = 10.0  # for what has to be refused well before a silent target is given up


@pytest.fixture(scope="module")
def gateway(ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    return ssh_gateways([READ, {"name": "write", "action": "Allow", "match": {"effects": ["modify"]}}])


@pytest.fixture(scope="module")
def listening() -> Iterator[socket.socket]:
    """What takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture(scope="module")
def silent(listening: socket.socket, ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    """A gateway whose target that is."""
    return ssh_gateways([READ], port=listening.getsockname()[1])


def connected(gateway: SshGateway) -> asyncssh.misc._ACMWrapper[asyncssh.SSHClientConnection]:
    return asyncssh.connect(
        "127.0.0.1", gateway.port, username="agent", known_hosts=str(gateway.known_hosts), client_keys=None,
        config=None, agent_path=None,
    )  # fmt: skip


@contextlib.contextmanager
def transport(gateway: SshGateway) -> Iterator[paramiko.Transport]:
    """A connection that is logged in."""
    with paramiko.Transport(("127.0.0.1", gateway.port)) as made:
        made.start_client(timeout=20)
        made.auth_none("agent")
        yield made


def is_cut_by(connection: paramiko.Transport, packets: Iterable[paramiko.Message]) -> bool:
    """Whether the gateway ends a connection that sends all these, and does so in time."""
    with contextlib.suppress(EOFError, OSError):
        for one in packets:
            connection._send_message(one)
    ends = time.monotonic() + LIMIT_S
    while connection.is_active() and time.monotonic() < ends:
        time.sleep(0.02)
    return not connection.is_active()


def asked(kind: int, *parts: str | int | bool) -> paramiko.Message:
    """A packet: texts, numbers and booleans in their order."""
    made = paramiko.Message()
    made.add_byte(bytes([kind]))
    for part in parts:
        if isinstance(part, str):
            made.add_string(part)
        else:
            made.add_boolean(part) if isinstance(part, bool) else made.add_int(part)
    return made


def eventually(is_so: Callable[[], bool]) -> None:
    """Wait for something."""
    ends = time.monotonic() + 20
    while not is_so() and time.monotonic() < ends:
        time.sleep(0.02)


def settled[T](look: Callable[[], T]) -> T:
    """What `look` finds once it has found the same for a second."""
    found, same = look(), 0
    ends = time.monotonic() + 20
    while same < 10:
        assert time.monotonic() < ends, "it goes on and on"
        time.sleep(0.1)
        found, before = look(), found
        same = same + 1 if found == before else 0
    return found


def written_by(text: str) -> int | None:
    """How many bytes the process with this command line has written; None once it has ended."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "cmdline").read_bytes().replace(b"\0", b" ").strip() == text.encode():
                return int((path / "io").read_text().split("wchar: ")[1].split()[0])
    return None


# --- agents ----------------------------------------------------------------------------------------------------------


async def test_output_is_not_kept_for_a_client_that_opens_every_window_and_reads_nothing(gateway: SshGateway) -> None:
    text = f"head -c {SENT_BYTES} /dev/zero"
    async with connected(gateway) as connection:
        process = await connection.create_process(text, encoding=None, window=1 << 30)
        first = await process.stdout.read(1)
        connection._transport.pause_reading()
        assert await asyncio.to_thread(settled, lambda: written_by(text)) is not None, "all of it has been taken"
        connection._transport.resume_reading()
        assert len(first + await process.stdout.read()) == SENT_BYTES
        assert (await process.wait()).exit_status == 0


def test_pieces_of_files_are_not_kept_for_a_client_that_does_not_take_them(gateway: SshGateway, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(4 << 20)
    had = resident_mib(gateway.process.pid)
    with transport(gateway) as connection:
        channel = connection.open_session(window_size=1 << 20)
        channel.invoke_subsystem("sftp")
        path = str(tmp_path / "large").encode()
        channel.sendall(packet(struct.pack(">BI", 1, 3)))  # SSH_FXP_INIT
        channel.sendall(packet(struct.pack(">BII", 3, 1, len(path)) + path + struct.pack(">II", 1, 0)))  # SSH_FXP_OPEN
        for number in range(100):  # SSH_FXP_READ of the first handle, from the first byte on
            channel.sendall(packet(struct.pack(">BIIIQI", 5, number, 4, 0, 0, 4 << 20)))
        settled(lambda: int(resident_mib(gateway.process.pid)))
        assert peak_rss_mib(gateway.process.pid) - had < KEPT_MIB


def packet(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


async def test_a_copy_of_a_file_to_its_own_end_stops_when_its_client_goes(gateway: SshGateway, tmp_path: Path) -> None:
    grows = tmp_path / "grows"
    grows.write_bytes(bytes(1 << 20))
    async with connected(gateway) as connection:
        sftp = await connection.start_sftp_client()
        file = await sftp.open(str(grows), "r+b")
        copying = asyncio.ensure_future(sftp._handler.copy_data(file.handle, 0, 0, file.handle, 1 << 20))
        await asyncio.to_thread(eventually, lambda: grows.stat().st_size > 4 << 20 or copying.done())
        assert not copying.done(), copying
        sftp._handler._writer.channel.abort()
        with pytest.raises(asyncssh.SFTPError):
            await copying
        assert await asyncio.to_thread(settled, lambda: grows.stat().st_size)
        assert (await connection.run("echo alive")).stdout == "alive\n"


def test_requests_of_a_connection_do_not_pile_up_behind_a_slow_one(silent: SshGateway) -> None:
    with transport(silent) as connection:
        slow = asked(MSG_GLOBAL_REQUEST, "tcpip-forward", True, "", 0)
        more = (asked(MSG_GLOBAL_REQUEST, "keepalive@openssh.com", True) for _ in range(1000))
        assert is_cut_by(connection, [slow, *more])


def test_doors_do_not_pile_up_before_a_slow_target(silent: SshGateway) -> None:
    with transport(silent) as connection:
        to = ("198.51.100.7", 22, "x", 1)
        assert is_cut_by(
            connection,
            (asked(MSG_CHANNEL_OPEN, "direct-tcpip", number, 1 << 20, 1 << 15, *to) for number in range(1000)),
        )


@pytest.mark.parametrize("what", [("window-change", False, 80, 24, 0, 0), ("signal", False, "USR1")])
def test_sizes_and_signals_do_not_pile_up_before_a_command_runs(silent: SshGateway, what: tuple[object, ...]) -> None:
    with transport(silent) as connection:
        channel = connection.open_session()
        channel.get_pty()
        channel.exec_command("cat")
        assert is_cut_by(connection, (asked(MSG_CHANNEL_REQUEST, channel.remote_chanid, *what) for _ in range(1000)))


# --- hosts -----------------------------------------------------------------------------------------------------------


class Names(asyncssh.SFTPServer):
    """A directory without an end, with the number of a card among its names."""

    def realpath(self, path: bytes) -> bytes:
        return b"/" if path == b"." else path

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        number = 0
        while True:
            name = CARD.encode() if number == 1 else b"file %d" % number
            yield asyncssh.SFTPName(name, b"-rw-r--r-- " + name, asyncssh.SFTPAttrs(permissions=0o644))
            number += 1

    def readlink(self, path: bytes) -> bytes:
        return b"/srv/" + CARD.encode()


class Bad(asyncssh.SSHServer):
    """Lets everybody in."""

    def __init__(self, host: BadHost) -> None:
        self._host = host

    def begin_auth(self, username: str) -> bool:
        self._host.users.append(username)
        return False

    def session_requested(self) -> object:
        return self._host.opens()


class Dies(asyncssh.SSHServerSession[bytes]):
    """A program whose end says what it read."""

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def session_started(self) -> None:
        self._channel.exit_with_signal(f"TERM {CARD}", False, f"killed while it read {CARD}", CARD)


async def never() -> object:
    await asyncio.Event().wait()


class BadHost:
    """A host whose `opens` says how it answers who opens a channel: with a session, later, or not at all."""

    def __init__(self, port: int = 0) -> None:
        self.key = asyncssh.generate_private_key("ssh-ed25519")
        self.opens: Callable[[], object] = never
        self.port = port
        self.users: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._is_up, self._ends = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    async def _serve(self) -> None:
        async with await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=lambda: Bad(self),
            server_host_keys=[self.key],
            encoding=None,
            config=None,
        ) as made:
            self.port = made.get_port()
            self._is_up.set()
            await self._ends.wait()

    def __enter__(self) -> BadHost:
        self._thread.start()
        assert self._is_up.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(20)


@pytest.fixture(scope="module")
def bad_host() -> Iterator[BadHost]:
    with BadHost() as host:
        yield host


@pytest.fixture(scope="module")
def masked(bad_host: BadHost, ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    """A gateway before it, where numbers of cards are masked."""
    public = bad_host.key.export_public_key().decode().strip()
    return ssh_gateways([READ], port=bad_host.port, host_keys=[public], masks=MASKS)


def last(gateway: SshGateway) -> record.CommandOutcome:
    return [one for one in gateway.records() if isinstance(one, record.CommandOutcome)][-1]


def everything(gateway: SshGateway) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(gateway.evidence.rglob("*")) if path.is_file())


async def test_the_words_of_a_host_about_an_end_are_masked(bad_host: BadHost, masked: SshGateway) -> None:
    bad_host.opens = Dies
    async with connected(masked) as connection:
        done = await connection.run("cat /srv/log")
    assert done.exit_signal == ("TERM [PaymentCard]", False, "killed while it read [PaymentCard]", "")
    assert last(masked).code == "signal TERM [PaymentCard]"
    assert CARD.encode() not in everything(masked)


def test_the_words_of_a_host_that_opens_no_channel_are_masked(bad_host: BadHost, masked: SshGateway) -> None:
    def full() -> object:
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, f"no room for {CARD}")

    bad_host.opens = full
    done = masked.ssh("cat /srv/log")
    assert done.returncode == 255 and b"does not run it (no room for [PaymentCard])" in done.stderr, done
    assert CARD.encode() not in everything(masked)


def test_a_host_that_never_opens_a_channel_is_given_up(bad_host: BadHost, masked: SshGateway) -> None:
    bad_host.opens = never
    done = masked.ssh("cat /srv/log")
    assert done.returncode == 255 and b"does not run it (it does not answer)" in done.stderr, done
    assert (last(masked).status, last(masked).code) == ("error", "open")


class Dangling(asyncssh.SFTPServer):
    """A host that tells of a link only that it is one, as some do where nothing is behind it."""

    def realpath(self, path: bytes) -> bytes:
        if path == b"/srv/link":
            raise asyncssh.SFTPNoSuchFile("nothing is there")
        return b"/" if path == b"." else path

    def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        return asyncssh.SFTPAttrs(type=asyncssh.FILEXFER_TYPE_SYMLINK, permissions=0o120777)

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        raise AssertionError("it is not opened")


async def test_a_link_that_leads_nowhere_yet_is_not_written_through(bad_host: BadHost, masked: SshGateway) -> None:
    bad_host.opens = lambda: asyncssh.stream.SSHServerStreamSession(None, Dangling, 3)
    async with connected(masked) as connection, connection.start_sftp_client() as sftp:
        with pytest.raises(asyncssh.SFTPFailure, match="where this link leads cannot be told"):
            await sftp.open("/srv/link", "w")


async def test_a_directory_without_an_end_is_told_as_it_comes_and_its_names_are_masked(
    bad_host: BadHost, masked: SshGateway
) -> None:
    bad_host.opens = lambda: asyncssh.stream.SSHServerStreamSession(None, Names, 3)
    async with connected(masked) as connection, connection.start_sftp_client() as sftp:
        assert await sftp.readlink("/srv/link") == "/srv/[PaymentCard]"
        names = sftp.scandir("/srv")
        found = [await anext(names) for _ in range(1000)]
        await names.aclose()
    assert [found[at].filename for at in (0, 1, 999)] == ["file 0", "[PaymentCard]", "file 999"]
    assert found[1].longname == "-rw-r--r-- [PaymentCard]"
    # A directory that is closed before its end is answered at once; what became of it is recorded when it is let go.
    await asyncio.to_thread(eventually, lambda: last(masked).status != "ok")
    assert last(masked).status == "aborted"


def test_clients_hear_that_a_target_is_down_and_that_another_one_answers_in_its_place(
    listening: socket.socket, silent: SshGateway, tmp_path: Path
) -> None:
    port = listening.getsockname()[1]
    listening.close()
    hears(silent, b"it cannot be reached (", tmp_path)
    with BadHost(port) as another:
        hears(silent, b"its host key is none of those in spec.ssh", tmp_path)
    assert another.users == []  # so it has seen no credential


def hears(gateway: SshGateway, why: bytes, folder: Path) -> None:
    """What every client is told on stderr, and with a status of its own; nothing comes out or is made."""
    for done, status in (
        (gateway.ssh("cat /etc/hostname"), 255),
        (gateway.sftp(f"get /etc/hostname {folder}/got\n"), 255),
        (gateway.scp("-O", "@/etc/hostname", f"{folder}/got"), 1),
    ):
        assert (done.returncode, done.stdout) == (status, b"") and why in done.stderr, done
    assert not (folder / "got").exists()
