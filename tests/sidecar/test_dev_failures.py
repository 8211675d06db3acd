"""What happens when something is wrong: texts say what to do, nothing passes unrecorded, evidence still verifies."""

from __future__ import annotations

import base64
import os
import select
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
import yaml
from fix_dev import Gateway, start, write_manifests
from fix_postgres import Postgres
from pki import Authority
from psycopg import errors

from chaperone_cli.dev import _mask_key

pytestmark = pytest.mark.peer

type Make = Callable[..., Gateway]


def _refused(folder: Path, tmp_path: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-m", "chaperone_cli.main", "dev", "--manifests", str(folder), "--identity", "billing-agent",
         "--evidence", str(tmp_path / "evidence"), "--listen", "orders-db=127.0.0.1:1"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert run.returncode == 2
    return run.stderr


@pytest.mark.parametrize("content", [{"stringData": {"key": "short"}}, {"data": {"key": "!"}}, {}], ids=str)
def test_secret_without_a_key_for_masks_is_named(
    postgres: Postgres, tmp_path: Path, content: dict[str, object]
) -> None:
    write_manifests(tmp_path, postgres)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "chaperone-mask-key"}} | content
    (tmp_path / "key.yaml").write_text(yaml.safe_dump(secret))
    assert 'Secret "chaperone-mask-key" needs a key named key of 16 bytes or more' in _refused(tmp_path, tmp_path)


def test_key_for_masks_is_that_of_its_secret_else_another_one_each_run() -> None:
    def secret(**content: object) -> dict[str, object]:
        return {"metadata": {"name": "chaperone-mask-key"}, **content}

    assert _mask_key([secret(stringData={"key": "k" * 16})]) == b"k" * 16
    assert _mask_key([secret(data={"key": base64.b64encode(bytes(range(32))).decode()})]) == bytes(range(32))
    others = [{"metadata": {"name": "orders-db-reader"}, "stringData": {"key": "k" * 16}}]
    assert len(_mask_key(others)) == 32
    assert _mask_key(others) != _mask_key(others)


def test_broken_yaml_is_named_with_its_file(postgres: Postgres, tmp_path: Path) -> None:
    write_manifests(tmp_path, postgres)
    (tmp_path / "broken.yaml").write_text("kind: [AccessPolicy")
    assert "broken.yaml is not YAML" in _refused(tmp_path, tmp_path)


def test_a_policy_that_names_an_unknown_target_starts_nothing(postgres: Postgres, tmp_path: Path) -> None:
    write_manifests(tmp_path, postgres)
    path = tmp_path / "agents.yaml"
    path.write_text(path.read_text().replace("targets:\n  - name: orders-db", "targets:\n  - name: nowhere"))
    assert "nowhere" in _refused(tmp_path, tmp_path)


def test_a_rule_that_is_not_supported_yet_starts_nothing(postgres: Postgres, tmp_path: Path) -> None:
    rules = [{"name": "sure", "action": "Allow", "match": {"effects": ["read"]}, "durability": "Synced"}]
    write_manifests(tmp_path, postgres, rules=rules)
    assert "not supported yet" in _refused(tmp_path, tmp_path)


def test_records_that_a_log_would_have_to_sign_start_nothing(postgres: Postgres, tmp_path: Path) -> None:
    write_manifests(tmp_path, postgres, evidence={"durability": "Witnessed"})
    assert "Witnessed, and only in a cluster is a collector" in _refused(tmp_path, tmp_path)


def test_a_wrong_database_password_says_whose_credential_to_check(gateway_with: Make) -> None:
    gateway = gateway_with(password="not-the-password")
    with pytest.raises(psycopg.OperationalError, match='"orders-db" cannot be used: the password in its credential'):
        gateway.connect()
    assert "not-the-password" not in "".join(gateway.output)


def test_a_missing_secret_is_named(gateway_with: Make) -> None:
    gateway = gateway_with(with_secret=False)
    with pytest.raises(psycopg.OperationalError, match='Secret "orders-db-writer" does not exist'):
        gateway.connect()


def test_a_server_of_another_ca_is_not_logged_in_to(gateway_with: Make) -> None:
    gateway = gateway_with(ca_pem=Authority().pem)
    with pytest.raises(psycopg.OperationalError, match="certificate that is not accepted"):
        gateway.connect()


def test_an_expired_server_certificate_is_named(gateway_with: Make, postgres: Postgres) -> None:
    authority = Authority()
    key, certificate = authority.server_pair(
        "localhost", start=datetime.now(UTC) - timedelta(days=2), life=timedelta(days=1)
    )
    saved = {name: (postgres.directory / name).read_bytes() for name in ("server.key", "server.crt")}
    try:
        _present(postgres, key, certificate)
        gateway = gateway_with(ca_pem=authority.pem)
        with pytest.raises(psycopg.OperationalError, match="certificate has expired"):
            gateway.connect()
    finally:
        _present(postgres, saved["server.key"], saved["server.crt"])


def _present(postgres: Postgres, key: bytes, certificate: bytes) -> None:
    (postgres.directory / "server.key").write_bytes(key)
    (postgres.directory / "server.crt").write_bytes(certificate)
    with postgres.admin() as admin:
        admin.execute("SELECT pg_reload_conf()")
        admin.execute("SELECT pg_sleep(0.2)")  # the postmaster reads the files when it gets to the signal


def test_records_before_a_kill_verify_once_the_next_gateway_signed_them(
    gateway_with: Make, postgres: Postgres, tmp_path: Path
) -> None:
    first = gateway_with()
    with first.connect() as connection:
        for number in range(1, 50):
            connection.execute("SELECT * FROM orders WHERE id = %s", (number,))
        first.kill()
    alone = first.verify()
    assert alone.returncode == 1
    assert "under no signature" in alone.stdout
    second = gateway_with()
    with second.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert second.stop() == 0
    together = second.verify()
    assert together.returncode == 0, together.stdout
    assert together.stdout.endswith("verify: OK\n")
    assert "end continued" in together.stdout


def test_a_killed_gateway_leaves_no_opa_behind(gateway_with: Make) -> None:
    gateway = gateway_with()
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    assert len(children) == 1
    opa = os.pidfd_open(int(children[0]))
    gateway.kill()
    readable, _, _ = select.select([opa], [], [], 10)  # when the process has ended
    os.close(opa)
    assert readable, "OPA still runs"


def test_a_tail_cut_from_a_killed_gateways_records_is_found(gateway_with: Make) -> None:
    first = gateway_with()
    with first.connect() as connection:
        connection.execute("SELECT * FROM orders WHERE id = 1")
        first.kill()
    gateway_with().stop()
    segment = min((first.evidence / "streams").glob("*/*.seg"))
    data = bytearray(segment.read_bytes())
    ends, position = [0], 0
    while length := int.from_bytes(data[position : position + 2], "big"):
        position += 2 + length
        ends.append(position)
    data[ends[-2] :] = bytes(len(data) - ends[-2])
    segment.write_bytes(data)
    verdict = first.verify()
    assert verdict.returncode == 1
    assert "tail was cut or changed" in verdict.stdout


def test_a_full_disk_refuses_commands_natively_and_they_do_not_run(
    postgres: Postgres, tmp_path: Path, small_disk: Path
) -> None:
    write_manifests(tmp_path, postgres)
    gateway = start(tmp_path, small_disk / "evidence")
    try:
        with gateway.connect() as connection:
            with pytest.raises(errors.DiskFull, match="cannot be recorded"):
                for number in range(1_000_000):
                    connection.execute(f"SELECT {number}")
            with pytest.raises(errors.DiskFull):
                connection.execute("DELETE FROM invoices WHERE id = 2")
    finally:
        gateway.stop()
    with postgres.admin() as admin:
        assert admin.execute("SELECT count(*) FROM invoices WHERE id = 2").fetchone() == (1,)
    verdict = gateway.verify()
    assert "FAILED" not in verdict.stdout or "under no signature" in verdict.stdout, verdict.stdout


def test_a_statement_that_would_crash_the_parser_is_refused_and_the_gateway_lives(gateway_with: Make) -> None:
    gateway = gateway_with()
    with gateway.connect() as connection:
        for terms in (22_000, 66_000, 400_000):
            with pytest.raises((errors.InsufficientPrivilege, errors.StatementTooComplex)):
                connection.execute("SELECT " + "+".join("1" * terms))
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert gateway.process.poll() is None


def test_a_backend_that_goes_away_is_told_to_the_client(gateway_with: Make, postgres: Postgres) -> None:
    gateway = gateway_with()
    with gateway.connect() as connection, postgres.admin() as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'agent_rw'")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with gateway.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
