"""Reads a program's words by the table: which options, which paths with which effect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.ssh.programs import Use
from chaperone_sidecar.protocols.ssh.shell import Unclear, Word

type Touch = tuple[Effect, Word]

_HERE: Final = Word(".")
# What a stronger effect on what is read makes of what is written with it.
_BULKIER: Final = {Effect.MODIFY: Effect.BULK_WRITE, Effect.CREATE: Effect.BULK_WRITE}
_HELP: Final = frozenset({"help", "version"})


def scan(name: str, use: Use, words: Sequence[Word]) -> tuple[Effect, list[Touch]]:
    """The effect on the program, and the paths it would touch.

    Raises:
        Unclear: an option that is not known, or more operands than the program is known to take.
    """
    touches: list[Touch] = []
    operands: list[Word] = []
    chosen: set[str] = set()
    rest = iter(words)
    for word in rest:
        text = word.text
        if text == "--":
            operands += rest
        elif text.startswith("--"):
            chosen.add(_long(name, use, text, rest))
        elif text.startswith("-") and text != "-" and not (use.is_text and set(text[1:]) - set(use.flags)):
            _letters(name, use, text, rest, chosen, touches)
        else:
            operands.append(word)
    stronger = max((use.stronger[one] for one in chosen if one in use.stronger), key=_rank, default=None)
    if not chosen & use.pattern_options:
        operands = operands[use.skip :]
    if len(operands) > use.most:
        raise Unclear(f"{name} with more than {use.most} operands is not one whose effects are known")
    if use.operands is not None:
        touches += _operands(use, operands, stronger, has_last=not chosen & use.files.keys())
    if use.last is not None and "T" not in chosen:
        touches += _landings(use, operands, touches, stronger)
    effect = stronger if stronger is not None and use.effect == use.operands else use.effect
    return effect, touches


def _operands(use: Use, operands: Sequence[Word], stronger: Effect | None, *, has_last: bool) -> Iterator[Touch]:
    effect = stronger or use.operands or use.effect
    last = use.last if has_last else None
    if last is not None and stronger is not None:
        last = _BULKIER.get(last, last)
    for index, word in enumerate(operands):
        if word.text == "-" and not word.home:
            continue  # a standard stream
        yield (last if last is not None and index == len(operands) - 1 else effect), word
    if not operands and (use.is_here or stronger is Effect.BULK_READ):
        yield effect, _HERE


def _landings(use: Use, operands: Sequence[Word], touches: Sequence[Touch], stronger: Effect | None) -> list[Touch]:
    """What is written if the place is a directory, which only the host knows; `-T` says that it is none."""
    named = next((word for effect, word in touches if effect is use.last and word not in operands), None)
    place = named or (operands[-1] if len(operands) > 1 else None)
    if place is None or use.last is None:
        return []
    effect = use.last if stronger is None else _BULKIER.get(use.last, use.last)
    names = [word.text.rstrip("/").rpartition("/")[2] for word in (operands if named else operands[:-1])]
    return [
        (effect, Word(f"{place.text}/{name}", home=place.home)) for name in names if name not in ("", ".", "~", "-")
    ]


def _long(name: str, use: Use, text: str, rest: Iterator[Word]) -> str:
    option, has_value, _ = text[2:].partition("=")
    if option not in use.words and option not in use.word_values and option not in _HELP:
        raise Unclear(f"{name} --{option[:40]} is not one whose effects are known")
    if option in use.word_values and not has_value:
        next(rest, None)
    return option


def _letters(name: str, use: Use, text: str, rest: Iterator[Word], chosen: set[str], touches: list[Touch]) -> None:
    for index, letter in enumerate(text[1:], start=1):
        if letter in use.flags:
            chosen.add(letter)
            continue
        if letter not in use.values and letter not in use.files:
            raise Unclear(f"{name} -{letter} is not one whose effects are known")
        chosen.add(letter)
        value = Word(text[index + 1 :]) if text[index + 1 :] else next(rest, None)
        if value is None:
            raise Unclear(f"{name} -{letter} has no value")
        if letter in use.files:
            touches.append((use.files[letter], value))
        return


def _rank(effect: Effect) -> int:
    return (Effect.BULK_READ, Effect.BULK_WRITE, Effect.DESTROY).index(effect)
