"""`api_server`: a real kube-apiserver on its own etcd, no nodes, RBAC on; shared by all tests of a run."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pki import Authority, key_pem
from ports import free_ports

from chaperone_operator.kubeconfig import verifying

START_TIMEOUT_S = 90.0  # 4 s alone; the machine may be shared
FRONT_PROXY = "front-proxy-client"
_BIN = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin"))


@dataclass
class ApiServer:
    """One API server."""

    url: str
    folder: Path
    authority: Authority
    front_proxy: Authority

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator."""
        return self.kubeconfig_of("admin", "system:masters")

    def kubeconfig_of(self, user: str, *groups: str) -> Path:
        """A kubeconfig with a client certificate of that user."""
        path = self.folder / f"{user.replace(':', '-')}.kubeconfig"
        if not path.exists():
            key, certificate = _client_pair(self.authority, user, groups)
            cluster = {"server": self.url, "certificate-authority-data": _b64(self.authority.pem.encode())}
            login = {"client-certificate-data": _b64(certificate), "client-key-data": _b64(key)}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": "test", "user": login}],
            }
            path.write_text(yaml.safe_dump(config))
        return path


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API server; etcd and it are ended after the tests."""
    with running(tmp_path_factory.mktemp("api-server")) as server:
        yield server


@contextmanager
def running(folder: Path) -> Iterator[ApiServer]:
    """An API server on its etcd, all of whose files are in the folder."""
    etcd_port, peer_port, port = free_ports(3)
    etcd = _start(
        folder / "etcd.log",
        "etcd",
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
        f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
    )
    authority = Authority("test cluster CA")
    server_key, server_certificate = authority.server_pair("127.0.0.1", "localhost")
    front_proxy = Authority("test front-proxy CA")
    proxy_key, proxy_certificate = _client_pair(front_proxy, FRONT_PROXY, ())
    files = {
        "front-proxy-ca.crt": front_proxy.pem.encode(),
        "front-proxy.key": proxy_key,
        "front-proxy.crt": proxy_certificate,
        "ca.crt": authority.pem.encode(),
        "server.key": server_key,
        "server.crt": server_certificate,
        "sa.key": _rsa_key(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    process = _start(
        folder / "kube-apiserver.log",
        "kube-apiserver",
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=192.0.2.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        f"--tls-cert-file={folder / 'server.crt'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--client-ca-file={folder / 'ca.crt'}",
        f"--service-account-key-file={folder / 'sa.key'}",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=RBAC",
        "--allow-privileged=true",  # so that it is our rules that refuse privileged containers
        "--disable-admission-plugins=ServiceAccount",
        f"--requestheader-client-ca-file={folder / 'front-proxy-ca.crt'}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-uid-headers=X-Remote-Uid",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={folder / 'front-proxy.crt'}",
        f"--proxy-client-key-file={folder / 'front-proxy.key'}",
    )
    server = ApiServer(f"https://127.0.0.1:{port}", folder, authority, front_proxy)
    try:
        _wait_ready(server, process)
        yield server
    finally:
        for child in (process, etcd):
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _start(log: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    binary = str(_BIN / name) if (_BIN / name).exists() else shutil.which(name)
    if binary is None:
        pytest.fail(f"no {name} binary: build it from tools/kubernetes or put one on the PATH")
    with log.open("wb") as out:
        return subprocess.Popen([binary, *arguments], stdout=out, stderr=out, cwd=log.parent)


def _wait_ready(server: ApiServer, process: subprocess.Popen[bytes]) -> None:
    pause = threading.Event()
    context = verifying(cadata=server.authority.pem)
    ends = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", context=context, timeout=5):  # noqa: S310
                return
        except OSError:
            pause.wait(0.1)
    log = (server.folder / "kube-apiserver.log").read_text()
    pytest.fail(f"kube-apiserver did not get ready; its log:\n{log[-4000:]}")


def _client_pair(authority: Authority, user: str, groups: tuple[str, ...]) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, user)]
    names += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(authority.name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return key_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def _rsa_key() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
