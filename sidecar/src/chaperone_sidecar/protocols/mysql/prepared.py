"""Prepared statements of a session: what their texts do, and the parameters that come with each execution.

Spec: COM_STMT_PREPARE, COM_STMT_EXECUTE, COM_STMT_SEND_LONG_DATA.
"""

from __future__ import annotations

from typing import Final

import msgspec

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.classify import Classified
from chaperone_sidecar.protocols.mysql.rows import Cursor, binary_value, shown

MAX_STATEMENTS: Final = 1000  # kept by one session; a server's max_prepared_stmt_count is 16382 for all
MAX_LONG_BYTES: Final = 16 << 20  # of parameters of one session, kept until their statements are executed
FETCH_BYTES: Final = 9  # of COM_STMT_FETCH: command, statement, rows
HEAD_BYTES: Final = 10  # of COM_STMT_EXECUTE: command, statement, flags, one iteration


class Statement(msgspec.Struct, gc=False, eq=False):
    """One prepared statement.

    `long_data` was sent ahead of its execution and waits for it here. `types` are what the server knows: those of an
    execution that was refused are not. `allowed` is the revision of policy by which it was executed last.
    """

    text: bytes
    classified: Classified
    params: int = 0
    types: tuple[tuple[int, bool], ...] = ()
    long_data: dict[int, bytearray] = msgspec.field(default_factory=dict)
    long_bytes: int = 0
    is_overfull: bool = False
    cursor: Cursor | None = None
    allowed: str = ""

    def add(self, param: int, data: bytes, held_bytes: int) -> None:
        """Keep a piece of a parameter; `held_bytes` are kept for all statements of the session."""
        size = len(data) + 16
        self.long_bytes += size
        if held_bytes + size > MAX_LONG_BYTES or param >= max(self.params, 1):
            self.is_overfull, self.long_data, self.long_bytes = True, {}, 0
            return
        self.long_data.setdefault(param, bytearray()).extend(data)

    def clear(self) -> None:
        """Forget what was sent ahead."""
        self.long_data, self.long_bytes, self.is_overfull = {}, 0, False


type Types = tuple[tuple[int, bool], ...]
"""Of parameters: the number of the type, and whether it is unsigned."""


def bind(statement: Statement, payload: bytes) -> tuple[list[bytes | None], Types]:
    """The parameters of an execution, as texts, and their types: those of the last one that was sent, or new ones.

    Raises:
        ProtocolError: side=client.
    """
    if not statement.params:
        return [], ()
    at = m.Cursor(payload, "client", HEAD_BYTES)
    nulls = at.take((statement.params + 7) // 8)
    types = statement.types
    is_typed = at.number(1)
    if is_typed > 1:
        raise ProtocolError("An execution does not say whether it has types of its own.")
    if is_typed:
        types = tuple((kind & 0xFF, kind >> 15 == 1) for kind in (at.number(2) for _ in range(statement.params)))
    if len(types) != statement.params:
        raise ProtocolError("An execution does not say of which types its parameters are.")
    found: list[bytes | None] = []
    for index, (kind, is_unsigned) in enumerate(types):
        if kind not in _TYPES:
            raise ProtocolError("An execution has a parameter of a type that servers read differently.")
        if index in statement.long_data:
            found.append(bytes(statement.long_data[index]))
        elif nulls[index // 8] >> index % 8 & 1 or kind == _NULL:
            found.append(None)
        else:
            column = m.Column("", "", "", "", "", 0, kind, 32 if is_unsigned else 0)
            try:
                found.append(shown(binary_value(at, kind), column))
            except ProtocolError as error:
                raise ProtocolError(str(error)) from error
    if not at.is_at_end:
        raise ProtocolError("An execution has more parameters than its statement.")
    return found, types


_NULL: Final = 6
_TYPES: Final = frozenset({*range(9), 10, 11, 12, 15, 242, *range(245, 255)})
"""Of parameters: without those that only columns have, which one server takes for a text and another for a number."""


def run(payload: bytes, statement: Statement, types: Types) -> bytes:
    """An execution as it goes upstream: with no flag but a cursor's, and with its types, lest older ones be taken."""
    head = payload[:5] + bytes((payload[5] & m.CURSOR_TYPE_READ_ONLY,)) + (1).to_bytes(4, "little")
    if not statement.params:
        return head
    size = (statement.params + 7) // 8
    nulls = bytearray(payload[HEAD_BYTES : HEAD_BYTES + size])
    for index, (kind, _) in enumerate(types):
        if kind == _NULL and index not in statement.long_data:
            nulls[index // 8] |= 1 << index % 8
    at = HEAD_BYTES + size
    values = at + 1 + (2 * len(types) if payload[at] else 0)
    told = b"".join(bytes((kind, is_unsigned << 7)) for kind, is_unsigned in types)
    return head + bytes(nulls) + b"\1" + told + payload[values:]


def preview(text: bytes, params: list[bytes | None]) -> str:
    """What people see of a command before they approve it."""
    lines = [text.decode("utf-8", "replace")]
    for place, value in enumerate(params, 1):
        if value is None:
            lines.append(f"-- ?{place} = NULL")
        else:
            quoted = (
                value.decode("utf-8", "backslashreplace").replace("'", "''").replace("\n", "\\n").replace("\r", "\\r")
            )
            lines.append(f"-- ?{place} = '{quoted}'")
    return "\n".join(lines)


def long_packets(statement_id: bytes, statement: Statement) -> list[bytes]:
    """What was sent ahead for an execution, as packets of COM_STMT_SEND_LONG_DATA."""
    head = bytes((m.COM_STMT_SEND_LONG_DATA,)) + statement_id
    room = m.MAX_PAYLOAD - len(head) - 3
    return [
        m.packet(0, head + param.to_bytes(2, "little") + bytes(data[start : start + room]))
        for param, data in sorted(statement.long_data.items())
        for start in range(0, max(len(data), 1), room)
    ]
