"""Policies as text (C2SP tlog-policy): whose signatures make a checkpoint believable.

Lines, in any order but names before their use: `log <vkey> [url]` · `witness <name> <vkey> [url]` ·
`group <name> all|any|<k> <member> …` · `quorum <name>|none`, exactly once. Empty lines and those that begin with # say
nothing.

Stricter than the specification: a checkpoint must be signed by every key of the log that the file names, not by any.
Groups of groups are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from chaperone_evidence.cosignature import TIMED, Key, parse_key
from chaperone_evidence.errors import Malformed
from chaperone_evidence.policy import Policy

MAX_BYTES: Final = 1 << 20
MAX_NAMES: Final = 256  # of witnesses and groups together; the specification asks for 32 of each


class Witness(msgspec.Struct, frozen=True):
    """Where a witness is asked, and the keys that it signs with there."""

    url: str
    keys: tuple[Key, ...]


class Quorum(msgspec.Struct, frozen=True):
    """How many of which witnesses must have signed."""

    needed: int
    witnesses: tuple[Key, ...]


NO_QUORUM: Final = Quorum(0, ())


def parse(text: str) -> Policy:
    """Read a policy. With `quorum none`, all witnesses that it names are known and none is asked for.

    Raises:
        Malformed: the text is no policy, names keys of several logs, or says more than this version knows.
    """
    logs, quorum = _parse(text)
    if quorum is None:
        raise Malformed("The policy says no quorum.")
    names = {key.name for key in logs}
    if len(names) != 1:
        raise Malformed(f"The policy names {len(names)} logs; it has to name one.")
    return Policy(names.pop(), tuple(logs), len(logs), quorum.witnesses, quorum.needed)


def parse_quorum(text: str) -> Quorum:
    """Whose signatures a policy asks for besides the log's, whether or not it names a log; nobody's without a quorum.

    Raises:
        Malformed: the text says more than this version knows.
    """
    return _parse(text)[1] or NO_QUORUM


def _parse(text: str) -> tuple[list[Key], Quorum | None]:
    logs: list[Key] = []
    witnesses: list[Key] = []
    groups: dict[str, tuple[int, tuple[Key, ...]]] = {}
    quorum = ""
    for number, words in _lines(text):
        match words:
            case ["log", vkey, *rest] if len(rest) < 2:
                logs.append(parse_key(vkey))
            case ["witness", name, vkey, *rest] if len(rest) < 2:
                witnesses.append(parse_key(vkey))
                _define(groups, name, 1, (witnesses[-1],))
            case ["group", name, count, *members] if members:
                _define(groups, name, _count(count, len(members)), tuple(_witness(groups, one) for one in members))
            case ["quorum", name] if not quorum and (name == "none" or name in groups):
                quorum = name
            case _:
                raise Malformed(f"Line {number} of the policy is not understood.")
    return logs, Quorum(*groups.get(quorum, (0, tuple(witnesses)))) if quorum else None


def parse_witnesses(text: str) -> tuple[Witness, ...]:
    """The witnesses of a policy that can be asked, which are those with an `http` or `https` URL.

    Raises:
        Malformed: a line about a witness is not understood, its key says no time, or is there twice.
    """
    found: dict[str, list[Key]] = {}
    for number, words in _lines(text):
        match words:
            case ["witness", _, vkey, url] if url.startswith(("https://", "http://")):
                found.setdefault(url.rstrip("/"), []).append(parse_key(vkey))
            case ["witness", _, vkey]:
                parse_key(vkey)
            case ["witness", *_]:
                raise Malformed(f"Line {number} of the policy is not understood.")
    keys = [key for some in found.values() for key in some]
    if any(key.kind not in TIMED for key in keys) or len({key.public for key in keys}) != len(keys):
        raise Malformed("The key of a witness is there twice, or is of a kind that says no time.")
    return tuple(Witness(url, tuple(some)) for url, some in found.items())


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and words of the lines that say something."""
    if len(text) > MAX_BYTES:
        raise Malformed("The policy is too long.")
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def render(policy: Policy) -> str:
    """The text of a policy."""
    lines = [f"log {key.vkey}" for key in policy.log]
    members = [f"witness-{number}" for number in range(1, len(policy.witnesses) + 1)]
    lines += [f"witness {name} {key.vkey}" for name, key in zip(members, policy.witnesses, strict=True)]
    if not policy.witness_quorum:
        return "\n".join([*lines, "quorum none", ""])
    return "\n".join([*lines, f"group witnesses {policy.witness_quorum} {' '.join(members)}", "quorum witnesses", ""])


def _define(groups: dict[str, tuple[int, tuple[Key, ...]]], name: str, needed: int, keys: tuple[Key, ...]) -> None:
    if name == "none" or name in groups or len(groups) > MAX_NAMES:
        raise Malformed(f"The policy says twice who {name[:100]} is, or names too many.")
    groups[name] = (needed, keys)


def _witness(groups: dict[str, tuple[int, tuple[Key, ...]]], name: str) -> Key:
    needed, keys = groups.get(name, (0, ()))
    if needed != 1 or len(keys) != 1:
        raise Malformed(f"The member {name[:100]} of a group is no witness that was named before.")
    return keys[0]


def _count(text: str, members: int) -> int:
    if text in {"all", "any"}:
        return members if text == "all" else 1
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= members):
        raise Malformed(f"{text[:20]} of {members} members cannot be asked for.")
    return int(text)
