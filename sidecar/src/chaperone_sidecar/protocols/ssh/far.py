"""The far side of programs that copy, as their clients start it: what the words before their own protocol say.

Source: the manuals of rsync 3.4 (`--server`) and OpenSSH's scp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.ssh.programs import words as listed
from chaperone_sidecar.protocols.ssh.shell import Unclear, Word

_RSYNC_LETTERS: Final = frozenset("vqcarRlLHAXpogtDdWxSunzbyhiIJkKEOUmNC")
_RSYNC_WORDS: Final = listed(
    """--server --sender --recursive --times --perms --links --delete --delete-during --delete-before --delete-after
    --delete-delay --delete-excluded --force --partial --inplace --append --numeric-ids --size-only --checksum
    --whole-file
    --ignore-existing --existing --stats --no-r --no-implied-dirs --dirs --omit-dir-times --safe-links
    --fuzzy"""
)
# Who receives with these makes links, devices, owners or bits that let others run as one: that is `privilege`.
_POWERS: Final = frozenset("lDpogAXK") | {"--links", "--perms"}


def rsync(words: Sequence[Word]) -> Iterator[tuple[Effect, Word | str]]:
    """The far side, as rsync starts it (`--server`); a client would go on to another host."""
    texts = [word.text for word in words]
    if not texts or texts[0] != "--server":
        yield Effect.EXTERNAL_IO, ""
        return
    options = [text for text in texts if text.startswith("-")]
    operands = [word for word in words if not word.text.startswith("-")]
    letters = "".join(text[1:].partition("e.")[0] for text in options if not text.startswith("--"))
    for text in options:
        if (
            text.startswith("--")
            and text not in _RSYNC_WORDS
            and not re.fullmatch(r"--(?:log-format|out-format)=%i", text)
        ):
            raise Unclear(f"rsync {text[:40]} is not one whose effects are known")
    unknown = set(letters) - _RSYNC_LETTERS
    if unknown or len(operands) < 2 or operands[0].text != ".":
        raise Unclear("rsync in a form that is not known")
    is_many = "r" in letters or "a" in letters or "--recursive" in texts
    if "--sender" in texts:
        effects = [Effect.BULK_READ if is_many else Effect.READ]
    else:
        effects = [Effect.BULK_WRITE]  # the names come later, and may lie anywhere below
        if not _POWERS.isdisjoint(letters) or not _POWERS.isdisjoint(texts):
            effects.append(Effect.PRIVILEGE)
        if any(text.startswith("--delete") for text in texts) or "--force" in texts:
            effects.append(Effect.DESTROY)
    for effect in effects:
        yield effect, ""
        for operand in operands[1:]:
            yield effect, operand


def is_old_scp(words: Sequence[Word]) -> bool:
    """Whether this is the far side of scp's own protocol: `scp -t` or `scp -f` and one path."""
    if not words or words[0].text != "scp":
        return False
    letters = "".join(word.text[1:] for word in words[1:-1] if re.fullmatch(r"-[vrpdtf]+", word.text))
    is_known = all(re.fullmatch(r"-[vrpdtf]+|--", word.text) for word in words[1:-1])
    return is_known and ("t" in letters) != ("f" in letters)
