"""Masking: what of an answer the client may see.

Rules for masks are refused at admission ("not supported yet"), so the only mask is the one that changes nothing. Every
session passes its answers through one all the same: no protocol can forget the stage.
"""

from __future__ import annotations


class Mask:
    """The mask of one session; this one lets everything through."""

    def rows(self, data: bytes | memoryview) -> bytes | memoryview:
        """Mask whole result frames."""
        return data

    def text(self, data: bytes | memoryview) -> bytes | memoryview:
        """Mask server texts: errors, notices, notifications."""
        return data
