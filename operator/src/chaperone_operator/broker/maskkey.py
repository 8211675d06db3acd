"""The keys of masks with method Hash: one master key, made once and kept in a Secret; one derived key a namespace.

The same value has the same hash wherever a namespace meets it, so that joins work, and another one in every other
namespace, so that two tenants cannot compare what they hold. Lose the Secret, and hashes of before match none of after.
Nothing in this file logs or raises anything that came out of the Secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Final

import msgspec

from chaperone_operator.broker.errors import CannotStart
from chaperone_operator.broker.secret import read_or_make
from chaperone_operator.kube import Client, Object

SECRET: Final = "chaperone-mask-key"  # noqa: S105 - a name
FIELD: Final = "key"
MASTER_BYTES: Final = 32  # as many as HMAC-SHA-256 gives; more adds nothing
DOMAIN: Final = b"chaperone.dev/mask-key/v1\n"  # so that the master may serve other ends one day, with other keys


class MaskKey(msgspec.Struct, frozen=True):
    """The answer to `GET /v1/mask-key`: base64. Its repr shows nothing of the key."""

    key: str

    def __repr__(self) -> str:
        return "MaskKey()"


class MaskKeys:
    """The master key, in memory."""

    def __init__(self, master: bytes) -> None:
        self._master = master

    def give(self, namespace: str) -> MaskKey:
        """The key of a namespace."""
        key = hmac.new(self._master, DOMAIN + namespace.encode(), hashlib.sha256).digest()
        return MaskKey(base64.b64encode(key).decode("ascii"))


async def load(client: Client, namespace: str) -> MaskKeys:
    """The keys of the Secret; made and stored when there is none yet.

    Raises:
        CannotStart: the Secret cannot be read, written or used.
    """
    secret = await read_or_make(client, namespace, SECRET, lambda: _make(namespace))
    try:
        master = base64.b64decode(secret["data"][FIELD], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        master = b""
    if len(master) != MASTER_BYTES:
        # The cause is dropped: it may quote the key.
        raise CannotStart(
            f"The Secret {namespace}/{SECRET} holds no key of {MASTER_BYTES} bytes; restore it, or delete it: the "
            "broker then makes a new one, and hashes differ from those before."
        ) from None
    return MaskKeys(master)


def _make(namespace: str) -> Object:
    key = base64.b64encode(secrets.token_bytes(MASTER_BYTES)).decode("ascii")
    return {"metadata": {"name": SECRET, "namespace": namespace}, "type": "Opaque", "data": {FIELD: key}}
