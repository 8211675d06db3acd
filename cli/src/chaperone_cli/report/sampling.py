"""Samples that nobody can choose: who has the nonce, the log's root and the table draws the same ones.

The score of a command is HMAC-SHA-256 with the nonce (its UTF-8) as key over the root of the log (32 bytes) followed by
the command's place in the log (8 bytes, big-endian). Of a population, the n commands with the lowest scores are the
sample, the lowest first. The root is fixed by the checkpoint; a nonce that is given after witnesses have signed it is
fixed by nobody who knows the records.
"""

from __future__ import annotations

import heapq
import hmac
from typing import Final

TABLE: Final = ((25, 0), (250, 25), (2500, 40))  # populations of at most so many: how many of them; 0: all
MOST: Final = 60  # of larger populations
STRATA: Final = {  # what is sampled, by the column `class` of commands
    "allowed": "Commands that policy allowed",
    "approved": "Commands that people released",
    "refused": "Commands that were refused",
}


def size_for(population: int, asked: int) -> int:
    """How many of a population are drawn; `asked` 0 means by the table."""
    if asked:
        return min(asked, population)
    for most, size in TABLE:
        if population <= most:
            return size or population
    return MOST


def score(nonce: str, root: bytes, index: int) -> bytes:
    """What the commands of a population are ordered by."""
    return hmac.digest(nonce.encode(), root + index.to_bytes(8, "big"), "sha256")


class Draw:
    """Takes a population in, one by one, and keeps what may be drawn of it."""

    def __init__(self, nonce: str, root: bytes, asked: int) -> None:
        self.population = 0
        self._nonce, self._root, self._asked = nonce, root, asked
        self._most = asked or MOST
        self._kept: list[tuple[int, int]] = []  # (-score, index), the highest score first

    def add(self, index: int) -> None:
        """One more of the population."""
        self.population += 1
        item = (-int.from_bytes(score(self._nonce, self._root, index)), index)
        if len(self._kept) < self._most:
            heapq.heappush(self._kept, item)
        else:
            heapq.heappushpop(self._kept, item)

    def sample(self) -> list[int]:
        """Places in the log, in the order in which they are drawn."""
        ordered = sorted(self._kept, key=lambda one: -one[0])
        return [index for _, index in ordered[: size_for(self.population, self._asked)]]
