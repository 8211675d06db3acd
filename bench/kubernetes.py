"""Requests to a Kubernetes API through the gateway, direct and by a relay (socat), in one run: medians and ratios.

kube-apiserver, etcd and OPA are real and share this machine's cores with the gateway and the client. Small: one
ConfigMap. List: 500 of them in one answer. Masked: the same through a gateway with detectors.

Usage: python bench/kubernetes.py [--seconds 2] [--rounds 5] [--clients 4]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_kube
from fix_apiserver import running
from manifests import rule
from plain_relay import relay

from chaperone_operator.kubeconfig import verifying

PATHS = {"small": "/api/v1/namespaces/agents/configmaps/app", "list": "/api/v1/namespaces/many/configmaps"}
COUNT = 500
RULES = [rule("read", "Allow", ["read"], ["*.core.configmaps.*"])]
MASKS = [{"detectors": ["Email", "PaymentCard"], "method": "Redact"}]


async def measure(
    url: str, context: ssl.SSLContext, headers: dict[str, str], seconds: float, clients: int
) -> tuple[float, list[float]]:
    """Requests per second, and how long each took, in seconds."""
    ends = time.monotonic() + seconds
    took_s: list[float] = []

    async def work(session: aiohttp.ClientSession) -> None:
        while (asked := time.monotonic()) < ends:
            async with session.get(
                url, server_hostname=fix_kube.NAME if "Authorization" not in headers else None
            ) as answer:
                await answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"HTTP status {answer.status}")
            took_s.append(time.monotonic() - asked)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context), headers=headers) as session:
        began = time.monotonic()
        await asyncio.gather(*(work(session) for _ in range(clients)))
        return len(took_s) / (time.monotonic() - began), took_s


def main() -> int:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name)) as server, ExitStack() as stack:
        folder = Path(name)
        relayed = f"https://127.0.0.1:{stack.enter_context(relay(urlsplit(server.url).port or 443))}"
        token = fix_kube.prepare(server, folder)
        many = {"apiVersion": "v1", "kind": "List", "items": [_map(number) for number in range(COUNT)]}
        fix_kube.kubectl(server.kubeconfig, folder, "create", "namespace", "many")
        fix_kube.kubectl(server.kubeconfig, folder, "create", "-f", "-", stdin=json.dumps(many))
        plain = fix_kube.opened(server, folder / "plain", token, folder / "e1", rules=RULES)
        masked = fix_kube.opened(server, folder / "masked", token, folder / "e2", rules=RULES, masks=MASKS)
        direct = verifying(cadata=server.authority.pem)
        ways = {
            "direct": (server.url, direct, {"Authorization": f"Bearer {token}"}),
            "socat": (relayed, direct, {"Authorization": f"Bearer {token}"}),
            "gateway": (plain.url, plain.context, {}),
            "masked": (masked.url, masked.context, {}),
        }
        found: dict[str, dict[str, Any]] = {}
        for clients in (1, options.clients):
            for what, path in PATHS.items():
                rates: dict[str, list[float]] = {way: [] for way in ways}
                took_s: dict[str, list[float]] = {way: [] for way in ways}
                for _ in range(options.rounds):
                    for way, (url, context, headers) in ways.items():
                        rate, took = asyncio.run(measure(url + path, context, headers, options.seconds, clients))
                        rates[way].append(rate)
                        took_s[way] += took
                medians = {way: statistics.median(rate) for way, rate in rates.items()}
                found[f"{what}, {clients} clients"] = {
                    way: {
                        "per_s": round(rate, 1), "ratio": round(rate / medians["direct"], 3),
                        "p50_ms": round(1e3 * statistics.median(took_s[way]), 2),
                        "p99_ms": round(1e3 * statistics.quantiles(took_s[way], n=100)[98], 2),
                    }
                    for way, rate in medians.items()
                }  # fmt: skip
        for one in (plain, masked):
            one.gateway.stop()
        print(json.dumps(found, indent=1))
    return 0


def _map(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"map-{number:03d}", "namespace": "many"},
        "data": {"text": "no value of a detector stands in here " * 20},
    }


if __name__ == "__main__":
    sys.exit(main())
