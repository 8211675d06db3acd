"""What detectors find in any text."""

from __future__ import annotations

import random

from material import Target, texts

from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import MaskRule


def detectors() -> tuple[Target, list[bytes]]:
    """Never raises, leaves nothing that it finds, and masking again changes nothing."""
    kinds = ("PaymentCard", "IBAN", "USSocialSecurity", "Email", "Phone", "IPv4", "IPv6", "JWT", "AwsAccessKey",
             "CloudKey", "PrivateKey")  # fmt: skip
    masker = Masker([MaskRule("Redact", detectors=kinds)])

    def target(data: bytes, _: random.Random) -> None:
        once = masker.mask_text(data)
        assert masker.mask_text(once) == once
        if once != data:
            assert masker.may_hit(data)

    values = [
        b"4111-1111-1111-1111", b"DE89 3704 0044 0532 0130 00", b"ssn 612-44-8391", b"jane.roe@example.org",
        b"10.20.30.40",
        b"+49 30 901820", b"2001:db8::8a2e:370:7334", b"AKIAIOSFODNN7EXAMPLE", b'{"a": "j\\u0061ne@example.org"}',
        b"\\x6a616e65406578616d706c652e6f7267", b"amFuZS5yb2VAZXhhbXBsZS5vcmc=", b"-----BEGIN PRIVATE KEY-----\nMIIB\n",
        b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJlc2ln",
    ]  # fmt: skip
    return target, values + texts()[:200]
