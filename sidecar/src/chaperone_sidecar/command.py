"""The vocabulary of facts: what a command would do, in words that all protocols share.

A protocol's classifier turns a message into a `Command`; everything behind it (policy, recording, limits) reads only
these types and knows nothing of the protocol.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Effect(StrEnum):
    """What a command does to an object of the backend."""

    READ = "read"
    READ_SENSITIVE = "read_sensitive"
    CREATE = "create"
    MODIFY = "modify"
    DELETE = "delete"
    BULK_READ = "bulk_read"
    BULK_WRITE = "bulk_write"
    SCHEMA = "schema"
    DESTROY = "destroy"
    PRIVILEGE = "privilege"
    EXECUTE_CODE = "execute_code"
    EXTERNAL_IO = "external_io"
    TUNNEL = "tunnel"
    SESSION = "session"
    TRANSACTION = "transaction"
    MAINTAIN = "maintain"
    UNKNOWN = "unknown"


class Resolution(StrEnum):
    """How sure the classifier is of the objects' names."""

    CATALOG = "catalog"  # looked up at the backend
    SYNTACTIC = "syntactic"  # as written, completed by the fixed search path
    NONE = "none"  # the command touches no named object
    UNRESOLVED = "unresolved"  # the objects are not known


class Access(msgspec.Struct, frozen=True, gc=False):
    """One effect on one object.

    `object` is the name as the backend would resolve it (`public.orders`, `setting:search_path`, `role:postgres`);
    it is empty only for a read that touches nothing and for `unknown`.

    `through` is empty for what the command names itself. Else the access is *implied*: the command names the object
    `through`, and the backend comes by that to this one (a view reads its tables). What is implied needs no leave of
    its own, but what forbids it or asks a human counts.
    """

    effect: Effect
    object: str = ""
    through: str = ""


class Extent(msgspec.Struct, frozen=True, gc=False):
    """How far an access reaches, by the words of the command.

    `has_where`: wherever the command names the object, a condition narrows what is reached there; one that is always
    true is none. `limit`: the most rows of the statement's answer, where it says so by a number.
    """

    has_where: bool = False
    limit: int | None = None


class Facts(msgspec.Struct, frozen=True, gc=False):
    """What the classifier found out about one command.

    `alone` are the objects that it names without what inherits from them, wherever it names them (`FROM ONLY t`).
    `extents` are those of the first accesses, in their order; of the others nothing is known. Of an access that several
    statements have in common it is the widest.
    """

    accesses: tuple[Access, ...]
    resolution: Resolution
    why_unknown: str = ""  # one sentence for the refusal when an access is `unknown`
    alone: frozenset[str] = frozenset()
    extents: tuple[Extent, ...] = ()


class Command(msgspec.Struct, frozen=True, gc=False):
    """One command as the client sent it, with its facts.

    `shown_text`, `shown_params` and `shown_facts` are what people may see of it, in records and elsewhere; None means
    all.
    """

    kind: str  # the protocol's own word: "query", "parse", "execute", ...
    text: bytes  # exact bytes
    facts: Facts
    params: bytes = b""  # exact bytes of bound parameters
    in_transaction: bool = False
    shown_text: bytes | None = None
    shown_params: bytes | None = None
    shown_facts: Facts | None = None
    param_types: tuple[int, ...] = ()  # OIDs of the protocol, 0 where not known
    statements: int = 1  # that the backend begins to run by it, as its own counters count them; -1: not known

    @property
    def is_preparing(self) -> bool:
        """Whether another command will run it: it reaches no rows and counts for nothing yet."""
        return self.kind in ("parse", "bind")


def unknown(why: str) -> Facts:
    """Facts of a command that could not be understood; only a rule naming `unknown` can let it pass."""
    return Facts((Access(Effect.UNKNOWN),), Resolution.UNRESOLVED, why)


CRITICAL: Final = frozenset(
    {Effect.DESTROY, Effect.PRIVILEGE, Effect.EXECUTE_CODE, Effect.EXTERNAL_IO, Effect.TUNNEL, Effect.UNKNOWN}
)
