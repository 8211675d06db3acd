"""`chaperone follow`: what agents do, on a terminal, as it happens and over all protocols."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from chaperone_cli.kubectl import EVERYWHERE, CannotAsk, Cluster, ask, evidence_path, place
from chaperone_cli.say import say
from chaperone_cli.stream_watch import RESOURCES, Change, Ended, Watches
from chaperone_evidence.errors import Malformed

MAX_TEXT_CHARS: Final = 120


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
        versions = {} if from_start else {name: _newest(cluster, where, name) for name in RESOURCES}
    except KeyboardInterrupt:
        return 0
    except CannotAsk as error:
        say(f"follow: FAILED: {error}", err=True)
        return 1
    watches = Watches(cluster, where, versions, chosen.fields())
    try:
        watches.open()
        while True:
            for watch in watches.ready(None):
                try:
                    for change in watches.read(watch):
                        for line in lines(change, is_refused=chosen.is_refused):
                            say(line)
                except Ended as end:
                    watches.begin_again(watch, end, "follow")
    except KeyboardInterrupt:
        return 0
    except (CannotAsk, Malformed) as error:
        say(f"follow: FAILED: {error}", err=True)
        return 1
    finally:
        watches.close()


def lines(change: Change, *, is_refused: bool = False) -> Iterator[str]:
    """What is said of a change.

    Raises:
        Malformed: it is no object of this API.
    """
    if change.value is None:
        return
    try:
        tell = _command if change.resource == "commands" else _session
        said = tell(change.value["spec"], change.value["status"], is_new=change.is_new)
        if said and not (is_refused and change.resource == "sessions"):
            at, what = said
            metadata, spec = change.value["metadata"], change.value["spec"]
            name = metadata["name"] if change.resource == "sessions" else spec["session"]
            yield f"{at}  {metadata['namespace']}/{spec['identity']}  {spec['target']}  {name}  {what}"
    except (KeyError, TypeError, AttributeError) as error:
        raise Malformed("An object of the watch is none of this API.") from error


def _session(spec: dict[str, Any], status: dict[str, Any], *, is_new: bool) -> tuple[str, str] | None:
    if is_new:
        person = spec.get("delegated", {}).get("subject", "")
        whose = f", on behalf of {person}" if person else ""
        return status["startedAt"], f"session opened: {spec.get('protocol', '')}, user {spec.get('user', '-')}{whose}"
    if "endedAt" in status:
        counts = f"{status['commands']} commands, {status['denied']} refused"
        return status["endedAt"], f"session ended: {status.get('reason', '-')}; {counts}"
    return None  # it only counts on


def _command(spec: dict[str, Any], status: dict[str, Any], *, is_new: bool) -> tuple[str, str] | None:
    text = " ".join(spec.get("command", "<not kept>").split())
    shown = text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…"
    rule = f" by {spec.get('policy', '')}/{spec['rule']}" if spec.get("rule") else ""
    released = f", approval {spec['approval']}" if spec.get("approval") else ""
    ended = ""
    if "durationMicroseconds" in status:
        code = f" {status['code']}" if status.get("code") else ""
        took_ms = status["durationMicroseconds"] / 1000
        ended = f"; {status['status']}{code}, {status['rows']} rows, {took_ms:.1f} ms"
    what = f"{spec['decision']}{rule}{released}{ended}: {shown}" if is_new else f"{ended.removeprefix('; ')}: {shown}"
    return (status["decidedAt"], what) if is_new or ended else None


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
