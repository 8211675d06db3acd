"""A driver's own tests straight to PostgreSQL and through `chaperone dev`: which ones pass only without us, and why.

    uv run python bench/driver_suites.py psycopg SOURCE [--major 17] [--json FILE] [--pytest WORD …]
    uv run python bench/driver_suites.py asyncpg SOURCE …

SOURCE is the driver's source at the version below; only its folders `tests` and `tools` are used, and the driver itself
comes from PyPI into an environment of its own in the cache. Policy allows everything and the gateway logs in as a
superuser, as the tests do without it, so what is left are refusals by design and faults. docs/compatibility.md has the
results.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import fix_dev
import fix_postgres
from fix_postgres import PASSWORD, Postgres

from chaperone_tools import postgresql_servers
from chaperone_tools.cache import binary, cache

TEST_LIMIT_S: Final = 20
RUN_LIMIT_S: Final = 3600
EFFECTS: Final = ["*", "destroy", "privilege", "execute_code", "external_io", "unknown"]


@dataclass(frozen=True)
class Driver:
    """A driver: what is installed, and what its tests are told."""

    version: str
    packages: tuple[str, ...]
    arguments: tuple[str, ...] = ()


DRIVERS: Final = {
    "psycopg": Driver(
        "3.3.4", ("psycopg[binary]==3.3.4", "psycopg-pool", "anyio", "pproxy", "dnspython", "numpy", "shapely"),
        ("-p", "no:randomly", "-m", "not slow and not mypy and not refcount"),
    ),
    "asyncpg": Driver("0.32.0", ("asyncpg==0.32.0", "uvloop", "distro")),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a test ended: passed, skipped or failed, and the last line of why."""

    status: str
    reason: str = ""


def environment(name: str, driver: Driver) -> Path:
    """The Python that has the driver; made once."""
    home = cache() / "drivers" / f"{name}-{driver.version}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        uv = binary("uv")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.base_prefix + "/bin/python3", home], check=True)
        packages = (*driver.packages, "pytest", "pytest-timeout")
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *packages], check=True)
        (home / "complete").touch()
    return python


def run(name: str, python: Path, source: Path, port: int, user: str, more: list[str]) -> dict[str, Outcome]:
    """The driver's tests against what listens on a port."""
    report = source / f"report-{port}.xml"
    place = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": user,
        "PGDATABASE": "postgres",
        "PGPASSWORD": PASSWORD,
    }
    words: list[str | Path] = [
        python, "-m", "pytest", "-q", "--tb=short", f"--junitxml={report}", f"--timeout={TEST_LIMIT_S}",
        "-p", "no:cacheprovider", *DRIVERS[name].arguments, *more,
    ]  # fmt: skip
    if name == "psycopg":
        words.append("--test-dsn=" + " ".join(f"{key[2:].lower().replace('database', 'dbname')}={value}"
                                              for key, value in place.items()))  # fmt: skip
        words.remove("no:cacheprovider")
        words.remove("-p")
        place = {"PSYCOPG_IMPL": "binary"}
    with (source / f"output-{port}.txt").open("wb") as output:
        subprocess.run(
            words,
            cwd=source,
            env=os.environ | place | {"PATH": f"{python.parent}:{os.environ['PATH']}"},
            stdout=output,
            stderr=output,
            timeout=RUN_LIMIT_S,
            check=False,
        )
    return read(report)


def read(report: Path) -> dict[str, Outcome]:
    """What a JUnit report says."""
    found: dict[str, Outcome] = {}
    for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 pytest wrote it
        key = f"{case.get('classname')}::{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        if bad:
            lines = [line.strip() for line in (bad[0].text or "").splitlines() if line.startswith("E ")]
            found[key] = Outcome("failed", (lines or [bad[0].get("message") or ""])[-1][:300])
        elif any(child.tag == "skipped" for child in case):
            found.setdefault(key, Outcome("skipped"))
        else:
            found.setdefault(key, Outcome("passed"))
    return found


def gateway_before(postgres: Postgres, folder: Path) -> fix_dev.Gateway:
    """`chaperone dev` with leave to do everything, logging in as a superuser."""
    (folder / "manifests").mkdir()
    rules: list[dict[str, object]] = [{"name": "everything", "action": "Allow", "match": {"effects": EFFECTS}}]
    fix_dev.write_manifests(folder / "manifests", postgres, rules=rules)
    secrets = folder / "manifests" / "secrets.yaml"
    secrets.write_text(secrets.read_text().replace("agent_rw", "postgres"))
    agents = folder / "manifests" / "agents.yaml"
    agents.write_text(agents.read_text().replace("    database: orders\n", ""))  # the one that the client names
    return fix_dev.start(folder / "manifests", folder / "evidence")


def compare(direct: dict[str, Outcome], through: dict[str, Outcome]) -> dict[str, object]:
    """Counts, and the tests that pass only without us, by what they say."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key, outcome in direct.items():
        other = through.get(key, Outcome("failed", "did not run"))
        if outcome.status == "passed" and other.status != "passed":
            groups[f"{other.status}: {other.reason}"].append(key)
    return {
        "direct": Counter(outcome.status for outcome in direct.values()),
        "through": Counter(outcome.status for outcome in through.values()),
        "only through us passed": [key for key, outcome in direct.items()
                                   if outcome.status == "failed" and through.get(key, outcome).status == "passed"],
        "only direct passed": dict(sorted(groups.items(), key=lambda item: -len(item[1]))),
    }  # fmt: skip


def main() -> None:
    """Run both, print what differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("driver", choices=DRIVERS)
    parser.add_argument("source", type=Path)
    parser.add_argument("--major", type=int, default=17, choices=postgresql_servers.PINS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="what follows is for pytest")
    options = parser.parse_args()
    python = environment(options.driver, DRIVERS[options.driver])
    root = Path(tempfile.mkdtemp(prefix="chaperone-drivers-"))
    for folder in ("tests", "tools"):
        if (options.source / folder).is_dir():
            shutil.copytree(options.source / folder, root / folder)
    server = postgresql_servers.server(options.major)
    with fix_postgres.running(server, "max_prepared_transactions = 10\n") as postgres:
        direct = run(options.driver, python, root, postgres.port, "postgres", options.pytest)
        print("direct:", Counter(outcome.status for outcome in direct.values()), flush=True)
        gateway = gateway_before(postgres, root)
        through = run(options.driver, python, root, gateway.port, "postgres", options.pytest)
        code = gateway.stop()
        verdict = gateway.verify().stdout.splitlines()[-1]
    answer = compare(direct, through) | {"gateway ended with": code, "evidence": verdict, "output": str(root)}
    text = json.dumps(answer, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
