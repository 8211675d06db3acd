"""Reconciliation: what people declared and what runs → snapshots for the broker, and a status that says the truth."""
