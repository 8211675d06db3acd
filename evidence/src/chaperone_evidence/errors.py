"""Errors of the evidence library.

EvidenceError
├── NotCanonical      a header is not in the one form that a hash may be taken of
├── Malformed         bytes that are not an entry, a frame, a note or a bundle
│   └── Torn          the last frame of a segment was not written to its end
├── BadSignature      a signature by a known key that does not verify
└── BadProof          a Merkle proof that does not lead to the root it should
"""

from __future__ import annotations


class EvidenceError(Exception):
    """Base of all errors; the text is one sentence for people."""


class NotCanonical(EvidenceError):
    """A header that another encoder would write differently."""


class Malformed(EvidenceError):
    """Bytes that do not have the form they should have."""


class Torn(Malformed):
    """The last frame of a segment was not written to its end: what a crash leaves. What comes before it is whole."""


class BadSignature(EvidenceError):
    """A signature that does not verify, or none by the expected key."""


class BadProof(EvidenceError):
    """A Merkle proof that does not fit the tree, or does not lead to the root that it should."""
