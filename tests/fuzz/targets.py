"""What is fuzzed; each function says what it promises."""

from __future__ import annotations

from collections.abc import Callable

from http_targets import http
from kubernetes_body_targets import kubernetes_bodies
from kubernetes_targets import kubernetes_requests, kubernetes_streams
from masking_targets import detectors
from material import Target
from mysql_targets import mysql_packets, mysql_rows, mysql_statements
from postgresql_mask_targets import copy, rows, server_texts
from postgresql_targets import backend, classifier, frontend, lineage, session
from ssh_targets import ssh_commands, ssh_files, ssh_output

TARGETS: dict[str, Callable[[], tuple[Target, list[bytes]]]] = {
    "frontend": frontend,
    "backend": backend,
    "classifier": classifier,
    "detectors": detectors,
    "session": session,
    "rows": rows,
    "copy": copy,
    "texts": server_texts,
    "lineage": lineage,
    "http": http,
    "kubernetes_requests": kubernetes_requests,
    "kubernetes_streams": kubernetes_streams,
    "kubernetes_bodies": kubernetes_bodies,
    "ssh_commands": ssh_commands,
    "ssh_output": ssh_output,
    "ssh_files": ssh_files,
    "mysql_packets": mysql_packets,
    "mysql_statements": mysql_statements,
    "mysql_rows": mysql_rows,
}
