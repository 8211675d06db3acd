"""Fuzzing: `python tests/fuzz/fuzz.py TARGET SECONDS [SEED]`, or `make fuzz MINUTES=60` for all targets, at any seed.

Seeds are mutated and given to a target; whatever it raises that its promise does not name is a fault. The input under
test lies in a mapped file, so that one that takes the interpreter down (libpg_query and RE2 are C) is known afterwards.
Exit status 1 with the input, its seed and the traceback when something was found.
"""

from __future__ import annotations

import math
import mmap
import random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "support")]

MAX_INPUT = 128 * 1024
INTERESTING = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\4", b"'", b'"', b"$$", b"\\", b"/*",
               b"--",
               b";", b"(", b")", b"\xe2\x80\x8b", b"\xef\xbc\x91", b"\n", b"%40", b"@", b"-"]  # fmt: skip

type Target = Callable[[bytes, random.Random], None]


def mutate(data: bytes, seeds: Sequence[bytes], rng: random.Random) -> bytes:
    """Some bytes that are nearly `data`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place = rng.randrange(len(out) + 1)
        match rng.randrange(8):
            case 0 if out:
                out[place % len(out)] ^= 1 << rng.randrange(8)
            case 1:
                out[place:place] = rng.choice(INTERESTING)
            case 2:
                del out[place : place + rng.choice((1, 2, 4, 32))]
            case 3:
                other = rng.choice(seeds)
                start = rng.randrange(len(other) + 1)
                out[place:place] = other[start : start + rng.choice((4, 16, 64, 1024))]
            case 4:
                piece = bytes(out[place : place + rng.choice((1, 4, 16))])
                out[place:place] = piece * rng.choice((2, 8, 64))
            case 5:
                out[place:place] = rng.randbytes(rng.choice((1, 4, 16)))
            case 6:
                out[place : place + 4] = rng.randrange(1 << 16).to_bytes(4, "big")
            case _:
                out += rng.choice(seeds)
    return bytes(out[:MAX_INPUT])


def fuzz(target: Target, seeds: Sequence[bytes], seconds: float, seed: int, last: Path, most: float = math.inf) -> int:
    """Run until the time is over or `most` inputs were tried; returns how many were.

    Raises:
        AssertionError: with the input, when the target did what it promises not to do.
    """
    last.write_bytes(bytes(MAX_INPUT + 4))
    tried, until = 0, time.monotonic() + seconds
    with last.open("r+b") as file, mmap.mmap(file.fileno(), 0) as window:
        while tried < most and time.monotonic() < until:
            rng = random.Random(f"{seed} {tried}")  # noqa: S311 - it has to be repeatable
            data = rng.choice(seeds) if tried < len(seeds) else mutate(rng.choice(seeds), seeds, rng)
            window[: 4 + len(data)] = len(data).to_bytes(4, "big") + data
            try:
                target(data, rng)
            except Exception as error:
                raise AssertionError(f"seed {seed}, input {tried}: {data!r}") from error
            tried += 1
    return tried


def last_input(last: Path) -> bytes:
    """What was under test when the process ended."""
    raw = last.read_bytes()
    return raw[4 : 4 + int.from_bytes(raw[:4], "big")]


def main() -> int:
    """Entry point."""
    from targets import TARGETS

    name, seconds = sys.argv[1], float(sys.argv[2])
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else time.time_ns()
    make, last = TARGETS[name], Path(sys.argv[4] if len(sys.argv) > 4 else f"/tmp/fuzz-{name}.last")
    most = int(sys.argv[5]) if len(sys.argv) > 5 else math.inf
    target, seeds = make()
    began = time.monotonic()
    try:
        tried = fuzz(target, seeds, seconds, seed, last, most)
    except AssertionError as error:
        traceback.print_exception(error)
        return 1
    print(f"{name}: {tried} inputs in {time.monotonic() - began:.0f} s, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
