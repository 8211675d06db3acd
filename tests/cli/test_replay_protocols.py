"""`chaperone replay` and `show` of sessions of other protocols than PostgreSQL, as `chaperone dev` recorded them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pymysql
import pytest
from click.testing import CliRunner
from evidence_directory import read_records
from fix_http import Api
from fix_kube import Kube
from fix_mysql import Server
from fix_ssh import SshGateway
from manifests import rule
from my_gateway import execute, gateway, prepare

from chaperone_cli.main import main
from chaperone_evidence import record

pytestmark = pytest.mark.peer

FULL = {"results": "Full"}
TIME = re.compile(r"[\d.]+ ms|\d{4}-\d\d-\d\d\S+")


def told(evidence: Path, wanted: str, name: str = "replay") -> list[str]:
    """Lines about the newest session that has this text, but the first, without times."""
    sessions = [one.session for one in read_records(evidence) if isinstance(one, record.SessionOpen)]
    for session in reversed(sessions):
        done = CliRunner().invoke(main, [name, "--bundle", str(evidence), session])
        assert done.exit_code == 0, done.output
        if wanted in done.stdout:
            return [TIME.sub("TIME", line[11:].rstrip()) for line in done.stdout.splitlines()[1:]]
    raise AssertionError(f"no session has {wanted}")


def test_mysql_is_a_table_and_a_refusal_is_an_error(mariadb: Server, tmp_path: Path) -> None:
    with gateway(tmp_path, mariadb, {"shop-db": {}}) as served:
        served.run("SELECT id, name FROM customers ORDER BY id LIMIT 2")
        with pytest.raises(pymysql.OperationalError, match="refused"):
            served.run("DROP TABLE orders")
    lines = told(tmp_path / "evidence", "LIMIT 2")
    assert lines[0] == "# opened TIME at shop-db (MySQL), application -"
    assert lines[-8:-1] == [
        "> SELECT id, name FROM customers ORDER BY id LIMIT 2", "= Allow by agents/on-shop-db/read",
        "| id | name", "| ---+-----", "| 1  | Ada", "| 2  | Bob", "# ok, 2 rows, 12 bytes, TIME",
    ]  # fmt: skip
    refused = told(tmp_path / "evidence", "DROP")
    assert refused[refused.index("> DROP TABLE orders") + 1] == "= Deny by agents/on-shop-db/never"
    assert any(line.startswith("! ERROR 42000: refused by Chaperone: Ask the DBA.") for line in refused)


def test_mysql_in_both_formats_is_what_the_client_saw_masked(mariadb: Server, tmp_path: Path) -> None:
    asked = "SELECT id, email FROM customers WHERE id = "
    classified = [{"columns": ["orders.customers.email"], "class": "email"}]
    with gateway(tmp_path, mariadb, {"shop-db": {"classified": classified}}) as served, served.connect() as agent:
        with agent.cursor() as cursor:
            cursor.execute(asked + "1")
            assert cursor.fetchall() == ((1, "[Email]"),)
        number, _, _ = prepare(agent, asked + "?")
        assert execute(agent, number, 1) == [b"\0\0\1\0\0\0\x07[Email]"]
    lines = told(tmp_path / "evidence", asked)
    assert [line for line in lines if line.startswith("|")] == ["| id | email*", "| ---+--------", "| 1  | [Email]"] * 2
    assert "ada@" not in "".join(lines)


def test_http_is_a_request_with_its_body_and_an_answer(api_with: Callable[..., Api]) -> None:
    api = api_with(recording=FULL)
    api.ask("POST", "/echo", b'{"cents": 4900}', {"Content-Type": "application/json"})
    api.ask("DELETE", "/v1/orders/7")
    api.gateway.stop()
    lines = told(api.gateway.evidence, "4900")
    assert lines[0] == "# opened TIME at api (HTTP), application -"
    assert lines[1:3] == ["> POST /echo", "> Content-Type: application/json"]
    assert lines[4:6] == ['> {"cents": 4900}', "= Allow by agents/billing/write"]
    assert lines[6] == "| HTTP/1.1 200"
    assert "canary" not in "".join(lines)
    assert told(api.gateway.evidence, "DELETE")[1:3] == ["> DELETE /v1/orders/7", "= Deny by agents/billing/never"]


def test_ssh_is_what_the_terminal_showed(ssh_gateways: Callable[..., SshGateway]) -> None:
    rules = [rule("look", "Allow", ["read"], ["command:*", "path:*"]), rule("sh", "Allow", ["execute_code"], ["shell"])]
    served = ssh_gateways(rules, evidence=FULL)
    assert served.ssh("printf 'one\\ntwo\\n'").returncode == 0
    served.ssh(options=("-tt",), stdin=b"printf '\\033[1m%s\\033[0m\\n' bold\nexit\n")
    served.stop()
    lines = told(served.evidence, "one")
    assert lines[:5] == [
        "# opened TIME at build-host (SSH), application -", "> printf 'one\\ntwo\\n'", "= Allow by agents/hosts/look",
        "| one", "| two",
    ]  # fmt: skip
    shell = told(served.evidence, "bold")
    assert shell[1:3] == ["> (shell)", "= Allow by agents/hosts/sh"]
    assert "| bold" in shell
    assert "\ufffd" not in "".join(shell)
    assert "> (shell)" in "\n".join(told(served.evidence, "shell", "show"))


def test_kubernetes_is_a_request_with_its_body_and_an_answer(kube: Kube) -> None:
    kube.kubectl("patch", "configmap", "app", "-p", '{"data":{"shade":"red"}}')
    kube.kubectl("delete", "namespace", "other", "--wait=false")
    kube.gateway.stop()
    lines = told(kube.gateway.evidence, "PATCH")
    at = lines.index("> PATCH /api/v1/namespaces/agents/configmaps/app?fieldManager=kubectl-patch")
    assert lines[at + 1 : at + 5] == [
        "> Content-Type: application/strategic-merge-patch+json", ">", '> {"data":{"shade":"red"}}',
        "= Allow by agents/billing/work",
    ]  # fmt: skip
    assert lines[at + 5].startswith('| {"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"app",')
    refused = told(kube.gateway.evidence, "DELETE")
    assert "= Deny by agents/billing/never" in refused
    page = told(kube.gateway.evidence, "DELETE", "show")
    assert not [line for line in page if line.endswith(("database", "user ,"))]
