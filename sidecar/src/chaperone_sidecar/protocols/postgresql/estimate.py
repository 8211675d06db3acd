"""How many rows a statement will reach, by the planner of the database: what is asked, and how the answer is read.

The statement is planned and not run (EXPLAIN without ANALYZE), with the parameters that it was sent with. The number is
the largest of all steps of the plan: `SELECT count(*)` reaches what it counts. It is the planner's belief.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from typing import Any, Final

import msgspec

from chaperone_sidecar.protocols.postgresql import messages as m

NO_PARAMETERS: Final = b"\x00\x00\x00\x00\x00\x00"
MAX_STEPS: Final = 10_000  # of a plan; more is not believed
_EXPLAIN: Final = b"EXPLAIN (FORMAT JSON) "


def request(text: bytes, params: bytes, types: tuple[int, ...] = ()) -> bytes:
    """The messages that ask; more than one statement in the text is an error at the database.

    Args:
        text: the statement.
        params: of its Bind as sent, with the formats of its result, which are not those of EXPLAIN; empty for none.
        types: OIDs of the parameters' types, 0 where not known.
    """
    values = params or NO_PARAMETERS
    values = values[: len(values) - 2 - 2 * len(m.result_formats(values))] + b"\x00\x00"
    declared = struct.pack(f">H{len(types)}I", len(types), *types)
    bind = m.frame(m.BIND, b"\x00\x00" + values)
    return m.encode_parse(b"", _EXPLAIN + text, declared) + bind + m.encode_execute(0) + m.SYNC_FRAME


def rows(values: Collection[bytes]) -> int | None:
    """The rows that the statement will reach; None when the answer is no plan."""
    try:
        (plan,) = msgspec.json.decode(b"".join(values))
        waiting: list[dict[str, Any]] = [plan["Plan"]]
        numbers: list[int] = []
        while waiting:
            step = waiting.pop()
            number = step["Plan Rows"]
            if not isinstance(number, int | float) or not 0 <= number < float("inf") or len(numbers) >= MAX_STEPS:
                return None
            numbers.append(int(number))
            waiting += step.get("Plans", ())
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, ValueError, AttributeError):
        return None
    return max(numbers)
