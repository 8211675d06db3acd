"""The key that signs policy: made once, kept in a Secret that only the operator reads.

It lies in a namespace of its own, because the broker may read any Secret of the system namespace, and what the broker
hands out is just what this key vouches for. Gateways get the public key from admission with their pod. Lose the Secret,
and pods that run keep the policy that they have until they are made anew: they believe no other key.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chaperone_operator.kube import Client, Object, read_or_make_secret
from chaperone_operator.signing import Signer

SECRET: Final = "chaperone-policy-key"  # noqa: S105 - a name
FIELD: Final = "key"
KEY_BYTES: Final = 32  # of an Ed25519 seed


class Unusable(Exception):
    """The stored key cannot be used; the text says what to do and never quotes it."""


def namespace_of(system_namespace: str) -> str:
    """Where the key lies; the chart makes this namespace."""
    return f"{system_namespace}-policy"


async def load(client: Client, system_namespace: str, cluster: str) -> Signer:
    """The key of the Secret; made and stored when there is none yet.

    Args:
        client: of the operator.
        system_namespace: where Chaperone runs.
        cluster: uid of kube-system; part of the key's name, so that clusters' notes differ.

    Raises:
        ApiError: the Secret cannot be read or written. Unusable: it holds no key.
    """
    namespace = namespace_of(system_namespace)
    secret = await read_or_make_secret(client, namespace, SECRET, _make)
    try:
        seed = base64.b64decode(secret["data"][FIELD], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        seed = b""
    if len(seed) != KEY_BYTES:
        # The cause is dropped: it may quote the key.
        raise Unusable(
            f"The Secret {namespace}/{SECRET} holds no key of {KEY_BYTES} bytes. Restore it; or delete it, and a new "
            "key is made, which pods that run already do not believe: they keep their policy until they are made anew."
        ) from None
    return Signer(f"{cluster}/operator", Ed25519PrivateKey.from_private_bytes(seed))


def _make() -> Object:
    key = base64.b64encode(Ed25519PrivateKey.generate().private_bytes_raw()).decode("ascii")
    return {"metadata": {"name": SECRET}, "type": "Opaque", "data": {FIELD: key}}
