"""SFTP and the old scp, operation by operation: each is a command of its own, decided before the target hears of it.

Paths are looked up at the target first, so that policy judges the file and not a link to it; the operation then goes to
what was found. An operation on the link itself (remove, rename, readlink) has its directory looked up. What a new
version of the library may add is refused: every method of its server is overridden here, which a test holds.

Spec: draft-ietf-secsh-filexfer-02 (version 3), OpenSSH's PROTOCOL for its extensions.
"""

from __future__ import annotations

import posixpath
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import asyncssh

from chaperone_sidecar.command import Command, Effect, unknown
from chaperone_sidecar.effects import Conclude, Intent
from chaperone_sidecar.errors import ChaperoneError, CommandRefused
from chaperone_sidecar.protocols.ssh import answers
from chaperone_sidecar.protocols.ssh.attributes import Effects, setting, special
from chaperone_sidecar.protocols.ssh.classify import touched
from chaperone_sidecar.protocols.ssh.openfile import OpenFile, open_file
from chaperone_sidecar.protocols.ssh.places import Places, answered, utf8
from chaperone_sidecar.protocols.ssh.shell import Unclear
from chaperone_sidecar.protocols.ssh.shown import listed

if TYPE_CHECKING:
    from chaperone_sidecar.protocols.ssh.conversation import Conversation

MAX_OPEN: Final = 64  # files of one channel, and as many directories
MAX_READ_BYTES: Final = asyncssh.sftp.MAX_SFTP_READ_LEN  # that `limits@openssh.com` tells; who asks for more gets less


class Files(asyncssh.SFTPServer):
    """The server's side of one channel.

    Args:
        channel: the client's.
        conversation: the connection it belongs to.
    """

    def __init__(self, channel: Any, conversation: Conversation) -> None:  # noqa: ANN401 - the library's
        super().__init__(channel)
        self._conversation = conversation
        self._upstream: asyncssh.SFTPClient | None = None
        self._places: Places
        self._open = 0
        self._listings: weakref.WeakSet[AsyncIterator[asyncssh.SFTPName]] = weakref.WeakSet()

    # --- reading -----------------------------------------------------------------------------------------------------

    async def realpath(self, path: bytes) -> bytes:
        """The whole path; the home's is part of logging in."""
        if path in (b"", b"."):
            await self._sftp()
            return self._places.home.encode()
        found = await self._found(path)
        return await self._do("realpath", found, ((Effect.READ, found),), self._itself(found.encode()))

    async def stat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Attributes of what is there."""
        found = await self._found(path)
        sftp = await self._sftp()
        return await self._do("stat", found, ((Effect.READ, found),), lambda: sftp.stat(found.encode()))

    async def lstat(self, path: bytes) -> asyncssh.SFTPAttrs:
        """Attributes of the link itself."""
        found = await self._named(path)
        sftp = await self._sftp()
        return await self._do("lstat", found, ((Effect.READ, found),), lambda: sftp.lstat(found.encode()))

    async def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        """The file system that a path lies on."""
        found = await self._found(path)
        sftp = await self._sftp()
        return await self._do("statvfs", found, ((Effect.READ, found),), lambda: sftp.statvfs(found.encode()))

    async def readlink(self, path: bytes) -> bytes:
        """Where a link leads."""
        found = await self._named(path)
        sftp = await self._sftp()
        target = await self._do("readlink", found, ((Effect.READ, found),), lambda: sftp.readlink(found.encode()))
        return self._conversation.mask_bytes(target)

    def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        """The names in a directory, which is decided when the first of them is asked for."""
        if len(self._listings) >= MAX_OPEN:
            raise asyncssh.SFTPFailure(f"chaperone: {MAX_OPEN} directories are open on this channel; close some.")
        names = self._names(path)
        self._listings.add(names)
        return names

    async def _names(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        found = await self._found(path)
        sftp = await self._sftp()
        intent = await self._decided(self._command("readdir", found, ((Effect.READ, found),)))
        ended = Conclude(intent, "aborted")  # unless the client asks for all of them
        try:
            names = sftp.scandir(found.encode())
            while (name := await answered(anext(names, None))) is not None:
                yield listed(name, self._conversation.mask_bytes)
            ended = Conclude(intent, "ok")
        except (asyncssh.SFTPError, OSError) as error:
            ended = Conclude(intent, "error", answers.sftp_code(error))
            raise self._told(error) from error
        finally:
            await self._guarded(self._conversation.conclude(ended))

    # --- changing ----------------------------------------------------------------------------------------------------

    async def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Set attributes of what is there."""
        found = await self._found(path)
        sftp = await self._sftp()
        await self._do("setstat", found, setting(found, attrs), lambda: sftp.setstat(found.encode(), attrs))

    async def lsetstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Set attributes of the link itself."""
        found = await self._named(path)
        sftp = await self._sftp()
        await self._do(
            "lsetstat", found, setting(found, attrs),
            lambda: sftp.setstat(found.encode(), attrs, follow_symlinks=False),
        )  # fmt: skip

    async def remove(self, path: bytes) -> None:
        """Remove a file."""
        found = await self._named(path)
        sftp = await self._sftp()
        await self._do("remove", found, ((Effect.DELETE, found),), lambda: sftp.remove(found.encode()))

    async def rmdir(self, path: bytes) -> None:
        """Remove an empty directory."""
        found = await self._named(path)
        sftp = await self._sftp()
        await self._do("rmdir", found, ((Effect.DELETE, found),), lambda: sftp.rmdir(found.encode()))

    async def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        """Make a directory."""
        found = await self._named(path)
        sftp = await self._sftp()
        effects = ((Effect.CREATE, found), *special(found, attrs))
        await self._do("mkdir", found, effects, lambda: sftp.mkdir(found.encode(), attrs))

    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename, where nothing is replaced."""
        old, new = await self._named(oldpath), await self._named(newpath)
        sftp = await self._sftp()
        await self._do(
            "rename", f"{old} {new}", ((Effect.DELETE, old), (Effect.CREATE, new)),
            lambda: sftp.rename(old.encode(), new.encode()),
        )  # fmt: skip

    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        """Rename over what may be there."""
        old, new = await self._named(oldpath), await self._named(newpath)
        sftp = await self._sftp()
        await self._do(
            "posix-rename", f"{old} {new}", ((Effect.DELETE, old), (Effect.MODIFY, new)),
            lambda: sftp.posix_rename(old.encode(), new.encode()),
        )  # fmt: skip

    async def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        """Make a link: from then on one name leads to another file, so it takes more than leave to write there."""
        new = await self._named(newpath)
        sftp = await self._sftp()
        old = oldpath.decode("utf-8", "replace")
        whole = old if old.startswith("/") else posixpath.join(posixpath.dirname(new), old)
        await self._do(
            "symlink", f"{old} {new}", ((Effect.PRIVILEGE, whole), (Effect.PRIVILEGE, new)),
            lambda: sftp.symlink(oldpath, new.encode()),
        )  # fmt: skip

    async def link(self, oldpath: bytes, newpath: bytes) -> None:
        """Make a second name of a file; as `symlink`."""
        old, new = await self._found(oldpath), await self._named(newpath)
        sftp = await self._sftp()
        await self._do(
            "link", f"{old} {new}", ((Effect.PRIVILEGE, old), (Effect.PRIVILEGE, new)),
            lambda: sftp.link(old.encode(), new.encode()),
        )  # fmt: skip

    # --- open files --------------------------------------------------------------------------------------------------

    async def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> OpenFile:
        """Open a file; its outcome is recorded when it is closed, with size and digest of what went through."""
        if self._open >= MAX_OPEN:
            raise asyncssh.SFTPFailure(f"chaperone: {MAX_OPEN} files are open on this channel; close some of them.")
        found = await self._found(path)
        sftp = await self._sftp()
        is_writing = bool(pflags & (asyncssh.FXF_WRITE | asyncssh.FXF_APPEND | asyncssh.FXF_CREAT | asyncssh.FXF_TRUNC))
        effects: list[tuple[Effect, str]] = []
        if pflags & asyncssh.FXF_READ or not is_writing:
            effects.append((Effect.READ, found))
        if is_writing:
            is_new = bool(pflags & asyncssh.FXF_CREAT) and not await self._places.exists(found)
            effects.append((Effect.CREATE if is_new else Effect.MODIFY, found))
            effects += special(found, attrs)
            if is_new:  # and it has to be new still when it is opened
                pflags |= asyncssh.FXF_EXCL
        how = "".join(letter for letter, bit in (("r", asyncssh.FXF_READ), ("w", asyncssh.FXF_WRITE)) if pflags & bit)
        command = self._command("open", f"{how} {found}", tuple(effects))
        if effects[0][0] is Effect.READ and self._conversation.masks_all:
            why = "the content of a file cannot be masked, and the policy masks values at this target."
            await self._guarded(self._conversation.refuse(command, answers.unmaskable(why)))
        intent = await self._decided(command)
        try:
            upstream = await answered(sftp.open(found.encode(), pflags, attrs, encoding=None))
        except asyncssh.SFTPError as error:
            await self._ended(intent, error)
            raise self._told(error) from error
        self._open += 1
        return OpenFile(upstream, found, intent)

    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        """A piece of an open file."""
        file = open_file(file_obj)
        if self.channel.is_closing():  # who asked for a copy without an end is gone
            raise asyncssh.SFTPConnectionLost("chaperone: the channel is closed.")
        self._counts(file, 0)
        data: bytes = await self._passing(file.upstream.read(min(size, MAX_READ_BYTES), offset))
        self._counts(file, len(data))
        file.read.take(offset, data)
        self._conversation.count_out(len(data))
        return data

    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        """Write a piece."""
        file = open_file(file_obj)
        self._counts(file, len(data))
        await self._passing(file.upstream.write(data, offset))
        file.written.take(offset, data)
        self._conversation.count_in(len(data))
        return len(data)

    async def fstat(self, file_obj: object) -> asyncssh.SFTPAttrs:
        """Attributes of an open file, which was decided on when it was opened."""
        found: asyncssh.SFTPAttrs = await self._passing(open_file(file_obj).upstream.stat())
        return found

    async def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        """Set attributes of an open file."""
        file = open_file(file_obj)
        await self._do("fsetstat", file.path, setting(file.path, attrs), lambda: file.upstream.setstat(attrs))

    async def fstatvfs(self, file_obj: object) -> asyncssh.SFTPVFSAttrs:
        """The file system that an open file lies on."""
        found: asyncssh.SFTPVFSAttrs = await self._passing(open_file(file_obj).upstream.statvfs())
        return found

    async def fsync(self, file_obj: object) -> None:
        """Have an open file written through."""
        await self._passing(open_file(file_obj).upstream.fsync())

    async def close(self, file_obj: object) -> None:
        """Close a file, once its outcome is recorded."""
        file = open_file(file_obj)
        self._open -= 1
        try:
            await answered(file.upstream.close())
        except (asyncssh.SFTPError, OSError) as error:
            await self._ended(file.intent, error)
            raise asyncssh.SFTPFailure("chaperone: the target did not close the file.") from error
        way = file.written if file.written.size_bytes else file.read
        size_bytes = file.read.size_bytes + file.written.size_bytes
        ended = Conclude(file.intent, "ok", way.code, 0, size_bytes)
        if file.reached is not None:
            ended = Conclude(file.intent, "refused", file.reached.rule, 0, size_bytes)
        await self._guarded(self._conversation.conclude(ended))

    async def exit(self) -> None:
        """The channel ends."""
        if self._upstream is not None:
            self._upstream.exit()
        if self.channel.get_subsystem() is not None and not self.channel.is_closing():
            self.channel.exit(0)  # without a status scp takes what it did for failed

    # --- refused -----------------------------------------------------------------------------------------------------

    async def open56(self, path: bytes, desired_access: int, flags: int, attrs: asyncssh.SFTPAttrs) -> object:
        """Of later versions of the protocol, which are not spoken here."""
        raise asyncssh.SFTPOpUnsupported("chaperone: only version 3 of SFTP is spoken here.")

    async def lock(self, file_obj: object, offset: int, length: int, flags: int) -> None:
        """Of later versions."""
        raise asyncssh.SFTPOpUnsupported("chaperone: files are not locked here.")

    async def unlock(self, file_obj: object, offset: int, length: int) -> None:
        """Of later versions."""
        raise asyncssh.SFTPOpUnsupported("chaperone: files are not locked here.")

    def format_longname(self, name: asyncssh.SFTPName) -> None:
        """Names come with their long form from the target."""

    def format_user(self, uid: int | None) -> str:
        """The gateway's own users are nobody's business."""
        return str(uid)

    def format_group(self, gid: int | None) -> str:
        """As `format_user`."""
        return str(gid)

    def map_path(self, path: bytes) -> bytes:
        """Nothing is mapped to the gateway's own files."""
        return path

    def reverse_map_path(self, path: bytes) -> bytes:
        """As `map_path`."""
        return path

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _sftp(self) -> asyncssh.SFTPClient:
        if self._upstream is None:
            connection = await self._guarded(self._conversation.ready())
            try:
                upstream = await answered(connection.start_sftp_client(path_encoding=None, env={}, send_env=()))
                self._places = Places(upstream, utf8(await answered(upstream.realpath(b"."))))
                self._upstream = upstream
            except (asyncssh.Error, asyncssh.SFTPError, OSError) as error:
                raise asyncssh.SFTPFailure("chaperone: the target offers no SFTP.") from error
        return self._upstream

    async def _found(self, path: bytes) -> str:
        await self._sftp()
        return await self._places.found(path)

    async def _named(self, path: bytes) -> str:
        await self._sftp()
        return await self._places.named(path)

    def _command(self, kind: str, text: str, effects: Effects) -> Command:
        try:
            facts = touched(*effects)
        except Unclear as error:
            facts = unknown(f"The path cannot be judged: {error}.")
        return self._conversation.shown(Command(f"sftp.{kind}", f"{kind} {text}".encode(), facts))

    async def _do[T](self, kind: str, text: str, effects: Effects, work: Callable[[], Awaitable[T]]) -> T:
        """Decide, record, do, and record how it ended."""
        intent = await self._decided(self._command(kind, text, effects))
        try:
            found = await answered(work())
        except (asyncssh.SFTPError, OSError) as error:
            await self._ended(intent, error)
            raise self._told(error) from error
        await self._guarded(self._conversation.conclude(Conclude(intent, "ok")))
        return found

    async def _decided(self, command: Command) -> Intent:
        return await self._guarded(self._conversation.decide(command, self._wait_note))

    async def _ended(self, intent: Intent, error: Exception) -> None:
        await self._guarded(self._conversation.conclude(Conclude(intent, "error", answers.sftp_code(error))))

    async def _guarded[T](self, work: Awaitable[T]) -> T:
        """What the gateway says no to, as SFTP says it; the words come on stderr, too, for most clients drop them."""
        try:
            return await work
        except ChaperoneError as error:
            text = answers.sentence(error)
            self._tell(answers.line(text))
            if isinstance(error, CommandRefused):
                raise asyncssh.SFTPPermissionDenied(text) from error
            raise asyncssh.SFTPFailure(text) from error

    async def _passing[T](self, work: Awaitable[T]) -> T:
        try:
            return await answered(work)
        except asyncssh.SFTPError as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> asyncssh.SFTPError:
        """The target's own error, its text masked."""
        if not isinstance(error, asyncssh.SFTPError):
            return asyncssh.SFTPConnectionLost("chaperone: the target closed the connection.")
        reason = self._conversation.mask(error.reason)
        return asyncssh.SFTPError(error.code, reason) if type(error) is asyncssh.SFTPError else _as(type(error), reason)

    def _counts(self, file: OpenFile, size_bytes: int) -> None:
        """Count a piece; once one is too much none goes through any more, not even one that is small enough."""
        if file.reached is None:
            file.reached = self._conversation.conduct.meter.take(0, size_bytes)
            if file.reached is None:
                return
            self._tell(answers.line(answers.limit(file.reached)))
        raise asyncssh.SFTPPermissionDenied(answers.limit(file.reached))

    def _wait_note(self) -> None:
        self._tell(answers.WAITING)

    def _tell(self, words: bytes) -> None:
        if not self.channel.is_closing():
            self.channel.write_stderr(words)

    @staticmethod
    def _itself(value: bytes) -> Callable[[], Awaitable[bytes]]:
        async def given() -> bytes:
            return value

        return given


def _as(kind: Callable[[str], asyncssh.SFTPError], reason: str) -> asyncssh.SFTPError:
    """The same kind of error, which the library tells apart, with another text."""
    return kind(reason)
