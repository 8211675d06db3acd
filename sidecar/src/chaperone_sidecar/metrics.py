"""Counters of the gateway. Labels are bounded: targets, actions and error classes; never identities or commands."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

from chaperone_sidecar.decision import Action

_COMMANDS: Final = Counter("chaperone_gateway_commands", "Commands by target and decision", ("target", "action"))
_FAILED: Final = Counter("chaperone_gateway_sessions_failed", "Sessions ended by an error", ("target", "error"))
SESSIONS: Final = Gauge("chaperone_gateway_sessions", "Sessions open now")
SPOOL_BYTES: Final = Gauge("chaperone_gateway_spool_bytes", "Bytes of the spool's segments")

_commands: dict[tuple[str, Action], Counter] = {}


def command(target: str, action: Action) -> None:
    """Count a decided command."""
    child = _commands.get((target, action))
    if child is None:
        child = _commands[(target, action)] = _COMMANDS.labels(target, action.value)
    child.inc()


def session_failed(target: str, error: str) -> None:
    """Count a session that an error ended."""
    _FAILED.labels(target, error).inc()
