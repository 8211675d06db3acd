"""`spec.delegation` of an AgentIdentity: whose tokens say on behalf of which person the agent acts.

What is wrong with one, and what gateway and broker are told of it: the same words, as one field of GatewayConfig.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from chaperone_operator.compile.address import BadHost, parse_host
from chaperone_operator.compile.credential import Part, SecretRef

MAX_URL: Final = 512
MAX_TEXT: Final = 256  # of an audience, and of the name of a claim
_SECRET_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
# What the broker checks itself; a time or an audience is no person.
_NO_PERSON: Final = frozenset({"iss", "aud", "exp", "nbf", "iat"})


class Jwks(Part, frozen=True):
    """Where the issuer's keys are; without `url`, where its discovery document says."""

    url: str = ""
    ca_secret_ref: SecretRef | None = None


class Claims(Part, frozen=True):
    """Names of the claims that say who the person is."""

    user: str = "sub"
    email: str = "email"
    groups: str = "groups"


class Delegation(Part, frozen=True):
    """`AgentIdentity.spec.delegation`; `required` ends what is asked without a person's token."""

    issuer: str
    audience: str
    required: bool = True
    jwks: Jwks = Jwks()
    claims: Claims = Claims()


def problems(wanted: Delegation) -> Iterator[tuple[str, str]]:
    """What is wrong with it: a reason, and a message that begins with the field."""
    at = "spec.delegation"
    yield from _url_problems(f"{at}.issuer", wanted.issuer)
    if wanted.jwks.url:
        yield from _url_problems(f"{at}.jwks.url", wanted.jwks.url)
    if not wanted.audience.strip() or len(wanted.audience) > MAX_TEXT:
        yield "BadAudience", f"{at}.audience: write what the tokens have in aud, 1 to {MAX_TEXT} characters."
    for field, claim in msgspec.structs.asdict(wanted.claims).items():
        if not claim or len(claim) > MAX_TEXT:
            yield "BadClaim", f"{at}.claims.{field}: write the name of a claim, 1 to {MAX_TEXT} characters."
        elif claim in _NO_PERSON:
            yield "BadClaim", f"{at}.claims.{field}: {claim} says nothing of a person; name another claim."
    authority = wanted.jwks.ca_secret_ref
    if authority is not None and not _SECRET_NAME.fullmatch(authority.name):
        yield "BadSecretName", f"{at}.jwks.caSecretRef.name: {authority.name!r} is no name of a Secret."


def told(wanted: Delegation) -> dict[str, Any]:
    """As a GatewayConfig says it."""
    return {
        "issuer": wanted.issuer,
        "audience": wanted.audience,
        "required": wanted.required,
        "jwks_url": wanted.jwks.url,
        "ca_secret": wanted.jwks.ca_secret_ref.name if wanted.jwks.ca_secret_ref is not None else "",
        "claims": msgspec.structs.asdict(wanted.claims),
    }


def _url_problems(field: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if host is None or len(text) > MAX_URL or not text.isascii() or not text.isprintable() or " " in text:
        yield "BadIssuer", f"{field}: {text[:MAX_URL]!r} is no URL such as https://login.example.com."
        return
    if parts.scheme != "https" or parts.username is not None or parts.query or parts.fragment:
        yield "BadIssuer", f"{field}: must begin with https://, without user, query and fragment."
    try:
        parse_host(host)
    except BadHost as error:
        yield "BadIssuer", f"{field}: {error}."
