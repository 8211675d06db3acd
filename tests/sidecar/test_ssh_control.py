"""SSH under holds, limits, masks and the kill of a target: through `chaperone dev` with a real sshd."""

from __future__ import annotations

import asyncio
import hashlib
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import asyncssh
import pytest
from fix_ssh import SshGateway, start_host
from waiting import Person, eventually

from chaperone_evidence import record

pytestmark = pytest.mark.peer

CARD = "4111 1111 1111 1111"
READ: dict[str, object] = {"name": "read", "action": "Allow", "match": {"effects": ["read", "bulk_read"]}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    (folder / "customers").write_text(f"one {CARD} two\nplain\n")
    return folder


@pytest.fixture(scope="module")
def masked(ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    shells = {"name": "shells", "action": "Allow", "match": {"effects": ["execute_code"], "objects": ["shell"]}}
    return ssh_gateways(
        [READ, shells], masks=[{"detectors": ["PaymentCard"], "method": "Redact"}],
        evidence={"results": "Full", "maxResultBytes": "1Mi"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def limited(ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    held: dict[str, object] = {
        "name": "ask", "action": "RequireApproval", "match": {"effects": ["modify", "create"]},
        "approval": {"groups": ["hosts"], "count": 1, "wait": "60s", "validFor": "10m"},
    }  # fmt: skip
    return ssh_gateways([READ, held], limits={"bytesPerSession": "64Ki"})


def everything(gateway: SshGateway) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(gateway.evidence.rglob("*")) if path.is_file())


def test_values_are_masked_in_output_and_records_however_they_are_written(masked: SshGateway, place: Path) -> None:
    found = masked.ssh(f"cat {place}/customers")
    assert found.stdout == b"one [PaymentCard] two\nplain\n"
    found = masked.ssh(f"echo {CARD}")
    assert found.stdout == b"[PaymentCard]\n"
    assert CARD.encode() not in everything(masked)


def test_output_that_is_no_text_is_not_shown_where_values_are_masked(masked: SshGateway, place: Path) -> None:
    (place / "binary").write_bytes(b"\xff\xfe\x00" * 100 + b"\n")
    found = masked.ssh(f"cat {place}/binary")
    assert found.returncode != 0 and found.stdout == b""
    assert b"cannot be masked" in found.stderr
    found = masked.sftp(f"get {place}/customers {place}/gotten\n")
    assert found.returncode != 0 and not (place / "gotten").exists()
    assert b"cannot be masked" in found.stderr
    assert masked.ssh(f"git-upload-pack {place}").returncode == 126


def test_a_command_waits_for_people_and_runs_when_they_allow_it(limited: SshGateway, place: Path) -> None:
    person = Person(limited)
    before = len(person.requests())
    process = subprocess.Popen(
        ["ssh", *limited.options(), "-p", str(limited.port), "127.0.0.1", f"touch {place}/approved"],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    name, _ = person.next(before + 1)
    person.decide(name, "approve")
    _, told = process.communicate(timeout=40)
    assert process.returncode == 0, told
    assert (place / "approved").exists()
    done = [one for one in limited.records() if isinstance(one, record.CommandIntent)][-1]
    assert (done.decision, done.approval) == ("Allow", name)


def test_a_client_is_told_that_its_command_waits_and_a_file_waits_too(limited: SshGateway, place: Path) -> None:
    (place / "source").write_text("content")
    person = Person(limited)
    before = len(person.requests())
    process = subprocess.Popen(
        ["sftp", *limited.options(), "-P", str(limited.port), "-b", "-", "127.0.0.1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(f"put {place}/source {place}/sent\n".encode())
    process.stdin.close()
    name, _ = person.next(before + 1)
    assert any(b"waits for a decision" in line for line in process.stderr)  # people take their time
    person.decide(name, "approve")
    assert process.wait(40) == 0
    assert (place / "sent").read_text() == "content"
    digest = hashlib.sha256(b"content").hexdigest()
    assert any(one.code == f"sha256:{digest}" for one in outcomes(limited))


async def test_channels_of_one_connection_wait_for_people_apart(limited: SshGateway, place: Path) -> None:
    person = Person(limited)
    before = len(person.requests())
    async with asyncssh.connect(
        "127.0.0.1", limited.port, username="agent", known_hosts=str(limited.known_hosts), client_keys=None,
        config=None, agent_path=None,
    ) as connection:  # fmt: skip
        one = await connection.create_process(f"touch {place}/one")
        first = await asyncio.to_thread(person.next, before + 1)
        two = await connection.create_process(f"touch {place}/two")
        second = await asyncio.to_thread(person.next, before + 2)
        gone = await connection.create_process(f"touch {place}/gone")
        third = await asyncio.to_thread(person.next, before + 3)
        # What is allowed, and what is refused, does not wait behind them.
        assert (await connection.run("echo free", check=True)).stdout == "free\n"
        assert (await connection.run("rm -rf /")).exit_status == 126
        gone.close()
        await asyncio.to_thread(eventually, lambda: (third[0], "Cancelled") in resolved(limited))
        person.decide(second[0], "approve")
        assert (await two.wait()).exit_status == 0
        assert (place / "two").exists() and not (place / "one").exists()
        person.decide(first[0], "approve")
        assert (await one.wait()).exit_status == 0
        assert (place / "one").exists() and not (place / "gone").exists()
    assert resolved(limited)[-3:] == [(third[0], "Cancelled"), (second[0], "Used"), (first[0], "Used")]


def outcomes(gateway: SshGateway) -> list[record.CommandOutcome]:
    return [one for one in gateway.records() if isinstance(one, record.CommandOutcome)]


def resolved(gateway: SshGateway) -> list[tuple[str, str]]:
    """The requests that have an outcome, each with it."""
    return [(one.approval, one.state) for one in gateway.records() if isinstance(one, record.ApprovalOutcome)]


def test_bytes_of_a_session_end_at_the_limit(limited: SshGateway) -> None:
    found = limited.ssh("head -c 200000 /dev/zero")
    assert found.returncode == 126
    assert len(found.stdout) <= 64 << 10
    assert b"limits.bytesPerSession" in found.stderr
    assert outcomes(limited)[-1].code == "limit:bytesPerSession"


def test_a_file_is_cut_at_the_limit_and_its_small_end_does_not_go_through(limited: SshGateway, tmp_path: Path) -> None:
    long = tmp_path / "long"
    long.write_bytes(b"x" * ((96 << 10) + 1))
    found = limited.sftp(f"get {long} {tmp_path / 'got'}\n", "-B16384", "-R16")  # the last piece is of a byte
    assert found.returncode != 0
    assert b"limits.bytesPerSession" in found.stderr
    cut = outcomes(limited)[-1]
    assert (cut.status, cut.code) == ("refused", "limit:bytesPerSession")
    assert 0 < cut.bytes <= 64 << 10 and cut.bytes % 16384 == 0


def test_a_command_that_runs_too_long_is_ended(ssh_gateways: Callable[..., SshGateway]) -> None:
    timed = ssh_gateways([READ], limits={"commandDuration": "2s"})
    found = timed.ssh("sleep 30")
    assert found.returncode == 126 and b"limits.commandDuration" in found.stderr, found
    assert outcomes(timed)[-1].status == "refused"


def test_a_target_that_dies_ends_the_command_with_an_error(
    ssh_gateways: Callable[..., SshGateway], tmp_path: Path
) -> None:
    dying = start_host(tmp_path / "dying")
    gateway = ssh_gateways([READ], port=dying.port, host_keys=[dying.host_key], key=dying.folder / "client_key")
    process = subprocess.Popen(
        ["ssh", *gateway.options(), "-p", str(gateway.port), "127.0.0.1", "echo begun; sleep 60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    dying.stop()
    _, told = process.communicate(timeout=30)
    assert process.returncode == 255, told
    assert b"closed the connection" in told
    assert outcomes(gateway)[-1].status in ("error", "aborted")


def test_client_sees_the_last_words_of_a_gateway_that_cuts_its_command(
    ssh_gateways: Callable[..., SshGateway],
) -> None:
    gateway = ssh_gateways([READ])
    process = subprocess.Popen(
        ["ssh", *gateway.options(), "-p", str(gateway.port), "127.0.0.1", "echo begun; sleep 60"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == b"begun\n"
    process.send_signal(signal.SIGSTOP)  # it finds in one piece what the gateway has to say, as on a busy machine
    assert gateway.stop() == 0
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 255 and b"chaperone: " in told, told
