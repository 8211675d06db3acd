"""What an approval is bound to: one command, byte for byte, as one identity would run it at one place."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from typing import Final

import msgspec

from chaperone_sidecar.command import Command, Facts
from chaperone_sidecar.user import User

SHAPE_DIGITS: Final = 32
_DOMAIN: Final = b"chaperone.dev/approval/v1\n"


class Place(msgspec.Struct, frozen=True):
    """Where a command would run. The user and the database are as the client named them."""

    session: str
    target: str
    protocol: str
    user: str = ""
    database: str = ""
    delegated: User | None = None


def binding(place: Place, command: Command, key: bytes) -> str:
    """HMAC-SHA-256, in hex, of what decides what the command does: target, database, user, text, parameters, objects.

    The session is no part of it: a command that was refused with a ticket comes again over another connection. Each
    part is preceded by its length, so that no two commands have the same bytes. Objects are part of it as they were
    resolved: a view that was replaced meanwhile makes it another command. Types of parameters are part of it, too: they
    decide what the bytes mean, and which of several functions of one name is called. So is the person on whose behalf
    the agent acts: what was allowed for one was not allowed for another.

    Args:
        place: where it would run.
        command: what would run.
        key: without it nobody can try which values give a binding that they read in a record; empty where nothing is
            masked.
    """
    return _digest(
        key,
        place.target.encode(),
        place.user.encode(),
        place.database.encode(),
        command.kind.encode(),
        command.text,
        command.params,
        ",".join(map(str, command.param_types)).encode(),
        *_resolved(command.facts),
        *_acting_for(place.delegated),
    )


def shape(place: Place, kind: str, facts: Facts) -> str:
    """The same for commands that do the same to the same objects of a target, whatever their values."""
    return _digest(b"", place.target.encode(), kind.encode(), *_resolved(facts))[:SHAPE_DIGITS]


def _resolved(facts: Facts) -> Iterator[bytes]:
    yield facts.resolution.value.encode()
    for access in facts.accesses:
        yield from (part.encode() for part in (access.effect.value, access.object, access.through))


def _acting_for(user: User | None) -> Iterator[bytes]:
    if user is not None:
        yield from (b"user", user.issuer.encode(), user.subject.encode())


def _digest(key: bytes, *parts: bytes) -> str:
    digest = hmac.new(key, _DOMAIN, hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()
