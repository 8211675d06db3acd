"""`secretRef`: user name and password of a Secret, as they are at the moment."""

from __future__ import annotations

import time
from typing import Final

from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Lease, Order, Unrecorded
from chaperone_operator.compile.credential import Reference

LIFE_S: Final = 15 * 60  # how long sessions go on with a credential that was withdrawn since


class Passwords(Unrecorded):
    """Leases what a Secret of type basic-auth says."""

    def __init__(self, secrets: Secrets) -> None:
        self._secrets = secrets

    def life_s(self, reference: Reference) -> int:
        """See `Source`."""
        return LIFE_S

    async def lease(self, order: Order) -> tuple[Lease, str]:
        """See `Source`."""
        reference = order.reference
        username, password = await self._secrets.basic_auth(reference.secret, order.target, "spec.credential.secretRef")
        authority = await self._secrets.authority(reference.ca_secret, order.target)
        ends = int(time.time()) + LIFE_S
        return Lease(order.id, "password", ends, authority, username, password), ""
