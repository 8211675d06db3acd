"""The hash chain of one stream.

link(−1) = SHA-256("chaperone.dev/stream/v1" LF ‖ stream id)
link(n)  = SHA-256("chaperone.dev/link/v1" LF ‖ link(n−1) ‖ class ‖ header)
An entry carries its own link. Heads are entries of the chain: they sign how many entries precede
them and the last link.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final, Literal

import msgspec

from chaperone_evidence import canonical, entry
from chaperone_evidence.errors import Malformed
from chaperone_evidence.note import Signer
from chaperone_evidence.record import Record

type HeadState = Literal["open", "idle", "closed"]

LINK_SCHEME: Final = "chaperone.dev/link/v1"  # the name under which others find what a link is computed over

_LINK_DOMAIN: Final = f"{LINK_SCHEME}\n".encode()
_STREAM_DOMAIN: Final = b"chaperone.dev/stream/v1\n"
_CLASSES: Final = [bytes((cls,)) for cls in range(256)]
_RECORD_CLASS: Final = _CLASSES[entry.CLASS_RECORD]
_RECORD_PREFIX: Final = bytes((entry.VERSION, entry.CLASS_RECORD))
_HEAD_BODY: Final = re.compile(
    r"chaperone\.dev/stream/([^/\s]+)/([0-9a-z]{26})\n(0|[1-9][0-9]{0,15})\n([A-Za-z0-9+/]{43}=)\n"
    r"time ([1-9][0-9]{0,15})\nstate (open|idle|closed)\n\Z"
)


def first_link(stream: str) -> bytes:
    """What the first entry of a stream links to."""
    return hashlib.sha256(_STREAM_DOMAIN + stream.encode()).digest()


def next_link(link: bytes, cls: int, header: bytes) -> bytes:
    """The link of an entry that follows one with `link`."""
    return hashlib.sha256(b"".join((_LINK_DOMAIN, link, _CLASSES[cls], header))).digest()


def follows(link: bytes, data: bytes) -> bool:
    """Whether an entry's bytes carry the link that follows from `link`; they must be long enough for an entry."""
    return next_link(link, data[1], data[entry.PREFIX_BYTES :]) == data[2 : entry.PREFIX_BYTES]


class Head(msgspec.Struct, frozen=True):
    """What a head says of the entries before it."""

    cluster: str
    stream: str
    count: int
    link: bytes
    time_us: int
    state: HeadState


def parse_head(body: str) -> Head:
    """Read the body of a head's note.

    Raises:
        Malformed: not a head. NotCanonical: its link is not written in the one way.
    """
    match = _HEAD_BODY.match(body)
    if match is None:
        raise Malformed("The head does not have the form of a stream head.")
    cluster, stream, count, link, time_us, state = match.groups()
    return Head(cluster, stream, int(count), canonical.decode_base64(link), int(time_us), state)  # type: ignore[arg-type]


class Chain:
    """The growing end of one stream.

    Args:
        cluster: uid of the cluster, part of every head.
        stream: the stream's id.
    """

    def __init__(self, cluster: str, stream: str) -> None:
        self.cluster = cluster
        self.stream = stream
        self.count = 0
        self.link = first_link(stream)

    def append_record(self, record: Record) -> bytes:
        """Chain a record and return its frame.

        The caller sets the record's `seq` to `count`. On the hot path of the gateway: one encoding, one hash.

        Raises:
            Malformed: the header is longer than an entry may be, or a string has no UTF-8; the chain is unchanged.
        """
        try:
            header = canonical.encode(record)
        except UnicodeEncodeError as error:
            raise Malformed("A record holds a string that has no UTF-8.") from error
        if len(header) > entry.MAX_ENTRY_BYTES - entry.PREFIX_BYTES:
            raise Malformed(f"A record of {len(header)} bytes is too long.")
        link = hashlib.sha256(_LINK_DOMAIN + self.link + _RECORD_CLASS + header).digest()
        self.link = link
        self.count += 1
        return (len(header) + entry.PREFIX_BYTES).to_bytes(2, "big") + _RECORD_PREFIX + link + header

    def append_head(self, signer: Signer, time_us: int, state: HeadState) -> bytes:
        """Sign everything so far and return the head's frame."""
        body = (
            f"chaperone.dev/stream/{self.cluster}/{self.stream}\n{self.count}\n"
            f"{base64.b64encode(self.link).decode()}\ntime {time_us}\nstate {state}\n"
        )
        header = signer.sign(body)
        self.link = next_link(self.link, entry.CLASS_HEAD, header)
        self.count += 1
        return entry.frame(bytes((entry.VERSION, entry.CLASS_HEAD)) + self.link + header)
