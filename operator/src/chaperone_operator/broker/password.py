"""`secretRef`: user name and password, or for SSH the private key, of a Secret, as they are at the moment."""

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
        """See `Source`. A key where the Secret's type says so; a gateway refuses what it cannot show at the target."""
        reference = order.reference
        field = "spec.credential.secretRef"
        key = await self._secrets.ssh_auth(reference.secret, order.target, field)
        if key is not None:
            return Lease(order.id, "key", int(time.time()) + LIFE_S, username=key[0], private_key=key[1]), ""
        username, password = await self._secrets.basic_auth(reference.secret, order.target, field)
        authority = await self._secrets.authority(reference.ca_secret, order.target)
        ends = int(time.time()) + LIFE_S
        return Lease(order.id, "password", ends, authority, username, password), ""
