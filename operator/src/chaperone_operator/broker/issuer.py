"""The public keys of OIDC issuers, fetched and kept.

Theory of operation. An issuer's keys are a JWKS (RFC 7517) that its discovery document names, or the AgentIdentity.
They are fetched over verified TLS when a token needs them, and kept. They are asked for again when they are older than
an hour, and when a token names a key that is not among them; but of one issuer never more often than every `PAUSE_S`,
so that nobody makes this broker a burden to others with tokens of invented keys. While the issuer cannot be reached the
keys at hand stand for another hour; then they are nobody's.

The URL is of a namespace's author: it leads nowhere but to servers that prove their name, never to this pod, the node
or the metadata of a cloud, redirects are not followed, and nothing of an answer is ever shown.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import aiohttp
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.source import Unready
from chaperone_operator.compile.address import BadHost, parse_host

DISCOVERY: Final = "/.well-known/openid-configuration"
FRESH_S: Final = 3600.0  # a key that the issuer took back is refused after that long at the latest
STALE_S: Final = 2 * 3600.0  # with an issuer that does not answer
PAUSE_S: Final = 10.0  # between two questions to one issuer
CALL_TIMEOUT_S: Final = 4.0  # each of two; the gateway waits 10 s for the broker
MAX_ANSWER_BYTES: Final = 256 << 10  # the largest JWKS in the wild have some 20 keys with certificates, 60 KiB
MAX_KEYS: Final = 100
MAX_ISSUERS: Final = 256  # kept at once
MIN_RSA_BITS: Final = 2048

type PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class NoKeys(Exception):
    """The issuer's keys cannot be had; the text says why."""


class Place(msgspec.Struct, frozen=True):
    """Where an issuer's keys come from; "" for the URL means by discovery, for the Secret the public CAs."""

    issuer: str
    jwks_url: str = ""
    ca_secret: str = ""


class Key(msgspec.Struct, frozen=True):
    """A key, and the algorithms in which it may have signed."""

    public: PublicKey
    algorithms: tuple[str, ...]


class _Kept:
    """What is known of one issuer. Times are of the clock."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {}
        self.fetched_at: float | None = None
        self.tried_at: float | None = None
        self.why = ""
        self.lock = asyncio.Lock()  # those who wait for an answer share it


class Issuers:
    """Keys of all issuers that AgentIdentities name.

    Args:
        secrets: where the CAs are.
        clock: seconds, monotonic.
    """

    def __init__(self, secrets: Secrets, clock: Callable[[], float] = time.monotonic) -> None:
        self._secrets = secrets
        self._clock = clock
        self._kept: OrderedDict[Place, _Kept] = OrderedDict()

    async def key(self, place: Place, kid: str) -> Key | None:
        """The key of that id; None when the issuer has none.

        Raises:
            NoKeys: the issuer did not say. ApiError: the API server does not give its CA.
        """
        kept = self._kept.setdefault(place, _Kept())
        self._kept.move_to_end(place)
        if len(self._kept) > MAX_ISSUERS:
            self._kept.popitem(last=False)
        if self._is_fresh(kept) and (found := kept.keys.get(kid)) is not None:
            return found  # without waiting for those who ask after a key that is not there
        async with kept.lock:
            now = self._clock()
            is_due = kept.tried_at is None or now - kept.tried_at >= PAUSE_S
            if is_due and not (self._is_fresh(kept) and kid in kept.keys):
                kept.tried_at = now
                try:
                    kept.keys = await self._fetch(place)
                except NoKeys as error:
                    kept.why = str(error)
                else:
                    kept.fetched_at = now
            if kept.fetched_at is None or now - kept.fetched_at >= STALE_S:
                raise NoKeys(kept.why)
            return kept.keys.get(kid)

    def _is_fresh(self, kept: _Kept) -> bool:
        return kept.fetched_at is not None and self._clock() - kept.fetched_at < FRESH_S

    async def _fetch(self, place: Place) -> dict[str, Key]:
        try:
            authority = await self._secrets.authority(place.ca_secret, "", "")
            context = ssl.create_default_context(cadata=authority or None)
        except (Unready, ssl.SSLError, ValueError):
            raise NoKeys(f"the Secret {place.ca_secret} holds no certificate of a CA under ca.crt") from None
        timeout = aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        connector = aiohttp.TCPConnector(ssl=context, socket_factory=_socket, limit=1)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            url: object = place.jwks_url
            if not url:
                found = await _read(session, place.issuer.rstrip("/") + DISCOVERY)
                if found.get("issuer") != place.issuer:
                    raise NoKeys("its discovery document is another issuer's")
                url = found.get("jwks_uri")
            if not isinstance(url, str) or not url.startswith("https://"):
                raise NoKeys("its discovery document names no jwks_uri that begins with https://")
            return read(await _read(session, url))


def read(jwks: dict[str, Any]) -> dict[str, Key]:
    """The keys of a JWKS by their ids; those without one, for other uses, of other kinds or too weak are left out."""
    members = jwks.get("keys")
    found: dict[str, Key] = {}
    for member in members[:MAX_KEYS] if isinstance(members, list) else ():
        if not isinstance(member, dict):
            continue
        kid = member.get("kid")
        if not isinstance(kid, str) or not kid or kid in found or member.get("use", "sig") != "sig":
            continue
        try:
            public = jwt.PyJWK.from_dict(member).key
        except (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
            continue
        algorithms = _algorithms(public)
        if "alg" in member:
            algorithms = tuple(one for one in algorithms if one == member["alg"])
        if algorithms:
            found[kid] = Key(public, algorithms)
    return found


def _algorithms(public: object) -> tuple[str, ...]:
    """In which a public key may have signed; none for what is no public key, so never those of shared secrets."""
    if isinstance(public, rsa.RSAPublicKey) and public.key_size >= MIN_RSA_BITS:
        return ("RS256", "PS256")
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        return ("ES256",)
    return ("EdDSA",) if isinstance(public, ed25519.Ed25519PublicKey) else ()


async def _read(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """One document.

    Raises:
        NoKeys: it cannot be had.
    """
    try:
        async with session.get(url, allow_redirects=False, headers={"Accept": "application/json"}) as response:
            raw = bytearray()
            async for chunk in response.content.iter_chunked(1 << 16):
                raw += chunk
                if len(raw) > MAX_ANSWER_BYTES:
                    raise NoKeys("its answer is too large")
            status = response.status
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise NoKeys(f"it cannot be reached ({type(error).__name__})") from None
    if status != 200:
        raise NoKeys(f"it answers with HTTP status {status}")
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise NoKeys("its answer cannot be read")
    return found


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket for one address of an issuer.

    Raises:
        OSError: the address is one where no issuer is.
    """
    family, kind, protocol, _, where = address
    try:
        parse_host(where[0].partition("%")[0])
    except BadHost as error:
        raise OSError(0, str(error)) from None
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made
