"""What one session uses: bytes, the rows of its commands, and how long the present one runs.

Bytes are those of statements, parameters, rows and COPY data, as the protocol has them, in both directions. What was
refused or cut is not counted, because it was not moved.
"""

from __future__ import annotations

from chaperone_sidecar.command import Command, Effect
from chaperone_sidecar.config import Limit
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.limits.reached import Reached


class Meter:
    """The meter of one session.

    Args:
        quota: what the target's sessions have in common, limits included.
    """

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self.bytes = 0
        self._is_entered = False
        self._running: object = None
        self._since_s = 0.0

    @property
    def is_timed(self) -> bool:
        """Whether it matters how long a command runs."""
        return self._quota.limits.command_duration_ms is not None

    @property
    def command_duration(self) -> Limit | None:
        """How long a command may run, in milliseconds."""
        return self._quota.limits.command_duration_ms

    @property
    def counts_rows(self) -> bool:
        """Whether it matters how many rows a command has."""
        return self._quota.limits.rows_per_command is not None

    def enter(self) -> Reached | None:
        """Count the session as a connection, or say that there are enough of them."""
        reached = self._quota.enter()
        self._is_entered = reached is None
        return reached

    def leave(self) -> None:
        """The session is over."""
        if self._is_entered:
            self._is_entered = False
            self._quota.leave()

    def admit(self, command: Command) -> Reached | None:
        """Count a command that policy allows, or say why it must not run now.

        What only begins or ends transactions always may: a transaction that cannot be ended holds its locks.
        """
        quota = self._quota
        if not quota.is_counting:
            return None
        accesses = command.facts.accesses
        if accesses[0].effect is Effect.TRANSACTION and all(one.effect is Effect.TRANSACTION for one in accesses):
            return None
        size_bytes = len(command.text) + len(command.params)
        if self.bytes + size_bytes > quota.max_bytes:
            return self._bytes_reached()
        reached = quota.run()
        if reached is None:
            self.bytes += size_bytes
        return reached

    def take(self, rows: int, size_bytes: int, ahead_bytes: int = 0) -> Reached | None:
        """Count a run of rows or COPY data, or say that it must not be passed on.

        Args:
            rows: of the command so far, with this run.
            size_bytes: of this run.
            ahead_bytes: still to come of its last row, which cannot be stopped once it has begun.
        """
        quota = self._quota
        if rows > quota.max_rows:
            most = quota.limits.rows_per_command
            return Reached("rowsPerCommand", most) if most is not None else None
        if self.bytes + size_bytes + ahead_bytes > quota.max_bytes:
            return self._bytes_reached()
        self.bytes += size_bytes
        return None

    def watch(self, running: object) -> Reached | None:
        """Say that the present command has run too long; called often, with the same object for the same command."""
        quota = self._quota
        most = quota.limits.command_duration_ms
        if most is None or running is None:
            self._running = None
            return None
        now_s = quota.now_s()
        if running is not self._running:
            self._running, self._since_s = running, now_s
        return Reached("commandDuration", most) if (now_s - self._since_s) * 1000 >= most.max else None

    def _bytes_reached(self) -> Reached | None:
        most = self._quota.limits.bytes_per_session
        return Reached("bytesPerSession", most) if most is not None else None
