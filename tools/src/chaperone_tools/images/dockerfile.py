"""Which part of a Dockerfile decides one stage, so that an edit elsewhere in the file builds nothing again. Pure."""

from __future__ import annotations

import re

_FROM = re.compile(r"^FROM (?P<base>\S+) AS (?P<name>\S+)$", re.MULTILINE)


def stages(dockerfile: str, name: str) -> str:
    """The text of a stage after the stages it stands on, with what comes before the first stage.

    Raises:
        KeyError: there is no such stage.
    """
    found = list(_FROM.finditer(dockerfile))
    ends = [match.start() for match in found[1:]] + [len(dockerfile)]
    by_name = {
        match["name"]: (match["base"], dockerfile[match.start() : end]) for match, end in zip(found, ends, strict=True)
    }
    base, text = by_name[name]
    while base in by_name:
        base, below = by_name[base]
        text = below + text
    return dockerfile[: found[0].start()] + text
