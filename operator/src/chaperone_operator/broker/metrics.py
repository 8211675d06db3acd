"""What the broker counts. Labels take values from fixed lists only: no pod, identity or target."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one broker, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.calls = Counter(
            "chaperone_broker_calls", "Calls of gateways, by route and HTTP status.", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "chaperone_broker_call_seconds", "Time of a call; /v1/config waits on purpose.", ["route"],
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 31), registry=self.registry,
        )  # fmt: skip
        self.waiters = Gauge(
            "chaperone_broker_waiters", "Calls that wait for a change of policy.", registry=self.registry
        )
        self.approvals = Counter(
            "chaperone_broker_approvals", "Approval requests that this replica made or moved, by state.", ["state"],
            registry=self.registry,
        )  # fmt: skip
        self.notifications = Counter(
            "chaperone_broker_notifications", "Events for the receiver of notifications, by result.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.snapshots = Gauge("chaperone_broker_snapshots", "Namespaces with policy.", registry=self.registry)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
