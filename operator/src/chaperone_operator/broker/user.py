"""On behalf of whom an agent acts: tokens of persons, checked as the AgentIdentity says (OpenID Connect Core, 3.1.3.7).

A token is text of the agent's. It is looked at here alone, it is in no log and no error, and what it says counts only
after its signature was checked with a key that its issuer publishes now.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import jwt
import msgspec

from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.issuer import Issuers, Key, NoKeys, Place
from chaperone_operator.broker.snapshots import Delegation

LEEWAY_S: Final = 60  # clocks of issuer and cluster may differ by that
MAX_LIFE_S: Final = 24 * 3600  # whatever a token says, a person is asked again after a day
MAX_TOKEN_BYTES: Final = 16_000  # what the call has room for
MAX_TEXT: Final = 256  # characters of a subject, an address, the name of a group
MAX_GROUPS: Final = 256
_TITLE: Final = "User refused"
_SAID: Final[dict[type[jwt.PyJWTError], str]] = {
    jwt.ExpiredSignatureError: "has expired",
    jwt.ImmatureSignatureError: "is not valid yet",
    jwt.InvalidAudienceError: "is for another audience",
    jwt.InvalidIssuerError: "is of another issuer",
    jwt.InvalidSignatureError: "has a signature that is not its issuer's",
    jwt.InvalidAlgorithmError: "is signed in an algorithm that its key is not for",
}


class UserWanted(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/users`. Its repr shows nothing of the token."""

    token: str

    def __repr__(self) -> str:
        return "UserWanted()"


class User(msgspec.Struct, frozen=True):
    """The answer: a person, and until when the token stands for them (seconds since 1970)."""

    subject: str
    issuer: str
    email: str
    groups: tuple[str, ...]
    expires_at_unix: int


class Users:
    """Checks tokens.

    Args:
        issuers: their keys.
        now: seconds since 1970, for the bound on how long a token stands.
    """

    def __init__(self, issuers: Issuers, now: Callable[[], float] = time.time) -> None:
        self._issuers = issuers
        self._now = now

    async def identify(self, identity: str, wanted: Delegation | None, token: str) -> User:
        """The person whose token this is.

        Raises:
            Refused: 401 when the token is not to be trusted, 403 when the identity has no delegation, 503 when the
                issuer's keys cannot be had. ApiError: the API server does not answer.
        """
        if wanted is None:
            raise Refused(403, _TITLE, f"AgentIdentity {identity} has no spec.delegation, so no user can be told.")
        kid = _kid(identity, token)
        place = Place(wanted.issuer, wanted.jwks_url, wanted.ca_secret)
        try:
            key = await self._issuers.key(place, kid)
        except NoKeys as error:
            raise Refused(
                503, "Issuer not available",
                f"The keys of issuer {wanted.issuer}, which AgentIdentity {identity} names, cannot be had: {error}.",
                retry_after_s=1,
            ) from None  # fmt: skip
        if key is None:
            raise _refused(identity, f"is signed with a key that issuer {wanted.issuer} does not publish")
        return self._user(identity, wanted, _claims(identity, wanted, token, key))

    def _user(self, identity: str, wanted: Delegation, claims: dict[str, Any]) -> User:
        names = wanted.claims
        subject, email, groups = claims.get(names.user), claims.get(names.email), claims.get(names.groups, [])
        if not isinstance(subject, str) or not _is_text(subject):
            raise _refused(identity, f"says in its claim {names.user} nobody's name")
        if email is None or (names.email == "email" and claims.get("email_verified") is False):
            email = ""
        groups = [groups] if isinstance(groups, str) else groups
        if email and not _is_text(email):
            raise _refused(identity, f"has a claim {names.email} that is no address")
        if not isinstance(groups, list) or len(groups) > MAX_GROUPS or not all(map(_is_text, groups)):
            raise _refused(identity, f"has a claim {names.groups} that is no list of at most {MAX_GROUPS} names")
        ends = min(int(claims["exp"]) + LEEWAY_S, int(self._now()) + MAX_LIFE_S)
        return User(subject, wanted.issuer, email, tuple(dict.fromkeys(groups)), ends)


def _kid(identity: str, token: str) -> str:
    """The id of the key with which a token says that it was signed."""
    if len(token) > MAX_TOKEN_BYTES:
        raise _refused(identity, f"is longer than {MAX_TOKEN_BYTES} characters")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise _refused(identity, "cannot be read; it has to be a signed JWT") from None
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise _refused(identity, "does not name its key (kid)")
    return kid


def _claims(identity: str, wanted: Delegation, token: str, key: Key) -> dict[str, Any]:
    """What a token says, once everything about it has been checked."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token, key.public, algorithms=list(key.algorithms), audience=wanted.audience, issuer=wanted.issuer,
            leeway=LEEWAY_S, options={"require": ["exp", "iat", "aud", "iss"], "verify_sub": False},
        )  # fmt: skip
    except jwt.PyJWTError as error:
        # The cause is dropped on purpose: it may quote what was read.
        raise _refused(identity, _SAID.get(type(error), "is not well formed, or lacks exp, iat, aud or iss")) from None
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise _refused(identity, "is not well formed") from None
    return claims


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and value.isprintable() and value.strip() == value


def _refused(identity: str, why: str) -> Refused:
    return Refused(
        401, _TITLE,
        f"The user's token {why}. Get one from the issuer and for the audience that spec.delegation of AgentIdentity "
        f"{identity} names.",
    )  # fmt: skip
