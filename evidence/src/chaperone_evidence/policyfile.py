"""Policies as text (C2SP tlog-policy): whose signatures make a checkpoint believable.

Lines, in any order but names before their use: `log <vkey> [url]` · `witness <name> <vkey> [url]` ·
`group <name> all|any|<k> <member> …` · `quorum <name>|none`, exactly once. Empty lines and those that begin with # say
nothing. URLs are not looked at here.

Stricter than the specification: a checkpoint must be signed by every key of the log that the file names, not by any.
Groups of groups are refused.
"""

from __future__ import annotations

from typing import Final

from chaperone_evidence.cosignature import Key, parse_key
from chaperone_evidence.errors import Malformed
from chaperone_evidence.policy import Policy

MAX_BYTES: Final = 1 << 20
MAX_NAMES: Final = 256  # of witnesses and groups together; the specification asks for 32 of each


def parse(text: str) -> Policy:
    """Read a policy.

    Raises:
        Malformed: the text is no policy, names keys of several logs, or says more than this version knows.
    """
    if len(text) > MAX_BYTES:
        raise Malformed("The policy is too long.")
    logs: list[Key] = []
    groups: dict[str, tuple[int, tuple[Key, ...]]] = {"none": (0, ())}
    quorum = ""
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        match words:
            case ["log", vkey, *rest] if len(rest) < 2:
                logs.append(parse_key(vkey))
            case ["witness", name, vkey, *rest] if len(rest) < 2:
                _define(groups, name, 1, (parse_key(vkey),))
            case ["group", name, count, *members] if members:
                _define(groups, name, _count(count, len(members)), tuple(_witness(groups, one) for one in members))
            case ["quorum", name] if not quorum and name in groups:
                quorum = name
            case _:
                raise Malformed(f"Line {number} of the policy is not understood.")
    if not quorum:
        raise Malformed("The policy says no quorum.")
    names = {key.name for key in logs}
    if len(names) != 1:
        raise Malformed(f"The policy names {len(names)} logs; it has to name one.")
    needed, witnesses = groups[quorum]
    return Policy(names.pop(), tuple(logs), len(logs), witnesses, needed)


def render(policy: Policy) -> str:
    """The text of a policy."""
    lines = [f"log {key.vkey}" for key in policy.log]
    members = [f"witness-{number}" for number in range(1, len(policy.witnesses) + 1)]
    lines += [f"witness {name} {key.vkey}" for name, key in zip(members, policy.witnesses, strict=True)]
    if not policy.witness_quorum:
        return "\n".join([*lines, "quorum none", ""])
    return "\n".join([*lines, f"group witnesses {policy.witness_quorum} {' '.join(members)}", "quorum witnesses", ""])


def _define(groups: dict[str, tuple[int, tuple[Key, ...]]], name: str, needed: int, keys: tuple[Key, ...]) -> None:
    if name in groups or len(groups) > MAX_NAMES:
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
