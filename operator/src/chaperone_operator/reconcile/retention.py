"""For how long the texts of an identity are kept, as its spec says; what populations tell the collector of that. Pure.

What cannot be read keeps the word that was said last: nothing is erased because of a mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from chaperone_operator.compile.model import IdentitySpec, decode

FOR_EVER: Final = 0

_DURATION: Final = re.compile(r"([1-9][0-9]{0,3})([dwy])")
_DAYS: Final = {"d": 1, "w": 7, "y": 366}  # a year that is never short of one


class Term(msgspec.Struct, frozen=True):
    """Days for which texts are kept, `FOR_EVER` or more; nothing of one that is held is erased."""

    days: int = FOR_EVER
    is_held: bool = False


def days(text: str) -> int:
    """The days of a duration such as 400d, 13w or 2y; `FOR_EVER` for "".

    Raises:
        ValueError: it is none.
    """
    if not text:
        return FOR_EVER
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no number of days, weeks or years.")
    return int(match[1]) * _DAYS[match[2]]


def terms(identities: Iterable[Mapping[str, Any]], last: Mapping[str, Term]) -> dict[str, Term]:
    """The terms of a namespace's identities, by name; none until one asks for some.

    Args:
        identities: as the API gives them.
        last: what the population before said.
    """
    found: dict[str, Term] = {}
    for item in identities:
        name = item["metadata"]["name"]
        identity, _ = decode(item, IdentitySpec)
        try:
            evidence = identity.spec.evidence if identity is not None else None
            term = Term(days(evidence.retention), evidence.legal_hold) if evidence is not None else last.get(name)
        except ValueError:
            term = last.get(name)
        if term is not None:
            found[name] = term
    return found if last or any(term != Term() for term in found.values()) else {}
