"""How much of what brings nothing a peer of HTTP/2 may send: resets, pings, settings, windows, empty frames.

Each such frame is cheap for who sends it and not for who hears it (CVE-2023-44487, CVE-2019-9512, -9514, -9515, -9518),
so each costs something, and what is exchanged in earnest, or time, gives it back.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 1000.0  # a hundred requests taken back at once
PER_S: Final = 50.0
RESET: Final = 10.0
SETTINGS: Final = 5.0
FRAME: Final = 1.0  # any other that brings nothing
ANSWER: Final = 10.0  # earned by an answer that was whole
PER_KIB: Final = 2.0  # earned by bodies, either way


class Patience:
    """See the module.

    Args:
        now_s: the time, of any clock that only goes on.
    """

    def __init__(self, now_s: float) -> None:
        self._left = MOST
        self._at_s = now_s

    def earn(self, amount: float) -> None:
        """Something was exchanged."""
        self._left = min(MOST, self._left + amount)

    def lasts(self, cost: float, now_s: float) -> bool:
        """Whether the peer may go on after what costs so much."""
        self._left = min(MOST, self._left + (now_s - self._at_s) * PER_S) - cost
        self._at_s = now_s
        return self._left > 0
