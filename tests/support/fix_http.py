"""`api_with`: the real `chaperone dev` process in front of an HTTP API that runs as a program of its own."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from fix_dev import Gateway, start
from manifests import identity, policy, rule, target
from pki import Authority
from ports import free_port

from chaperone_operator.kubeconfig import verifying

NAME = "api.data.svc"
CANARY = "canary-of-an-api-token/1"
BACKEND = Path(__file__).with_name("http_backend.py")
RULES = [
    rule("read", "Allow", ["read"], ["path:*"]),
    rule("write", "Allow", ["create", "modify"], ["path:/v1/*", "path:/echo*"]),
    rule("never", "Deny", ["delete"], ["path:*"], message="Ask the owner of the API."),
]


@dataclass
class Backend:
    """A running API."""

    port: int
    authority: Authority | None
    log: Path
    process: subprocess.Popen[bytes]

    def heard(self) -> list[str]:
        """Requests that reached it."""
        return self.log.read_text().splitlines() if self.log.exists() else []


@dataclass
class Api:
    """A gateway to it."""

    backend: Backend
    gateway: Gateway
    folder: Path
    ca_pem: str = ""

    @property
    def url(self) -> str:
        """As an agent writes it, with the port of the test."""
        return f"https://{NAME}:{self.gateway.port}"

    @property
    def ca(self) -> Path:
        """The pod's CA, for clients that want a file."""
        return self.folder / "ca.crt"

    def connect(self, name: str = NAME, *alpn: str) -> ssl.SSLSocket:
        """A TLS connection."""
        context = verifying(cadata=self.ca_pem)
        context.check_hostname = False
        if alpn:
            context.set_alpn_protocols(list(alpn))
        connection = socket.create_connection(("127.0.0.1", self.gateway.port), timeout=20)
        return context.wrap_socket(connection, server_hostname=name)

    def raw(self, data: bytes, name: str = NAME) -> bytes:
        """Send bytes and read to the end."""
        with self.connect(name) as wrapped:
            wrapped.sendall(data)
            return to_end(wrapped)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request on a connection of its own: status, fields in lower case, body."""
        fields = {"Host": NAME, "Connection": "close"} | (headers or {})
        if body:
            fields["Content-Length"] = str(len(body))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        answer = self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        return parsed(answer)

    def json(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """The same, of which the body is JSON."""
        status, _, found = self.ask(method, path, body, headers)
        return status, json.loads(found)


class Agent(httpx.Client):
    """httpx in HTTP/2, with the name that TLS asks for and checks."""

    def __init__(self, api: Api) -> None:
        one_connection = httpx.Limits(keepalive_expiry=None)  # else one that was idle for five seconds is left
        super().__init__(http2=True, verify=verifying(cadata=api.ca_pem), timeout=60, limits=one_connection)
        self._url = f"https://127.0.0.1:{api.gateway.port}"

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request."""
        found = self.request(
            method, self._url + path, headers={"Host": NAME}, extensions={"sni_hostname": NAME}, **more
        )
        assert found.http_version == "HTTP/2"
        return found


def to_end(connection: socket.socket) -> bytes:
    """All that comes."""
    found: list[bytes] = []
    with suppress(ConnectionError, ssl.SSLError):
        while part := connection.recv(1 << 16):
            found.append(part)
    return b"".join(found)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, fields in lower case, body without its framing."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if fields.get("transfer-encoding") == "chunked":
        body = unchunked(body)
    return int(first.split(" ")[1]), fields, body


def unchunked(body: bytes) -> bytes:
    """A body without its framing; it must be whole."""
    found: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        size = int(body[at:end], 16)
        if not size:
            return b"".join(found)
        found.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


def start_backend(folder: Path, *words: str, is_tls: bool = True, program: Path = BACKEND) -> Backend:
    """Start the API; `words` are further arguments of the program."""
    authority = Authority() if is_tls else None
    port = free_port()
    pair = ["", ""]
    if authority is not None:
        key, certificate = authority.server_pair("localhost", "127.0.0.1")
        (folder / "backend.key").write_bytes(key)
        (folder / "backend.crt").write_bytes(certificate)
        pair = [str(folder / "backend.crt"), str(folder / "backend.key")]
    log = folder / "heard"
    process = subprocess.Popen([sys.executable, str(program), str(port), *pair, str(log), *words])
    for _ in range(1200):  # a second alone; the machine may be shared
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return Backend(port, authority, log, process)
        time.sleep(0.05)
    raise RuntimeError("the API did not start")


@contextmanager
def running_backend(folder: Path, *words: str, is_tls: bool = True, program: Path = BACKEND) -> Iterator[Backend]:
    """As `start_backend`, for as long as the block lasts."""
    found = start_backend(folder, *words, is_tls=is_tls, program=program)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait(20)


def write_manifests(
    folder: Path, backend: Backend, *, rules: list[dict[str, Any]] | None = None, protocol: str = "HTTP",
    recording: dict[str, Any] | None = None, credential: dict[str, Any] | None = None, port: int | None = None,
    ca_pem: str | None = None, server_name: str = "localhost", **spec: Any,
) -> None:  # fmt: skip
    """The manifests of one agent with one API."""
    authority = backend.authority
    tls: dict[str, Any] = {"mode": "Disable"}
    if authority is not None:
        tls = {"mode": "VerifyFull", "caSecretRef": {"name": "api-ca"}, "serverName": server_name}
    bound: dict[str, Any] = {
        "secretRef": {"name": "api-token"}, "host": "localhost", "port": port or backend.port, "prefix": "Bearer ",
    }  # fmt: skip
    bound |= {"scheme": "https" if authority is not None else "http"} | (credential or {})
    objects = [
        identity(evidence=recording or {}),
        target(
            "api", protocol=protocol, hosts=[NAME], upstream={"host": "localhost", "port": port or backend.port},
            tls=tls, credential={"httpHeader": bound},
        ),
        policy(RULES if rules is None else rules, targets=[{"name": "api"}], **spec),
    ]  # fmt: skip
    (folder / "agents.yaml").write_text(yaml.safe_dump_all(objects))
    secrets = [_secret("api-token", {"token": CANARY})]
    if authority is not None:
        secrets.append(_secret("api-ca", {"ca.crt": ca_pem or authority.pem}))
    (folder / "secrets.yaml").write_text(yaml.safe_dump_all(secrets))


def _secret(name: str, data: dict[str, str]) -> dict[str, object]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}


@pytest.fixture(scope="module")
def http_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The API, for all tests of a module."""
    with running_backend(tmp_path_factory.mktemp("backend")) as found:
        yield found


@pytest.fixture(scope="module")
def api_with(http_backend: Backend, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Api]]:
    """Start gateways of one's own: keyword arguments are those of `write_manifests`."""
    started: list[Api] = []

    def make(backend: Backend | None = None, **changes: Any) -> Api:
        folder = tmp_path_factory.mktemp("manifests")
        write_manifests(folder, backend or http_backend, **changes)
        gateway = start(folder, tmp_path_factory.mktemp("evidence") / "spool", {"api": free_port()})
        assert gateway.process.poll() is None, "".join(gateway.output)
        api = Api(backend or http_backend, gateway, folder)
        started.append(api)
        if (backend or http_backend).authority is not None:
            loose = ssl.create_default_context()  # to learn the CA, as a pod is given it before it connects
            loose.check_hostname = False
            loose.verify_mode = ssl.CERT_NONE
            with (
                socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection,
                loose.wrap_socket(connection, server_hostname=NAME) as wrapped,
            ):
                api.ca_pem = ssl.DER_cert_to_PEM_cert(wrapped.get_unverified_chain()[-1])
            api.ca.write_text(api.ca_pem)
        return api

    yield make
    for api in started:
        api.gateway.process.send_signal(signal.SIGTERM)
    for api in started:
        assert api.gateway.process.wait(30) == 0, "".join(api.gateway.output)
        kept = [path.read_bytes() for path in api.gateway.evidence.rglob("*") if path.is_file()]
        assert not any(CANARY in text for text in api.gateway.output)
        assert not any(CANARY.encode() in one for one in kept)


@pytest.fixture(scope="module")
def api(api_with: Callable[..., Api]) -> Iterator[Api]:
    """One gateway for all tests of a module; its evidence must verify in the end."""
    found = api_with(recording={"results": "Full"})
    yield found
    assert found.gateway.stop() == 0, "".join(found.gateway.output)
    verdict = found.gateway.verify()
    assert verdict.stdout.endswith("verify: OK\n"), verdict.stdout
