"""What the targets are made of: bytes in pieces, values, masks, and bounds on work."""

from __future__ import annotations

import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import Classified, ColumnClass, MaskRule

type Target = Callable[[bytes, random.Random], None]

CORPORA = Path(__file__).parents[1] / "corpora"
CANARY = b"Quorbly"
PERSON = ColumnClass("person", "Redact")
CALLS_AT_FIRST, CALLS_A_BYTE = 20_000, 60


def texts() -> list[bytes]:
    """All statements of the corpora."""
    found = []
    for path in sorted(CORPORA.glob("postgresql_*.jsonl")):
        for line in path.read_text().splitlines():
            sql = json.loads(line).get("sql")
            if isinstance(sql, str):
                found.append(sql.encode())
    return found


def cut(data: bytes, rng: random.Random) -> list[bytes]:
    """The bytes in pieces."""
    places = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def pieces(data: bytes, count: int, rng: random.Random) -> list[bytes | None]:
    """As many values as are asked for, some of them NULL; the second holds the canary."""
    places = sorted(rng.randrange(len(data) + 1) for _ in range(count - 1))
    found = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return [
        CANARY + value if index == 1 else None if not value and rng.random() < 0.5 else value
        for index, value in enumerate(found)
    ]


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """What is called inside is not more than a line over `size` allows."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)
    assert calls <= CALLS_AT_FIRST + CALLS_A_BYTE * size, f"{calls} calls for {size} bytes"


def masker() -> Masker:
    """Detectors, and a class for columns."""
    return Masker([MaskRule("Redact", detectors=("PaymentCard", "Email"))], [Classified(("public.c.email",), "person")])


def values() -> list[bytes]:
    """Values of some types in both formats."""
    card = 4716892311450065
    return [
        b"jane.roe@example.org", b"%d" % card, struct.pack(">q", card), struct.pack(">d", card),
        struct.pack(">hhHh4h", 4, 3, 0, 0, 4716, 8923, 1145, 65), b"\x01{}", b"{1,2}", b"(a,b)", b"\\x6a61",
        b'"a"=>"b"',
        struct.pack(">iiIiii", 1, 0, 25, 1, 1, 3) + b"abc", struct.pack(">iIi", 1, 25, 3) + b"abc",
        struct.pack(">Bi", 2, 8) + struct.pack(">q", card) + struct.pack(">i", 8) + bytes(8),
        struct.pack(">iii", 1, 9, 0), struct.pack(">i", 1) + b"jane\0\0\0",
        struct.pack(">iBBB", 1, 1, 0, 0) + b"jane\0",
        struct.pack(">ii", 1, 1) + b"a" + struct.pack(">i", -1), struct.pack(">i", 72) + b"jane@r.eu",
        b"4,716,892,311,450,065.00", b"0110101001100001" * 9, b"j\\000a\\000", b"<a b=\"jane@example.org\"/>",
    ]  # fmt: skip
