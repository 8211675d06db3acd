"""A MariaDB and an sshd that nobody fences, and the targets that lead to them.

The host is reached in two ways: as `build` with a certificate that the broker signs for each session, as `legacy` with
a key that lies in a Secret.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from stage import AGENTS_LABEL, Object, Pod, make_namespace, named, pod, secret

from chaperone_tools.cluster.pki import Authority
from chaperone_tools.kubectl import Kubectl

SERVERS: Final = "e2e-servers"
SHOP: Final = f"shop-db.{SERVERS}.svc"
DOWN: Final = f"down-db.{SERVERS}.svc"  # where nothing listens
FORGED: Final = f"forged-db.{SERVERS}.svc"  # whose certificate is of another authority than its target says
BUILD: Final = f"build.{SERVERS}.svc"
SILENT: Final = f"silent.{SERVERS}.svc"  # where nothing listens
STRANGE: Final = f"strange.{SERVERS}.svc"  # whose host key is not the one that its target says
LEGACY: Final = f"legacy.{SERVERS}.svc"
CARD: Final = "4111 1111 1111 1111"

_SSHD: Final = f"""set -eu
mkdir -p /srv/app/releases /srv/git
echo 'paid with {CARD} on Monday' > /srv/app/app.log
git init --quiet --bare --initial-branch=main /srv/git/app.git
git init --quiet --initial-branch=main /tmp/work
cd /tmp/work
git -c user.name=e2e -c user.email=e2e@example.org commit --quiet --allow-empty --message='one commit'
git push --quiet /srv/git/app.git main
chown -R deploy /srv/app /srv/git
install --mode=644 /run/secrets/host/client_key.pub /etc/ssh/agents.pub
exec /usr/sbin/sshd -D -e
"""
_FIRST: Final = f"""CREATE DATABASE orders;
CREATE TABLE orders.orders (id int PRIMARY KEY, item varchar(64), note varchar(64));
INSERT INTO orders.orders VALUES (1, 'engine', 'paid with {CARD}'), (2, 'compiler', ''), (3, 'relay', NULL);
CREATE TABLE orders.customers (id int PRIMARY KEY, name varchar(64), email varchar(64));
INSERT INTO orders.customers VALUES (1, 'Ada', 'ada.king@example.org'), (2, 'Konrad', 'zuse@example.org');
CREATE TABLE orders.invoices (id int PRIMARY KEY, paid bool NOT NULL DEFAULT false);
INSERT INTO orders.invoices (id) VALUES (1), (2), (3);
CREATE TABLE orders.secrets (value varchar(64));
INSERT INTO orders.secrets VALUES ('not for agents');
CREATE USER 'agent_rw'@'%' IDENTIFIED BY '{{password}}';
GRANT ALL ON orders.* TO 'agent_rw'@'%';
"""  # a server's first file holds one statement a line


@dataclass(frozen=True)
class Servers:
    """The database and the host, for who goes past every gateway."""

    database: Pod
    host: Pod

    def query(self, statement: str) -> str:
        """Ask the database as its owner."""
        done = self.database.run("mariadb", "--socket=/tmp/mysqld.sock", "-Ne", statement)
        assert done.status == 0, done.err
        return done.out.strip()

    def read(self, path: str) -> str:
        """A file of the host, "" where there is none."""
        return self.host.run("cat", path).out


def make_servers(kubectl: Kubectl, image: str, system_namespace: str, folder: Path) -> Servers:
    """Both servers in a namespace of the tests, with keys of their own, and the targets.

    Args:
        folder: for key pairs while they are made.
    """
    make_namespace(kubectl, SERVERS)
    authority = Authority("e2e shop CA")
    server = authority.server(SHOP, [SHOP, f"{SHOP}.cluster.local"])
    ca, password = authority.pair.certificate.decode(), secrets.token_urlsafe(18)
    keys = {name: _key_pair(folder / name) for name in ("host_key", "client_key", "authority", "other_key")}
    private = {name: path.read_text() for name, path in keys.items()}
    public = {f"{name}.pub": path.with_suffix(".pub").read_text() for name, path in keys.items()}
    kubectl.apply(
        secret("shop", SERVERS, **{
            "tls.crt": server.certificate.decode(), "tls.key": server.key.decode(), "ca.crt": ca,
            "first.sql": _FIRST, "password": password,
        }),
        secret("host", SERVERS, host_key=private["host_key"], **public),
        secret("e2e-shop", system_namespace, "kubernetes.io/basic-auth", username="agent_rw", password=password),
        secret("e2e-shop-ca", system_namespace, **{"ca.crt": ca}),
        secret("e2e-forged-ca", system_namespace, **{"ca.crt": Authority("another CA").pair.certificate.decode()}),
        secret("e2e-legacy", system_namespace, "kubernetes.io/ssh-auth", username="deploy",
               **{"ssh-privatekey": private["client_key"]}),
        secret("e2e-build-authority", system_namespace, **{"ssh-privatekey": private["authority"]}),
    )  # fmt: skip
    kubectl.apply(
        _service("shop-db", "shop-db", 3306), _service("down-db", "shop-db", 3307),
        _service("forged-db", "shop-db", 3306), _service("build", "host", 22), _service("legacy", "host", 22),
        _service("silent", "host", 23), _service("strange", "host", 22),
        _pod("shop-db", image, ["mariadb.sh"], "shop", 3306, 0o440,
             securityContext={"runAsUser": 1001, "fsGroup": 1001}),
        _pod("host", image, ["sh", "-c", _SSHD], "host", 22, 0o400),
        *_targets(public["host_key.pub"].strip(), public["other_key.pub"].strip()),
    )  # fmt: skip
    kubectl("wait", f"--namespace={SERVERS}", "--for=condition=Ready", "pod/shop-db", "pod/host", "--timeout=90s")
    return Servers(Pod(kubectl, SERVERS, "shop-db"), Pod(kubectl, SERVERS, "host"))


def _targets(host_key: str, other_key: str) -> Sequence[Object]:
    open_to = {"selector": {"matchLabels": {AGENTS_LABEL: "true"}}}
    certificate = {
        "caSecretRef": {"name": "e2e-build-authority"}, "principals": ["deploy"], "extensions": ["permit-pty"],
    }  # fmt: skip
    shop = {
        "protocol": "MySQL", "hosts": [SHOP], "port": 3306, "upstream": {"database": "orders"},
        "tls": {"mode": "VerifyFull", "caSecretRef": {"name": "e2e-shop-ca"}},
        "credential": {"secretRef": {"name": "e2e-shop"}}, "allowedNamespaces": open_to,
        "classified": [{"columns": ["orders.customers.email"], "class": "email"}],
    }  # fmt: skip
    lease = {"secretRef": {"name": "e2e-legacy"}}
    hosts = {
        "e2e-build": (BUILD, 22, {"sshCertificate": certificate}, host_key),
        "e2e-legacy": (LEGACY, 22, lease, host_key),
        "e2e-silent": (SILENT, 23, lease, host_key),
        "e2e-strange": (STRANGE, 22, lease, other_key),
    }
    forged = {"mode": "VerifyFull", "caSecretRef": {"name": "e2e-forged-ca"}}
    return [
        named("AccessTarget", "e2e-shop", shop),
        named("AccessTarget", "e2e-down", shop | {"hosts": [DOWN], "port": 3307}),
        named("AccessTarget", "e2e-forged", shop | {"hosts": [FORGED], "tls": forged}),
        *(
            named("AccessTarget", name, {
                "protocol": "SSH", "hosts": [host], "port": port, "credential": credential, "ssh": {"hostKeys": [key]},
                "allowedNamespaces": open_to,
            })
            for name, (host, port, credential, key) in hosts.items()
        ),
    ]  # fmt: skip


def _service(name: str, app: str, port: int) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SERVERS},
        "spec": {"selector": {"app": app}, "ports": [{"port": port}]},
    }  # fmt: skip


def _pod(name: str, image: str, command: list[str], of: str, port: int, mode: int, **spec: Any) -> Object:
    place = f"/run/secrets/{of}"
    container = {
        "command": command,
        "env": [{"name": f"MARIADB_{part}", "value": place} for part in ("FIRST", "LOGIN", "TLS")],
        "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1, "failureThreshold": 90},
        "volumeMounts": [{"name": "given", "mountPath": place}],
    }
    given = [{"name": "given", "secret": {"secretName": of, "defaultMode": mode}}]
    return pod(SERVERS, name, image, container=container, volumes=given, **spec)


def _key_pair(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    return path
