"""What a gateway may not load, because nothing of it is used: every package counts in each pod."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import tomllib
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import spooled
from gateway_stream import Pod
from pki import Authority
from play import Nothing

from chaperone_sidecar.approval.hold import Holds
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.config import Target, Tls, Upstream
from chaperone_sidecar.connector import Closed
from chaperone_sidecar.driver import Driver
from chaperone_sidecar.errors import ChaperoneError, Suspended
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.protocols.http.work import Work
from chaperone_sidecar.protocols.postgresql.reading import Reader
from chaperone_sidecar.protocols.postgresql.session import Session

if TYPE_CHECKING:
    from chaperone_sidecar.protocols.http.exchange import Exchange

PROTOCOLS = ("http", "kubernetes", "mcp", "mysql", "postgresql", "ssh")
LATER = ("asyncssh", "re2", "sqlglot")  # with the first session or policy that needs them
NEVER = (
    "chaperone_cli", "chaperone_operator", "charset_normalizer", "google.protobuf", "kopf", "kubernetes",
    "requests", "sqlglot.executor", "sqlglot.optimizer.optimizer", "urllib3",
)  # fmt: skip


def loaded(program: str, names: tuple[str, ...]) -> list[str]:
    """Which of some packages a program has loaded in the end."""
    asked = f"{program}\nimport sys\nprint(*(name for name in {names!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split()


def test_a_gateway_that_waits_has_loaded_no_protocol_and_nothing_for_nobody() -> None:
    assert loaded("import chaperone_sidecar.pod", LATER + NEVER) == []


def test_a_gateway_that_speaks_everything_has_loaded_nothing_for_nobody() -> None:
    frontends = "\n".join(f"import chaperone_sidecar.frontends.{name}" for name in PROTOCOLS)
    assert loaded(f"{frontends}\nimport chaperone_sidecar.protocols.mysql.grammar", NEVER) == []


@pytest.mark.parametrize("package", ["requests", "sqlglot"])
def test_these_are_found_where_they_are_loaded(package: str) -> None:
    assert loaded(f"import {package}", (package,)) == [package]


def test_the_compiled_sqlglot_which_takes_five_times_as_much_is_not_installed() -> None:
    locked = tomllib.loads((Path(__file__).parents[2] / "uv.lock").read_text())
    names = {one["name"] for one in locked["package"]}
    assert "sqlglot" in names and "sqlglotc" not in names


async def test_a_request_that_is_over_is_not_kept_until_its_limit() -> None:
    work = Work(cast("Exchange", object()))
    work.limit(3600, asyncio.ensure_future(asyncio.sleep(0)), ChaperoneError("too long"))
    kept = weakref.ref(work)
    work.forget_limit()
    del work
    assert kept() is None


async def test_a_session_that_has_ended_is_not_kept_until_its_deadline(gateway_ca: Authority, tmp_path: Path) -> None:
    recorder, _ = spooled.begin(Pod(gateway_ca), tmp_path)
    target = Target("orders-db", "PostgreSQL", 5432, (), Upstream("orders-db", 5432), Tls("Disable"))
    holds = Holds(None, recorder, lambda: "", lambda: b"")
    meter = Meter(Quota())
    over = asyncio.Event()
    driver = Driver(
        Session(lambda _: Reader(Nothing()), meter),
        Conduct(target, meter, recorder, Decider("billing-agent", tmp_path / "opa"), holds),
        Closed(Suspended("It is suspended.")),
        recorder,
        lambda: None,
        lambda _: over.set(),
        str,
    )
    client, accepted = socket.socketpair()
    await driver.take(accepted)
    client.close()
    async with asyncio.timeout(10):
        await over.wait()
    kept = weakref.ref(driver)
    del driver
    await asyncio.sleep(0)  # the transport lets go of it in the next round of the loop
    gc.collect()
    assert kept() is None
