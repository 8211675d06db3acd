"""The program that reads statements for those who must not: `python -I -m` and this module.

The parser is C code that a hostile text may bring down, so a process that has anything to lose runs this one and looks
at what it says. stdin: a list of texts, as JSON. stdout, for each text in order, a line of JSON, written as soon as it
is known, so that whoever runs it can tell at which text it ended:

    {"resolution": …, "accesses": […], "why": "…", "parses": true}

`resolution` and `accesses` as the policy engine is asked; `why` something is `unknown`, or why the text does not parse.
No database is asked: names are those written, completed by the fixed search path.
"""

from __future__ import annotations

import resource
import sys
from typing import Final

import msgspec

from chaperone_sidecar.policy.question import asked
from chaperone_sidecar.protocols.postgresql.classify import classify

# 30 MiB are there before the first text; one of `grammar.INLINE_BYTES` takes up to some 150 MiB more.
MEMORY_BYTES: Final = 256 * 1024 * 1024
CPU_S: Final = 10  # whoever waits for it gives up sooner; this ends what nobody waits for any more


def main() -> int:
    """Entry point.

    Raises:
        msgspec.DecodeError: stdin is no list of texts.
    """
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_S),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),  # it writes to pipes alone
    ):
        resource.setrlimit(kind, (most, most))
    for text in msgspec.json.decode(sys.stdin.buffer.read(), type=list[str]):
        sys.stdout.buffer.write(msgspec.json.encode(read(text)) + b"\n")
        sys.stdout.buffer.flush()
    return 0


def read(text: str) -> dict[str, object]:
    """What is said of one text."""
    found = classify(text.encode())
    return {**asked(found.facts), "why": found.facts.why_unknown, "parses": not found.is_unread}


if __name__ == "__main__":
    sys.exit(main())
