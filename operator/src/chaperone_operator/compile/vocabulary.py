"""Words that policies are written in: effects, protocols, actions. The same words as the gateway's classifiers use."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

GROUP: Final = "chaperone.dev"
VERSION: Final = "v1alpha1"


class Action(StrEnum):
    """What a rule says, and what a decision is."""

    ALLOW = "Allow"
    DENY = "Deny"
    REQUIRE_APPROVAL = "RequireApproval"


RANK: Final = {Action.DENY: 0, Action.REQUIRE_APPROVAL: 1, Action.ALLOW: 2}  # the strictest first

WILDCARD: Final = "*"

CRITICAL: Final = frozenset({"destroy", "privilege", "execute_code", "external_io", "tunnel", "unknown"})
ORDINARY: Final = frozenset(
    {
        "read",
        "read_sensitive",
        "create",
        "modify",
        "delete",
        "bulk_read",
        "bulk_write",
        "schema",
        "session",
        "transaction",
        "maintain",
    }
)
EFFECTS: Final = CRITICAL | ORDINARY

PORTS: Final = {"PostgreSQL": 5432, "MySQL": 3306, "SSH": 22, "Kubernetes": 443, "HTTP": 443, "MCP": 443}
"""Default port of each protocol."""

REACHABLE: Final = {
    "HTTP": frozenset({"read", "create", "modify", "delete", "execute_code", "session", "unknown"}),
    "MCP": frozenset({"read", "execute_code", "session", "unknown"}),
    "Kubernetes": EFFECTS - {"bulk_write", "session", "transaction"},
    "MySQL": EFFECTS,
    "PostgreSQL": EFFECTS,
    "SSH": EFFECTS,
}
"""Effects that a protocol's classifier can find, for the protocols that exist; others are not supported yet."""

PARTS: Final = {"Kubernetes": 4, "MySQL": 2, "PostgreSQL": 2}
"""How many parts the names of a protocol's objects have, where they all have as many and no colon."""

FORMS: Final = {
    "HTTP": "path: and the path, as path:/v1/orders/*, graphql: and the field, as graphql:query.viewer, or grpc: and "
    "the call, as grpc:shop.v1.Orders.Get",
    "MCP": "a kind and a name, as tool:search, resource:docs://intro, prompt:review, mcp:tools/list or path:/mcp",
    "Kubernetes": "namespace.group.resource.name, as agents.core.pods.web-1, or a kind and a name, as path:/version",
    "MySQL": "schema.name, as shop.orders, or a kind and a name, as setting:sql_mode",
    "PostgreSQL": "schema.name, as public.orders, or a kind and a name, as setting:search_path",
}
"""How objects of those protocols are written, for people."""

MEASURED: Final = {
    "where": frozenset({"read", "read_sensitive", "modify", "delete"}),
    "limit": frozenset({"read", "read_sensitive"}),
}
"""Effects of which a classifier says whether the statement has a WHERE, and which LIMIT it has. As in the gateway."""

MASKABLE: Final = frozenset({"HTTP", "Kubernetes", "MCP", "MySQL", "PostgreSQL", "SSH"})
"""Protocols whose answers can be masked."""

COLUMNS: Final = frozenset({"MySQL", "PostgreSQL"})
"""Those of them whose answers have columns; in others detectors look at values alone."""

METHODS: Final = ("Null", "Redact", "Hash", "Partial")
"""What may stand where a value stood; where several apply the first, which says least, counts. As in the gateway."""

UNMASKABLE: Final = ("Deny", "Redact", "Allow")
"""What becomes of a value of which cannot be said whether it needs a mask, the strictest first."""

DETECTORS: Final = frozenset(
    {
        "AwsAccessKey",
        "CloudKey",
        "Email",
        "IBAN",
        "IPv4",
        "IPv6",
        "JWT",
        "PaymentCard",
        "Phone",
        "PrivateKey",
        "USSocialSecurity",
    }
)
"""Kinds of values that gateways can find. As in the gateway."""


def meant(effects: tuple[str, ...]) -> frozenset[str]:
    """The effects that a rule's list means: a wildcard stands for the ordinary ones, never for a critical one."""
    named = frozenset(effects) - {WILDCARD}
    return named | ORDINARY if WILDCARD in effects else named
