"""pgbench -S side by side in one run: direct, through pgbouncer, through Chaperone. Prints medians and ratios, and RSS.

Rates are medians of rounds; p50 and p99 are of all statements of all rounds, as pgbench logs them.

Usage: python bench/postgresql.py [--tls] [--seconds 3] [--rounds 5] [--json FILE]

PostgreSQL, pgbouncer and `chaperone dev` (real OPA, real recording) run on this machine and share its cores with
pgbench; the ratios are what can be compared, not the rates. With --tls pgbouncer and Chaperone speak TLS to the
server, which the direct way never does here.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import re
import statistics
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import fix_dev
import fix_postgres
from ports import free_port
from process_usage import resident_mib

RULES: list[dict[str, object]] = [
    {
        "name": "accounts",
        "action": "Allow",
        "match": {"effects": ["read"], "objects": ["public.pgbench_*", "pg_catalog.*"]},
    }
]
WAYS = ("direct", "pgbouncer", "chaperone")


def start_pgbouncer(postgres: fix_postgres.Postgres, folder: Path, *, tls: bool) -> tuple[int, subprocess.Popen[bytes]]:
    """A pgbouncer in session mode that needs no password from its clients, as the gateway."""
    port = free_port()
    (folder / "users.txt").write_text(f'"agent_rw" "{fix_postgres.PASSWORD}"\n')
    database = f"orders = host=127.0.0.1 port={postgres.port} dbname=orders user=agent_rw"
    (folder / "pgbouncer.ini").write_text(
        f"[databases]\n{database} password={fix_postgres.PASSWORD}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"auth_file = {folder}/users.txt\npool_mode = session\n"
        f"server_tls_sslmode = {'require' if tls else 'disable'}\nuser = postgres\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    owner = pwd.getpwnam("postgres")
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    process = subprocess.Popen(
        ["/usr/sbin/pgbouncer", "-q", str(folder / "pgbouncer.ini")],
        user=owner.pw_uid,
        group=owner.pw_gid,
        extra_groups=[],
        stderr=subprocess.DEVNULL,
    )
    return port, process


def measure(port: int, clients: int, mode: str, seconds: int, user: str) -> tuple[float, array[int]]:
    """Transactions a second of one pgbench run, and how long each took, in µs."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            ["pgbench", "-S", "-n", "-M", mode, "-c", str(clients), "-j", "1", "-T", str(seconds), "-h", "127.0.0.1",
             "-p", str(port), "-U", user, "-l", "--log-prefix", f"{folder}/log", "orders"],
            capture_output=True, text=True, timeout=seconds + 60, check=False,
            env=os.environ | {"PGPASSWORD": fix_postgres.PASSWORD, "PGSSLMODE": "disable"},
        )  # fmt: skip
        took = array("q", (int(line.split()[2]) for log in Path(folder).iterdir() for line in log.open()))
    found = re.search(r"tps = ([0-9.]+) \(without", run.stdout)
    if found is None:
        raise RuntimeError(run.stdout + run.stderr)
    return float(found[1]), took


def percentiles(took: array[int]) -> str:
    """The median and the 99th of a hundred, in ms."""
    ordered = sorted(took)
    return "/".join(f"{ordered[len(ordered) * part // 100] / 1000:.2f}" for part in (50, 99))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tls", action="store_true", help="TLS to the server")
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="chaperone-bench-"))
    for name in ("pg", "bouncer", "manifests"):
        (root / name).mkdir()
    root.chmod(0o755)
    (root / "pg").chmod(0o755)
    postgres, server = fix_postgres.start(root / "pg")
    subprocess.run(
        ["pgbench", "-i", "-q", "-s", "5", "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres", "orders"],
        check=True, capture_output=True, timeout=120, env=os.environ | {"PGPASSWORD": fix_postgres.PASSWORD},
    )  # fmt: skip
    with postgres.admin() as admin:
        admin.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO agent_rw")
        admin.execute("ALTER SYSTEM SET log_statement = 'none'")
        admin.execute("SELECT pg_reload_conf()")
    bouncer_port, bouncer = start_pgbouncer(postgres, root / "bouncer", tls=options.tls)
    fix_dev.write_manifests(root / "manifests", postgres, rules=RULES, tls_mode="Require" if options.tls else "Disable")
    gateway = fix_dev.start(root / "manifests", root / "evidence")
    ports = {"direct": postgres.port, "pgbouncer": bouncer_port, "chaperone": gateway.port}
    results: dict[str, dict[str, float]] = {}
    idle = resident_mib(gateway.process.pid)
    try:
        for mode in ("simple", "prepared"):
            for clients in (1, 8):
                rates: dict[str, list[float]] = {way: [] for way in WAYS}
                took: dict[str, array[int]] = {way: array("q") for way in WAYS}
                for _ in range(options.rounds):
                    for way in WAYS:
                        rate, each = measure(ports[way], clients, mode, options.seconds, "agent_rw")
                        rates[way].append(rate)
                        took[way].extend(each)
                medians = {way: statistics.median(rates[way]) for way in WAYS}
                results[f"{mode}, {clients} clients"] = medians
                direct, pooled, ours = (medians[way] for way in WAYS)
                print(
                    f"{mode:9} {clients} clients: direct {direct:7.0f}/s  pgbouncer {pooled:7.0f}/s  "
                    f"chaperone {ours:7.0f}/s   ours:direct {ours / direct:.2f}  ours:pgbouncer {ours / pooled:.2f}"
                    + (f"   added {1e6 / ours - 1e6 / direct:.0f} µs" if clients == 1 else ""),
                    flush=True,
                )
                print("    p50/p99 in ms: " + "  ".join(f"{way} {percentiles(took[way])}" for way in WAYS), flush=True)
        after = resident_mib(gateway.process.pid)
        print(f"RSS of the gateway (chaperone dev): {idle:.0f} MiB idle, {after:.0f} MiB after")
    finally:
        gateway.stop()
        for process in (bouncer, server):
            process.terminate()
            process.wait(30)
    print(gateway.verify().stdout.splitlines()[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
