"""How sure a record must be before anything depends on it, where being written is not enough (`Synced`, `Witnessed`).

`Synced`: what a session's client hears, and what goes upstream, waits until the records before it are on disk.
`Witnessed`: besides, what goes upstream waits until a signed checkpoint of the collector's log covers its intent. What
the client hears of an outcome does not wait for the log: the command has run by then.
"""

from __future__ import annotations

from typing import Protocol

from chaperone_sidecar.recording.syncer import Syncer


class Witness(Protocol):
    """Knows what the collector's log has signed."""

    async def reach(self, seq: int) -> None:
        """Return once a checkpoint covers that record.

        Raises:
            Unwitnessed: none does in time.
        """
        ...


class Assurance:
    """What an identity asks of its records.

    Args:
        syncer: of the spool.
        witness: of the log; None where `Synced` is enough.
    """

    def __init__(self, syncer: Syncer, witness: Witness | None = None) -> None:
        self._syncer = syncer
        self._witness = witness

    @property
    def synced_seq(self) -> int:
        """The newest record that is on disk with everything before it."""
        return self._syncer.synced_seq

    async def told(self, seq: int) -> None:
        """Return once a client may hear of that record.

        Raises:
            SpoolFailed: it cannot be kept.
        """
        await self._syncer.reach(seq)

    async def sent(self, seq: int) -> None:
        """Return once the command of that intent may go upstream.

        Raises:
            SpoolFailed: it cannot be kept. Unwitnessed: the log does not say in time that it has it.
        """
        if self._witness is not None:
            await self._witness.reach(seq)
        else:
            await self._syncer.reach(seq)
