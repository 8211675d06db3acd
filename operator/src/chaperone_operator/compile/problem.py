"""A problem of one object: what a person reads in a status condition or an admission answer."""

from __future__ import annotations

import msgspec


class Problem(msgspec.Struct, frozen=True, order=True):
    """One thing that is wrong, at one object.

    Attributes:
        reason: CamelCase, for conditions (`UnknownTarget`).
        message: one or two sentences that name the field and what to do.
        is_blocking: the object cannot be used (`Ready` is false); False for a note.
    """

    kind: str
    namespace: str
    name: str
    reason: str
    message: str
    is_blocking: bool = True
