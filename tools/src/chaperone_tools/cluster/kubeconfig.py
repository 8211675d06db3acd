"""A kubeconfig with everything inside it. Pure."""

from __future__ import annotations

import base64

import yaml

from chaperone_tools.cluster.pki import Pair


def kubeconfig(name: str, server: str, authority: bytes, login: Pair) -> bytes:
    """A kubeconfig of one context, called `name`, that logs in with a client certificate."""
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": _b64(authority)}}],
            "users": [
                {
                    "name": name,
                    "user": {
                        "client-certificate-data": _b64(login.certificate),
                        "client-key-data": _b64(login.key),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        },
        sort_keys=False,
    ).encode()


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
