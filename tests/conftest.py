"""Shared fixtures: one module a concern in tests/support, named for what it gives; listed here, nothing else."""

from __future__ import annotations

from fix_collector import collector, collector_with, gateway_ca
from fix_opa import opa_with

__all__ = [
    "collector",
    "collector_with",
    "gateway_ca",
    "opa_with",
]
