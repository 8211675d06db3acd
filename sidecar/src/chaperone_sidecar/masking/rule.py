"""What policies say of masks, as the gateway is told: types alone, so that reading a configuration loads no RE2."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

type Method = Literal["Redact", "Partial", "Hash", "Null"]
type Unmaskable = Literal["Deny", "Redact", "Allow"]


class Pattern(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A detector of a policy's own."""

    name: str
    pattern: str


class MaskRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of an AccessPolicy's `masks`."""

    method: str
    columns: tuple[str, ...] = ()
    detectors: tuple[str | Pattern, ...] = ()


class Classified(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"kind": "class"}):
    """One entry of an AccessTarget's `classified`."""

    columns: tuple[str, ...]
    kind: str


class Masks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All masks of one identity at one target: those of every policy, united.

    `unmaskable` is what becomes of a value of which cannot be said whether it needs a mask; of several policies the
    strictest counts.
    """

    rules: tuple[MaskRule, ...] = ()
    classified: tuple[Classified, ...] = ()
    unmaskable: Unmaskable = "Deny"


class ColumnClass(msgspec.Struct, frozen=True):
    """What is known of a column that is masked as a whole."""

    kind: str
    method: Method


OPAQUE: Final = ColumnClass("unmaskable", "Null")
"""Of a column of which nobody can say what is in it."""
