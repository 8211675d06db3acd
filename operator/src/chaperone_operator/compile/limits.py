"""Limits: what a policy may say of amounts, and which of several policies' limits is in force.

The lowest of all policies that bind an identity to a target counts, limit by limit; the policy that sets it is told to
the gateway, so that an agent that reaches it can be told whom to ask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from chaperone_operator.compile.model import Limits

MAX: Final = {
    "rowsPerCommand": 1_000_000_000,
    "commandsPerMinute": 100_000,  # the gateway remembers the time of each of them
    "connections": 200,  # what a gateway takes at all
}
_SIZE: Final = re.compile(r"([1-9][0-9]{0,12})|([1-9][0-9]{0,5})(k|M|G|Ki|Mi|Gi)")
_DURATION: Final = re.compile(r"([1-9][0-9]{0,4})(s|m|h)")
_BYTES: Final = {"k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_MILLISECONDS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000}
_SIZE_WORDS: Final = "a quantity of bytes such as 50Mi, at most 999999Gi"
_DURATION_WORDS: Final = "a duration in whole seconds, minutes or hours such as 30s"


class Stated(msgspec.Struct, frozen=True):
    """The limits of one policy that binds an identity to a target; `policy` as it is reported."""

    policy: str
    is_cluster: bool
    limits: Limits


def problems(limits: Limits) -> Iterator[tuple[str, str]]:
    """What is wrong with limits: a reason, and a message that begins with the field."""
    stated = msgspec.structs.asdict(limits)
    if all(value is None for value in stated.values()):
        yield "NoLimit", "spec.limits: empty; name a limit or leave it out."
    counts = {
        "rowsPerCommand": limits.rows_per_command,
        "commandsPerMinute": limits.commands_per_minute,
        "connections": limits.connections,
    }
    for field, value in counts.items():
        if value is not None and not 1 <= value <= MAX[field]:
            yield "BadLimit", f"spec.limits.{field}: {value} is not from 1 to {MAX[field]}."
    if limits.bytes_per_session is not None and size_bytes(limits.bytes_per_session) is None:
        yield "BadLimit", f"spec.limits.bytesPerSession: {limits.bytes_per_session!r} is not {_SIZE_WORDS}."
    if limits.command_duration is not None and duration_ms(limits.command_duration) is None:
        yield "BadLimit", f"spec.limits.commandDuration: {limits.command_duration!r} is not {_DURATION_WORDS}."


def size_bytes(quantity: int | str) -> int | None:
    """Bytes of a Kubernetes quantity, None when it is none that is admitted."""
    found = _SIZE.fullmatch(str(quantity))
    if found is None:
        return None
    return int(found[1]) if found[1] else int(found[2]) * _BYTES[found[3]]


def duration_ms(text: str) -> int | None:
    """Milliseconds of a duration, None when it is none that is admitted."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _MILLISECONDS[found[2]] if found is not None else None


def lowest(stated: Iterable[Stated]) -> dict[str, dict[str, Any]]:
    """The limits in force, as the gateway's configuration says them: the lowest each, and whose it is.

    Of equal ones a cluster policy's is named, then the first by name. Absent where no policy says anything.
    """
    found: dict[str, tuple[int, int, str]] = {}
    for one in stated:
        for field, value in _values(one.limits):
            candidate = (value, 0 if one.is_cluster else 1, one.policy)
            found[field] = min(found.get(field, candidate), candidate)
    return {field: {"max": value, "policy": policy} for field, (value, _, policy) in sorted(found.items())}


def _values(limits: Limits) -> Iterator[tuple[str, int]]:
    values = {
        "rows_per_command": limits.rows_per_command,
        "bytes_per_session": None if limits.bytes_per_session is None else size_bytes(limits.bytes_per_session),
        "commands_per_minute": limits.commands_per_minute,
        "connections": limits.connections,
        "command_duration_ms": None if limits.command_duration is None else duration_ms(limits.command_duration),
    }
    for field, value in values.items():
        if value is not None:
            yield field, value
