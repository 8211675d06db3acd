"""What a durability costs: pgbench -S through one gateway under Written, Synced and Witnessed. Prints medians, ratios.

PostgreSQL, OPA and the collector are real and share this machine's cores with pgbench and the gateway, which runs in
this process; what a disk's sync takes is that of the directory given. The ratios are what can be compared.

Usage: python bench/durability.py [--seconds 3] [--rounds 2] [--dir DIRECTORY]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
from array import array
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_dev
import fix_postgres
from fix_collector import Collector
from gateway_stream import Pod
from pki import Authority
from ports import free_port
from postgresql import RULES, measure, percentiles
from spooled import begin

from chaperone_cli import dev
from chaperone_cli.policy_world import from_directory, set_local_aside
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.recording.receipts import Receipts
from chaperone_sidecar.recording.shipper import Shipper
from chaperone_sidecar.tls import PodCa

WAYS = ("Written", "Synced", "Witnessed")
SPOOL_BYTES = 1 << 30


async def compare(root: Path, collector: Collector, options: argparse.Namespace) -> None:
    """One gateway, whose configuration changes its durability from run to run."""
    world = from_directory(root / "manifests", "billing-agent")
    local = set_local_aside(world.objects["AccessTarget"])
    snapshot = world.snapshot(world.namespace_of("billing-agent"))
    config = dev._config(snapshot, "billing-agent", local)
    async with AsyncExitStack() as stack:
        decider = Decider("billing-agent", await stack.enter_async_context(dev._opa(snapshot.bundle)))
        await decider.start()
        stack.push_async_callback(decider.stop)
        await decider.wait_for_revision(snapshot.revision, 15.0)
        pod = Pod(collector.gateway_ca)
        recorder, spool = begin(pod, root / "spool", SPOOL_BYTES)
        connector = aiohttp.TCPConnector(ssl=pod.client_tls(collector.service_ca.pem))
        http = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        shipper = Shipper(root / "spool", spool, collector.ingest, lambda: http)
        receipts = Receipts(root / "spool", spool.stream, pod.cluster, collector.ingest, lambda: http, shipper)
        tasks = [asyncio.create_task(one) for one in (shipper.run(), receipts.run())]
        leases = dev._Leases(world.objects["Secret"], snapshot, "billing-agent")
        gateway = Gateway(config, recorder, decider, dev._dial, dev._resolve, leases, PodCa("bench"), witness=receipts)
        port = free_port()
        server = dev.listen(gateway, config.targets[0], "127.0.0.1", port)
        for clients in (1, 8):
            rates: dict[str, list[float]] = {way: [] for way in WAYS}
            took: dict[str, array[int]] = {way: array("q") for way in WAYS}
            for _ in range(options.rounds):
                for way in WAYS:
                    identity = msgspec.structs.replace(config.identity, durability=way)
                    gateway.reconfigure(msgspec.structs.replace(config, identity=identity))
                    rate, each = await asyncio.to_thread(measure, port, clients, "simple", options.seconds, "agent_rw")
                    rates[way].append(rate)
                    took[way].extend(each)
            medians = {way: statistics.median(rates[way]) for way in WAYS}
            for way in WAYS:
                print(
                    f"{clients} clients  {way:9} {medians[way]:7.0f}/s  {medians[way] / medians['Written']:.4f}"
                    f"   p50/p99 {percentiles(took[way])} ms",
                    flush=True,
                )
        server.close()
        gateway.close("the bench is over")
        for task in tasks:
            task.cancel()


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dir", type=Path, help="where spool and collector write; default: the temporary directory")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="chaperone-bench-", dir=options.dir))
    root.chmod(0o755)
    for name in ("pg", "manifests", "collector"):
        (root / name).mkdir()
    (root / "pg").chmod(0o755)
    postgres, server = fix_postgres.start(root / "pg")
    collector = Collector(root / "collector", Authority("gateway CA"))
    try:
        subprocess.run(
            ["pgbench", "-i", "-q", "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres", "orders"],
            check=True, capture_output=True, timeout=120, env=os.environ | {"PGPASSWORD": fix_postgres.PASSWORD},
        )  # fmt: skip
        with postgres.admin() as admin:
            admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO agent_rw")
        fix_dev.write_manifests(root / "manifests", postgres, rules=RULES, tls_mode="Disable")
        collector.start()
        uvloop.run(compare(root, collector, options))
    finally:
        collector.stop()
        server.terminate()
        server.wait(30)


if __name__ == "__main__":
    main()
