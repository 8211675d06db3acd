"""What is seen where policy masks values: of a command by people and records, of a directory by the client."""

from __future__ import annotations

from collections.abc import Callable

import asyncssh
import msgspec

from chaperone_sidecar.command import Access, Command, Facts
from chaperone_sidecar.masking.mask import Masker


def shown(command: Command, masker: Masker | None) -> Command:
    """The command, with what may be seen of it."""
    if masker is None:
        return command
    text = masker.mask_text(command.text)
    accesses = tuple(
        Access(one.effect, masker.mask_text(one.object.encode()).decode("utf-8", "replace"), one.through)
        for one in command.facts.accesses
    )
    if text == command.text and accesses == command.facts.accesses:
        return command
    facts = Facts(accesses, command.facts.resolution)
    return msgspec.structs.replace(command, shown_text=text, shown_facts=facts)


def for_people(command: Command) -> str:
    """The text that whoever is asked sees."""
    text = command.text if command.shown_text is None else command.shown_text
    return text.decode("utf-8", "replace")


def listed(name: asyncssh.SFTPName, mask: Callable[[bytes], bytes]) -> asyncssh.SFTPName:
    """An entry of a directory, as it may be seen."""
    raw = [one if isinstance(one, bytes) else one.encode() for one in (name.filename, name.longname)]
    return asyncssh.SFTPName(mask(raw[0]), mask(raw[1]), name.attrs)
