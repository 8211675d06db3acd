"""`chaperone stream` from a real API server with a real collector behind it to receivers that fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from ocsf_schema import check
from pki import Authority
from receiver import Receiver, https_receiver, syslog_receiver

from chaperone_evidence import entry

pytestmark = pytest.mark.peer

STOP_S = 30.0
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_NUMBERS = iter(range(1000))


class Agent:
    """An agent in a namespace of its own, whose commands go to the collector when told."""

    def __init__(self, api: EvidenceApi, ca: Authority) -> None:
        self.namespace = f"streamed-{next(_NUMBERS)}"
        self.pod = Pod(ca, namespace=self.namespace, pod_uid=f"uid-{self.namespace}")
        self.api = api
        self.stream = Stream(self.pod)
        self.session = self.stream.open_session()
        self.commands: list[str] = []  # ids of the events of outcomes, in the order of the log

    async def run(self, count: int, text: str = "SELECT * FROM orders") -> None:
        for _ in range(count):
            intent = self.stream.intend(self.session, text)
            self.stream.conclude(self.session, intent)
            self.commands.append(f"{self.stream.id}/{intent[0]}/outcome")
        await self.ship()

    async def ship(self) -> None:
        bodies = b"".join(entry.body_frame(one[: entry.SALT_BYTES], one[entry.SALT_BYTES :])
                          for one in self.stream.bodies.values())  # fmt: skip
        self.stream.bodies = {}
        async with Sender(self.api.collector, self.pod) as sender:
            if bodies:  # at once: receivers that hang meanwhile do so for a minute
                async with sender.http.post(f"{sender.base}/v1/bodies", data=bodies) as answer:
                    assert answer.status == 204
            await sender.ship(self.stream)

    async def leave(self) -> None:
        self.stream.close_session(self.session, len(self.commands))
        await self.ship()


class Streamer:
    """Runs of `chaperone stream` with one state file."""

    def __init__(self, api: EvidenceApi, folder: Path, namespace: str, *arguments: str) -> None:
        kubectl = api.command()
        self.state = folder / "state.json"
        self.folder = folder
        self._command = [
            sys.executable, "-m", "chaperone_cli.main", "stream", "--state", str(self.state), "-n", namespace,
            "--kubeconfig", kubectl[kubectl.index("--kubeconfig") + 1], *arguments,
        ]  # fmt: skip
        self._environment = os.environ | {"PATH": f"{Path(kubectl[0]).parent}:{os.environ['PATH']}"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, output: int = subprocess.DEVNULL) -> None:
        with (self.folder / "stream.log").open("ab") as log:
            self.process = subprocess.Popen(self._command, env=self._environment, stdout=output, stderr=log)

    def kill(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_S)
        return 200

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(STOP_S)

    def children(self) -> set[int]:
        assert self.process is not None
        pid = self.process.pid
        return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}

    def reached(self) -> int:
        return int(json.loads(self.state.read_text())["versions"].get("commands", "0"))

    def said(self) -> str:
        return (self.folder / "stream.log").read_text()


@pytest.fixture
async def agent(evidence_api: EvidenceApi, gateway_ca: Authority) -> AsyncIterator[Agent]:
    yield Agent(evidence_api, gateway_ca)


@pytest.fixture
def streamer_with(tmp_path: Path, evidence_api: EvidenceApi) -> Iterator[Callable[..., Streamer]]:
    made: list[Streamer] = []

    def make(agent: Agent, *arguments: str) -> Streamer:
        made.append(Streamer(evidence_api, tmp_path, agent.namespace, *arguments))
        return made[-1]

    yield make
    for streamer in made:
        if streamer.process is not None:
            streamer.stop()


def uid(event: dict[str, Any]) -> str:
    return event["id"] if "id" in event else event["metadata"]["uid"]


def outcomes(receiver: Receiver) -> list[str]:
    """Ids of the outcomes that came, each once, in the order in which they came first."""
    return [one for one in dict.fromkeys(uid(event) for event in receiver.events()) if one.endswith("/outcome")]


async def arrived(receiver: Receiver, agent: Agent) -> None:
    await asyncio.to_thread(receiver.wait, lambda: len(outcomes(receiver)) >= len(agent.commands))
    assert outcomes(receiver) == agent.commands


async def test_commands_and_sessions_arrive_in_order_and_are_valid_events(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    (tmp_path / "token").write_text("s3cret-token\n")
    with https_receiver(tmp_path) as receiver:
        to = f"https://localhost:{receiver.port}/ingest?source=chaperone"
        streamer = streamer_with(agent, "--to", to, "--ca", str(receiver.ca), "--token-file", str(tmp_path / "token"))
        await agent.run(3, f"SELECT 1 /*traceparent='{TRACEPARENT}'*/")
        streamer.start()
        await arrived(receiver, agent)
        await agent.run(4)
        await agent.leave()
        await asyncio.to_thread(
            receiver.wait, lambda: any(uid(event).endswith("/close") for event in receiver.events())
        )
        await arrived(receiver, agent)
        assert streamer.stop() == 0, streamer.said()
    events = receiver.events()
    for event in events:
        check(event)
    assert {event["class_uid"] for event in events} == {3002, 6005}
    assert [event["activity_name"] for event in events if event["class_uid"] == 3002] == ["Logon", "Logoff"]
    traced = [event["metadata"].get("correlation_uid") for event in events if event["class_uid"] == 6005]
    assert traced == [TRACEPARENT.split("-")[1]] * 3 + [None] * 4
    assert "SELECT" not in json.dumps(events)
    assert {headers["Authorization"] for headers in receiver.headers} == {"Bearer s3cret-token"}
    assert "s3cret" not in streamer.said()


async def test_nothing_is_lost_when_it_is_killed_after_delivery_and_before_it_kept_that(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    with https_receiver(tmp_path) as receiver:
        streamer = streamer_with(agent, "--to", f"https://localhost:{receiver.port}/", "--ca", str(receiver.ca))
        await agent.run(900)
        receiver.answers = [200, streamer.kill]
        streamer.start()
        await asyncio.to_thread(receiver.wait, lambda: len(receiver.batches) == 2)
        await asyncio.to_thread(lambda: streamer.process and streamer.process.wait(STOP_S))
        kept = streamer.reached()
        await agent.run(30)
        streamer.start()
        await arrived(receiver, agent)
        lost = {uid(event) for event in receiver.batches[1]}  # sessions among it come by a watch of their own
        await asyncio.to_thread(
            receiver.wait, lambda: lost <= {uid(event) for batch in receiver.batches[2:] for event in batch}
        )
        await asyncio.to_thread(_until, lambda: streamer.reached() > kept)
        assert streamer.stop() == 0, streamer.said()
    same: dict[str, dict[str, Any]] = {}
    for event in receiver.events():
        assert same.setdefault(uid(event), event) == event or event["class_uid"] == 3002


async def test_a_receiver_that_fails_and_hangs_gets_everything_while_the_log_grows(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    with https_receiver(tmp_path) as receiver:
        streamer = streamer_with(
            agent, "--to", f"https://localhost:{receiver.port}/", "--ca", str(receiver.ca), "--format", "jsonl"
        )
        await agent.run(600)
        receiver.answers = [500, 302, receiver.hang]
        streamer.start()
        await asyncio.to_thread(receiver.wait, lambda: len(receiver.batches) == 3)
        before = streamer.state.exists()
        for _ in range(5):
            await agent.run(200)
        assert len(receiver.batches) == 3, "it goes on reading although the receiver has not answered"
        receiver.released.set()
        await arrived(receiver, agent)
        assert streamer.stop() == 0, streamer.said()
    assert not before
    assert receiver.batches[0] == receiver.batches[1] == receiver.batches[2]
    assert all(len(batch) <= 500 for batch in receiver.batches)
    assert "the receiver answered 500" in streamer.said()
    assert "the receiver answered 302" in streamer.said()
    commands = [event for event in receiver.events() if event["object"]["kind"] == "Command"]
    assert all("command" not in event["object"]["spec"] for event in commands)


async def test_it_ends_at_once_while_a_receiver_hangs_and_loses_nothing(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    with https_receiver(tmp_path) as receiver:
        streamer = streamer_with(agent, "--to", f"https://localhost:{receiver.port}/", "--ca", str(receiver.ca))
        await agent.run(10)
        receiver.answers = [receiver.hang]
        streamer.start()
        await asyncio.to_thread(receiver.wait, lambda: len(receiver.batches) == 1)
        assert streamer.stop() == 0, streamer.said()
        assert not streamer.state.exists()
        receiver.batches = []
        streamer.start()
        await arrived(receiver, agent)


async def test_syslog_over_tls_counts_octets_and_repeats_a_batch_that_was_cut_off(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    with syslog_receiver(tmp_path) as receiver:
        streamer = streamer_with(agent, "--to", f"syslog+tls://localhost:{receiver.port}", "--ca", str(receiver.ca))
        await agent.run(20, "SELECT 'Größe'")
        receiver.answers = [500, streamer.kill]
        streamer.start()
        await asyncio.to_thread(receiver.wait, lambda: len(receiver.batches) == 2)
        await asyncio.to_thread(lambda: streamer.process and streamer.process.wait(STOP_S))
        assert not streamer.state.exists()
        streamer.start()
        await arrived(receiver, agent)
        await asyncio.to_thread(receiver.wait, lambda: len(receiver.batches) >= 3)
        assert streamer.stop() == 0, streamer.said()
    assert receiver.batches[0] == receiver.batches[1]
    assert "did not take the batch" in streamer.said()


async def test_standard_output_is_a_receiver_and_the_state_belongs_to_one_scope(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    streamer = streamer_with(agent, "--to", "-", "--format", "jsonl")
    await agent.run(5)
    streamer.start(subprocess.PIPE)
    assert streamer.process is not None
    assert streamer.process.stdout is not None
    lines = [json.loads(await asyncio.to_thread(streamer.process.stdout.readline)) for _ in range(6)]
    assert [line["id"] for line in lines if line["object"]["kind"] == "Command"] == agent.commands
    second = streamer_with(agent, "--to", "-")
    second.start()
    assert second.process is not None
    assert await asyncio.to_thread(second.process.wait, STOP_S) == 1
    assert "Another process uses" in second.said()
    await asyncio.to_thread(_until, streamer.state.exists)
    assert streamer.stop() == 0
    streamer.process.stdout.close()
    agent.namespace = "elsewhere"
    other = streamer_with(agent, "--to", "-")
    other.start()
    assert other.process is not None
    assert await asyncio.to_thread(other.process.wait, STOP_S) == 1
    assert "is the state of namespace streamed-" in other.said()


async def test_a_watch_that_is_cut_is_begun_again(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    with https_receiver(tmp_path) as receiver:
        streamer = streamer_with(agent, "--to", f"https://localhost:{receiver.port}/", "--ca", str(receiver.ca))
        await agent.run(5)
        streamer.start()
        await arrived(receiver, agent)
        killed = streamer.children()
        for child in killed:
            os.kill(child, signal.SIGKILL)
        await agent.run(5)
        await arrived(receiver, agent)
        assert "it is begun again" in streamer.said()
        # Each is begun again after a pause of its own.
        await asyncio.to_thread(_until, lambda: len(streamer.children() - killed) == 2)
        children = streamer.children()
        assert len(children) == 2
        assert streamer.stop() == 0
        assert not set(map(str, children)) & set(await asyncio.to_thread(os.listdir, "/proc"))


async def test_a_receiver_with_a_certificate_of_another_ca_is_sent_nothing(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    (tmp_path / "other.pem").write_text(Authority("another CA").pem)
    with https_receiver(tmp_path) as receiver:
        streamer = streamer_with(
            agent, "--to", f"https://localhost:{receiver.port}/", "--ca", str(tmp_path / "other.pem")
        )
        await agent.run(2)
        streamer.start()
        await asyncio.to_thread(_until, lambda: "CERTIFICATE_VERIFY_FAILED" in streamer.said())
        assert streamer.stop() == 0
        assert receiver.batches == []
    assert not streamer.state.exists()


async def test_a_syslog_receiver_that_stops_before_it_has_read_gets_the_batch_again(
    tmp_path: Path, agent: Agent, streamer_with: Callable[..., Streamer]
) -> None:
    with syslog_receiver(tmp_path) as receiver:
        streamer = streamer_with(agent, "--to", f"syslog+tls://localhost:{receiver.port}", "--ca", str(receiver.ca))
        await agent.run(300)
        receiver.answers = [503]
        streamer.start()
        await arrived(receiver, agent)
        assert streamer.stop() == 0, streamer.said()
    assert "did not take the batch" in streamer.said()


def test_receivers_that_would_show_evidence_to_others_are_refused(tmp_path: Path, evidence_api: EvidenceApi) -> None:
    (tmp_path / "token").write_text("x")
    for number, arguments in enumerate(
        (
            ("http://localhost/",), ("https://user:word@localhost/",), ("syslog://localhost:1",), ("localhost",),
            ("https://localhost:99999/",), ("syslog+tls://localhost/path",), ("https:///x",),
            ("syslog+tls://localhost", "--token-file", str(tmp_path / "token")),
        )
    ):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        streamer = Streamer(evidence_api, folder, "agents", "--to", *arguments)
        streamer.start()
        assert streamer.process is not None
        assert streamer.process.wait(STOP_S) == 1, arguments
        assert "receiver" in streamer.said()


def _until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(600):
        if holds():
            return
        pause.wait(0.05)
    pytest.fail("it did not come about")
