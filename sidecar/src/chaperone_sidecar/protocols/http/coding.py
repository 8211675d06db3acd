"""Bodies that clients compress (git does past 1 KiB): undone before anything is decided, and so sent on."""

from __future__ import annotations

import zlib
from typing import Final

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http.classify import MAX_BODY_BYTES
from chaperone_sidecar.protocols.http.messages import RequestHead, values

FIELD: Final = "content-encoding"
_GZIP: Final = frozenset({"gzip", "x-gzip"})


def plain(head: RequestHead, body: bytes | None) -> bytes | None:
    """A request's body without its coding (RFC 9110, 8.4.1).

    Args:
        head: of the request.
        body: all of it; None where it is longer than what is read before the decision.

    Raises:
        ProtocolError: another coding than gzip, a body that is none, or too long before or after.
    """
    codings = [one.strip().lower() for found in values(head.fields, FIELD) for one in found.split(",")]
    if codings in ([], ["identity"]):
        return body
    if len(codings) != 1 or codings[0] not in _GZIP:
        raise ProtocolError("Bodies are read as they are or in gzip, in no other coding.")
    if body is None:
        raise ProtocolError(f"A compressed body is longer than the {MAX_BODY_BYTES} bytes that are read.")
    inner = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        found = inner.decompress(body, MAX_BODY_BYTES)
    except zlib.error:
        raise ProtocolError("The body is no gzip.") from None
    if not inner.eof or inner.unused_data:
        raise ProtocolError(f"The body is not one whole member of gzip with at most {MAX_BODY_BYTES} bytes.")
    return found
