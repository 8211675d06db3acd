"""`chaperone explain`: what a statement would meet, and why."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, Final

import click
import msgspec

from chaperone_cli.policy_ask import Engine, Trace, TracedAccess
from chaperone_cli.policy_facts import PROTOCOL, Classifier, Part, parts, question
from chaperone_cli.policy_world import Unusable, World
from chaperone_cli.say import say
from chaperone_operator.compile import glob
from chaperone_operator.compile.binding import Binding
from chaperone_sidecar.command import Facts
from chaperone_sidecar.policy.decider import Answer

STATUS: Final = {"Allow": 0, "Deny": 1, "RequireApproval": 3}  # the exit status; 2 is: cannot be explained
MAX_TEXT: Final = 200  # characters of a statement that are shown
NOT_RESOLVED: Final = (
    "names are taken as they are written: no database was asked, so what lies behind a view is not known here, and a "
    "gateway may find more"
)


class Asked(msgspec.Struct, frozen=True):
    """What is to be explained.

    Attributes:
        rows: an estimate of the database's, None when there is none.
        minute: Unix.
    """

    namespace: str
    identity: str
    target: str
    text: str
    rows: int | None
    minute: int


class Mask(msgspec.Struct, frozen=True):
    """A mask that is in force; `is_near` when the statement names a relation of its columns, or it has detectors."""

    policy: str
    method: str
    columns: tuple[str, ...]
    detectors: tuple[str, ...]
    is_near: bool


class Explained(msgspec.Struct, frozen=True):
    """A decision with all that leads to it."""

    facts: Facts
    parts: list[Part]
    answer: Answer
    trace: Trace
    masks: list[Mask]
    unmaskable: str


def minute(text: str) -> int:
    """The Unix minute that a text names, or this one.

    Raises:
        Unusable: it names none.
    """
    if not text:
        return int(time.time()) // 60
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise Unusable(f"--at {text}: write a moment with its offset, such as 2026-07-03T10:00:00+02:00.")
    return int(moment.timestamp()) // 60


def target_of(world: World, namespace: str, identity: str, named: str) -> str:
    """The target that is meant: the one that is named, or the only one there is.

    Raises:
        Unusable: there is no such target, or there are several.
    """
    configs = msgspec.json.decode(world.snapshot(namespace).gateway, type=dict[str, dict[str, Any]])
    if identity not in configs:
        raise Unusable(f'There is no AgentIdentity "{identity}" in namespace {namespace}.')
    known = [one["name"] for one in configs[identity]["targets"] if one["protocol"] == PROTOCOL]
    if named in known or (named and not known):  # a suspended identity has none: its decision says so
        return named
    if not named and len(known) == 1:
        return str(known[0])
    raise Unusable(
        f"{'There is no such target' if named else 'Name one with --target'}; "
        f"{identity} has: {', '.join(known) or 'none of ' + PROTOCOL}."
    )


def explain(world: World, asked: Asked) -> Explained:
    """Classify, decide and trace.

    Raises:
        Unusable: policy does not compile, or OPA cannot be asked.
    """
    text = asked.text.encode(errors="surrogateescape")
    facts = Classifier().read(text).facts
    more = {"minute": asked.minute} | ({} if asked.rows is None else {"rows": asked.rows})
    with Engine(world.snapshot(asked.namespace).bundle) as engine:
        answer, trace = engine.explain(question(asked.identity, asked.target, PROTOCOL, facts, **more))
    bound = list(world.bindings(asked.namespace, asked.identity, asked.target))
    masks = [*_masks(bound, facts), *_classified(world, asked.target, facts)]
    return Explained(facts, parts(text), answer, trace, masks, _unmaskable(world, asked))


def show(asked: Asked, found: Explained) -> None:
    """Print it for people."""
    answer = found.answer
    by = f" by {answer.rule}" + (f" of {answer.policy}" if answer.policy else "")
    say(f"decision:  {answer.action}{by}, revision {answer.revision}")
    say(f"asked:     {asked.namespace}/{asked.identity} at {asked.target} ({PROTOCOL})")
    if answer.message:
        say(f"message:   {answer.message}")
    if answer.would is not None:
        whose = f" of {answer.would.policy}" if answer.would.policy else ""
        say(f"would be:  {answer.would.action} by {answer.would.rule}{whose}, if observed policies were in force")
    if answer.needs:
        say("needs:     an estimate of rows decides; give one with --rows")
    for use in answer.counts:
        say(f"counts:    {use.rule} may be used {use.count} times in {use.per_s // 60} minutes; taken as not used yet")
    if found.facts.why_unknown:
        say(f"unknown:   {found.facts.why_unknown}")
    if len(found.parts) > 1:
        say(f"text:      {len(found.parts)} statements, decided together")
        for part in found.parts:
            say(f"  - {shortened(part.text)}")
            for one in part.facts.accesses:
                say(f"      {_named(one.effect.value, one.object)}")
    say("")
    _table([_row for access in found.trace.accesses for _row in _rows(access)])
    for own in found.trace.own:
        say(f"rego:      {own.policy} denies{'' if own.is_in_force else ' (observed)'}: {own.message}")
    needed = [access for access in found.trace.accesses if not access.covered]
    if needed:
        say("")
        say("no rule that counts here covers this; it would take a rule with")
        for access in needed:
            say(f"  match: {wanted(access)}")
        if any(access.effect == "unknown" for access in needed):
            say("  but that would let pass whatever cannot be read; rewrite the statement instead")
    if found.masks:
        say("")
        say(f"masks ({NEAR} touches what the statement names; unmaskable values: {found.unmaskable})")
        for mask in found.masks:
            what = ", ".join((*mask.columns, *(f"detector {name}" for name in mask.detectors)))
            say(f"  {NEAR if mask.is_near else ' '} {mask.method} {what} ({mask.policy})")
    say("")
    say(f"note: {NOT_RESOLVED}")


NEAR: Final = "*"


def show_json(asked: Asked, found: Explained) -> None:
    """Print it for programs."""
    plain = {
        "namespace": asked.namespace,
        "identity": asked.identity,
        "target": asked.target,
        "decision": msgspec.to_builtins(found.answer),
        "resolution": found.facts.resolution.value,
        "whyUnknown": found.facts.why_unknown,
        "statements": [
            {"text": part.text, "accesses": [msgspec.to_builtins(access) for access in part.facts.accesses]}
            for part in found.parts
        ],
        "trace": msgspec.to_builtins(found.trace),
        "uncovered": [
            {"effect": access.effect, "object": access.object} for access in found.trace.accesses if not access.covered
        ],
        "masks": [
            {
                "policy": mask.policy,
                "method": mask.method,
                "columns": mask.columns,
                "detectors": mask.detectors,
                "touched": mask.is_near,
            }
            for mask in found.masks
        ],
        "unmaskable": found.unmaskable,
        "note": NOT_RESOLVED,
    }
    click.echo(msgspec.json.encode(plain))


def shortened(text: str) -> str:
    """So much of a text as fits on a line."""
    line = " ".join(text[: 4 * MAX_TEXT].split())
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def wanted(access: TracedAccess) -> str:
    """What a rule has to say to speak of an access; what one that speaks of it lacks is in the table."""
    objects = f", objects: [{access.object}]" if access.object else ""
    return f"{{effects: [{access.effect}]{objects}}}"


def _rows(access: TracedAccess) -> list[tuple[str, ...]]:
    head = (access.effect, access.object or "-")
    if access.through:
        head = (access.effect, f"{access.object} (through {access.through})")
    if not access.rules:
        return [(*head, "-", "-", "-", "no rule speaks of it" if not access.covered else "needs no rule of its own")]
    found: list[tuple[str, ...]] = []
    for rule in access.rules:
        fires = ("yes" if rule.fires else "no") + (", observed" if rule.observed else "")
        found.append((*head, rule.action, f"{rule.rule} of {rule.policy}", fires, rule.why or "-"))
        head = ("", "")
    return found


def _table(rows: list[tuple[str, ...]]) -> None:
    rows = [("EFFECT", "OBJECT", "ACTION", "RULE", "FIRES", "WHY NOT"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        say("  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5])).rstrip())


def _named(effect: str, name: str) -> str:
    return f"{effect} {name}".rstrip()


def _masks(bound: list[Binding], facts: Facts) -> list[Mask]:
    found = []
    for one in bound:
        for mask in one.spec.masks or ():
            detectors = (*mask.detectors, *(own.name for own in mask.patterns))
            is_near = bool(detectors) or _is_near(mask.columns, facts)
            found.append(Mask(one.policy, mask.method or "", mask.columns, detectors, is_near))
    return found


def _classified(world: World, target: str, facts: Facts) -> list[Mask]:
    found = []
    for item in world.objects["AccessTarget"]:
        if item["metadata"]["name"] == target:
            for entry in item["spec"].get("classified") or ():
                columns = tuple(entry["columns"])
                kind = str(entry["class"])
                found.append(Mask(f"AccessTarget {target}", f"class {kind}", columns, (), _is_near(columns, facts)))
    return found


def _is_near(columns: tuple[str, ...], facts: Facts) -> bool:
    relations = [".".join(column.split(".")[-3:-1]) for column in columns]
    return any(glob.covers(relation, access.object) for relation in relations for access in facts.accesses)


def _unmaskable(world: World, asked: Asked) -> str:
    configs = msgspec.json.decode(world.snapshot(asked.namespace).gateway, type=dict[str, dict[str, Any]])
    for target in configs[asked.identity]["targets"]:
        if target["name"] == asked.target:
            return str((target.get("masks") or {}).get("unmaskable", ""))
    return ""
