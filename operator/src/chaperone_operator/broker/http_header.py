"""`httpHeader`: a header out of a Secret, and the only place that it may be sent to."""

from __future__ import annotations

import time
from typing import Final

from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Header, Lease, Order, Unready, Unrecorded
from chaperone_operator.compile.credential import HttpHeader, Reference

LIFE_S: Final = 15 * 60  # how long requests go on with a value that was withdrawn since
FIELD: Final = "spec.credential.httpHeader.secretRef"
KEY: Final = "token"


class HttpHeaders(Unrecorded):
    """Leases what a Secret says under `token`."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def life_s(self, reference: Reference) -> int:
        """See `Source`."""
        return LIFE_S

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`."""
        spec = _spec(order.reference)
        found = (await self._secrets.text(spec.secret_ref.name, KEY, order.target, FIELD)).rstrip("\r\n")
        value = spec.prefix + found
        # A value with a line end would be a second header, or a second request.
        if not found or not value.isascii() or not value.isprintable():
            named = self._secrets.named(spec.secret_ref.name, order.target, FIELD)
            raise Unready("SecretIncomplete", f"{named} needs printable ASCII on one line under {KEY}.")
        header = Header(spec.header, value, spec.scheme, spec.host, spec.port, spec.path)
        authority = await self._secrets.authority(order.reference.ca_secret, order.target)
        return Lease(order.id, "header", int(time.time()) + LIFE_S, authority, header=header), ""


def _spec(reference: Reference) -> HttpHeader:
    credential = reference.credential
    if credential is None or credential.http_header is None:
        raise TypeError("the reference is none of an HTTP header")
    return credential.http_header
