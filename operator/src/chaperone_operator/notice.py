"""Events (events.k8s.io) for people: what turned, at the object that it concerns."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Final

from chaperone_operator.kube import EVENTS, Client, Object

CONTROLLER: Final = "chaperone.dev/operator"
MAX_NOTE: Final = 1024  # bytes; the API server refuses longer ones
DEFAULT_NAMESPACE: Final = "default"  # where the API wants events of objects that are in none


async def post(
    client: Client, about: Object, *, reason: str, action: str, note: str, instance: str, is_warning: bool
) -> None:
    """Tell people something about an object.

    Args:
        client: to whom.
        about: with apiVersion, kind and metadata.
        reason: CamelCase.
        action: what was done or found, CamelCase.
        note: one or two sentences; cut to the API's limit.
        instance: this replica.
        is_warning: whether somebody has to act.

    Raises:
        ApiError: it was not taken.
    """
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or DEFAULT_NAMESPACE
    regarding = {
        "apiVersion": about["apiVersion"],
        "kind": about["kind"],
        "name": metadata["name"],
        "namespace": metadata.get("namespace", ""),
        "uid": metadata.get("uid", ""),
    }
    body: Object = {
        # A random end, because the same may be told of one object twice in a microsecond.
        "metadata": {"name": f"{metadata['name'][:200]}.{secrets.token_hex(8)}"},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "regarding": {key: value for key, value in regarding.items() if value},
        "reason": reason[:128],
        "action": action[:128],
        "note": _cut(note),
        "type": "Warning" if is_warning else "Normal",
    }
    await client.create(EVENTS, body, namespace)


def _cut(note: str) -> str:
    encoded = note.encode()
    if len(encoded) <= MAX_NOTE:
        return note
    return encoded[: MAX_NOTE - 3].decode(errors="ignore") + "…"
