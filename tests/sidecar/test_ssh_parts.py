"""The parts of SSH that touch no socket: masks of streams, digests of transfers, host keys; and closed doors."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.config import Host, Target, Tls, Upstream
from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.frontends import ssh
from chaperone_sidecar.hostkey import HostKey
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import MaskRule
from chaperone_sidecar.protocols.ssh.files import Files
from chaperone_sidecar.protocols.ssh.outputmask import MAX_LINE_BYTES, OutputMask
from chaperone_sidecar.protocols.ssh.transfer import MAX_KEPT_BYTES, Transfer

CARD = b"4111 1111 1111 1111"
MASKER = Masker([MaskRule("Redact", detectors=("PaymentCard", "Email", "PrivateKey"))])
KEY = b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\nBBBB\n-----END OPENSSH PRIVATE KEY-----\n"
TEXT = b"one " + CARD + b" two\r\n\x1b[31m4111 1111\x1b[0m 1111 1111\x1b[K\n" + KEY + b"me@example.com\nend"


def masked(pieces: list[bytes]) -> bytes:
    mask = OutputMask(MASKER)
    return b"".join(map(mask.feed, pieces)) + mask.flush()


def test_values_are_masked_wherever_a_stream_is_cut() -> None:
    whole = masked([TEXT])
    assert whole == b"one [PaymentCard] two\r\n[PaymentCard]\n[PrivateKey]\n[Email]\nend"
    for cut in range(len(TEXT)):
        assert masked([TEXT[:cut], TEXT[cut:]]) == whole, cut
    assert masked([TEXT[at : at + 1] for at in range(len(TEXT))]) == whole


@pytest.mark.parametrize(
    "hidden",
    [
        b"4111\x1b[1m 1111 1111 1111", b"4x\x08111 1111 1111 1111", b"4111\x00 1111\x0f 1111 1111",
        b"\x1b]0;4111 1111 1111 1111\x07", b"4111 1111\x1b[0;1;32m 1111 11\x1b(B11",
    ],
)  # fmt: skip
def test_codes_do_not_hide_a_value(hidden: bytes) -> None:
    shown = masked([hidden + b"\n"])
    assert b"[PaymentCard]" in shown and b"4111" not in shown


def test_codes_stay_where_nothing_is_hidden() -> None:
    colourful = b"\x1b[32mok\x1b[0m 10%\r20%\r\n"
    assert masked([colourful]) == colourful


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2 * MAX_LINE_BYTES), st.integers(50, 20_000))
def test_a_line_without_an_end_is_masked_in_bounded_memory(place: int, size: int) -> None:
    line = b"ab " * MAX_LINE_BYTES
    line = line[:place] + b" " + CARD + b" " + line[place:]
    mask, shown = OutputMask(MASKER), b""
    for at in range(0, len(line), size):
        shown += mask.feed(line[at : at + size])
        assert len(mask._held) <= MAX_LINE_BYTES + size
    shown += mask.flush()
    assert shown == line.replace(CARD, b"[PaymentCard]")


def test_what_is_no_text_is_shown_only_where_it_may_be() -> None:
    with pytest.raises(Unmaskable):
        OutputMask(MASKER).feed(b"\xff\xfe\n")
    assert OutputMask(MASKER, shows_binary=True).feed(b"\xff\xfe\n") == b"\xff\xfe\n"


@given(st.permutations(range(20)), st.integers(1, 100))
def test_a_digest_is_of_the_whole_in_whatever_order_pieces_come(order: list[int], size: int) -> None:
    content = bytes(range(256)) * 8
    pieces = [(at * size, content[at * size : (at + 1) * size]) for at in order]
    transfer = Transfer()
    for offset, piece in pieces:
        transfer.take(offset, piece)
    assert transfer.code == f"sha256:{hashlib.sha256(content[: 20 * size]).hexdigest()}"


def test_there_is_no_digest_of_a_part_or_of_what_was_written_twice() -> None:
    part, twice, far = Transfer(), Transfer(), Transfer()
    part.take(10, b"x")
    for _ in range(2):
        twice.take(0, b"x")
    far.take(1, b"x" * (MAX_KEPT_BYTES + 1))
    far.take(0, b"y")
    assert (part.code, twice.code, far.code) == ("", "", "")


def test_every_door_of_the_librarys_file_server_is_ours() -> None:
    theirs = {name for name in vars(asyncssh.SFTPServer) if not name.startswith("_")}
    ours = {name for name in vars(Files) if not name.startswith("_")}
    harmless = {"channel", "connection", "env", "logger", "convert_attrs"}
    assert theirs - ours - harmless == set()


def test_known_hosts_name_the_targets_and_stand_for_all(tmp_path: Path) -> None:
    key = HostKey()
    hosts = (Host("build.data.svc", "240.240.0.1", "fd63::1"),)
    target = Target("build", "SSH", 2222, hosts, Upstream("build", 22), Tls("VerifyFull"))
    path = tmp_path / "known_hosts"
    path.write_text(key.known_hosts([target]))
    for name in ("[build.data.svc]:2222", "[240.240.0.1]:2222"):
        found = subprocess.run(["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, text=True, check=True)
        assert key.public.split()[1] in found.stdout
    found = subprocess.run(
        ["ssh-keygen", "-F", "anything", "-f", str(path)], capture_output=True, text=True, check=True
    )
    assert key.public.split()[1] in found.stdout
    assert asyncssh.import_private_key(key.private).export_public_key().split()[1].decode() == key.public.split()[1]


def test_the_library_logs_nothing_of_what_it_carries() -> None:
    assert ssh.asyncssh is asyncssh
    assert logging.getLogger("asyncssh").level >= logging.CRITICAL


def test_a_gateway_without_ssh_targets_does_not_load_its_library() -> None:
    text = "import sys, chaperone_sidecar.runtime, chaperone_sidecar.gateway; print('asyncssh' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "False\n"
