"""`chaperone dev` and identities that act on behalf of persons."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml
from manifests import identity, policy, rule, target


def test_dev_says_that_tokens_need_a_cluster_and_does_not_start(tmp_path: Path) -> None:
    delegation = {"issuer": "https://login.example.com", "audience": "billing-agent"}
    objects = [identity(delegation=delegation), target(), policy([rule("r", "Allow", ["read"])])]
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    (manifests / "all.yaml").write_text(yaml.safe_dump_all(objects))
    evidence = tmp_path / "evidence"
    done = subprocess.run(
        [sys.executable, "-m", "chaperone_cli.main", "dev", "--manifests", str(manifests), "--identity",
         "billing-agent", "--evidence", str(evidence), "--listen", "orders-db=127.0.0.1:0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "only in a cluster is a broker that checks tokens" in done.stderr
    assert not evidence.exists()
