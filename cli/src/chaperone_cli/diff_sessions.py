"""`chaperone diff SESSION SESSION`: what one run of an agent did that another one did not.

Commands are compared by what they did, where, and what was decided; and by their texts where those are kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import click
import msgspec

from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.export import CannotExport, fetch_bundle, proof_path
from chaperone_cli.kubectl import CannotAsk, Cluster, place
from chaperone_cli.policy_explain import shortened
from chaperone_cli.policy_history import History, Seen
from chaperone_cli.say import say
from chaperone_evidence.ulid import is_ulid

SAME, DIFFERENT, CANNOT = 0, 1, 2
MAX_SHOWN: Final = 50  # lines of a kind; all of them are in the JSON
MAX_COMMANDS: Final = 1_000_000  # of one session that are compared

type Count = tuple[int, int]


class Did(msgspec.Struct, frozen=True, order=True):
    """What commands have in common that count as the same."""

    target: str
    kind: str
    effects: str
    objects: str
    decision: str


class Row(msgspec.Struct, frozen=True):
    """How often it was done in the first and in the second session."""

    did: Did
    first: int
    second: int


class Text(msgspec.Struct, frozen=True):
    """A text that one session sent more often than the other."""

    target: str
    text: str
    first: int
    second: int


class Result(msgspec.Struct):
    """What differs, and how many commands each session has."""

    first: int
    second: int
    rows: list[Row]
    texts: list[Text]

    @property
    def is_same(self) -> bool:
        """Nothing differs."""
        return not self.rows and not self.texts


def run(first: str, second: str, cluster: Cluster, namespace: str, *, as_json: bool) -> int:
    """Compare two sessions, each a name or a bundle; returns the exit status."""
    try:
        with TemporaryDirectory() as folder:
            sides = [_read(one, cluster, namespace, Path(folder)) for one in (first, second)]
    except (CannotVerify, CannotExport, CannotAsk, OSError) as error:
        say(f"diff: CANNOT COMPARE: {error}", err=True)
        return CANNOT
    result = compare(*sides)
    if as_json:
        click.echo(msgspec.json.encode({"same": result.is_same} | msgspec.to_builtins(result)))
    else:
        _show(result)
    return SAME if result.is_same else DIFFERENT


def compare(first: list[Seen], second: list[Seen]) -> Result:
    """What differs between the commands of two sessions."""
    done = [Counter(map(_did, side)) for side in (first, second)]
    texts = [Counter((one.intent.target, one.text) for one in side if one.text is not None) for side in (first, second)]
    return Result(
        len(first), len(second), [Row(did, *count) for did, count in sorted(_unequal(*done))],
        [
            Text(target, text.decode(errors="replace"), *count)
            for (target, text), count in sorted(_unequal(*texts), key=lambda one: (one[0], one[1]))
        ],
    )  # fmt: skip


def _unequal[K](first: Counter[K], second: Counter[K]) -> Iterable[tuple[K, Count]]:
    return [(key, (first[key], second[key])) for key in first.keys() | second.keys() if first[key] != second[key]]


def _did(seen: Seen) -> Did:
    intent = seen.intent
    decision = f"{intent.decision} (approved)" if intent.approval and intent.decision == "Allow" else intent.decision
    return Did(
        intent.target, intent.kind, ", ".join(sorted({one.effect for one in intent.accesses})),
        ", ".join(sorted({one.object for one in intent.accesses if one.object})), decision,
    )  # fmt: skip


def _read(name: str, cluster: Cluster, namespace: str, folder: Path) -> list[Seen]:
    """The commands of a session.

    Raises:
        CannotVerify: it is not in the bundle, or no one alone is. CannotExport, CannotAsk: it cannot be fetched.
    """
    path, session = Path(name), name
    if is_ulid(name):
        path = folder / f"{name}.tar"
        if not path.exists():
            fetch_bundle(cluster, proof_path(cluster, name, place(cluster, namespace)), path)
    elif path.exists():
        session = path.stem if is_ulid(path.stem) else ""
    else:
        raise CannotVerify(f"{name} is neither the name of a session nor a bundle.")
    with open_source(path) as source:
        history = History(source, has_texts=True)
        seen = [one for one in history if session in ("", one.intent.session)]
    if history.faults:
        raise CannotVerify(f"{name}: {history.faults[0]}")
    if len(seen) > MAX_COMMANDS:
        raise CannotVerify(f"{name} has {len(seen)} commands, more than {MAX_COMMANDS}.")
    if len({one.intent.session for one in seen}) > 1:
        raise CannotVerify(f"{name} holds several sessions; name the file of one after it, as export does.")
    return seen


def _show(result: Result) -> None:
    columns = ("1", "2", "TARGET", "KIND", "EFFECTS", "DECISION", "OBJECTS")
    lines = [
        (str(one.first), str(one.second), one.did.target, one.did.kind, one.did.effects, one.did.decision,
         one.did.objects)
        for one in result.rows[:MAX_SHOWN]
    ]  # fmt: skip
    if lines:
        widths = [max(len(line[number]) for line in (columns, *lines)) for number in range(len(columns))]
        for line in (columns, *lines):
            say("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())
    for one in result.texts[:MAX_SHOWN]:
        say(f"{one.first} × in 1, {one.second} × in 2 at {one.target}: {shortened(one.text)}")
    for left in (len(result.rows) - MAX_SHOWN, len(result.texts) - MAX_SHOWN):
        if left > 0:
            say(f"{left} more; --json shows all")
    say(f"diff: {'same' if result.is_same else 'different'}: {result.first} and {result.second} commands, "
        f"{len(result.rows)} kinds and {len(result.texts)} texts differ")  # fmt: skip
    say("note: evidence is read as it is; chaperone verify says whether it holds")
