"""A file that a client has open, and what went through it."""

from __future__ import annotations

import os
import sys

import asyncssh

from chaperone_sidecar.effects import Intent
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.ssh.transfer import Transfer


class OpenFile:
    """An open file.

    Args:
        upstream: the target's.
        path: whole.
        intent: of its opening.
    """

    def __init__(self, upstream: asyncssh.SFTPClientFile, path: str, intent: Intent) -> None:
        self.upstream = upstream
        self.path = path
        self.intent = intent
        self.read = Transfer()
        self.written = Transfer()
        self.reached: Reached | None = None  # the limit that cut it: nothing goes through it afterwards

    def seek(self, offset: int, whence: int) -> int:
        """Where data, or a hole, begins, for clients that ask (`ranges@asyncssh.com`): all of it is data to us."""
        return offset if whence == os.SEEK_DATA else sys.maxsize


def open_file(file_obj: object) -> OpenFile:
    """What the library gives back.

    Raises:
        asyncssh.SFTPInvalidHandle: it is no open file.
    """
    if not isinstance(file_obj, OpenFile):
        raise asyncssh.SFTPInvalidHandle("chaperone: no such handle.")
    return file_obj
