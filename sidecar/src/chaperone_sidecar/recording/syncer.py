"""Syncing the spool to its disk, for identities whose records have to survive the death of the node.

Group commit without a timer: a sync begins as soon as somebody waits and none runs; whatever arrives meanwhile is the
next group. It runs in a thread of its own, on descriptors of its own, so the loop and the spool go on.

Sad path: after a failed sync the kernel may have dropped the pages, and a second one would succeed all the same. So the
first failure is final: the spool takes no record any more, and commands are refused until the gateway starts again.
"""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from chaperone_sidecar.errors import SpoolFailed
from chaperone_sidecar.recording.spool import Spool

logger = logging.getLogger(__name__)


class Syncer:
    """Syncs one spool; `synced_seq` is the newest record that is on disk with everything before it."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._thread = ThreadPoolExecutor(1, "spool-sync")
        self._running: asyncio.Task[None] | None = None
        self.synced_seq = -1

    async def reach(self, seq: int) -> None:
        """Return once that record is on disk.

        Raises:
            SpoolFailed: a sync failed, this one or one before it.
        """
        while self.synced_seq < seq:
            if self._spool.failure:
                raise SpoolFailed(self._spool.failure)
            if self._running is None:
                self._running = asyncio.get_running_loop().create_task(self._sync())
            await asyncio.shield(self._running)

    async def _sync(self) -> None:
        seq = self._spool.next_seq - 1
        segments = [(one, one.used) for one in self._spool.unsynced()]
        folders = self._spool.new_names()
        try:
            files = [one.duplicate() for one, _ in segments]
            await asyncio.get_running_loop().run_in_executor(self._thread, _sync_all, files, folders)
        except OSError as error:
            logger.critical("the spool cannot be synced: %s", error.strerror)
            self._spool.fail(f"The disk of the gateway's spool failed: {error.strerror}.")
        else:
            for segment, used in segments:
                self._spool.settle(segment, used)
            self.synced_seq = seq
        finally:
            self._running = None


def _sync_all(files: list[int], folders: list[Path]) -> None:
    """Sync and close the files, and then the folders that got new names.

    Raises:
        OSError: one of them failed.
    """
    try:
        for descriptor in files:
            os.fdatasync(descriptor)
    finally:
        for descriptor in files:
            os.close(descriptor)
    for folder in folders:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
