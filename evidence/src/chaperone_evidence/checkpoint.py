"""Checkpoints: what a log says of itself at one size, and who signed that (C2SP tlog-checkpoint).

body = origin LF ‖ size LF ‖ base64 root LF. We write no extension lines and refuse them: no monitor can audit them, and
ML-DSA signatures do not cover them. The body is that of a note (note.py), signed by the log and by witnesses
(cosignature.py); whose signatures count, a policy says (policy.py).
"""

from __future__ import annotations

import base64
import re
from typing import Final

import msgspec

from chaperone_evidence.canonical import decode_base64
from chaperone_evidence.errors import Malformed, NotCanonical
from chaperone_evidence.merkle import HASH_BYTES, MAX_SIZE

MAX_ORIGIN_BYTES: Final = 255  # what an ML-DSA cosignature can name

_BODY: Final = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,18})\n([A-Za-z0-9+/]{43}=)\n\Z", re.ASCII)


class Checkpoint(msgspec.Struct, frozen=True, gc=False):
    """Root and size of the log with this origin."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        """Refuse what no body can say.

        Raises:
            Malformed: the origin is empty, too long or more than a line; size or root are impossible.
        """
        if not 0 < len(self.origin.encode()) <= MAX_ORIGIN_BYTES or any(one < " " for one in self.origin):
            raise Malformed("The origin of a checkpoint is one line of at most 255 bytes.")
        if not 0 <= self.size <= MAX_SIZE or len(self.root) != HASH_BYTES:
            raise Malformed(f"A checkpoint of size {self.size} with {len(self.root)} bytes of root is not possible.")

    @property
    def body(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse_body(text: str) -> Checkpoint:
    """Read the body of a checkpoint.

    Raises:
        Malformed: not a checkpoint, or one with extension lines.
    """
    match = _BODY.match(text)
    if match is None:
        raise Malformed("The text does not have the form of a checkpoint without extension lines.")
    try:
        return Checkpoint(match[1], int(match[2]), decode_base64(match[3]))
    except NotCanonical as error:
        raise Malformed("The root of the checkpoint is not base64.") from error
