"""Watches of the aggregated API through kubectl, read no faster than their lines are taken.

What is not read stays in the pipe; kubectl then stops reading, and so does the API server. A watch that ends is begun
again at what was read last: the log only grows, and a watch of it never expires.
"""

from __future__ import annotations

import os
import random
import re
import selectors
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Collection, Iterator
from typing import IO, Any, Final

import msgspec

from chaperone_cli.kubectl import MAX_COMPLAINT_CHARS, CannotAsk, Cluster, evidence_path, policy_path
from chaperone_cli.say import say
from chaperone_evidence.errors import Malformed

RESOURCES: Final = ("sessions", "commands")  # of the log
APPROVALS: Final = "approvalrequests"  # not of the log: a watch of them begins with all that there are
WATCH_S: Final = 1800  # rights that were taken away end a watch at the latest then
CHUNK_BYTES: Final = 64 << 10
MAX_LINE_BYTES: Final = 4 << 20  # an object holds a text of 16 KiB at most, six times as long when it is escaped
STOP_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 60.0
# As kubectl says it. What is not found may be there again soon: resources come and go as their server does.
_NEVER: Final = re.compile(r"\((Forbidden|Unauthorized|BadRequest|MethodNotAllowed)\)")


class Change(msgspec.Struct, frozen=True):
    """One event of a watch; `value` is None when it only says how far the watch is."""

    resource: str
    version: str
    value: dict[str, Any] | None
    is_new: bool
    is_gone: bool = False  # nothing of the log ever is


class Ended(Exception):
    """A watch has ended; the text says why, and is empty when its time was over."""


class _Event(msgspec.Struct):
    type: str
    object: dict[str, Any]


class Watch:
    """One watch; `version` is that of the last change that was given.

    Of the log, it begins again there. Of what is not of the log it begins with all that there is, each time: the API
    server soon forgets versions of its own objects.
    """

    def __init__(self, cluster: Cluster, resource: str, namespace: str, version: str, fields: str = "") -> None:
        self.resource = resource
        self._fields = f"&fieldSelector={urllib.parse.quote(fields, safe='')}" if fields else ""
        self.version = version
        self._cluster = cluster
        self._is_of_log = resource in RESOURCES
        self._place = evidence_path(resource, namespace) if self._is_of_log else policy_path(resource, namespace)
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None
        self._rest = b""
        self.has_spoken = False  # whether a watch of this object ever gave an event
        self.again_s: float | None = None  # when it is begun again, by a monotonic clock; None while it is open

    def open(self) -> IO[bytes]:
        """Begin, or begin again; returns what to wait on.

        Raises:
            CannotAsk: kubectl is not installed.
        """
        query = f"watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_S}{self._fields}"
        query += f"&resourceVersion={self.version}" if self._is_of_log else ""
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        try:
            self._process = subprocess.Popen(
                self._cluster.command("get", "--raw", f"{self._place}?{query}"), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=self._complaints,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise CannotAsk("kubectl is not installed; put it on the PATH.") from error
        return self.output

    @property
    def output(self) -> IO[bytes]:
        """What to wait on, of an open one."""
        assert self._process is not None  # noqa: S101 - it is open
        assert self._process.stdout is not None  # noqa: S101 - see `open`
        return self._process.stdout

    def read(self) -> Iterator[Change]:
        """The changes in what has arrived.

        Raises:
            Ended: nothing more comes. Malformed: it is no watch of this API.
        """
        data = os.read(self.output.fileno(), CHUNK_BYTES)
        if not data:
            raise Ended(self._why())
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise Malformed(f"An event of the watch is longer than {MAX_LINE_BYTES} bytes.")
        for line in lines:
            change = self._change(line)
            self.version, self.has_spoken = change.version, True
            yield change

    def _change(self, line: bytes) -> Change:
        try:
            event = msgspec.json.decode(line, type=_Event)
            if event.type == "ERROR":
                raise Ended(str(event.object.get("message", "the server ended the watch")))
            version = event.object["metadata"]["resourceVersion"]
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise Malformed("The answer is no watch of this API.") from error
        if not isinstance(version, str) or not version.isascii() or not version.isdecimal():
            raise Malformed("The answer names no resourceVersion of this API.")
        value = None if event.type == "BOOKMARK" else event.object
        return Change(self.resource, version, value, event.type == "ADDED", event.type == "DELETED")

    def _why(self) -> str:
        assert self._process is not None  # noqa: S101 - it is open
        assert self._complaints is not None  # noqa: S101 - it is open
        status = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read(MAX_COMPLAINT_CHARS).decode(errors="replace").strip()
        return (said or f"kubectl ended with {status}") if status else ""

    def close(self) -> None:
        """End kubectl."""
        if self._process is not None:
            self._process.terminate()
            if self._process.stdout is not None:
                self._process.stdout.close()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._complaints is not None:
            self._complaints.close()
        self._process, self._complaints, self._rest = None, None, b""


class Watches:
    """The watches of several resources.

    Args:
        cluster: how kubectl reaches it.
        namespace: of the objects; "" for all.
        versions: where each watch begins; without one, at the beginning of the log.
        fields: a field selector of each resource; without one, everything.
        is_known: the server has answered for these resources; a watch of which nothing came is begun again, too.
        resources: which.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, versions: dict[str, str], fields: dict[str, str] | None = None, *,
        is_known: bool = False, resources: Collection[str] = RESOURCES,
    ) -> None:  # fmt: skip
        self._selector = selectors.DefaultSelector()
        self._is_known = is_known
        chosen = fields or {}
        self._watches = [
            Watch(cluster, name, namespace, versions.get(name, "0"), chosen.get(name, "")) for name in resources
        ]
        self._failures = 0  # in a row

    def ready(self, timeout_s: float | None) -> list[Watch]:
        """Watches of which something can be read, or that have ended; none when the time is over, or sooner.

        Raises:
            CannotAsk: as `Watch.open`, of one that is begun again.
        """
        now_s = time.monotonic()
        for one in self._watches:
            if one.again_s is not None and one.again_s <= now_s:
                one.again_s = None
                self.open(one)
        pauses_s = [one.again_s - now_s for one in self._watches if one.again_s is not None]
        limits_s = [*pauses_s, *(() if timeout_s is None else (timeout_s,))]
        return [key.data for key, _ in self._selector.select(min(limits_s, default=None))]

    def choose(self, resources: Collection[str]) -> None:
        """From now on `ready` tells of these alone; what is not read stays in the pipe."""
        registered = {key.data.resource for key in self._selector.get_map().values()}
        for one in self._watches:
            if one.again_s is not None:
                continue
            if one.resource in resources and one.resource not in registered:
                self._selector.register(one.output, selectors.EVENT_READ, one)
            elif one.resource in registered and one.resource not in resources:
                self._selector.unregister(one.output)

    def open(self, watch: Watch | None = None) -> None:
        """Begin a watch, or all.

        Raises:
            CannotAsk: as `Watch.open`.
        """
        for one in self._watches if watch is None else [watch]:
            self._selector.register(one.open(), selectors.EVENT_READ, one)

    def read(self, watch: Watch) -> Iterator[Change]:
        """What has arrived of a watch.

        Raises:
            Ended: nothing more comes; see `begin_again`. Malformed: it is no watch of this API.
        """
        for change in watch.read():
            self._failures = 0
            yield change

    def begin_again(self, watch: Watch, end: Ended, who: str) -> float:
        """Have `ready` begin a watch that has ended at what was read last; after failures in a row later each time.

        Returns:
            When that is, by a monotonic clock.

        Raises:
            CannotAsk: it never began.
        """
        self.close(watch)
        if why := str(end):
            if not watch.has_spoken and (not self._is_known or _NEVER.search(why)):
                raise CannotAsk(why)
            self._failures += 1
            say(f"{who}: the watch of {watch.resource} ended: {why}; it is begun again", err=True)
        watch.again_s = time.monotonic() + pause_s(max(self._failures, 1))
        return watch.again_s

    def close(self, watch: Watch | None = None) -> None:
        """End a watch, or all."""
        for key in list(self._selector.get_map().values()):
            if watch is None or key.data is watch:
                self._selector.unregister(key.fileobj)
        for one in self._watches if watch is None else [watch]:
            one.close()
        if watch is None:
            self._selector.close()


def pause_s(failures: int) -> float:
    """Longer after each failure in a row, and never the same for two who ask."""
    longest = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - it spreads load, it keeps no secret
