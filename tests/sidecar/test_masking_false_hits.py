"""What masking must leave alone: identifiers, times and prices of a business, a hundred thousand of them.

Sixteen random digits with a card's prefix pass its check digit once in ten times; no detector can tell such a number
from a card. They are counted apart, with the rate that arithmetic gives.
"""

import base64
import datetime
import random
import string
import uuid
from collections.abc import Callable

from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import MaskRule

MASKER = Masker([MaskRule("Redact", detectors=tuple(BUILTIN))])
COUNT = 100_000
MAX_RATE = 0.0005
MAX_RATE_16_DIGITS = 0.05

RNG = random.Random(20251125)  # noqa: S311 (data, no secret)
UPPER = string.ascii_uppercase


def moment() -> datetime.datetime:
    return datetime.datetime(2019, 1, 1) + datetime.timedelta(seconds=RNG.random() * 2.2e8)


MAKERS: dict[str, Callable[[], str]] = {
    "uuid": lambda: str(uuid.UUID(int=RNG.getrandbits(128), version=4)),
    "uuid without dashes": lambda: f"{RNG.getrandbits(128):032x}",
    "order": lambda: f"ORD-{RNG.randint(2019, 2026)}-{RNG.randint(0, 999999):06d}",
    "invoice": lambda: f"INV{RNG.randint(10**7, 10**10)}",
    "serial": lambda: str(RNG.randint(1, 10**9)),
    "nine digits": lambda: str(RNG.randint(10**8, 10**9 - 1)),
    "bigint": lambda: str(RNG.getrandbits(63)),
    "snowflake": lambda: str(RNG.randint(10**10, 10**12) << 22 | RNG.getrandbits(22)),
    "microseconds": lambda: str(RNG.randint(15 * 10**14, 18 * 10**14)),
    "timestamp": lambda: f"{moment()}+00",
    "ISO 8601": lambda: moment().isoformat() + "Z",
    "date": lambda: str(moment().date()),
    "price": lambda: f"{RNG.uniform(0, 1e5):.2f}",
    "float": lambda: repr(RNG.random() * 10.0 ** RNG.randint(-3, 6)),
    "SKU": lambda: f"{''.join(RNG.choices(UPPER, k=3))}-{RNG.randint(100, 99999)}-{''.join(RNG.choices(UPPER, k=4))}",
    "EAN": lambda: str(RNG.randint(4 * 10**12, 5 * 10**12 - 1)),
    "SHA-256": lambda: f"{RNG.getrandbits(256):064x}",
    "SHA-1": lambda: f"{RNG.getrandbits(160):040x}",
    "tracking": lambda: "1Z" + "".join(RNG.choices(UPPER + string.digits, k=16)),
    "version": lambda: f"v{RNG.randint(0, 20)}.{RNG.randint(0, 99)}.{RNG.randint(0, 999)}",
    "order of a shop": lambda: f"{RNG.randint(100, 999)}-{RNG.randint(10**6, 10**7)}-{RNG.randint(10**6, 10**7)}",
    "MAC": lambda: ":".join(f"{RNG.getrandbits(8):02x}" for _ in range(6)),
    "base64 id": lambda: base64.urlsafe_b64encode(RNG.randbytes(16)).decode().rstrip("="),
    "ULID": lambda: "".join(RNG.choices("0123456789ABCDEFGHJKMNPQRSTVWXYZ", k=26)),
    "JSON": lambda: (
        f'{{"id":{RNG.randint(1, 10**12)},"at":"{moment().isoformat()}","total":{RNG.uniform(0, 999):.2f}}}'
    ),
}


def masked(values: list[bytes]) -> list[bytes]:
    return [value for value, new in zip(values, MASKER.mask_row(values), strict=True) if new != value]


def test_business_values_are_hardly_ever_masked() -> None:
    total = 0
    for name, make in MAKERS.items():
        values = [make().encode() for _ in range(COUNT // len(MAKERS))]
        wrong = masked(values)
        total += len(wrong)
        print(f"{name:20} {len(wrong) / len(values):8.4%} {wrong[:1]}")
    print(f"{'all':20} {total / COUNT:8.4%} of {COUNT}, bar {MAX_RATE:.2%}")
    assert total / COUNT <= MAX_RATE


def test_random_numbers_of_sixteen_digits_are_masked_no_more_often_than_arithmetic_makes_them_cards() -> None:
    values = [str(RNG.randint(10**15, 10**16 - 1)).encode() for _ in range(20_000)]
    rate = len(masked(values)) / len(values)
    print(f"sixteen random digits: {rate:.2%}, bar {MAX_RATE_16_DIGITS:.0%}")
    assert rate <= MAX_RATE_16_DIGITS
