"""Statements that nest deep enough to overflow the parser's stack: they end as facts or as unknown, never as a crash.

Each shape runs in a process of its own, since the crash to be ruled out is a SIGSEGV.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

SIZES = (43_000, 128 * 1024, 192 * 1024, 641 * 1024, 1024 * 1024)
# shape -> (text before, one repetition, text after)
SHAPES = {
    "sum": ("SELECT 1", "+1", ""),
    "concatenation": ("SELECT a", "||a", ""),
    "cast": ("SELECT 1", "::int", ""),
    "collate": ("SELECT 'a'", ' COLLATE "C"', ""),
    "join": ("SELECT * FROM a", " JOIN a ON b", ""),
    "natural join": ("SELECT * FROM a", " NATURAL JOIN a", ""),
    "at time zone": ("SELECT a", " AT TIME ZONE b", ""),
    "at local": ("SELECT a", " AT LOCAL", ""),
    "union": ("SELECT 1", " UNION SELECT 1", ""),
    "union all values": ("VALUES(1)", "UNION ALL VALUES(1)", ""),
    "is null": ("SELECT 1", " IS NULL", ""),
    "unary minus": ("SELECT ", "- ", "1"),
    "not": ("SELECT ", "NOT ", "true"),
    "and": ("SELECT a", " AND a", ""),
    "or": ("SELECT a", " OR a", ""),
    "subscript": ("SELECT a", "[1]", ""),
    "field": ("SELECT (a)", ".b", ""),
    "case": ("SELECT ", "CASE WHEN a THEN 1 ELSE ", "1"),
    "brackets": ("SELECT ", "(", "1"),
    "sub-select": ("SELECT ", "(SELECT ", "1"),
    "sub-select in from": ("SELECT * FROM ", "(SELECT * FROM ", "a"),
    "call": ("SELECT ", "f(", "1"),
    "array": ("SELECT ", "ARRAY[", "1"),
    "row": ("SELECT ", "ROW(", "1"),
    "in": ("SELECT a", " IN (1)", ""),
    "between": ("SELECT a", " BETWEEN 1 AND 2", ""),
    "like": ("SELECT a", " LIKE b", ""),
    "with": ("", "WITH a AS (", "SELECT 1"),
    "many with": ("WITH a AS (SELECT 1)", ",a AS (SELECT 1)", " SELECT 1"),
    "explain": ("", "EXPLAIN ", "SELECT 1"),
    "statements": ("", "SELECT 1;", ""),
    "comments": ("SELECT ", "/*", "1"),
    "long list": ("SELECT 1 IN (1", ",1", ")"),
    "long string": ("SELECT '", "x", "'"),
    "parameters": ("SELECT $1", "+$1", ""),
    "grouping sets": ("SELECT 1 GROUP BY ", "GROUPING SETS (", "a"),
    "json": ("SELECT ", "json_array(", "1"),
    "xml": ("SELECT ", "xmlconcat(", "a"),
    "schema-qualified name": ("SELECT * FROM a", ".a", ""),
    "quantified operator": ("SELECT a", " = ANY (a)", ""),
    "prefix operator": ("SELECT ", "@ ", "1"),
    "type modifiers": ("SELECT a::b(", "1,", "1)"),
    "columns": ("SELECT a", ",a", ""),
    "operator characters": ("SELECT 1 ", "+", "1"),
    "short comments": ("SELECT ", "/**/", "1"),
    "comments with blanks": ("SELECT ", "/*" * 120 + " ", "1"),
    "blanks": ("SELECT 1", " ", ""),
    "digits": ("SELECT ", "1", ""),
    "dollars": ("SELECT $a$", "$a", "$a$"),
    "escapes": ("SELECT E'", "\\x41", "'"),
    "continued strings": ("SELECT 'a'", "\n'a'", ""),
}
CLOSING = {"case": " END", "array": "]"}
OPENING_BRACKET = {
    "brackets", "sub-select", "sub-select in from", "call", "row", "with", "grouping sets", "json", "xml",
}  # fmt: skip

PROGRAM = r"""
import re, sys, time
from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql.classify import classify, classify_apart
from chaperone_sidecar.protocols.postgresql.grammar import INLINE_BYTES
for line in sys.stdin:
    before, repeated, after, closing, size = eval(line)
    unit = len(repeated) + len(closing)
    times = max(1, (size - len(before) - len(after)) // unit)
    text = (before + repeated * times + after + closing * times).encode()[:size]
    started = time.thread_time()
    classified = classify(text) if len(text) <= INLINE_BYTES else classify_apart(text).result(60)
    effects = {access.effect for access in classified.facts.accesses}
    assert effects, line
    print(len(text), "unknown" if Effect.UNKNOWN in effects else "facts", flush=True)
    used_s = time.thread_time() - started  # for a large text the thread's own time isn't in it
    assert len(text) > INLINE_BYTES or used_s < 1, f"{used_s} s on the event loop: {line[:80]}"
# What getrusage says begins with what the parent had; the kernel's own mark begins with this program.
peak = int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1])
assert peak < 400 * 1024, f"{peak // 1024} MiB"
"""


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_deep_statements_never_kill_the_process(shape: str) -> None:
    before, repeated, after = SHAPES[shape]
    closing = CLOSING.get(shape, ")" if shape in OPENING_BRACKET else "")
    if shape == "sub-select in from":
        closing = ") b"
    if shape == "with":
        closing = ") SELECT 1"
    lines = "".join(f"{(before, repeated, after, closing, size)!r}\n" for size in (32 * 1024, *SIZES))
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=lines, capture_output=True, text=True, timeout=100, check=False
    )
    assert ended.returncode == 0, f"exit {ended.returncode}: {ended.stdout}{ended.stderr[-2000:]}"
    assert len(ended.stdout.splitlines()) == len(SIZES) + 1
