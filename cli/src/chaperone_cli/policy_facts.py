"""What a text would do, as a gateway finds it out; without a database, so names are taken as they are written."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from chaperone_cli.policy_ask import Question
from chaperone_sidecar.command import Access, Extent, Facts
from chaperone_sidecar.policy.question import asked
from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql.classify import Classified, ClassifyCache, classify, classify_apart
from chaperone_sidecar.protocols.postgresql.grammar import INLINE_BYTES, ParseError

PROTOCOL: Final = "PostgreSQL"  # the one whose texts are read here


class Part(msgspec.Struct, frozen=True):
    """One statement of a text of several."""

    text: str
    facts: Facts


class Classifier:
    """Facts of texts; those of texts that come again are remembered."""

    def __init__(self) -> None:
        self._cache = ClassifyCache()

    def read(self, text: bytes) -> Classified:
        """What a text does."""
        found = self._cache.find(text)
        if found is None:
            found = classify(text) if len(text) <= INLINE_BYTES else classify_apart(text).result()
            self._cache.keep(text, found)
        return found


def parts(text: bytes) -> list[Part]:
    """The statements of a text, each by itself; none where the text does not parse or is very long."""
    if len(text) > INLINE_BYTES:
        return []
    try:
        trees = grammar.parse(text)
    except ParseError:
        return []
    found = []
    for tree in trees:
        begin = tree.get("stmt_location", 0)
        end = begin + tree["stmt_len"] if tree.get("stmt_len") else len(text)
        alone = text[begin:end].strip()
        found.append(Part(alone.decode(errors="replace"), classify(alone).facts))
    return found


def question(identity: str, target: str, protocol: str, facts: Facts, **more: Any) -> Question:  # noqa: ANN401 - JSON
    """The question to the engine about these facts."""
    return {
        "identity": identity,
        "target": target,
        "protocol": protocol,
        **asked(facts),
        "repeats": {},
        **more,
    }


def reach(facts: Facts) -> dict[Access, Extent]:
    """How far each access reaches that the text names."""
    return dict(zip(facts.accesses, (*facts.extents, *(Extent(),) * len(facts.accesses)), strict=False))
