"""What `chaperone replay` tells of an SSH session is what its client saw, masked: each byte, and each line."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable

import msgspec
import pytest
from click.testing import CliRunner
from fix_ssh import SshGateway
from manifests import rule
from recordings import read_parts

from chaperone_cli.main import main
from chaperone_evidence import frames, record

pytestmark = pytest.mark.peer

CARD = "4111 1111 1111 1111"
WIDE = "žluťoučký kůň ☃ 🐎"  # pieces of output end in the middle of characters, and of lines
LINES = [f"{number} {WIDE} {CARD if number % 1000 == 7 else number}" for number in range(6000)]
TYPED = f"stty -echo\nprintf '\\033[1mbold\\033[0m {WIDE}\\n{CARD[:9]}'; echo '{CARD[9:]}'; exit\n"
RULES = [rule("look", "Allow", ["read", "bulk_read"]), rule("sh", "Allow", ["execute_code"], ["shell"])]
MASKS = {"masked": {"masks": [{"detectors": ["PaymentCard"], "method": "Redact"}]}, "plain": {}}


class Session(msgspec.Struct, frozen=True):
    """What one session was for its client, and what is told of it."""

    saw: subprocess.CompletedProcess[bytes]
    shown: bytes
    replayed: list[str]


@pytest.fixture(scope="module", params=sorted(MASKS))
def told(
    request: pytest.FixtureRequest, ssh_gateways: Callable[..., SshGateway], tmp_path_factory: pytest.TempPathFactory
) -> list[Session]:
    """A command, one on a terminal, a shell, and a command that fails."""
    text = tmp_path_factory.mktemp("told") / "text"
    text.write_text("\n".join(LINES))  # the last line has no end
    gateway = ssh_gateways(RULES, evidence={"results": "Full", "maxResultBytes": "8Mi"}, **MASKS[request.param])
    saw = [
        gateway.ssh(f"cat {text}"),
        gateway.ssh(f"cat {text} && printf '\\033[1mbold\\033[0m end'", options=("-tt",)),
        gateway.ssh(options=("-tt",), stdin=TYPED.encode()),
        gateway.ssh(f"ls '{CARD}'"),
    ]
    gateway.stop()
    sessions = [one.session for one in gateway.records() if isinstance(one, record.SessionOpen)]
    return [
        Session(done, shown(gateway, session), replayed(gateway, session))
        for done, session in zip(saw, sessions, strict=True)
    ]


def shown(gateway: SshGateway, session: str) -> bytes:
    """Everything that the recording of a session says was shown."""
    return b"".join(
        frame.data.raw if isinstance(frame.data, frames.Bytes) else frame.data.encode()
        for chunk, found in read_parts(gateway.evidence)
        for frame in found
        if chunk.session == session and isinstance(frame, frames.Output)
    )


def replayed(gateway: SshGateway, session: str) -> list[str]:
    """The lines that its replay says were shown."""
    done = CliRunner().invoke(main, ["replay", "--bundle", str(gateway.evidence), session])
    assert done.exit_code == 0, done.output[-1000:]
    return [line[13:] for line in done.stdout.split("\n") if line[11:13] == "| "]


def test_the_output_of_a_command(told: list[Session]) -> None:
    command = told[0]
    assert command.saw.stdout.decode().endswith(f"{WIDE} 5999")
    assert command.shown == command.saw.stdout
    assert command.replayed == command.saw.stdout.decode().splitlines()


def test_the_words_of_a_command_that_fails(told: list[Session]) -> None:
    command = told[3]
    assert b"No such file" in command.saw.stderr
    assert command.shown == command.saw.stderr
    assert command.replayed == command.saw.stderr.decode().splitlines()


def test_the_screen_of_a_terminal(told: list[Session]) -> None:
    screen = told[1]
    assert screen.saw.stdout.endswith(b"\x1b[1mbold\x1b[0m end")
    assert screen.shown == screen.saw.stdout
    assert screen.replayed == re.sub(r"\x1b\[\dm", "", screen.shown.decode()).splitlines()


def test_a_shell(told: list[Session]) -> None:
    shell = told[2]
    assert f"bold\x1b[0m {WIDE}\r\n".encode() in shell.saw.stdout
    assert shell.shown == shell.saw.stdout
    assert f"bold {WIDE}" in shell.replayed


def test_what_is_masked_is_in_neither(told: list[Session], request: pytest.FixtureRequest) -> None:
    is_masked = request.node.callspec.params["told"] == "masked"
    for one in told:
        for text in ((one.saw.stdout + one.saw.stderr).decode(), one.shown.decode(), "\n".join(one.replayed)):
            assert (CARD in text, "[PaymentCard]" in text) == (not is_masked, is_masked)
