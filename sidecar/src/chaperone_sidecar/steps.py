"""What a log-in at a backend asks of whoever has the connection; a protocol may have steps of its own besides."""

from __future__ import annotations

import msgspec


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send these bytes."""

    data: bytes


class Read(msgspec.Struct, frozen=True, gc=False):
    """Give at least one byte."""


class BeginTls(msgspec.Struct, frozen=True, gc=False):
    """Do the TLS handshake; answered with the `tls-server-end-point` hash (RFC 5929, 4.1)."""
