"""The example of docs/guides/mysql.md: compiled as it stands, served, and each row of its table as it says."""

from __future__ import annotations

import re
from pathlib import Path

import fix_dev
import pymysql
import pytest
import yaml
from fix_mysql import Server
from fix_postgres import PASSWORD
from manifests import identity
from ports import free_port

GUIDE = (Path(__file__).parents[2] / "docs/guides/mysql.md").read_text()


@pytest.mark.peer
def test_the_example_does_what_its_table_says(mariadb: Server, tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    target, policy = yaml.safe_load_all(example)
    target["spec"]["upstream"] |= {"host": "localhost", "port": mariadb.port}
    target["spec"]["tls"]["serverName"] = "localhost"
    secrets = {
        "shop-db-ca": {"ca.crt": mariadb.ca_pem},
        "shop-db-login": {"username": "agent_rw", "password": PASSWORD},
    }
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    objects = [identity(), target, policy]
    objects += [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
        for name, data in secrets.items()
    ]
    (manifests / "all.yaml").write_text(yaml.safe_dump_all(objects))
    port = free_port()
    running = fix_dev.start(manifests, tmp_path / "evidence", {"shop-db": port})
    assert running.process.poll() is None, "".join(running.output)
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|$", GUIDE, re.MULTILINE)
    assert len(rows) == 6
    try:
        with pymysql.connect(host="127.0.0.1", port=port, user="agent") as agent, agent.cursor() as cursor:
            for statement, told in rows:
                if "error 1142" not in told:
                    cursor.execute(statement)
                    assert ("[Email]" in str(cursor.fetchall())) == ("[Email]" in told)
                    continue
                with pytest.raises(pymysql.err.MySQLError) as caught:
                    cursor.execute(statement)
                assert caught.value.args[0] == 1142
                for word in ("unmaskable", "bulk_write", "Ask the DBA on call."):
                    assert (word in told) == (word in caught.value.args[1])
    finally:
        running.stop()
