"""SSH: commands, output, and SFTP."""

from __future__ import annotations

import asyncio
import json
import random
import shlex
import struct

import asyncssh
from closed_sftp import Closed, SftpChannel, SftpReader
from material import CORPORA, Target, bounded, cut, masker, values

from chaperone_sidecar.command import Effect
from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.protocols.ssh import classify as ssh
from chaperone_sidecar.protocols.ssh.files import Files
from chaperone_sidecar.protocols.ssh.outputmask import OutputMask
from chaperone_sidecar.protocols.ssh.shell import parse


def ssh_commands() -> tuple[Target, list[bytes]]:
    """Any text has facts; its words, quoted by the rules of POSIX, mean the same to us again; a shell of it no less."""
    lines = (CORPORA / "ssh_commands.jsonl").read_text().splitlines()
    seeds = [json.loads(line)["text"].encode() for line in lines]

    def target(data: bytes, _: random.Random) -> None:
        text = data.decode("utf-8", "replace")
        with bounded(50 * len(data)):
            facts = ssh.classify(text)
        assert facts.accesses
        if any(access.effect is Effect.UNKNOWN for access in facts.accesses):
            assert facts.why_unknown
            return
        inside = ssh.classify(f"sh -c {shlex.quote(text)}")
        assert inside.accesses == facts.accesses or inside.accesses[0].effect is Effect.UNKNOWN
        (only, *others) = parse(text) or [None]
        if only is None or others or only.redirections or only.assignments or any(word.home for word in only.words):
            return
        again = ssh.classify(" ".join(map(quoted, only.argv)))
        assert again.accesses == facts.accesses

    return target, seeds


def quoted(word: str) -> str:
    """A word that every shell takes as it is: to zsh a bare = before one means the path of a program."""
    return f"'{word}'" if word.startswith("=") and shlex.quote(word) == word else shlex.quote(word)


def ssh_output() -> tuple[Target, list[bytes]]:
    """However output is cut the same bytes are shown, and no value; or it is no text in the same way."""
    both = masker()
    value = b"jane.roe@example.org"

    def shown(parts: list[bytes]) -> bytes | None:
        mask = OutputMask(both)
        try:
            return b"".join(map(mask.feed, parts)) + mask.flush()
        except Unmaskable:
            return None

    def target(data: bytes, rng: random.Random) -> None:
        data = data.replace(value, b"")[: 4 << 10]  # longer lines are cut where their parts mask as the whole does
        with bounded(10 * len(data)):
            whole = shown([data])
        assert shown(cut(data, rng)) == whole
        place = data.rfind(b"\n", 0, rng.randrange(len(data) + 1)) + 1
        line = b"mail " + value + b" now\n"
        with_value = shown(cut(data[:place] + line + data[place:], rng))
        assert with_value is None or value not in with_value

    return target, [
        *values(),
        b"$ ls\r\n\x1b[31ma\x1b[0m\r\n",
        b"a\x08b\x1b]0;t\x07c\n",
        "Zahl ½\n".encode(),
        b"x" * 4000,
    ]


def ssh_files() -> tuple[Target, list[bytes]]:
    """SFTP of a client: however it is cut there are the same answers, each to a request; nothing is done."""

    def packet(kind: int, *parts: bytes) -> bytes:
        body = bytes([kind]) + b"".join(parts)
        return struct.pack(">I", len(body)) + body

    def text(value: bytes) -> bytes:
        return struct.pack(">I", len(value)) + value

    number, handle, attrs = struct.pack(">I", 7), text(b"\0\0\0\0"), struct.pack(">II", 4, 0o4755)
    seeds = [
        packet(3, number, text(b"/etc/shadow"), struct.pack(">I", 1), attrs), packet(4, number, handle),
        packet(5, number, handle, struct.pack(">QI", 0, 32768)), packet(6, number, handle, bytes(8), text(b"data")),
        *(packet(kind, number, text(b"../x")) for kind in (7, 11, 13, 15, 16, 17, 19)),
        packet(9, number, text(b"/x"), attrs), packet(10, number, handle, attrs),
        packet(14, number, text(b"/x"), attrs),
        packet(18, number, text(b"/a"), text(b"/b")), packet(20, number, text(b"/a"), text(b"/b")),
        *(packet(200, number, text(name), text(b"/a"), text(b"/b")) for name in
          (b"posix-rename@openssh.com", b"hardlink@openssh.com", b"statvfs@openssh.com", b"copy-data", b"no@such")),
        packet(200, number, text(b"fsync@openssh.com"), handle), packet(200, number, text(b"limits@openssh.com")),
    ]  # fmt: skip
    begin = packet(1, struct.pack(">I", 3))
    runner = asyncio.Runner()

    def target(data: bytes, rng: random.Random) -> None:
        data = begin + data
        whole = runner.run(sftp_answers([data]))
        assert runner.run(sftp_answers(cut(data, rng))) == whole
        count, rest = 0, whole
        while rest:
            (size,) = struct.unpack(">I", rest[:4])
            kind, rest = rest[4], rest[4 + size :]
            # VERSION, STATUS, a directory that is not read yet, and the answer to `limits`: no data, no name.
            assert kind in (2, 101, 102, 201), kind
            count += 1
        assert count <= len(data) // 5 + 1

    return target, [*seeds, b"".join(seeds)]


async def sftp_answers(parts: list[bytes]) -> bytes:
    """What the gateway's SFTP says to a client where nothing is open."""
    channel = SftpChannel()
    reader = SftpReader(parts)
    await asyncssh.sftp.run_sftp_server(Files(channel, Closed()), reader, channel, 3)
    return bytes(channel.written)
