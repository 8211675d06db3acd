"""Names that the injected parts share with gateway, broker and fence (docs/architecture.md §8)."""

from __future__ import annotations

from typing import Final

IDENTITY_LABEL: Final = "chaperone.dev/identity"
INJECTED_ANNOTATION: Final = "chaperone.dev/injected"
SEAL_ANNOTATION: Final = "chaperone.dev/seal"
CREATOR_ANNOTATION: Final = "chaperone.dev/created-by"
"""The user who created the pod: of most it is a controller."""

FENCE: Final = "chaperone-fence"
GATEWAY: Final = "chaperone-gateway"
OPA: Final = "chaperone-opa"
CONTAINERS: Final = (FENCE, GATEWAY, OPA)
"""In the order in which they start, before every other container."""

PREFIX: Final = "chaperone-"
"""Containers and volumes whose names begin so are ours alone."""
TOKEN_VOLUME: Final = "chaperone-token"  # noqa: S105 - a name
SPOOL_VOLUME: Final = "chaperone-spool"
RUN_VOLUME: Final = "chaperone-run"
BUNDLE_VOLUME: Final = "chaperone-bundle"
OPA_VOLUME: Final = "chaperone-opa-socket"
TRUST_VOLUME: Final = "chaperone-trust"
ACCOUNT_VOLUME: Final = "chaperone-serviceaccount"

TRUST_PATH: Final = "/etc/chaperone-trust"
KNOWN_HOSTS: Final = "ssh_known_hosts"  # in that volume
KNOWN_HOSTS_PATH: Final = "/etc/ssh/ssh_known_hosts2"  # where OpenSSH looks beside a file that an image may have
ACCOUNT_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"

GATEWAY_GID: Final = 64137
OPA_ID: Final = 64138
RESERVED_UIDS: Final = frozenset({OPA_ID})
RESERVED_GIDS: Final = frozenset({GATEWAY_GID, OPA_ID})

BROKER_AUDIENCE: Final = "chaperone-broker"
