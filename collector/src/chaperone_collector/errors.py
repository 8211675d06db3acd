"""Errors of the collector.

CollectorError
├── StoreUnusable     the database cannot be opened, is of another version, or its disk failed: the process ends
├── StoreBusy         the write was not made and may be tried again (queue full, disk full)
├── ChainBroken       a batch does not continue its stream: the gateway is told what is stored, the batch is quarantined
├── KeyDestroyed      what was to be encrypted was erased
├── ArchiveFailed     the bucket did not do what was asked; it may be asked again
├── RestoreRefused    an archive is not what a log of this kind leaves behind
├── MigrationRefused  a log cannot be moved from one database to another
└── Refused           a request that is answered with a status and no effect
"""

from __future__ import annotations


class CollectorError(Exception):
    """Base of all errors; the text is one sentence for people."""


class StoreUnusable(CollectorError):
    """The store must not be used any more."""


class StoreBusy(CollectorError):
    """Nothing was written; the sender keeps its data and tries again."""


class KeyDestroyed(CollectorError):
    """The key of an identity's day is gone."""


class ArchiveFailed(CollectorError):
    """The bucket refused, could not be reached, or holds something else."""


class RestoreRefused(CollectorError):
    """What is in the archive cannot be believed, or the directory is not empty."""


class MigrationRefused(CollectorError):
    """The target is not empty, or what came there is not what was in the source."""


class ChainBroken(CollectorError):
    """A batch that does not continue the stream it names.

    Args:
        reason: short word for metrics (gap, fork, link, head, sequence, open, closed).
        what: one sentence.
    """

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


class Refused(CollectorError):
    """A request that cannot be granted.

    Args:
        status: HTTP status.
        title: short phrase.
        detail: what to do next.
    """

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
