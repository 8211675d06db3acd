"""Shared fixtures: one module a concern in tests/support, named for what it gives; listed here, nothing else."""

from __future__ import annotations

import os
from typing import Any

import pytest
from fix_apiserver import api_server
from fix_approvals import approvals
from fix_broker import broker
from fix_chart import installed
from fix_collector import collector, collector_with, gateway_ca
from fix_crds import crds
from fix_dev import dev_gateway, gateway_with
from fix_evidence_api import evidence_api, evidence_served
from fix_evidence_server import evidence_server
from fix_faults import faults, small_disk
from fix_http import api, api_with, http_backend
from fix_interop import interop, reflector
from fix_kube import agent_token, kube, kube_with
from fix_mysql import mariadb, mysql
from fix_netns import fenced, world
from fix_objects import objects, objects_program, objects_with
from fix_opa import opa_with
from fix_operator import installation, operator
from fix_postgres import postgres
from fix_ssh import ssh_gateways, ssh_host
from fix_versions import versioned
from fix_way import asked_opa, collected, held_tables, way
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# Machines are as fast as they are; and what was tried before a change is tried after it, unless something is searched.
settings.register_profile("chaperone", deadline=None, derandomize="CHAPERONE_SEARCH" not in os.environ)
settings.load_profile("chaperone")

__all__ = [
    "agent_token",
    "api",
    "api_server",
    "api_with",
    "approvals",
    "asked_opa",
    "broker",
    "collected",
    "collector",
    "collector_with",
    "crds",
    "dev_gateway",
    "evidence_api",
    "evidence_served",
    "evidence_server",
    "faults",
    "fenced",
    "gateway_ca",
    "gateway_with",
    "held_tables",
    "http_backend",
    "installation",
    "installed",
    "interop",
    "kube",
    "kube_with",
    "mariadb",
    "mysql",
    "objects",
    "objects_program",
    "objects_with",
    "opa_with",
    "operator",
    "postgres",
    "reflector",
    "small_disk",
    "ssh_gateways",
    "ssh_host",
    "versioned",
    "way",
    "world",
]


class ByFile(LoadFileScheduling):
    """Tests of one file run on one core, since they share what they start; those of the one cluster count as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "e2e" if file.startswith("e2e/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)
