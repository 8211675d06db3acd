"""Where the columns of a result come from, and which columns decide what comes.

`trace` walks one statement's tree with the database's schema at hand. It says for each output column which base
columns it derives from, and which columns decide: which rows there are, in which order, whether a fault is raised, or
what is written elsewhere. It knows nothing of masks: who asks compares the columns with those that are classified.
What it cannot resolve is opaque, never absent.
"""

from __future__ import annotations

from typing import Any

import msgspec

from chaperone_sidecar.protocols.postgresql.schema import Schema

type Node = dict[str, Any]


class Output(msgspec.Struct, frozen=True, gc=False):
    """One column of a result.

    `origins` are base columns as `schema.table.column`; `is_direct` that it is the value of the one origin as it
    stands; `is_opaque` that it may hold what no origin names (the result of a function that is not known, …).
    """

    origins: frozenset[str] = frozenset()
    is_direct: bool = False
    is_opaque: bool = False


class Lineage(msgspec.Struct, frozen=True, gc=False):
    """What `trace` found.

    `outputs` is None where the statement returns no rows that derive from its text (SHOW, FETCH, BEGIN); `deciding`
    are base columns. `is_opaque`: something besides the outputs is not resolved (what decides, or what is written);
    `why` says in one sentence what the first unresolved thing was.
    """

    outputs: tuple[Output, ...] | None = None
    deciding: frozenset[str] = frozenset()
    is_opaque: bool = False
    why: str = ""


def trace(statement: Node, schema: Schema) -> Lineage:
    """The lineage of one statement (the `stmt` of a `RawStmt`). Never raises but `NotLookedUp`."""
    raise NotImplementedError
