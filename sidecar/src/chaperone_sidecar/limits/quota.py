"""What the sessions of one pod use of one target, all together: connections and commands a minute.

The limits in force are kept here too, and replaced under open sessions when the policy changes: a session asks anew for
each command and each run of rows, and so follows. A lower number of connections closes none; it lets no other in until
there are fewer.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from chaperone_sidecar.config import Limit, Limits
from chaperone_sidecar.limits.reached import Reached

MINUTE_S: Final = 60.0
NONE: Final = Limits()
UNLIMITED: Final = 1 << 63  # more than can be counted; so that "no limit" is the same comparison


class Quota:
    """Limits of one target, and what is used of them in this pod.

    Args:
        limits: those in force; replaced by `use`.
        now_s: a monotonic clock.
    """

    def __init__(self, limits: Limits = NONE, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self.connections = 0
        self._recent: deque[float] = deque()
        self.use(limits)

    def use(self, limits: Limits) -> None:
        """From now on these limits are in force, for open sessions too."""
        self.limits = limits
        self.max_rows = _most(limits.rows_per_command)
        self.max_bytes = _most(limits.bytes_per_session)
        self.is_counting = limits.bytes_per_session is not None or limits.commands_per_minute is not None
        # As many moments as commands may run in a minute: the oldest of them says whether another may. Exact at any
        # minute, where a bucket would let twice as many through in the first one.
        most = limits.commands_per_minute
        self._recent = deque(self._recent, most.max if most is not None else 0)

    def enter(self) -> Reached | None:
        """Count another connection, or say that there are enough; `leave` ends a counted one."""
        most = self.limits.connections
        if most is not None and self.connections >= most.max:
            return Reached("connections", most)
        self.connections += 1
        return None

    def leave(self) -> None:
        """A connection that was counted is gone."""
        self.connections -= 1

    def run(self) -> Reached | None:
        """Count another command, or say that there were enough of them within a minute; that one is not counted."""
        most = self.limits.commands_per_minute
        if most is None:
            return None
        now_s, recent = self.now_s(), self._recent
        if len(recent) == most.max and now_s - recent[0] < MINUTE_S:
            return Reached("commandsPerMinute", most, recent[0] + MINUTE_S - now_s)
        recent.append(now_s)  # the oldest goes when there are enough of them
        return None


def _most(limit: Limit | None) -> int:
    return UNLIMITED if limit is None else limit.max
