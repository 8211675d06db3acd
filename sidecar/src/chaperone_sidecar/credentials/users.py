"""Who is behind a session: the token that a client gives is checked by the broker, and what it says kept for a while.

Theory of operation. A protocol takes a token off its wire, or an empty one, and asks here. The broker's word is kept
until the token's end under the token's hash, so that an agent that opens many connections for one person costs one
call; the token itself is kept nowhere. What is not known is refused: a broker that does not answer admits nobody.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from chaperone_sidecar.config import Delegation
from chaperone_sidecar.errors import LeaseRefused, UserRefused
from chaperone_sidecar.user import Identified

MAX_KEPT: Final = 256  # persons for whom one pod acts at one time; others are asked about again

type Check = Callable[[str], Awaitable[Identified]]
"""Has a token checked; raises LeaseRefused with a text for the client."""


class Users:
    """The persons for whom one identity acts.

    Args:
        identity: its name.
        delegation: what the configuration says.
        check: the broker.
        now: seconds since 1970.
    """

    def __init__(
        self, identity: str, delegation: Delegation, check: Check, now: Callable[[], float] = time.time
    ) -> None:
        self._identity = identity
        self._delegation = delegation
        self._check = check
        self._now = now
        self._kept: OrderedDict[bytes, Identified] = OrderedDict()

    async def identify(self, token: bytes) -> Identified | None:
        """The person whose token this is; None for an empty one, where none is required.

        Raises:
            UserRefused: the token is missing, wrong, or cannot be checked.
        """
        if not token:
            if not self._delegation.required:
                return None
            raise self._refused("a user's token is required, and none was given")
        digest = hashlib.sha256(token).digest()
        found = self._kept.pop(digest, None)
        if found is None or found.expires_at_unix <= self._now():
            try:
                found = await self._check(token.decode("ascii"))
            except UnicodeDecodeError:
                raise self._refused("what was given is no token") from None
            except LeaseRefused as error:
                raise UserRefused(f'AgentIdentity "{self._identity}" acts on behalf of a person. {error}') from None
        self._kept[digest] = found
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found

    def _refused(self, why: str) -> UserRefused:
        wanted = self._delegation
        return UserRefused(
            f'AgentIdentity "{self._identity}" acts on behalf of a person: {why}. '
            f"Give one of issuer {wanted.issuer} for audience {wanted.audience}."
        )
