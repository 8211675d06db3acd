"""Finding, in linear time: RE2 over whole batches first, then what hit, value by value.

A few filters, each an alternation without groups, say whether anything in a batch may hit; on clean data, the usual
case, that is all. Only where one hits is each of its detectors asked alone, so that one kind never hides another that
overlaps it, and its check has the last word.

Filters are searches and not `re2.Set`s: a Set whose DFA runs out of memory answers "nothing", a search falls back to
the NFA. A Set only says which detectors of a family to ask, after its filter has hit. There are several filters
because the states of one automaton for all are the product of its parts (decisions/009).

This module imports RE2 (5 MiB), so it is imported only where masks exist.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

import re2

from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking import checks
from chaperone_sidecar.masking.detectors import BUILTIN, Detector, Span, Trigger

# Program and DFA states of one expression. Ours stay under a quarter of it on every corpus tried; the gateway's
# whole budget is 64 MiB.
MAX_PATTERN_BYTES: Final = 2 << 20
MAX_CUSTOM_CHARS: Final = 1000
# Instructions of a custom pattern: `(a{1,30}){1,30}` compiles in RE2, and makes each DFA state a kilobyte.
MAX_CUSTOM_PROGRAM: Final = 2000
# RE2 is linear for one search, not for all of them over one text: an expression may have to look to the end before it
# knows its first match, each time. Past this many matches of a custom pattern the rest of the value is one span.
MAX_CUSTOM_SPANS: Final = 256

JOINT: Final = b"\x00"
ANY_FILTER: Final = -1  # each bit set: nothing is known of what may hit

_UNANCHORED: Final = re2._Anchor.UNANCHORED

_CLASS_OR_ESCAPE: Final = re.compile(r"\[\^?\]?(?:\[:\^?\w+:\]|\\.|[^\]\\])*\]|\\[^Az]", re.DOTALL)
_LOOKS_AROUND: Final = re.compile(
    rb"\\[bB]"
)  # "\\b" in a class or behind a backslash counts, too: slower, no less safe
_ANCHOR: Final = re.compile(r"[\^$]|\\[Az]")


def options() -> re2.Options:
    """How all expressions here are compiled: bytes as they are, bounded, silent."""
    made = re2.Options()
    made.encoding = re2.Options.Encoding.LATIN1
    made.max_mem = MAX_PATTERN_BYTES
    made.log_errors = False
    return made


class Program:
    """A compiled expression of RE2, as the binding has it: the package's own `search` costs twice the time."""

    def __init__(self, pattern: bytes) -> None:
        self._match: Callable[[object, bytes | memoryview, int, int], list[tuple[int, int]]]
        self._match = re2.compile(pattern, options())._regexp.Match

    def search(self, text: bytes | memoryview, start: int = 0) -> tuple[int, int] | None:
        """Where the first match at or after `start` is."""
        size = len(text)
        if start > size:
            return None
        span = self._match(_UNANCHORED, text, start, size)[0]
        return None if span[0] < 0 else span


def _set(patterns: Sequence[bytes]) -> re2.Set:
    made = re2.Set.SearchSet(options())
    for pattern in patterns:
        made.Add(pattern)
    made.Compile()
    return made


def custom(kind: str, pattern: str) -> Detector:
    """A detector from an expression that a policy's author wrote.

    Raises:
        ConfigError: what RE2 cannot do in linear time, or what would be found where nothing is.
    """
    if len(pattern) > MAX_CUSTOM_CHARS:
        raise ConfigError(f"Detector {kind}: the pattern has more than {MAX_CUSTOM_CHARS} characters; shorten it.")
    if _ANCHOR.search(_CLASS_OR_ESCAPE.sub("", pattern)):
        raise ConfigError(
            f"Detector {kind}: values are searched in batches and inside other values, so ^, $, \\A and \\z have no "
            "meaning; write \\b, or name the column instead."
        )
    encoded = pattern.encode()
    try:
        program = re2.compile(encoded, options())
        re2.compile(b"(?:%s)" % encoded, options())  # as filters have it: an open \Q would quote the bracket
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        raise ConfigError(
            f"Detector {kind}: RE2 refuses the pattern ({reason}). Look-around and back-references have no linear-time "
            "form; write the pattern without them."
        ) from None
    if program.programsize > MAX_CUSTOM_PROGRAM:
        raise ConfigError(f"Detector {kind}: the pattern compiles to a program that is too large; bound its repeats.")
    if program.search(b"") is not None:
        raise ConfigError(f"Detector {kind}: the pattern matches the empty text, so everywhere; make it say something.")
    return Detector(kind, encoded, checks.anything, "custom")


def builtin(kind: str) -> Detector:
    """A detector by its name in the API.

    Raises:
        ConfigError: no such detector.
    """
    if kind not in BUILTIN:
        raise ConfigError(f"There is no detector {kind}; there are {', '.join(sorted(BUILTIN))}, and patterns.")
    return BUILTIN[kind]


class Scanner:
    """A set of detectors, compiled together."""

    def __init__(self, detectors: Sequence[Detector], triggers: Sequence[Trigger] = ()) -> None:
        """Compile; candidates are numbered as given, detectors first."""
        self._detectors = tuple(detectors)
        parts: list[Detector | Trigger] = [*detectors, *triggers]
        self._alone = [Program(part.pattern) for part in parts]
        families: dict[str, list[int]] = {}
        for index, part in enumerate(parts):
            # The automata of custom patterns are unknown, so each keeps to itself.
            families.setdefault(part.family if part.family != "custom" else f"custom {index}", []).append(index)
        self._filters = [
            (Program(b"|".join(b"(?:%s)" % parts[index].pattern for index in members)), tuple(members))
            for members in families.values()
        ]
        self._sets = [_set([parts[index].pattern for index in members]) for members in families.values()]
        self._programs = [program for program, _ in self._filters]
        custom = [detector for detector in detectors if detector.family == "custom"]
        self.has_custom = bool(custom)
        # \b asks what stands beside a value, and beside it in a frame are the bytes of lengths.
        self._looks_around = any(_LOOKS_AROUND.search(detector.pattern) for detector in custom)

    def may_hit(self, data: bytes | memoryview) -> bool:
        """Whether anything in `data` may be sensitive; never False for raw frames that hold such a value."""
        return self._looks_around or self._hits(data)

    def visit(self, data: bytes, resume: Callable[[int, int], int]) -> None:
        """Tell of places in raw frames where something may stand; only for detectors that are all our own.

        Our patterns cross no NUL and look at no neighbour. So, where a NUL stands between any two values, a value that
        may be sensitive is told of by each filter that hits it, unless `resume` has gone past it.

        Args:
            data: frames.
            resume: is told the filter's number and where the match begins; says where to go on, behind that.
        """
        for number, program in enumerate(self._programs):
            found = program.search(data)
            while found is not None:
                found = program.search(data, resume(number, found[0]))

    def candidates(self, data: bytes, filters: int = ANY_FILTER) -> list[int]:
        """Which detectors and triggers may hit, of a value that was hit by `filters`, a bit for each."""
        hit: list[int] = []
        for number, (program, members) in enumerate(self._filters):
            if not filters >> number & 1 or (filters == ANY_FILTER and program.search(data) is None):
                continue
            # None here means that the Set ran out of memory, for the filter has hit: then all are asked.
            chosen = self._sets[number].Match(data) if len(members) > 1 else None
            hit += members if chosen is None else [members[index] for index in chosen]
        return hit

    def scan(self, data: bytes) -> list[Span]:
        """All values that the detectors find, in order, none overlapping another."""
        return self.spans(data, self.candidates(data))

    def spans(self, data: bytes, candidates: Sequence[int]) -> list[Span]:
        """As `scan`, with the candidates known."""
        found: list[Span] = []
        for index in candidates:
            if index < len(self._detectors):
                self._each(index, data, found)
        return _merge(sorted(found)) if len(found) > 1 else found

    def triggered(self, candidates: Sequence[int]) -> list[int]:
        """Which of the candidates are triggers, numbered from 0."""
        count = len(self._detectors)
        return sorted(index - count for index in candidates if index >= count)

    def hit_cells(self, cells: Sequence[bytes]) -> list[int]:
        """Which of many values may be sensitive: one search over all for each filter, and one more for each hit."""
        if self.has_custom:  # a custom expression may look across the joints, each time to the end
            return [index for index, cell in enumerate(cells) if self._hits(cell)]
        joined = JOINT.join(cells)
        starts: list[int] = []
        hits: set[int] = set()
        for program in self._programs:
            found = program.search(joined)
            while found is not None:
                starts = starts or list(accumulate((len(cell) + 1 for cell in cells), initial=0))
                index = bisect_right(starts, found[0]) - 1
                hits.add(index)
                found = program.search(joined, starts[index + 1]) if index + 1 < len(cells) else None
        return sorted(hits)

    def _hits(self, data: bytes | memoryview) -> bool:
        return any(program.search(data) is not None for program in self._programs)

    def _each(self, index: int, data: bytes, found: list[Span]) -> None:
        detector, program = self._detectors[index], self._alone[index]
        place, count, size = 0, 0, len(data)
        while place < size and (match := program.search(data, place)) is not None:
            span = detector.check(data, match[0], match[1])
            if isinstance(span, int):
                place = span
                continue
            count += 1
            if count > MAX_CUSTOM_SPANS and detector.family == "custom":
                found.append(Span(span[0], size, detector.kind))
                return
            found.append(Span(span[0], span[1], detector.kind))
            place = span[1]


def _merge(spans: list[Span]) -> list[Span]:
    """Unite what overlaps; the kind of the longest part is that of the whole."""
    merged = [spans[0]]
    longest = spans[0].end - spans[0].start
    for span in spans[1:]:
        last = merged[-1]
        length = span.end - span.start
        if span.start >= last.end:
            merged.append(span)
            longest = length
            continue
        kind = span.kind if length > longest else last.kind
        longest = max(longest, length)
        merged[-1] = Span(last.start, max(last.end, span.end), kind)
    return merged
