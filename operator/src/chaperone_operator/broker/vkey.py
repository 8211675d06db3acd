"""The public key that signs a gateway's stream heads, as text: `<name>+<id>+<base64>` (C2SP signed-note verifier key).

The broker binds it into the gateway's certificate, so it insists that the key's name is this pod's and nobody else's.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import Final

from chaperone_operator.broker.errors import Refused

MAX_VKEY: Final = 512  # characters: cluster and pod uid are 36 each, the key 44
_ED25519: Final = b"\x01"


def check(vkey: str, cluster: str, pod_uid: str) -> None:
    """Accept only an Ed25519 key named `<cluster>/gateway/<pod uid>`, in its one canonical spelling.

    Raises:
        Refused: 400.
    """
    name = f"{cluster}/gateway/{pod_uid}"
    wanted, _, rest = vkey.partition("+")
    identifier, _, encoded = rest.partition("+")
    if len(vkey) > MAX_VKEY or wanted != name:
        raise _refused(f"the key must be named {name}")
    try:
        key = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise _refused("the key is not base64") from None
    if len(key) != 33 or key[:1] != _ED25519 or base64.b64encode(key).decode() != encoded:
        raise _refused("the key is not an Ed25519 key")
    if hashlib.sha256(f"{name}\n".encode() + key).digest()[:4].hex() != identifier:
        raise _refused("the key's id does not belong to it")


def _refused(why: str) -> Refused:
    return Refused(400, "Bad stream key", f"The field stream_key is refused: {why}.")
