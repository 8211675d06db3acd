"""Counters of the gateway. Labels are bounded: targets, actions and error classes; never identities or commands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from chaperone_sidecar.decision import Action

_FAILED: Final = Counter("chaperone_gateway_sessions_failed", "Sessions ended by an error", ("target", "error"))
_LIMITED: Final = Counter("chaperone_gateway_limits_reached", "Limits of policy that were reached", ("target", "limit"))
_UNTRUSTED: Final = Counter(
    "chaperone_gateway_policies_refused", "Policies from the broker that were refused, by what is wrong", ("what",)
)
SESSIONS: Final = Gauge("chaperone_gateway_sessions", "Sessions open now")
SPOOL_BYTES: Final = Gauge("chaperone_gateway_spool_bytes", "Bytes of the spool's segments")

_commands: dict[tuple[str, Action], int] = {}


class _Commands(Collector):
    """Commands are counted in a dict: a counter of the library takes a lock, a microsecond of every statement."""

    def collect(self) -> Iterator[CounterMetricFamily]:
        """See prometheus_client."""
        family = CounterMetricFamily(
            "chaperone_gateway_commands", "Commands by target and decision", labels=("target", "action")
        )
        for (target, action), count in tuple(_commands.items()):
            family.add_metric((target, action.value), count)
        yield family


REGISTRY.register(_Commands())


def command(target: str, action: Action) -> None:
    """Count a decided command."""
    key = (target, action)
    _commands[key] = _commands.get(key, 0) + 1


def limit_reached(target: str, limit: str) -> None:
    """Count a command, result or connection that met a limit."""
    _LIMITED.labels(target, limit).inc()


def policy_refused(what: str) -> None:
    """Count a policy that is not what the operator signed: signature, note, identity, config, bundle or serial."""
    _UNTRUSTED.labels(what).inc()


def session_failed(target: str, error: str) -> None:
    """Count a session that an error ended."""
    _FAILED.labels(target, error).inc()
