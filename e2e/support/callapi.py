"""A gRPC service and an API of HTTP/1.1 beside it that nobody fences, which want a token, and the targets of both."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final

from stage import AGENTS_LABEL, Pod, make_namespace, named, pod, secret

from chaperone_tools.cluster.pki import Authority
from chaperone_tools.kubectl import Kubectl

SPACE: Final = "e2e-calls"
CALLS: Final = f"calls.{SPACE}.svc"
PLAIN: Final = f"plain.{SPACE}.svc"
SERVICE: Final = "shop.v1.Orders"

_SERVER: Final = """
import grpc, http.server, json, pathlib, ssl, threading
from concurrent.futures import ThreadPoolExecutor
given = pathlib.Path("/run/secrets/api")
token, paid = "Bearer " + (given / "token").read_text(), []

def get(request, context):
    known = dict(context.invocation_metadata()).get("authorization") == token
    return json.dumps({"known": known, "paid": paid}).encode()

def pay(request, context):
    paid.append(request.decode())
    return b"paid"

def talk(requests, context):
    for request in requests:
        yield b"re " + request

class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        said = {"known": self.headers.get_all("Authorization") == [token], "email": "ada.king@example.org"}
        raw = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

plain = http.server.ThreadingHTTPServer(("", 8444), Api)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(given / "tls.crt", given / "tls.key")
plain.socket = context.wrap_socket(plain.socket, server_side=True)
threading.Thread(target=plain.serve_forever, daemon=True).start()
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.v1.Orders", {
    "Get": grpc.unary_unary_rpc_method_handler(get), "Pay": grpc.unary_unary_rpc_method_handler(pay),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
}),))
pair = ((given / "tls.key").read_bytes(), (given / "tls.crt").read_bytes())
server.add_secure_port("0.0.0.0:8443", grpc.ssl_server_credentials([pair]))
server.start()
server.wait_for_termination()
"""


@dataclass(frozen=True)
class Calls:
    """The server of both, and the token that no agent may see."""

    server: Pod
    token: str


def make_calls(kubectl: Kubectl, image: str, system_namespace: str) -> Calls:
    """Both in a namespace of the tests, and their targets."""
    make_namespace(kubectl, SPACE)
    authority = Authority("e2e calls CA")
    server, token = authority.server(CALLS, [CALLS, PLAIN]), secrets.token_urlsafe(24)
    kubectl.apply(
        secret("api", SPACE, **{
            "tls.crt": server.certificate.decode(), "tls.key": server.key.decode(), "token": token,
        }),
        secret("e2e-calls-token", system_namespace, token=token),
        secret("e2e-calls-ca", system_namespace, **{"ca.crt": authority.pair.certificate.decode()}),
        *({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SPACE},
            "spec": {"selector": {"app": "calls"}, "ports": [{"port": 443, "targetPort": port}]},
        } for name, port in (("calls", 8443), ("plain", 8444))),
        pod(
            SPACE, "calls", image,
            container={
                "command": ["python3", "-c", _SERVER],
                "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1, "failureThreshold": 60},
                "volumeMounts": [{"name": "given", "mountPath": "/run/secrets/api"}],
            },
            volumes=[{"name": "given", "secret": {"secretName": "api"}}],
        ),
        *(named("AccessTarget", host.replace(".svc", "").replace(".", "-"), {
            "protocol": "HTTP", "hosts": [host], "port": 443,
            "tls": {"mode": "VerifyFull", "caSecretRef": {"name": "e2e-calls-ca"}},
            "credential": {"httpHeader": {
                "secretRef": {"name": "e2e-calls-token"}, "prefix": "Bearer ", "host": host, "path": "/",
            }},
            "allowedNamespaces": {"selector": {"matchLabels": {AGENTS_LABEL: "true"}}},
        }) for host in (CALLS, PLAIN)),
    )  # fmt: skip
    kubectl("wait", f"--namespace={SPACE}", "--for=condition=Ready", "pod/calls", "--timeout=90s")
    return Calls(Pod(kubectl, SPACE, "calls"), token)
