"""HTTP/2 through a gateway as it runs in a pod: the kill switch in the middle of what a connection does.

The broker, OPA, the collector and the API are real.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from evidence_directory import read_records
from fix_broker import Broker, secret
from fix_collector import Collector
from fix_http import BACKEND, CANARY, NAME, Backend, running_backend
from fix_opa import Opa
from manifests import identity, policy, rule, target
from pod_gateway import running, until
from raw_http2 import Frames, Heard, listen

from chaperone_evidence import record
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.kube import CONFIG_MAPS, SECRETS

pytestmark = [pytest.mark.peer, pytest.mark.timeout(240)]
INTERNAL_ERROR = 2


async def compiled(broker: Broker, backend: Backend, collector: Collector, *, is_suspended: bool = False) -> Snapshot:
    """A policy that lets the identity read everything, and the Secrets that it needs."""
    assert backend.authority is not None
    made = (
        secret("api-ca", "Opaque", **{"ca.crt": backend.authority.pem}),
        secret("api-token", "Opaque", token=CANARY),
    )
    async with broker.admin() as client:
        for one in made:
            await client.apply(SECRETS, one["metadata"]["name"], one, manager="test", namespace=broker.system)
        trust = await client.get(CONFIG_MAPS, "chaperone-trust", broker.system)
    (collector.folder / "gateway-ca.crt").write_text(trust["data"]["gateway-ca.crt"])
    api = target(
        "api", protocol="HTTP", hosts=[NAME], upstream={"host": NAME, "port": backend.port},
        tls={"mode": "VerifyFull", "caSecretRef": {"name": "api-ca"}, "serverName": "localhost"},
        credential={"httpHeader": {"secretRef": {"name": "api-token"}, "host": "localhost", "port": backend.port}},
        allowedNamespaces={"names": [broker.agents]},
    )  # fmt: skip
    snapshot = compile_namespace(
        broker.agents, [identity(namespace=broker.agents, suspended=is_suspended)], [api],
        [policy([rule("read", "Allow", ["read"])], namespace=broker.agents, targets=[{"name": "api"}])],
        [], namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    return snapshot


def connect(port: int) -> ssl.SSLSocket:
    """As an agent, that reads nothing by itself."""
    context = ssl._create_unverified_context()  # noqa: S323 - who the gateway is, is tested elsewhere
    context.set_alpn_protocols(["h2"])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=60), server_hostname=NAME)


def get(path: str) -> list[list[str]]:
    return [[":method", "GET"], [":scheme", "https"], [":authority", NAME], [":path", path]]


async def test_a_suspension_in_the_middle_of_streams_ends_each_of_them_and_says_who(
    broker: Broker, collector_with: Callable[..., Collector], opa_with: Callable[[bytes], Opa], tmp_path: Path
) -> None:
    collector, folder, frames = collector_with(), tmp_path / "backend", Frames()
    folder.mkdir()
    with running_backend(folder, program=BACKEND.with_name("http2_backend.py")) as backend:
        snapshot = await compiled(broker, backend, collector)
        await broker.put_snapshot(snapshot)
        async with running(broker, collector, opa_with(snapshot.bundle), tmp_path, "h2-cut") as (gateway, port, _):
            connection, deaf = [await asyncio.to_thread(connect, port) for _ in range(2)]
            begun = frames.head(1, get("/v1/orders")) + frames.head(3, get("/big?size=3000000"))
            begun += frames.head(5, get("/slow"))
            wider = [
                {"frame": "window", "stream": 0, "window_increment": 1 << 20}
            ]  # of the connection, not of a stream
            await asyncio.to_thread(connection.sendall, frames.begin() + frames.script(wider, []) + begun)
            heard = await asyncio.to_thread(listen, connection, 1)
            # The second stands still in the middle of its answer, for its window is full; the third has none yet.
            await asyncio.to_thread(read_until_full, connection, heard)
            others = Frames()
            await asyncio.to_thread(deaf.sendall, others.begin(_4=0) + others.head(1, get("/slow")))
            await until(lambda: len(backend.heard()) == 4)
            await broker.put_snapshot(await compiled(broker, backend, collector, is_suspended=True))
            await asyncio.to_thread(listen, connection, None, heard)
            connection.close()
            unheard = await asyncio.to_thread(listen, deaf)  # its windows are closed, so it cannot be told
            deaf.close()
            assert unheard.has_closed
            assert unheard.bodies == {}
            assert gateway.config.suspension is not None
            assert heard.fields[1][":status"] == "200"
            assert (heard.fields[3][":status"], heard.resets[3]) == ("200", INTERNAL_ERROR)  # never taken for whole
            assert 3 not in heard.ended
            assert heard.fields[5][":status"] == "403"
            assert b"is suspended" in heard.bodies[5]
            assert heard.goaway is not None
            assert (heard.goaway.error_code, heard.goaway.last_stream_id) == (0, 5)
            assert heard.has_closed
            again = await asyncio.to_thread(refused, port)
            assert again.fields[1][":status"] == "403"
            assert b"is suspended" in again.bodies[1]
    found = read_records(tmp_path / "spool")
    intents = {one.command: one for one in found if isinstance(one, record.CommandIntent)}
    ended = [
        (intents[one.command].accesses[0].object, one.status) for one in found if isinstance(one, record.CommandOutcome)
    ]
    wanted = [("path:/big", "error"), ("path:/slow", "error"), ("path:/slow", "error"), ("path:/v1/orders", "ok")]
    assert sorted(ended) == wanted
    closed = [one for one in found if isinstance(one, record.SessionClose)]
    assert sorted(one.commands for one in closed) == [1, 3]
    assert all("is suspended" in one.reason for one in closed)


def read_until_full(connection: ssl.SSLSocket, heard: Heard) -> None:
    """All that the second stream may say before it is allowed more."""
    while len(heard.bodies.get(3, b"")) < 65_535:
        listen(connection, None, heard, most=1)


def refused(port: int) -> Heard:
    """What a new connection hears."""
    frames = Frames()
    with connect(port) as connection:
        connection.sendall(frames.begin() + frames.head(1, get("/v1/orders")))
        return listen(connection, 1)
