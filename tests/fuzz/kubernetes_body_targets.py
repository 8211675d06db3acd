"""The fuzz targets of bodies for the Kubernetes API that are no JSON."""

from __future__ import annotations

import random
from collections.abc import Callable

from kube_cbor import encoded

from chaperone_sidecar.protocols.kubernetes import body, cbor, yaml
from chaperone_sidecar.protocols.kubernetes.body import Unread

POD = {"kind": "Pod", "spec": {"containers": [{"name": "c", "args": ["-1", ""]}], "hostPID": True, "priority": -7}}
VALUES = {"a": [1.5, b"\0\1", None, 300, 1 << 40, -(1 << 63)], "ü": {"": False}}
MANIFEST = b"""kind: Pod
spec: {a: [b, "c\\n", 'd'], e: null} # f
g:
- 1
- -2.5
- |
  h
   i
- >-
  j
  k
"""
BASES = (b"", cbor.SELF_DESCRIBED)


def kubernetes_bodies() -> tuple[Callable[[bytes, random.Random], None], list[bytes]]:
    """A body is an object that is the same again from the JSON that goes on, or it is not read."""

    def target(data: bytes, rng: random.Random) -> None:
        try:
            found = cbor.to_object(data) if rng.random() < 0.5 else yaml.to_object(data.decode(errors="replace"))
        except Unread as error:
            assert str(error)
            return
        if isinstance(found, dict):
            assert body.decode(body.encode(found)) == found

    return target, [*(base + encoded(one) for one in (POD, VALUES) for base in BASES), MANIFEST]
