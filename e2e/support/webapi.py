"""HTTPS servers that nobody fences, which want a token, and the targets that lead to them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from stage import AGENTS_LABEL, Object, Pod, make_namespace, named, pod, secret

from chaperone_tools.cluster.pki import Authority
from chaperone_tools.kubectl import Kubectl

SPACE: Final = "e2e-api"
API: Final = f"api.{SPACE}.svc"
TARGET: Final = "e2e-api"
TOOLS_SPACE: Final = "e2e-tools"
TOOLS: Final = f"tools.{TOOLS_SPACE}.svc"
TOOLS_TARGET: Final = "e2e-tools"

_SERVER: Final = """
import http.server, json, pathlib, ssl
given = pathlib.Path("/run/secrets/api")
token, refunds = (given / "token").read_text(), []

class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        known = self.headers.get_all("Authorization") == [f"Bearer {token}"]
        if known and self.command == "POST":
            refunds.append(body.decode())
        said = {"known": known, "email": "ada.king@example.org", "refunds": refunds}
        if self.path == "/mcp":
            said = {"jsonrpc": "2.0", "id": json.loads(body)["id"], "result": {"tools": []}}
        raw = json.dumps(said).encode()
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
    do_GET = do_POST = do_DELETE = answer

server = http.server.ThreadingHTTPServer(("", 8443), Api)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(given / "tls.crt", given / "tls.key")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


@dataclass(frozen=True)
class Api:
    """The API, and the token that no agent may see."""

    server: Pod
    token: str


def make_api(kubectl: Kubectl, image: str, system_namespace: str) -> Api:
    """The API in a namespace of the tests, and its target."""
    return make_server(kubectl, image, system_namespace, "api", _SERVER, "HTTP", "/v1")


def make_tools(kubectl: Kubectl, image: str, system_namespace: str) -> Api:
    """The same as an MCP server without any tool, and its target."""
    return make_server(kubectl, image, system_namespace, "tools", _SERVER, "MCP", "/mcp")


def make_server(
    kubectl: Kubectl, image: str, system_namespace: str, name: str, program: str, protocol: str, path: str
) -> Api:
    """A program that speaks HTTPS on port 8443, in a namespace of its own, and the target that leads to it.

    Args:
        name: its host is `<name>.e2e-<name>.svc`, its target `e2e-<name>`.
        program: finds `tls.crt`, `tls.key` and `token` in /run/secrets/api.
        path: what the credential is for.
    """
    space = target = f"e2e-{name}"
    host = f"{name}.{space}.svc"
    make_namespace(kubectl, space)
    authority = Authority(f"e2e {name} CA")
    server, token = authority.server(host, [host]), secrets.token_urlsafe(24)
    kubectl.apply(
        secret("api", space, **{
            "tls.crt": server.certificate.decode(), "tls.key": server.key.decode(), "token": token,
        }),
        secret(f"{target}-token", system_namespace, token=token),
        secret(f"{target}-ca", system_namespace, **{"ca.crt": authority.pair.certificate.decode()}),
        _service(space, name, name, 8443),
        pod(
            space, name, image,
            container={
                "command": ["python3", "-c", program],
                "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1, "failureThreshold": 60},
                "volumeMounts": [{"name": "given", "mountPath": "/run/secrets/api"}],
            },
            volumes=[{"name": "given", "secret": {"secretName": "api"}}],
        ),
        _target(target, protocol, host, f"{target}-ca", f"{target}-token", path),
    )  # fmt: skip
    kubectl("wait", f"--namespace={space}", "--for=condition=Ready", f"pod/{name}", "--timeout=90s")
    return Api(Pod(kubectl, space, name), token)


def make_trouble(kubectl: Kubectl, system_namespace: str, name: str, protocol: str) -> tuple[str, str]:
    """Two more targets beside a server of `make_server`; their hosts: where nothing listens, and a certificate of
    another authority than its target says.
    """
    space, target = f"e2e-{name}", f"e2e-{name}"
    down, forged = f"down.{space}.svc", f"forged.{space}.svc"
    other = Authority("another CA").pair.certificate.decode()
    kubectl.apply(
        secret(f"{target}-forged-ca", system_namespace, **{"ca.crt": other}),
        _service(space, "down", name, 9), _service(space, "forged", name, 8443),
        _target(f"{target}-down", protocol, down, f"{target}-ca", f"{target}-token"),
        _target(f"{target}-forged", protocol, forged, f"{target}-forged-ca", f"{target}-token"),
    )  # fmt: skip
    return down, forged


def _service(space: str, name: str, app: str, port: int) -> Object:
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": space},
        "spec": {"selector": {"app": app}, "ports": [{"port": 443, "targetPort": port}]},
    }  # fmt: skip


def _target(name: str, protocol: str, host: str, ca: str, token: str, path: str = "/") -> Object:
    return named("AccessTarget", name, {
        "protocol": protocol, "hosts": [host], "port": 443,
        "tls": {"mode": "VerifyFull", "caSecretRef": {"name": ca}},
        "credential": {"httpHeader": {"secretRef": {"name": token}, "prefix": "Bearer ", "host": host, "path": path}},
        "allowedNamespaces": {"selector": {"matchLabels": {AGENTS_LABEL: "true"}}},
    })  # fmt: skip
