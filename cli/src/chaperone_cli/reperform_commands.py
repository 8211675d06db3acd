"""`chaperone reperform`: what is read from where, what is said, and what the exit status is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from chaperone_cli.evidence import CannotVerify, open_source
from chaperone_cli.kubectl import CannotAsk, Cluster
from chaperone_cli.period_bundles import Keys, fetched
from chaperone_cli.policy_history import History
from chaperone_cli.policy_world import Unusable
from chaperone_cli.reperform import Reperformance, Result
from chaperone_cli.revisions import Kept, keep
from chaperone_cli.say import say
from chaperone_cli.verify import CANNOT, FINDINGS, OK, judge, read_trust
from chaperone_evidence.errors import EvidenceError

MAX_SHOWN: Final = 50  # exceptions; all of them are in the JSON


def run(evidence: Path, keys: Keys, *, as_json: bool) -> int:
    """Re-perform the decisions of one evidence; returns the exit status."""
    try:
        with Reperformance() as again:
            result, problem, notes = _one(again, evidence, keys, "")
    except (Unusable, CannotVerify, OSError) as error:
        return _cannot(str(error))
    return _show(result, [problem] if problem else [], notes, as_json=as_json)


def run_period(
    cluster: Cluster, namespace: str, begin: str, end: str, keys: Keys, *, as_json: bool
) -> int:  # fmt: skip
    """Re-perform the decisions of all sessions of a namespace in a period; returns the exit status."""
    result, problems, notes = Result(0, 0, 0, [], {}, []), list[str](), list[str]()
    try:
        with Reperformance() as again:
            for session, path, trusted in fetched(cluster, namespace, begin, end, keys):
                one, problem, notes = _one(again, path, trusted, session)
                result.add(one)
                problems += [f"session {session}: {problem}"] if problem else []
    except (Unusable, CannotVerify, CannotAsk, OSError) as error:
        return _cannot(str(error))
    return _show(result, problems, notes, as_json=as_json)


def _one(again: Reperformance, path: Path, keys: Keys, session: str) -> tuple[Result, str, list[str]]:
    """The figure of an evidence, the first thing that is wrong with it, and what it rests on that nobody brought."""
    with open_source(path) as source:
        anchor = read_trust(source, keys.trust, keys.log_policy)
        verdict = judge(source, anchor.authorities, anchor.log)
        kept = keep(source, verdict.streams, keys.operator, anchor.log)
        problems = [*verdict.problems, *kept.problems]
        notes = list(_notes(keys, kept))
        if verdict.problems:
            return Result(0, 0, 0, [], {}, []), str(problems[0]), notes
        history = History(source, has_texts=True)
        try:
            result = again.run((seen for seen in history if session in ("", seen.intent.session)), kept)
        except EvidenceError as error:
            raise CannotVerify(str(error)) from error
        result.faults = [*history.faults]
        return result, str(problems[0]) if problems else "", notes


def _notes(keys: Keys, kept: Kept) -> Iterator[str]:
    if keys.trust is None:
        yield "the gateway CA lay beside the evidence; give --trust to check against a copy of your own"
    if keys.log_policy is None:
        yield "give the log's keys by --log-policy to check that the log has records and policy"
    if kept.vkey and not kept.is_given:
        yield "the operator key lay in the bundle; give --operator-key to check against a copy of your own"


def _cannot(why: str) -> int:
    say(f"reperform: CANNOT RE-PERFORM: {why}", err=True)
    return CANNOT


def _show(result: Result, problems: list[str], notes: list[str], *, as_json: bool) -> int:
    is_void = bool(result.commands) and not result.reperformed
    status = FINDINGS if problems or result.differences or result.faults else CANNOT if is_void else OK
    if as_json:
        click.echo(
            msgspec.json.encode(
                {"ok": status == OK, "problems": problems, "notes": notes} | msgspec.structs.asdict(result)
            )
        )
        return status
    for one in result.exceptions[:MAX_SHOWN]:
        say(f"exception: record {one.seq} of stream {one.stream} (session {one.session}, command {one.command})")
        say(f"             {one.was} by {one.was_rule}, re-performed {one.again} by {one.again_rule}, "
            f"revision {one.revision} of {one.namespace}{f': {one.why}' if one.why else ''}")  # fmt: skip
    if result.differences > MAX_SHOWN:
        say(f"exception: {result.differences - MAX_SHOWN} more; --output json shows {len(result.exceptions)}")
    for why, count in result.not_repeatable.items():
        say(f"not repeatable: {count} × {why}")
    for text in (*problems, *result.faults):
        say(f"evidence: {text}")
    for text in notes:
        say(f"note: {text}")
    missed = result.commands - result.reperformed
    say(f"reperform: {result.reperformed} of {result.commands} decisions re-performed, {result.differences} "
        f"differences, {missed} not repeatable")  # fmt: skip
    return status
