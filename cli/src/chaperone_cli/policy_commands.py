"""The commands that decide without a gateway: what is read from where, and what the exit status is."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import msgspec

from chaperone_cli import policy_explain as explaining
from chaperone_cli import policy_suggest as suggesting
from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.kubectl import Cluster
from chaperone_cli.policy_history import History
from chaperone_cli.policy_replay import Replay, Result
from chaperone_cli.policy_world import Unusable, World, from_cluster, from_directory
from chaperone_cli.say import say

CANNOT: Final = 2
CHANGES: Final = 1  # of a replay: something would change
MAX_SHOWN: Final = 50  # changes; all of them are in the JSON


def read(manifests: Path | None, cluster: Cluster, namespace: str, identity: str = "") -> tuple[World, str]:
    """The objects of a directory, or those of the cluster; and the namespace that is meant, "" for any.

    Raises:
        Unusable: they cannot be read.
    """
    if manifests is None:
        return from_cluster(cluster, namespace)
    world = from_directory(manifests, identity)
    return world, namespace or (world.namespace_of(identity) if identity else "")


def explain(
    manifests: Path | None,
    cluster: Cluster,
    namespace: str,
    identity: str,
    target: str,
    text: str,
    *,
    rows: int | None,
    at: str,
    as_json: bool,
) -> int:
    """Explain what a statement would meet; returns the exit status."""
    try:
        world, place = read(manifests, cluster, namespace, identity)
        where = explaining.target_of(world, place, identity, target)
        asked = explaining.Asked(place, identity, where, text, rows, explaining.minute(at))
        found = explaining.explain(world, asked)
    except (Unusable, OSError) as error:
        say(f"explain: CANNOT EXPLAIN: {error}", err=True)
        return CANNOT
    (explaining.show_json if as_json else explaining.show)(asked, found)
    return explaining.STATUS[found.answer.action.value]


def replay(manifests: Path | None, cluster: Cluster, namespace: str, evidence: Path, *, as_json: bool) -> int:
    """Replay recorded commands; returns the exit status."""
    try:
        world, place = read(manifests, cluster, namespace)
        with open_source(evidence) as source:
            result = Replay(world, place).run(History(source, has_texts=True))
    except (Unusable, CannotVerify, OSError) as error:
        say(f"replay-policy: CANNOT REPLAY: {error}", err=True)
        return CANNOT
    if as_json:
        click.echo(msgspec.json.encode(result))
    else:
        _show_replay(result)
    return CHANGES if result.changed else 0


def suggest(evidence: Path, namespace: str, identity: str) -> int:
    """Print drafts of the rules that were missing; returns the exit status."""
    try:
        with open_source(evidence) as source:
            history = History(source, has_texts=False)
            found = suggesting.drafts(history, namespace, identity)
    except (CannotVerify, OSError) as error:
        say(f"suggest: CANNOT SUGGEST: {error}", err=True)
        return CANNOT
    for fault in history.faults:
        say(f"note: {fault}", err=True)
    if not found:
        say("# No command was refused, or would have been, because no rule covers it.")
    for number, draft in enumerate(found):
        if number:
            say("---")
        for line in suggesting.write(draft):
            say(line)
    return 0


def _show_replay(result: Result) -> None:
    counts = ", ".join(f"{count} {said}" for said, count in result.decisions.items())
    say(f"replayed: {result.replayed} of {result.commands} commands{': ' if counts else ''}{counts}")
    for one in result.changes[:MAX_SHOWN]:
        say(f"change:   {one.count} × {one.was} by {one.was_rule} → {one.would_be} by {one.would_be_rule}")
        say(f"            {one.identity} at {one.target}{': ' if one.message else ''}{one.message}")
        say(f"            first in session {one.session}, command {one.command}: {one.text}")
    unseen = sum(one.count for one in result.changes[MAX_SHOWN:]) + result.other_changes
    if unseen:
        say(f"change:   {unseen} × others; --output json shows {len(result.changes)} different ones")
    for why, count in result.not_replayed.items():
        say(f"skipped:  {count} × {why}")
    for fault in result.faults:
        say(f"note:     {fault}")
    say(f"changes:  {result.changed} of {result.replayed} replayed commands would meet another decision")
    say("note:     evidence is read as it is; chaperone verify says whether it holds")
