"""What the operator counts. Labels take values from fixed lists only: no namespace, identity or pod."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one operator, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "chaperone_admission_reviews", "Admission requests, by webhook and answer.", ["webhook", "answer"],
            registry=self.registry,
        )  # fmt: skip
        self.review_seconds = Histogram(
            "chaperone_admission_review_seconds", "Time to answer an admission request.", ["webhook"],
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5), registry=self.registry,
        )  # fmt: skip
        self.rounds = Histogram(
            "chaperone_operator_round_seconds", "Time of a round of reconciliation, by what changed.", ["change"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60), registry=self.registry,
        )  # fmt: skip
        self.failures = Counter(
            "chaperone_operator_failed_rounds", "Rounds that failed and are tried again.", registry=self.registry
        )
        self.backlog = Gauge("chaperone_operator_backlog", "Rounds that wait.", registry=self.registry)
        self.not_compiling = Gauge(
            "chaperone_operator_namespaces_not_compiling", "Namespaces whose latest policy is not in force.",
            registry=self.registry,
        )  # fmt: skip
        self.is_leading = Gauge("chaperone_operator_writes", "1 while this replica writes.", registry=self.registry)

    def round(self, change: str) -> AbstractContextManager[object]:
        """Time one round."""
        return self.rounds.labels(change).time()

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
