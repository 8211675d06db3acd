"""`chaperone follow`: what agents do, on a terminal, as it happens and over all protocols, in the order of its time."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from typing import Final, NoReturn

import click
import msgspec

from chaperone_cli.kubectl import EVERYWHERE, CannotAsk, Cluster, ask, evidence_path, place
from chaperone_cli.moments import Page, moments
from chaperone_cli.say import say
from chaperone_cli.stream_watch import APPROVALS, RESOURCES, Change, Ended, Watch, Watches
from chaperone_cli.timeline import Moment, Timeline
from chaperone_cli.waits import Waits
from chaperone_evidence.errors import Malformed

NO_TERMINAL: Final = (160, 24)  # columns and lines


class Chosen(msgspec.Struct, frozen=True):
    """What is followed; empty fields choose nothing."""

    identity: str = ""
    session: str = ""
    is_refused: bool = False  # only what policy did not let pass

    def fields(self) -> dict[str, str]:
        """The field selector of each resource."""
        of_both = [f"spec.identity={_escaped(self.identity)}"] if self.identity else []
        sessions = [*of_both, *([f"metadata.name={_escaped(self.session)}"] if self.session else [])]
        commands = [*of_both, *([f"spec.session={_escaped(self.session)}"] if self.session else [])]
        if self.is_refused:
            commands.append("spec.decision!=Allow")
        return {"sessions": ",".join(sessions), "commands": ",".join(commands)}


class _Meta(msgspec.Struct):
    resource_version: str = msgspec.field(name="resourceVersion")


class _List(msgspec.Struct):
    metadata: _Meta


def run(cluster: Cluster, namespace: str, chosen: Chosen, *, from_start: bool) -> int:
    """Print until SIGTERM or ctrl-C; returns the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        where = "" if namespace == EVERYWHERE else place(cluster, namespace)
        newest = {name: _newest(cluster, where, name) for name in RESOURCES}
    except KeyboardInterrupt:
        return 0
    except CannotAsk as error:
        say(f"follow: FAILED: {error}", err=True)
        return 1
    asked = RESOURCES if chosen.is_refused else (*RESOURCES, APPROVALS)  # who waits is not refused
    watches = Watches(
        cluster, where, {} if from_start else newest, chosen.fields(), is_known=True, resources=asked
    )  # fmt: skip
    try:
        watches.open()
        say(f"follow: from {'the beginning of the log' if from_start else 'now'} on; ctrl-C ends it", err=True)
        _Following(watches, asked, chosen, from_start=from_start).run()
    except KeyboardInterrupt:
        return 0
    except (CannotAsk, Malformed) as error:
        say(f"follow: FAILED: {error}", err=True)
        return 1
    finally:
        watches.close()


class _Following:
    """What is heard, on its way to the terminal."""

    def __init__(self, watches: Watches, resources: Iterable[str], chosen: Chosen, *, from_start: bool) -> None:
        self._watches = watches
        self._apart = frozenset(resources) - frozenset(RESOURCES)
        self._chosen = chosen
        self._timeline = Timeline(RESOURCES, time.monotonic())
        self._waits = Waits(chosen.identity, chosen.session, from_start=from_start)
        is_coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self._page = Page(is_coloured=is_coloured, has_who=not (chosen.identity or chosen.session))

    def run(self) -> NoReturn:
        """Print until a signal; raises CannotAsk and Malformed."""
        try:
            while True:
                for watch in self._watches.ready(self._timeline.wait_s()):
                    self._hear(watch)
                self._print(self._timeline.due(time.monotonic()))
                self._watches.choose(self._timeline.wanted() | self._apart)
        except KeyboardInterrupt:
            self._print(self._timeline.all())
            raise

    def _hear(self, watch: Watch) -> None:
        try:
            for change in self._watches.read(watch):
                self._add(change)
        except Ended as end:
            try:
                at_s = self._watches.begin_again(watch, end, "follow")
                if watch.resource not in self._apart:
                    self._timeline.begins(watch.resource, at_s)
            except CannotAsk as error:
                if watch.resource not in self._apart:
                    raise
                self._apart -= {watch.resource}
                say(f"follow: what waits for people is not shown: {error}", err=True)

    def _add(self, change: Change) -> None:
        if change.resource == APPROVALS:
            self._timeline.add_apart(self._waits.moments(change), time.monotonic())
        else:
            told = moments(change, self._timeline, is_refused=self._chosen.is_refused)
            self._timeline.add(change.resource, int(change.version), told, time.monotonic())

    def _print(self, told: Iterable[Moment]) -> None:
        for moment in told:
            for line in self._page.lines(moment, shutil.get_terminal_size(NO_TERMINAL).columns):
                click.echo(line)


def _newest(cluster: Cluster, namespace: str, resource: str) -> str:
    """The version of the log now."""
    try:
        found = msgspec.json.decode(
            ask(cluster, "get", "--raw", f"{evidence_path(resource, namespace)}?limit=1"), type=_List
        )
    except msgspec.DecodeError as error:
        raise CannotAsk("The answer is no list of this API.") from error
    return found.metadata.resource_version


def _escaped(value: str) -> str:
    """A value inside a field selector."""
    return "".join(f"\\{one}" if one in "\\,=" else one for one in value)
