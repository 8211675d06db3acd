"""What the collector counts. Labels take values from fixed lists only: no pod, identity or stream."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one collector, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.records = Counter(
            "chaperone_collector_records", "Entries stored and acknowledged.", registry=self.registry
        )
        self.batches = Counter(
            "chaperone_collector_batches", "Batches received, by result.", ["result"], registry=self.registry
        )
        self.bodies = Counter("chaperone_collector_body_bytes", "Bytes of bodies stored.", registry=self.registry)
        self.findings = Counter(
            "chaperone_collector_findings", "Entries stored although something is wrong with what they say.",
            registry=self.registry,
        )  # fmt: skip
        self.broken = Counter(
            "chaperone_collector_chain_breaks", "Batches refused because they broke their chain.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.commit_seconds = Histogram(
            "chaperone_collector_commit_seconds", "Time of one transaction, its sync included.",
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5), registry=self.registry,
        )  # fmt: skip
        self.outstanding = Gauge(
            "chaperone_collector_outstanding_bytes", "Bytes received and not yet answered.", registry=self.registry
        )
        self.witnessed = Counter(
            "chaperone_collector_witness_answers", "Answers of witnesses: signed, failed, refused.",
            ["witness", "result"], registry=self.registry,
        )  # fmt: skip
        self.archive_lag = Gauge(
            "chaperone_collector_archive_lag_entries", "Entries that the archive does not have.", registry=self.registry
        )
        self.archive_lag_seconds = Gauge(
            "chaperone_collector_archive_lag_seconds", "How long the oldest of them is here.", registry=self.registry
        )
        self.archive_uploads = Counter(
            "chaperone_collector_archive_segments", "Segments: archived, failed tries.", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.worm_enforced = Gauge(
            "chaperone_collector_worm_enforced", "1: the last drill found that the archive refuses every change.",
            registry=self.registry,
        )  # fmt: skip
        self.size = Gauge("chaperone_collector_log_entries", "Entries in the log.", registry=self.registry)
        self.requests = Counter(
            "chaperone_collector_api_requests", "Requests to the evidence API.", ["verb", "resource", "code"],
            registry=self.registry,
        )  # fmt: skip
        self.watches = Gauge("chaperone_collector_api_watches", "Open watches.", registry=self.registry)

    def render(self) -> bytes:
        """The text exposition."""
        return generate_latest(self.registry)
