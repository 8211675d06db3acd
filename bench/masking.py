"""Masking: megabytes a second through the filters, microseconds a cell, and the same patterns in Python's `re` beside.

    uv run python bench/masking.py [--rounds 5] [--json FILE]

All detectors are on. "batch" is `Masker.may_hit` over 64 KiB, which is all that clean rows cost; "row" is
`Masker.mask_row` over the cells of such a batch, which is what a batch costs that hits. Times are CPU times; medians
of interleaved rounds. `re` gets the alternation of all patterns and a hundredth of the text, once warm.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import json
import random
import re
import resource
import statistics
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import Masker, MaskRule
from chaperone_sidecar.masking.values import TRIGGERS

BATCH_BYTES = 64 * 1024
TOTAL_BYTES = 4 * 1024 * 1024
NOTE = "the order was shipped to our customer and returned because of a broken handle invoice paid late please call"
WORDS = NOTE.split(" ")
SECRETS = [
    "alice@example.com",
    "4111 1111 1111 1111",
    "DE89370400440532013000",
    "123-45-6789",
    "+14155552671",
    "10.1.2.3",
]


def text(rng: random.Random) -> str:
    """A sentence, as in a column of notes."""
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(6, 18)))


def business(rng: random.Random) -> str:
    """What tables are full of: numbers, names, days, prices."""
    moment = datetime.datetime(2025, 1, 1) + datetime.timedelta(seconds=rng.random() * 3e7)
    makers: list[Callable[[], str]] = [
        lambda: str(rng.randint(1, 10**9)),
        lambda: f"ORD-2025-{rng.randint(0, 999999):06d}",
        lambda: f"{rng.uniform(1, 1e4):.2f}",
        lambda: f"{moment}+00",
        lambda: str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        lambda: rng.choice(["t", "f", "open", "paid"]),
        lambda: text(rng),
    ]
    return rng.choice(makers)()


def random_ids(rng: random.Random) -> str:
    """The hardest clean text for automata: nothing repeats."""
    return rng.choice([f"{rng.getrandbits(256):064x}", base64.b64encode(rng.randbytes(18)).decode()])


def batches(make: Callable[[random.Random], str], hits: float) -> list[list[bytes]]:
    """Cells in batches; `hits` of the words are values to mask."""
    rng = random.Random(7)  # noqa: S311 (data, no secret)
    out: list[list[bytes]] = []
    while len(out) * BATCH_BYTES < TOTAL_BYTES:
        cells: list[bytes] = []
        size = 0
        while size < BATCH_BYTES:
            cell = make(rng)
            if hits:
                cell = " ".join(rng.choice(SECRETS) if rng.random() < hits else word for word in cell.split(" "))
            cells.append(cell.encode())
            size += len(cell) + 1
        out.append(cells)
    return out


def timed(work: Callable[[], object]) -> float:
    """CPU seconds."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    masker = Masker([MaskRule("Redact", detectors=tuple(BUILTIN))])
    plain = re.compile(b"|".join(b"(?:%s)" % part.pattern for part in (*BUILTIN.values(), *TRIGGERS)))
    kinds = {
        "text": (text, 0.0), "text_2_percent": (text, 0.02), "business": (business, 0.0),
        "business_2_percent": (business, 0.02), "random_ids": (random_ids, 0.0),
    }  # fmt: skip
    results: dict[str, dict[str, float]] = {}
    for name, (make, hits) in kinds.items():
        groups = batches(make, hits)
        joined = [b"\x00".join(cells) for cells in groups]
        size = sum(map(len, joined))
        count = sum(map(len, groups))
        sample = joined[0][: len(joined[0]) // 2]
        scores: dict[str, list[float]] = {"batch": [], "row": [], "re": []}
        [masker.may_hit(part) for part in joined]
        for _ in range(options.rounds):
            scores["batch"].append(timed(lambda joined=joined: [masker.may_hit(part) for part in joined]))
            scores["row"].append(timed(lambda groups=groups: [masker.mask_row(cells) for cells in groups]))
            scores["re"].append(timed(lambda sample=sample: sum(1 for _ in plain.finditer(sample))))
        median = {key: statistics.median(value) for key, value in scores.items()}
        clean = sum(not masker.may_hit(part) for part in joined) / len(joined)
        slow = len(sample) / median["re"] / 1e6
        results[name] = {
            "batch_mb_s": size / median["batch"] / 1e6, "row_mb_s": size / median["row"] / 1e6,
            "us_per_cell": median["row"] / count * 1e6, "re_mb_s": slow,
            "batch_to_re": size / median["batch"] / 1e6 / slow, "row_to_re": size / median["row"] / 1e6 / slow,
            "clean_batches": clean,
        }  # fmt: skip
        print(name.ljust(20), "  ".join(f"{key} {value:8.2f}" for key, value in results[name].items()))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak RSS of this process, text included: {rss:.0f} MiB")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
