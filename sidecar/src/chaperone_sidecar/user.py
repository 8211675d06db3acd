"""The person on behalf of whom an agent acts."""

from __future__ import annotations

import msgspec


class User(msgspec.Struct, frozen=True, cache_hash=True):
    """Who it is, as the issuer's token said and the broker checked; part of each question to policy."""

    subject: str
    issuer: str
    email: str = ""
    groups: tuple[str, ...] = ()

    def asked(self) -> dict[str, object]:
        """As the engine is told."""
        return {"subject": self.subject, "issuer": self.issuer, "email": self.email, "groups": self.groups}


class Identified(msgspec.Struct, frozen=True):
    """A user, and until when the token stands for them, in seconds since 1970."""

    user: User
    expires_at_unix: int
