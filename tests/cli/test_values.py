"""How values look to people."""

from __future__ import annotations

import struct

import pytest

from chaperone_cli.values import parameters


@pytest.mark.parametrize(
    ("value", "is_binary", "shown"),
    [(b"7", False, "7"), (b"\0\0\0\7", True, "\\x00000007"), (b"[masked]", True, "[masked]")],
)
def test_a_bound_parameter_that_is_masked_reads_so_in_either_format(value: bytes, is_binary: bool, shown: str) -> None:
    formats = struct.pack(">HH", 1, is_binary)
    assert parameters(formats + struct.pack(">Hi", 1, len(value)) + value) == [shown]
