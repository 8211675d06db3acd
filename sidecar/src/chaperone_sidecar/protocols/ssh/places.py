"""Where paths of SFTP lead at the target: looked up, so that policy judges the file and not a link to it."""

from __future__ import annotations

import asyncio
import posixpath
from collections.abc import Awaitable
from typing import Final

import asyncssh

ANSWER_S: Final = 120.0  # for the target to do one operation; disks are slow, but not that slow


class NoAnswer(asyncssh.SFTPFailure):
    """The target says nothing: what is there is not known, not even that nothing is."""


class Places:
    """The files of the target, as one channel's client names them.

    Args:
        sftp: of the target.
        home: where paths that are not whole begin.
    """

    def __init__(self, sftp: asyncssh.SFTPClient, home: str) -> None:
        self._sftp = sftp
        self.home = home

    async def found(self, path: bytes) -> str:
        """The file that a path leads to; where nothing is there, the path itself, made whole.

        Raises:
            asyncssh.SFTPFailure: it is a link that leads where nothing is, so that writing would make that.
        """
        try:
            return utf8(await answered(self._sftp.realpath(self._whole(path).encode())))
        except NoAnswer:
            raise
        except asyncssh.SFTPError:
            name = await self.named(path)
        if await self._is_link(name):
            raise asyncssh.SFTPFailure("chaperone: where this link leads cannot be told.")
        return name

    async def named(self, path: bytes) -> str:
        """The name itself, in the directory that its path leads to."""
        whole = posixpath.normpath(self._whole(path)) if b".." not in path.split(b"/")[-1:] else self._whole(path)
        folder, name = posixpath.split(whole)
        if name in ("", ".", ".."):
            return await self.found(path)
        try:
            folder = utf8(await answered(self._sftp.realpath(folder.encode())))
        except NoAnswer:
            raise
        except asyncssh.SFTPError:
            if ".." in folder.split("/"):
                raise
        return posixpath.join(folder, name)

    async def exists(self, path: str) -> bool:
        """Whether something is there, as far as the target says it."""
        try:
            await answered(self._sftp.lstat(path.encode()))
        except asyncssh.SFTPNoSuchFile:
            return False
        except NoAnswer:
            raise
        except asyncssh.SFTPError:
            return True
        return True

    async def _is_link(self, path: str) -> bool:
        try:
            return (await answered(self._sftp.lstat(path.encode()))).type == asyncssh.FILEXFER_TYPE_SYMLINK
        except NoAnswer:
            raise
        except asyncssh.SFTPError:  # it is not there, or not for us: then nothing can be done to it, either
            return False

    def _whole(self, path: bytes) -> str:
        found = utf8(path)
        return found if found.startswith("/") else posixpath.join(self.home, found)


async def answered[T](work: Awaitable[T]) -> T:
    """What the target answers to one operation.

    Raises:
        NoAnswer: nothing, for as long as it may take.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            return await work
    except TimeoutError as error:
        raise NoAnswer(f"chaperone: the target did not answer within {ANSWER_S:.0f} s.") from error


def utf8(path: str | bytes) -> str:
    """A path as text.

    Raises:
        asyncssh.SFTPInvalidFilename: it is no UTF-8.
    """
    if isinstance(path, str):
        return path
    try:
        return path.decode()
    except UnicodeDecodeError as error:
        raise asyncssh.SFTPInvalidFilename("chaperone: a path has to be UTF-8.") from error
