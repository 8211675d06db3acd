"""Memory of the gateway over a day's worth of queries: what it holds after each tenth of them.

    uv run python bench/postgresql_day.py [--statements 1000000]

A million statements are twelve in every second of a day. They come in sessions of 500, four at a time: simple ones
whose text is new each time, extended and prepared ones, updates among them; and in each tenth some that policy refuses
and clients that go away without a word. The gateway is `chaperone dev` with real OPA and real recording.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import fix_dev
import fix_postgres
import psycopg
from process_usage import resident_mib

TENTHS: Final = 10
CLIENTS: Final = 4
PER_SESSION: Final = 500
REFUSED: Final = 100  # statements of a tenth
GONE: Final = 20  # clients of a tenth that do not say goodbye
MODES: Final = ("simple", "extended", "prepared")
SCRIPT: Final = r"""
\set aid random(1, 500000)
\set salt random(1, 1000000000)
SELECT abalance AS a:salt FROM pgbench_accounts WHERE aid = :aid
"""
REPEATED: Final = r"""
\set aid random(1, 500000)
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;
"""
RULES: Final[list[dict[str, object]]] = [
    {
        "name": "accounts",
        "action": "Allow",
        "match": {"effects": ["read", "modify", "session"], "objects": ["public.pgbench_*", "pg_catalog.*"]},
    },
]


def pgbench(port: int, *arguments: str) -> None:
    """Run pgbench to its end."""
    command = ["pgbench", "-h", "127.0.0.1", "-p", str(port), *arguments, "orders"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment())
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def environment() -> dict[str, str]:
    """Of libpq: the gateway asks for no password, the server for this one."""
    return {"PATH": "/usr/bin:/bin", "PGPASSWORD": fix_postgres.PASSWORD, "PGSSLMODE": "disable"}


def refused(port: int) -> None:
    """Statements that no rule allows, and sessions that are cut off in a transaction."""
    address = f"host=127.0.0.1 port={port} dbname=orders user=agent_rw sslmode=disable"
    with psycopg.connect(address, autocommit=True) as session:
        for number in range(REFUSED):
            try:
                session.execute(f"DROP TABLE pgbench_history_{number}")
            except psycopg.errors.InsufficientPrivilege:
                continue
            raise SystemExit("a DROP was let through")
    for _ in range(GONE):
        session = psycopg.connect(address)
        session.execute("SELECT count(*) FROM pgbench_branches")
        session.pgconn.finish()


def children(pid: int) -> list[int]:
    """Processes that a process started."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def size_mib(folder: Path) -> float:
    """Of all files below."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file()) / 2**20


def day(port: int, pid: int, evidence: Path, scripts: dict[str, Path], statements: int) -> None:
    """Print a row after each tenth."""
    rounds = max(1, statements // TENTHS // len(MODES) // CLIENTS // PER_SESSION)
    heads = ("statements", "sessions", "s", "gateway MiB", "OPA MiB", "open files", "evidence MiB")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    began, done, sessions = time.perf_counter(), 0, 0
    for _ in range(TENTHS + 1):
        held = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        opa = sum(resident_mib(child) for child in children(pid))
        print(f"| {done} | {sessions} | {time.perf_counter() - began:.0f} | {resident_mib(pid):.1f} | {opa:.1f} "
              f"| {held} | {size_mib(evidence):.0f} |", flush=True)  # fmt: skip
        if done >= statements:
            return
        for mode in MODES:
            for _ in range(rounds):
                turns = PER_SESSION if mode == "simple" else PER_SESSION // 2  # the other script has two statements
                pgbench(port, "-n", "-M", mode, "-c", str(CLIENTS), "-j", "1", "-t", str(turns), "-U", "agent_rw",
                        "-f", str(scripts[mode]))  # fmt: skip
                done += CLIENTS * PER_SESSION
                sessions += CLIENTS
        refused(port)
        done += REFUSED + GONE
        sessions += 1 + GONE


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--statements", type=int, default=1_000_000)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="chaperone-bench-"))
    for name in ("pg", "manifests"):
        (root / name).mkdir()
    root.chmod(0o755)
    (root / "pg").chmod(0o755)
    scripts = {mode: root / f"{mode}.sql" for mode in MODES}
    for mode, path in scripts.items():
        path.write_text(SCRIPT if mode == "simple" else REPEATED)
    postgres, server = fix_postgres.start(root / "pg")
    try:
        pgbench(postgres.port, "-i", "-q", "-s", "5", "-U", "postgres")
        with postgres.admin() as admin:
            admin.execute("GRANT SELECT, UPDATE ON ALL TABLES IN SCHEMA public TO agent_rw")
            admin.execute("ALTER SYSTEM SET log_statement = 'none'")
            admin.execute("ALTER SYSTEM SET synchronous_commit = off")
            admin.execute("SELECT pg_reload_conf()")
        fix_dev.write_manifests(root / "manifests", postgres, rules=RULES)
        gateway = fix_dev.start(root / "manifests", root / "evidence")
        try:
            day(gateway.port, gateway.process.pid, root / "evidence", scripts, options.statements)
        finally:
            gateway.stop()
    finally:
        server.terminate()
        server.wait(30)
    print(gateway.verify().stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
