"""SFTP of a target that says nothing: operations fail after a while, and what is not known is not taken for known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import asyncssh
import pytest
from closed_sftp import SftpChannel

from chaperone_sidecar.effects import Conclude, Intent, Receipt
from chaperone_sidecar.protocols.ssh import places
from chaperone_sidecar.protocols.ssh.files import Files
from chaperone_sidecar.protocols.ssh.openfile import OpenFile
from chaperone_sidecar.protocols.ssh.places import NoAnswer, Places

LOOKS: list[Callable[[Places], Awaitable[object]]] = [
    lambda there: there.found(b"file"),
    lambda there: there.named(b"file"),
    lambda there: there.exists("/home/agent/file"),
]


INTENT = Intent("01COMMAND", Receipt(1), 0)


class Silent:
    """A target's SFTP of which some operations are never answered, or its file."""

    def __init__(self, *silent: str) -> None:
        self._silent = silent

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def answer(*_: object) -> bytes:
            if name in self._silent:
                await asyncio.Event().wait()
            raise asyncssh.SFTPNoSuchFile("nothing is there")

        return answer


class Recorded:
    """A conversation that lets everything through, and keeps how it ended."""

    masks_all = False

    def __init__(self) -> None:
        self.ended: list[Conclude] = []
        self.conduct = SimpleNamespace(meter=SimpleNamespace(take=lambda *_: None))

    async def decide(self, *_: object) -> Intent:
        return INTENT

    async def conclude(self, ended: Conclude) -> None:
        self.ended.append(ended)

    def shown(self, command: object) -> object:
        return command

    def mask(self, text: str) -> str:
        return text


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "ANSWER_S", 0.05)


@pytest.mark.parametrize("look", LOOKS)
async def test_a_place_that_is_not_told_is_not_taken_for_one_where_nothing_is(
    look: Callable[[Places], Awaitable[object]],
) -> None:
    """Else a link that a slow target did not tell of would be judged by its own name."""
    with pytest.raises(NoAnswer, match="did not answer within"):
        await look(Places(Silent("realpath", "lstat"), "/home/agent"))  # type: ignore[arg-type]
    with pytest.raises(NoAnswer):
        await Places(Silent("lstat"), "/home/agent").found(b"file")  # type: ignore[arg-type]
    assert await Places(Silent(), "/home/agent").found(b"file") == "/home/agent/file"  # type: ignore[arg-type]


async def test_operations_that_are_not_answered_fail_and_are_recorded() -> None:
    conversation = Recorded()
    files = Files(SftpChannel(), conversation)  # type: ignore[arg-type]
    silent = Silent("remove", "read", "write", "close")
    files._upstream, files._places = silent, Places(silent, "/home/agent")  # type: ignore[assignment, arg-type]
    with pytest.raises(asyncssh.SFTPFailure, match="did not answer within"):
        await files.remove(b"file")
    file = OpenFile(silent, "/home/agent/file", INTENT)  # type: ignore[arg-type]
    for work in (files.read(file, 0, 10), files.write(file, 0, b"x")):
        with pytest.raises(asyncssh.SFTPFailure, match="did not answer within"):
            await work
    with pytest.raises(asyncssh.SFTPFailure, match="did not close"):
        await files.close(file)
    assert [(one.status, one.code) for one in conversation.ended] == [("error", "sftp 4"), ("error", "sftp 4")]
