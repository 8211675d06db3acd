"""Memory of one gateway with every protocol in use, and what its imports take.

The backends and OPA are real. The gateway is a process of its own that imports what the one in a pod does, with the
compiled twins and with byte code at hand, as in its image; without byte code each import would be compiled, and what
the compiler used stays with the process. One line after the first session of each protocol, then one after many more:
RSS, PSS, USS (pages that are only its own, of files too) and anonymous memory, in MiB.

Imports are measured one by one, each in a process of its own: what they share is counted with each.

Usage: python bench/memory.py [--sessions 200] [--no-imports]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import json
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pymysql
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_apiserver
import fix_http
import fix_kube
import fix_mysql
import fix_postgres
import fix_ssh
from fix_postgres import PASSWORD
from manifests import identity, policy, rule, target
from ports import free_port

from chaperone_cli import dev
from chaperone_cli.policy_world import from_directory, set_local_aside

IDENTITY = "billing-agent"
RULES = [rule("all", "Allow", ["read", "read_sensitive", "bulk_read", "session", "transaction", "execute_code"])]
MASKS = [{"detectors": ["Email", "PaymentCard"], "method": "Redact"}]
TARGETS = {
    "PostgreSQL": "orders-db", "MySQL": "shop-db", "SSH": "host",
    "Kubernetes": "cluster", "HTTP": "api", "MCP": "tools",
}  # fmt: skip
START_TIMEOUT_S = 90.0
IMPORTS = (
    "ssl", "asyncio", "uvloop", "msgspec", "aiohttp", "cryptography.x509", "prometheus_client", "dnslib", "re2",
    "postgast", "sqlglot.dialects.mysql", "asyncssh", "requests", "chaperone_sidecar.policy.client",
    "chaperone_sidecar.masking.engine", "chaperone_sidecar.protocols.mysql.grammar", "chaperone_sidecar.pod",
    *(f"chaperone_sidecar.frontends.{name}" for name in ("postgresql", "mysql", "ssh", "http", "kubernetes", "mcp")),
)  # fmt: skip
IMPORT = """
import importlib, json, resource, time
from chaperone_cli import compiled
compiled.prefer()
def seen():
    lines = open("/proc/self/smaps_rollup").read().splitlines()[1:]
    return {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
before, began = seen(), time.process_time()
importlib.import_module(NAME)
cpu, after = time.process_time() - began, seen()
print(json.dumps([cpu, after["Rss"] - before["Rss"], after["Anonymous"] - before["Anonymous"]]))
"""


def memory_mib(pid: int) -> dict[str, float]:
    """Memory of a process, as the kernel adds it up."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    told = {name: int(rest.split()[0]) / 1024 for name, rest in (line.split(":") for line in lines)}
    return {
        "rss": told["Rss"], "pss": told["Pss"], "uss": told["Private_Clean"] + told["Private_Dirty"],
        "anonymous": told["Anonymous"],
    }  # fmt: skip


def say(step: str, pid: int) -> None:
    print(f"{step:20} " + " ".join(f"{value:6.1f}" for value in memory_mib(pid).values()), flush=True)


def python(cache: Path) -> list[str]:
    """An interpreter like the image's: isolated, with byte code, which lies in a folder of the bench."""
    return [sys.executable, "-I", "-X", f"pycache_prefix={cache}"]


def taken(name: str, cache: Path) -> list[float]:
    """CPU seconds, and KiB of RSS and of anonymous memory, that an import takes in a fresh process."""
    done = subprocess.run(
        [*python(cache), "-c", f"NAME = {name!r}\n{IMPORT}"], capture_output=True, text=True, check=True,
        timeout=START_TIMEOUT_S,
    )  # fmt: skip
    found: list[float] = json.loads(done.stdout)
    return found


def imports(cache: Path) -> dict[str, dict[str, float]]:
    """What each import takes."""
    found = {}
    for name in IMPORTS:
        cpu_s, rss, anonymous = taken(name, cache)
        found[name] = {"cpu_ms": round(cpu_s * 1000), "rss": round(rss / 1024, 1), "own": round(anonymous / 1024, 1)}
    return found


def secret(name: str, kind: str = "Opaque", annotations: Any = None, **data: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "agents", "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "stringData": data}


def tls(name: str) -> dict[str, Any]:
    return {"mode": "VerifyFull", "caSecretRef": {"name": f"{name}-ca"}, "serverName": "localhost"}


class Backends:
    """Everything that agents work at, and the manifests that lead there."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        postgres = stack.enter_context(fix_postgres.running())
        mariadb = stack.enter_context(fix_mysql.running("mariadb"))
        self.host = fix_ssh.start_host(folder / "sshd")
        stack.callback(self.host.stop)
        (folder / "kubernetes").mkdir()
        server = stack.enter_context(fix_apiserver.running(folder / "kubernetes"))
        token = fix_kube.prepare(server, folder)
        api = self._api(stack, folder / "http", fix_http.BACKEND)
        tools = self._api(stack, folder / "mcp", Path(fix_http.__file__).with_name("mcp_backend.py"))
        self.objects: list[dict[str, Any]] = [identity(evidence={"results": "Full"})]
        self.secrets: list[dict[str, Any]] = []
        for name, protocol, one in (("orders-db", "PostgreSQL", postgres), ("shop-db", "MySQL", mariadb)):
            upstream = {"host": "localhost", "port": one.port, "database": "orders"}
            self._add(name, protocol, one.ca_pem, {"secretRef": {"name": f"{name}-login"}}, upstream=upstream)
            self.secrets.append(secret(f"{name}-login", username="agent_rw", password=PASSWORD))
        self._add(
            "host", "SSH", "", {"secretRef": {"name": "host-key"}}, ssh={"hostKeys": [self.host.host_key]},
            upstream={"host": "localhost", "port": self.host.port},
        )  # fmt: skip
        private = (self.host.folder / "client_key").read_text()
        self.secrets.append(
            secret("host-key", "kubernetes.io/ssh-auth", username=getpass.getuser(), **{"ssh-privatekey": private})
        )
        account = {"serviceAccount": "agent", "namespace": "agents"}
        self._add(
            "cluster", "Kubernetes", server.authority.pem, {"kubernetesToken": account}, hosts=[fix_kube.NAME],
            upstream={"host": "localhost", "port": int(server.url.rpartition(":")[2])},
        )  # fmt: skip
        noted = {"kubernetes.io/service-account.name": "agent"}
        self.secrets.append(secret("agent-token", "kubernetes.io/service-account-token", noted, token=token))
        for name, protocol, backend, path in (("api", "HTTP", api, "/v1"), ("tools", "MCP", tools, "/mcp")):
            header = {
                "secretRef": {"name": f"{name}-token"}, "host": "localhost", "port": backend.port, "prefix": "Bearer ",
                "scheme": "https", "path": path,
            }  # fmt: skip
            assert backend.authority is not None
            self._add(
                name, protocol, backend.authority.pem, {"httpHeader": header},
                upstream={"host": "localhost", "port": backend.port},
            )  # fmt: skip
            self.secrets.append(secret(f"{name}-token", token="of-the-bench"))

    def _api(self, stack: contextlib.ExitStack, folder: Path, program: Path) -> fix_http.Backend:
        folder.mkdir()
        found = fix_http.start_backend(folder, program=program)
        stack.callback(found.process.kill)
        return found

    def _add(self, name: str, protocol: str, ca_pem: str, credential: dict[str, Any], **spec: Any) -> None:
        if ca_pem:
            spec["tls"] = tls(name)
            self.secrets.append(secret(f"{name}-ca", **{"ca.crt": ca_pem}))
        self.objects.append(target(name, protocol=protocol, credential=credential, **spec))

    def write(self, folder: Path) -> None:
        folder.mkdir()
        targets = [{"name": name} for name in TARGETS.values()]
        self.objects.append(policy(RULES, targets=targets, masks=MASKS))
        (folder / "agents.yaml").write_text(yaml.safe_dump_all(self.objects))
        (folder / "secrets.yaml").write_text(yaml.safe_dump_all(self.secrets))


@contextlib.contextmanager
def gateway(folder: Path, cache: Path) -> Iterator[int]:
    """The process; its number."""
    command = [*python(cache), str(Path(__file__).with_name("memory_gateway.py")), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the gateway does not start")
        yield process.pid
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def asked(port: int, host: str, request: str, body: str = "") -> None:
    """One request on a connection of its own, which has to be answered with 200."""
    context = ssl._create_unverified_context()  # noqa: S323 - the CA of the gateway's run
    head = f"{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: application/json, text/event-stream\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    with (
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
        context.wrap_socket(connection, server_hostname=host) as wrapped,
    ):
        wrapped.sendall(f"{head}\r\n{body}".encode())
        answer = fix_http.to_end(wrapped)
    if b" 200 " not in answer.split(b"\r\n")[0]:
        raise RuntimeError(answer.decode(errors="replace"))


def at_postgresql(port: int) -> None:
    with psycopg.connect(host="127.0.0.1", port=port, user="agent", dbname="orders") as connection:
        connection.execute("SELECT id, customer FROM orders WHERE id = %s", (7,)).fetchall()


def at_mysql(port: int) -> None:
    with pymysql.connect(host="127.0.0.1", port=port, user="agent") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT c.name, o.total FROM customers c JOIN orders o ON o.id = c.id WHERE c.id = 1")
        cursor.fetchall()


def at_ssh(port: int) -> None:
    options = ["-F", "none", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-q"]
    subprocess.run(
        ["ssh", *options, "-p", str(port), "127.0.0.1", "true"], check=True, timeout=60, stdin=subprocess.DEVNULL
    )


INITIALIZE = json.dumps({
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}},
})  # fmt: skip
SESSIONS: dict[str, Callable[[int], None]] = {
    "PostgreSQL": at_postgresql,
    "MySQL": at_mysql,
    "SSH": at_ssh,
    "Kubernetes": lambda port: asked(port, fix_kube.NAME, "GET /api/v1/namespaces/agents/configmaps"),
    "HTTP": lambda port: asked(port, "api.data.svc", "GET /v1/orders"),
    "MCP": lambda port: asked(port, "tools.data.svc", "POST /mcp", INITIALIZE),
}


async def measure(folder: Path, cache: Path, sessions: int) -> None:
    """Print memory after each step."""
    with contextlib.ExitStack() as stack:
        backends = Backends(stack, folder)
        backends.write(folder / "manifests")
        world = from_directory(folder / "manifests", IDENTITY)
        local = set_local_aside(world.objects["AccessTarget"])
        snapshot = world.snapshot(world.namespace_of(IDENTITY))
        config = dev._config(snapshot, IDENTITY, local)
        leases = dev._Leases(world.objects["Secret"], snapshot, IDENTITY)
        ports = {name: free_port() for name in TARGETS.values()}
        given = folder / "given"
        given.mkdir()
        (given / "config.json").write_bytes(msgspec.json.encode(config))
        (given / "ports.json").write_bytes(msgspec.json.encode(ports))
        made = {name: await leases.lease(name) for name in TARGETS.values()}
        (given / "leases.json").write_bytes(msgspec.json.encode(made))
        async with dev._opa(snapshot.bundle) as opa:
            (given / "opa.sock").symlink_to(opa)
            pid = stack.enter_context(gateway(given, cache))
            say("idle", pid)
            for name, session in SESSIONS.items():
                session(ports[TARGETS[name]])
                await asyncio.sleep(0.5)  # what follows a session's end, as its last record
                say(f"+ {name}", pid)
            for name, session in SESSIONS.items():
                for _ in range(sessions):
                    session(ports[TARGETS[name]])
                say(f"{sessions} of {name}", pid)


def main() -> int:
    """Run and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--no-imports", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "cache"
        for module in IMPORTS:  # makes the byte code
            taken(module, cache)
        if not options.no_imports:
            print(f"{'import':45} {'CPU ms':>7} {'RSS':>6} {'own':>6}")
            for module, took in imports(cache).items():
                print(f"{module:45} {took['cpu_ms']:7} {took['rss']:6.1f} {took['own']:6.1f}", flush=True)
        (folder / "work").mkdir()
        print(f"{'gateway':20} {'RSS':>6} {'PSS':>6} {'USS':>6} {'own':>6}")
        asyncio.run(measure(folder / "work", cache, options.sessions))
    return 0


if __name__ == "__main__":
    sys.exit(main())
