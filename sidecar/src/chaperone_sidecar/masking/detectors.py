"""The detectors: which kinds of values are looked for, and by which pattern.

A pattern says what may be the thing, over bytes, in RE2's syntax; it looks at no neighbour, so it also finds its thing
in raw frames, where the byte before a value is the end of a length. A check (`checks.py`) says whether it is. No
pattern crosses a NUL byte: PostgreSQL's texts have none, so it joins values into a batch.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from chaperone_sidecar.masking import checks

# Which patterns share a filter. One automaton of all of them needs a state for every mixture of half matches; on
# identifiers that made it forty times slower than these few filters (bench/masking.py, decisions/009).
type Family = Literal["number", "word", "hex", "base64", "custom"]


class Detector(msgspec.Struct, frozen=True):
    """A kind of value and how it is found."""

    kind: str
    pattern: bytes
    check: checks.Check
    family: Family


class Trigger(msgspec.Struct, frozen=True):
    """An expression that makes a batch hit, but is never a span."""

    pattern: bytes
    family: Family


class Span(msgspec.Struct, frozen=True, order=True):
    """Where a value of a kind stands."""

    start: int
    end: int
    kind: str


_GAP: Final = rb"[ ._/|~-]{1,3}"
# Prefixes are for the check: "4, 5 or 6 and then twelve digits" asks the DFA to remember which of the last twelve
# digits were a 4, 5 or 6, and random numbers then make a new state each.
_CARD: Final = b"|".join(
    (
        rb"\d{14,}",
        rb"\d{4}" + (_GAP + rb"\d{4}") * 3 + rb"(?:" + _GAP + rb"\d{3})?",
        rb"\d{4}" + _GAP + rb"\d{6}" + _GAP + rb"\d{4,5}",
        rb"\d{4}" + (_GAP + rb"\d{3}") * 3,
        rb"\d(?:[ ._|~-]\d){13,18}",
    )
)

_LOCAL: Final = rb"[A-Za-z0-9._%+'\x80-\xff-]+"
_DOMAIN: Final = rb"[A-Za-z0-9\x80-\xff-]+(?:\.[A-Za-z0-9\x80-\xff-]+)*\.[A-Za-z\x80-\xff]{2,24}"
_EMAIL: Final = _LOCAL + rb"(?:@| ?[\[({]at[\])}] ?)" + _DOMAIN + rb"|[A-Za-z0-9._%+-]+ at " + _DOMAIN

_PHONE: Final = b"|".join(
    (
        rb"\+[1-9](?:[ ().-]{0,2}\d){7,14}",  # E.164, with the signs people put between
        rb"00[1-9]\d{0,2}[ -]\d(?:[ -]?\d){6,11}",
        rb"\([2-9]\d{2}\) ?[2-9]\d{2}[-. ]\d{4}",  # North America
        rb"[2-9]\d{2}[-.][2-9]\d{2}[-.]\d{4}",
        rb"0[1-9](?:[ .]\d{2}){4}",  # France
        rb"\(?0\d{2,4}\)? \d{3,4} \d{3,4}",  # United Kingdom
        rb"0\d{2,4} ?/ ?\d{5,8}",  # Germany
        rb"(?i:phone|tel|mobile|fax)[^0-9A-Za-z\n\x00]{1,6}\d{10}",  # ten bare digits are an id unless they say not
    )
)


def _iban() -> bytes:
    numeric: list[str] = []
    lettered: list[str] = []
    for code in checks.IBAN_LENGTHS:
        name = code.decode()
        (numeric if name in checks.IBAN_NUMERIC else lettered).append(name)
    # Only the beginning: the check counts to the length of the country, and a short memory is a small automaton.
    return rb"(?i:%s)\d{2}(?:[ -]?\d){8}|(?i:%s)\d{2}[ -]?[A-Za-z0-9]{4}" % (
        "|".join(numeric).encode(),
        "|".join(lettered).encode(),
    )


_IPV6: Final = rb"[0-9A-Fa-f:]*::[0-9A-Fa-f:.]*|[0-9A-Fa-f]+(?::[0-9A-Fa-f]+){6}[0-9A-Fa-f:.]*"

_CLOUD_KEY: Final = b"|".join(
    (
        rb"AIza[A-Za-z0-9_-]{35}",  # Google
        rb"ya29\.[A-Za-z0-9_-]{20,}",
        rb"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
        rb"github_pat_[A-Za-z0-9_]{22,}",
        rb"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
        rb"xox[abeprs]-[A-Za-z0-9-]{10,}",  # Slack
        rb"[rs]k_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
        rb"sk-[A-Za-z0-9_-]{32,}",  # OpenAI, Anthropic
        rb"SG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{20,}",  # SendGrid
        rb"hf_[A-Za-z0-9]{30,}",  # Hugging Face
        rb"npm_[A-Za-z0-9]{36}",
        rb"AccountKey=[A-Za-z0-9+/]{40,}={0,2}",  # Azure Storage
        rb"(?i:secret_?access_?key)[\"' ]{0,2}[=:][\"' ]{0,2}[A-Za-z0-9/+]{40}",  # the other half of an AWS key
    )
)

BUILTIN: Final[dict[str, Detector]] = {
    detector.kind: detector
    for detector in (
        Detector("PrivateKey", rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY|AGE-SECRET-KEY-1[0-9A-Z]{20,}",
                 checks.private_key, "word"),
        Detector("JWT", rb"eyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){2,4}", checks.jwt, "word"),
        Detector("AwsAccessKey", rb"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}", checks.word, "word"),
        Detector("CloudKey", _CLOUD_KEY, checks.word, "word"),
        Detector("PaymentCard", _CARD, checks.payment_card, "number"),
        Detector("IBAN", _iban(), checks.iban, "number"),
        Detector("USSocialSecurity", rb"\d{3}[ .-]\d{2}[ .-]\d{4}|[Ss][Ss][Nn][^0-9\n\x00]{1,6}\d{9}",
                 checks.us_social_security, "number"),
        Detector("Email", _EMAIL, checks.email, "word"),
        Detector("Phone", _PHONE, checks.phone, "number"),
        Detector("IPv4", rb"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", checks.ipv4, "number"),
        Detector("IPv6", _IPV6, checks.ipv6, "word"),
    )
}  # fmt: skip
