"""Proofs that an entry is in the log, to be kept and checked by anybody, offline (C2SP tlog-proof; `.tlog-proof`).

proof = `c2sp.org/tlog-proof@v1` LF ‖ [`extra` SP base64 LF] ‖ `index` SP decimal LF ‖ one base64 hash a line, the
leaf's sibling first ‖ LF ‖ the signed checkpoint as it is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from chaperone_evidence import merkle
from chaperone_evidence.canonical import decode_base64
from chaperone_evidence.errors import Malformed, NotCanonical
from chaperone_evidence.note import MAX_NOTE_BYTES
from chaperone_evidence.policy import Opened, Policy, open_checkpoint

MAX_HASHES: Final = 63  # of the deepest tree
MAX_EXTRA_BYTES: Final = 64 << 10  # it may carry the entry itself

_FORM: Final = re.compile(
    r"c2sp\.org/tlog-proof@v1\n(?:extra ([A-Za-z0-9+/=]+)\n)?index (0|[1-9][0-9]{0,18})\n"
    r"((?:[A-Za-z0-9+/]{43}=\n){0,63})\n",
    re.ASCII,
)
_HASH_LINE: Final = 45
_MAX_BYTES: Final = 2 * MAX_EXTRA_BYTES + _HASH_LINE * MAX_HASHES + MAX_NOTE_BYTES


class LogProof(msgspec.Struct, frozen=True, gc=False):
    """That the entry with some leaf hash is entry `index` of the log that signed the checkpoint; not yet verified.

    `extra` is nobody's word: the format does not authenticate it.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes = b""

    def encode(self) -> bytes:
        """The proof's bytes."""
        extra = f"extra {base64.b64encode(self.extra).decode()}\n" if self.extra else ""
        lines = encode_hashes(self.hashes)
        return f"c2sp.org/tlog-proof@v1\n{extra}index {self.index}\n{lines}\n".encode() + self.checkpoint

    def verify(self, leaf: bytes, policy: Policy) -> Opened:
        """Check the proof for an entry's leaf hash; returns what the log has signed.

        Raises:
            EvidenceError: the checkpoint is not one that the policy believes, or the leaf is not in its tree.
        """
        opened = open_checkpoint(self.checkpoint, policy)
        found = opened.checkpoint
        merkle.verify_inclusion(leaf, self.index, found.size, self.hashes, found.root)
        return opened


def parse_proof(data: bytes) -> LogProof:
    """Read a proof.

    Raises:
        Malformed: not a proof, or larger than one can be.
    """
    if len(data) > _MAX_BYTES:
        raise Malformed("The proof is too long.")
    # Its own lines are ASCII; the checkpoint behind them may say a name in any script.
    match = _FORM.match(data.decode("latin-1"))
    if match is None:
        raise Malformed("The text does not have the form of a proof.")
    try:
        extra = decode_base64(match[1]) if match[1] else b""
    except NotCanonical as error:
        raise Malformed("The extra data of the proof is not base64.") from error
    if len(extra) > MAX_EXTRA_BYTES:
        raise Malformed("The extra data of the proof is too long.")
    return LogProof(int(match[2]), decode_hashes(match[3]), data[match.end() :], extra)


def encode_hashes(hashes: Iterable[bytes]) -> str:
    """Hashes as text, one a line."""
    return "".join(f"{base64.b64encode(one).decode()}\n" for one in hashes)


def decode_hashes(lines: str) -> tuple[bytes, ...]:
    """Read hashes, one a line of 44 characters.

    Raises:
        Malformed: a line is not base64 in its one form.
    """
    try:
        return tuple(decode_base64(line) for line in lines.splitlines())
    except NotCanonical as error:
        raise Malformed("A hash is not base64.") from error
