"""Shared fixtures: one module a concern in tests/support, named for what it gives; listed here, nothing else."""

from __future__ import annotations

from fix_apiserver import api_server
from fix_approvals import approvals
from fix_broker import broker
from fix_collector import collector, collector_with, gateway_ca
from fix_crds import crds
from fix_dev import dev_gateway, gateway_with
from fix_evidence_api import evidence_api
from fix_faults import faults
from fix_interop import interop, reflector
from fix_netns import fenced, world
from fix_objects import objects, objects_program, objects_with
from fix_opa import opa_with
from fix_operator import installation, operator
from fix_postgres import postgres
from fix_versions import versioned
from fix_way import asked_opa, collected, held_tables, way

__all__ = [
    "api_server",
    "approvals",
    "asked_opa",
    "broker",
    "collected",
    "collector",
    "collector_with",
    "crds",
    "dev_gateway",
    "evidence_api",
    "faults",
    "fenced",
    "gateway_ca",
    "gateway_with",
    "held_tables",
    "installation",
    "interop",
    "objects",
    "objects_program",
    "objects_with",
    "opa_with",
    "operator",
    "postgres",
    "reflector",
    "versioned",
    "way",
    "world",
]
