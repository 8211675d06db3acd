"""Masking: megabytes a second through the filters, microseconds a cell, and the same patterns in Python's `re` beside.

    uv run python bench/masking.py [--rounds 5] [--json FILE]

All detectors are on. "clean" is `Masker.may_hit` over batches of 64 KiB, which is all that clean rows cost (given only
where batches are clean: it stops at the first hit). "find" tells which cells of a batch hit, "row" masks them
(`Masker.mask_row`). "one" and "set" are a single alternation and a single `re2.Set` of all patterns, "re" is Python's
engine over half a batch: what was not chosen. Times are CPU times; medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import base64
import bisect
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

import re2

from chaperone_sidecar.masking.detectors import BUILTIN, Detector, Trigger
from chaperone_sidecar.masking.engine import Program, Scanner, options
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import MaskRule
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


def search_all(program: Callable[[bytes, int], tuple[int, int] | None], part: bytes, cells: list[bytes]) -> None:
    """Search on from the next cell after each hit, as `hit_cells` does."""
    starts = [0]
    for cell in cells:
        starts.append(starts[-1] + len(cell) + 1)
    found = program(part, 0)
    while found is not None:
        index = bisect.bisect_right(starts, found[0])
        found = program(part, starts[index]) if index < len(cells) else None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    masker = Masker([MaskRule("Redact", detectors=tuple(BUILTIN))])
    scanner = Scanner(list(BUILTIN.values()), TRIGGERS)
    parts: list[Detector | Trigger] = [*BUILTIN.values(), *TRIGGERS]
    patterns = [part.pattern for part in parts]
    alternation = b"|".join(b"(?:%s)" % pattern for pattern in patterns)
    plain, one, together = re.compile(alternation), Program(alternation), re2.Set.SearchSet(options())
    for pattern in patterns:
        together.Add(pattern)
    together.Compile()

    def ways(groups: list[list[bytes]], joined: list[bytes], few: int) -> dict[str, tuple[int, Callable[[], object]]]:
        """What is timed, by name: over how many bytes, and what it does; only over a `few` batches what is slow."""
        some, half = joined[:few], joined[0][: len(joined[0]) // 2]
        part_bytes = sum(map(len, some))

        def search_some() -> None:
            for part, cells in zip(some, groups[:few], strict=True):
                search_all(one.search, part, cells)

        return {
            "clean": (sum(map(len, joined)), lambda: [masker.may_hit(part) for part in joined]),
            "find": (sum(map(len, joined)), lambda: [scanner.hit_cells(cells) for cells in groups]),
            "row": (sum(map(len, joined)), lambda: [masker.mask_row(cells) for cells in groups]),
            "one": (part_bytes, search_some),
            "set": (part_bytes, lambda: [together.Match(part) for part in some]),
            "re": (len(half), lambda: sum(1 for _ in plain.finditer(half))),
        }

    kinds = {
        "text": (text, 0.0),
        "text, 2 % hits": (text, 0.02),
        "business": (business, 0.0),
        "business, 2 % hits": (business, 0.02),
        "random ids": (random_ids, 0.0),
    }
    results: dict[str, dict[str, float]] = {}
    for name, (make, hits) in kinds.items():
        groups = batches(make, hits)
        joined = [b"\x00".join(cells) for cells in groups]
        size, count = sum(map(len, joined)), sum(map(len, groups))
        works = ways(groups, joined, 1 if make is random_ids else 8)
        scores: dict[str, list[float]] = {key: [] for key in works}
        for _ in range(arguments.rounds):
            for key, (amount, work) in works.items():
                scores[key].append(amount / timed(work) / 1e6)
        median = {key: statistics.median(values) for key, values in scores.items()}
        if any(masker.may_hit(part) for part in joined):
            del median["clean"]
        results[name] = {
            **{f"{key}_mb_s": value for key, value in median.items()},
            **{
                f"{key}_to_re": value / median["re"] for key, value in median.items() if key in ("clean", "find", "row")
            },
            "us_per_cell": size / median["row"] / count,
        }
        print(name.ljust(20), "  ".join(f"{key} {value:.2f}" for key, value in results[name].items()))
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak RSS of this process, text included: {rss:.0f} MiB")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
