"""An OIDC issuer of the tests' own: keys, tokens, and a server with its certificate at an address of this machine.

Brokers refuse issuers on loopback, so it listens on an address by which others reach this machine.
"""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pki import Authority

AUDIENCE = "billing-agent"
SUBJECT = "user-7"
EMAIL = "user-7@example.com"
CANARY = "canary-token-5d2e"  # in every token, and never to be seen elsewhere

type SigningKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing; says which address would be used
        found: str = probe.getsockname()[0]
        return found


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def jwk(key: SigningKey, kid: str, **more: Any) -> dict[str, Any]:
    """The public half as an issuer publishes it."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        found = RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        found = ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        found = OKPAlgorithm.to_jwk(public, as_dict=True)
    return found | {"kid": kid, "use": "sig"} | more


@dataclass
class Issuer:
    """A running issuer; what it answers can be changed."""

    url: str
    ca_pem: str
    keys: dict[str, SigningKey] = field(default_factory=dict)
    asked: int = 0
    is_down: bool = False
    redirects_to: str = ""
    padding: int = 0
    stated: str = ""

    def token(self, kid: str = "", key: Any = None, algorithm: str = "", **changed: Any) -> str:
        """A good token of the first key, or of another, with claims changed or (None) left out."""
        kid = kid or next(iter(self.keys))
        key = key if key is not None else self.keys[kid]
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.url, "aud": AUDIENCE, "sub": SUBJECT, "email": EMAIL, "groups": ["finance", "staff"],
            "iat": now, "nbf": now, "exp": now + 600, "note": CANARY,
        } | changed  # fmt: skip
        kept = {name: value for name, value in claims.items() if value is not None}
        if not algorithm:
            algorithm = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256"}.get(_kind(key), "EdDSA")
        return jwt.encode(kept, key, algorithm, headers={"kid": kid})

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.is_down:
            return web.Response(status=503)
        if self.redirects_to:
            return web.Response(status=302, headers={"Location": self.redirects_to})
        if request.path == "/.well-known/openid-configuration":
            return _json({"issuer": self.stated or self.url, "jwks_uri": f"{self.url}/keys"})
        return _json({"keys": [jwk(key, kid) for kid, key in self.keys.items()], "x": "x" * self.padding})


def _json(value: Any) -> web.Response:
    return web.Response(text=json.dumps(value), content_type="application/json")


def _kind(key: Any) -> type | None:
    kinds = (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)
    return next((kind for kind in kinds if isinstance(key, kind)), None)


@asynccontextmanager
async def issuing(folder: Path) -> AsyncIterator[Issuer]:
    """A running issuer with one RSA key `first`."""
    authority, where = Authority("issuer CA"), address()
    key, certificate = authority.server_pair(where)
    path = folder / "issuer.pem"
    path.write_bytes(key + certificate)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path)
    made = Issuer("", authority.pem, {"first": rsa_key()})
    app = web.Application()
    app.router.add_get("/{path:.*}", made._answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, where, 0, ssl_context=context).start()
    made.url = f"https://{where}:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
