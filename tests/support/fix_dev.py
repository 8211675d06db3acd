"""`dev_gateway`: the real `chaperone dev` process in front of the real PostgreSQL, with real OPA."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml
from evidence_directory import read_records
from fix_opa import opa_binary
from fix_postgres import PASSWORD, Postgres
from manifests import cluster_policy, identity, target
from ports import free_port

from chaperone_evidence import record

START_TIMEOUT_S = 90  # 2 s alone; the machine may be shared
VERIFY_TIMEOUT_S = 600.0  # 0.1 s as a rule; after ten thousand sessions minutes

RULES = [
    {
        "name": "read-orders",
        "action": "Allow",
        "match": {"effects": ["read", "bulk_read"], "objects": ["public.orders"]},
    },
    {
        "name": "work-on-invoices",
        "action": "Allow",
        "match": {
            "effects": ["read", "create", "modify", "delete", "bulk_read", "bulk_write"],
            "objects": ["public.invoices"],
        },
    },
    {"name": "sessions", "action": "Allow", "match": {"effects": ["session"]}},
    {"name": "catalog", "action": "Allow", "match": {"effects": ["read"], "objects": ["pg_catalog.*"]}},
    {"name": "sleep", "action": "Allow", "match": {"effects": ["execute_code"], "objects": ["pg_catalog.pg_sleep"]}},
    {
        "name": "never",
        "action": "Deny",
        "match": {"effects": ["destroy", "privilege", "external_io"]},
        "message": "Ask the DBA on call.",
    },
]


@dataclass
class Gateway:
    """A running `chaperone dev`."""

    port: int
    evidence: Path
    process: subprocess.Popen[str]
    output: list[str]

    @property
    def conninfo(self) -> str:
        """How an agent connects: no password."""
        return f"host=127.0.0.1 port={self.port} user=agent dbname=orders"

    def connect(self, **arguments: object) -> psycopg.Connection:
        """A psycopg connection through the gateway."""
        return psycopg.connect(self.conninfo, **{"autocommit": True, **arguments})  # type: ignore[arg-type]

    def stop(self) -> int:
        """End it as an operator would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_TIMEOUT_S)

    def kill(self) -> None:
        """End it as the kernel would."""
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)

    def records(self) -> list[record.Known]:
        """All records that are in the spool."""
        return read_records(self.evidence)

    def verify(self) -> subprocess.CompletedProcess[str]:
        """`chaperone verify` on the evidence."""
        return subprocess.run(
            [sys.executable, "-m", "chaperone_cli.main", "verify", str(self.evidence)],
            capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False,
        )  # fmt: skip


def write_manifests(
    folder: Path, postgres: Postgres, *, rules: list[dict[str, object]] | None = None, password: str = PASSWORD,
    tls_mode: str = "VerifyFull", ca_pem: str | None = None, with_secret: bool = True,
    limits: dict[str, object] | None = None, masks: list[dict[str, object]] | None = None,
    classified: list[dict[str, object]] | None = None, unmaskable: str | None = None,
    mode: str = "Enforce", evidence: dict[str, object] | None = None,
) -> None:  # fmt: skip
    """The manifests of one agent with one database, in two files."""
    policy = {
        "apiVersion": "chaperone.dev/v1alpha1",
        "kind": "AccessPolicy",
        "metadata": {"name": "billing", "namespace": "agents"},
        "spec": {
            "subjects": [{"identity": "billing-agent"}],
            "targets": [{"name": "orders-db"}],
            "rules": RULES if rules is None else rules,
            "mode": mode,
        }
        | ({} if limits is None else {"limits": limits})
        | ({} if masks is None else {"masks": masks})
        | ({} if unmaskable is None else {"unmaskable": unmaskable}),
    }
    tls = {"mode": tls_mode} | ({"caSecretRef": {"name": "orders-db-ca"}} if tls_mode.startswith("Verify") else {})
    database = target(
        hosts=["orders-db.data.svc"],
        upstream={"host": "localhost", "port": postgres.port, "database": "orders"},
        tls=tls | ({"serverName": "localhost"} if tls_mode == "VerifyFull" else {}),
        credential={"secretRef": {"name": "orders-db-writer"}},
    )
    if classified is not None:
        database["spec"]["classified"] = classified
    objects = [identity(evidence={} if evidence is None else evidence), database, policy]
    if unmaskable is not None:  # what a target classifies no policy of a namespace may loosen
        objects.append(cluster_policy([], "showing", unmaskable=unmaskable))
    (folder / "agents.yaml").write_text(yaml.safe_dump_all(objects))
    secrets = [_secret("orders-db-ca", {"ca.crt": ca_pem or postgres.ca_pem})]
    if with_secret:
        secrets.append(_secret("orders-db-writer", {"username": "agent_rw", "password": password}))
    (folder / "secrets.yaml").write_text(yaml.safe_dump_all(secrets))


def _secret(name: str, data: dict[str, str]) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


def start(folder: Path, evidence: Path, ports: dict[str, int] | None = None) -> Gateway:
    """Start `chaperone dev` and wait for `ready`; it listens for orders-db, or for the targets that are named."""
    places = ports or {"orders-db": free_port()}
    port = next(iter(places.values()))
    listen = [word for name, at in places.items() for word in ("--listen", f"{name}=127.0.0.1:{at}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "chaperone_cli.main", "dev", "--manifests", str(folder), "--identity", "billing-agent",
         "--evidence", str(evidence), *listen],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"CHAPERONE_OPA": opa_binary()},
    )  # fmt: skip
    gateway = Gateway(port, evidence, process, [])
    is_ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            gateway.output.append(line)
            if line == "ready\n":
                is_ready.set()
        is_ready.set()

    threading.Thread(target=read, daemon=True).start()
    assert is_ready.wait(START_TIMEOUT_S), "".join(gateway.output)
    return gateway


@pytest.fixture
def gateway_with(postgres: Postgres, tmp_path: Path) -> Iterator[Callable[..., Gateway]]:
    """Start gateways of one's own: keyword arguments are those of `write_manifests`."""
    started: list[Gateway] = []

    def make(**changes: object) -> Gateway:
        folder = tmp_path / f"manifests-{len(started)}"
        folder.mkdir()
        write_manifests(folder, postgres, **changes)  # type: ignore[arg-type]
        gateway = start(folder, tmp_path / "evidence")
        started.append(gateway)
        assert gateway.process.poll() is None, "".join(gateway.output)
        return gateway

    yield make
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="module")
def dev_gateway(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway for all tests of a module; its evidence must verify in the end."""
    folder = tmp_path_factory.mktemp("manifests")
    write_manifests(folder, postgres)
    gateway = start(folder, tmp_path_factory.mktemp("evidence"))
    assert gateway.process.poll() is None, "".join(gateway.output)
    yield gateway
    assert gateway.stop() == 0, "".join(gateway.output)
    verdict = gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout
    assert PASSWORD not in "".join(gateway.output)
