"""Did an agent do nothing between two times? Answered yes only where that is proved. Pure.

It is, when at both times and between them the operator named every pod of the identity, and each of those pods signed
heads over a stream in which nothing that an agent does was recorded, at least every half minute while it was there. A
record between two heads is taken as done at any time between them: its own time is the gateway's word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from chaperone_evidence import chain, entry, record
from chaperone_evidence.completeness import STALE_US, Coverage, Heard
from chaperone_evidence.coverage import GRACE_US, SILENT_AFTER_US, Said

MAX_ACTS: Final = 20  # of one stream that are named
_IDLE: Final = (record.StreamOpen, record.StreamClose, record.IdentitySuspension)


class Span(msgspec.Struct):
    """What one stream says of a time."""

    begin_us: int = 0  # when it was opened, by the gateway's clock
    last_us: int = 0  # of its last head that was looked at
    gaps: list[tuple[int, int]] = []
    acts: list[tuple[int, str]] = []  # number and type of records that are something done
    tail: list[tuple[int, str]] = []  # such records behind the last head


class Answer(msgspec.Struct):
    """Whether it is proved; if not, why. `did` holds what was done, which answers the question with no."""

    pods: int = 0
    did: list[str] = []
    missing: list[str] = []

    @property
    def is_proved(self) -> bool:
        """Whether nothing was done."""
        return not self.did and not self.missing


def look(entries: Iterable[bytes], from_us: int, until_us: int) -> Span:
    """What a stream, already verified, says of the time between."""
    found, waiting = Span(), list[tuple[int, str]]()
    for seq, data in enumerate(entries):
        cls, _, header = entry.split(data)
        if cls != entry.CLASS_HEAD:
            said = record.decode(header)
            if isinstance(said, record.StreamOpen):
                found.begin_us = found.last_us = said.wall_us
                if said.wall_us >= until_us:
                    return found
            elif not isinstance(said, _IDLE):
                waiting.append((seq, said.type if isinstance(said, record.Unknown) else _tag(said)))
            continue
        time_us = chain.parse_head(header.decode().rpartition("\n\n")[0] + "\n").time_us
        if time_us > from_us:
            found.acts += waiting[: max(0, MAX_ACTS - len(found.acts))]
            if time_us - found.last_us > SILENT_AFTER_US:
                found.gaps.append((max(from_us, found.last_us), time_us))
        waiting.clear()
        found.last_us = time_us
        if time_us >= until_us:
            return found
    found.tail = waiting[:MAX_ACTS]
    return found


def ask(coverage: Coverage, identity: str, from_us: int, until_us: int, spans: Mapping[str, Span]) -> Answer:
    """Whether the identity did nothing; `spans` are of its pods' streams, those that are here whole, by name."""
    answer = Answer()
    times = coverage.times_us
    if times[0] > from_us:
        answer.missing.append("no population is so old that it says which pods there were at the beginning")
    if times[-1] < until_us:
        answer.missing.append("no population is so young that it says which pods there were at the end")
    for before, after in pairwise(times):
        if before < until_us and after > from_us and after - before > STALE_US:
            answer.missing.append(f"the operator said nothing for {(after - before) // 60_000_000} minutes")
    for heard in coverage.pods:
        if heard.identity == identity or any(
            one.opened is not None and one.opened.identity == identity for one in heard.streams
        ):
            _pod(answer, heard, from_us, until_us, spans)
    return answer


def _pod(answer: Answer, heard: Heard, from_us: int, until_us: int, spans: Mapping[str, Span]) -> None:
    where, named = f"pod {heard.pod} {heard.pod_uid}", heard.named
    if named is None:
        answer.missing.append(f"{where}: no population names it")
        return
    is_over = named.producer.said is Said.ENDED
    begin_us = max(from_us, named.since_us)
    end_us = min(until_us, named.finished_us) if is_over else until_us
    if begin_us >= end_us:
        return
    answer.pods += 1
    if named.was_uncovered or named.producer.said is Said.DROPPED:
        answer.missing.append(f"{where}: it is {heard.verdict.state}, or was a pod without a gateway before")
        return
    if not named.since_us and not heard.streams:
        return  # its gateway was never admitted, and without one nothing leaves the pod
    known_us, has_end = begin_us, False
    begun = [spans[one.stream].begin_us for one in heard.streams if one.stream in spans]
    for number, report in enumerate(heard.streams, 1):
        span = spans.get(report.stream)
        if span is None:
            answer.missing.append(f"{where}: stream {report.stream} is not here whole")
            return
        if span.begin_us >= end_us:
            break
        if not has_end and span.begin_us > known_us + GRACE_US:
            answer.missing.append(_gap(where, known_us, span.begin_us))
        is_before = number < len(begun) and begun[number] <= from_us  # the next one began before all this
        acts = span.acts if is_before else span.acts + span.tail
        answer.did += [f"{where}: record {seq} of stream {report.stream} is a {what}" for seq, what in acts]
        answer.missing += [_gap(where, *gap) for gap in span.gaps]
        known_us, has_end = max(known_us, span.last_us), report.end in ("closed", "continued")
    if known_us < end_us and not (is_over and has_end):
        answer.missing.append(_gap(where, known_us, end_us))


def _gap(where: str, from_us: int, until_us: int) -> str:
    return f"{where}: no head was signed for {(until_us - from_us) // 1_000_000} s from {from_us} µs on"


def _tag(said: msgspec.Struct) -> str:
    return str(said.__struct_config__.tag)


def choose(coverage: Coverage, identity: str) -> Sequence[str]:
    """The streams that an answer about the identity needs."""
    return [
        one.stream
        for heard in coverage.pods
        for one in heard.streams
        if heard.identity == identity or (one.opened is not None and one.opened.identity == identity)
    ]
