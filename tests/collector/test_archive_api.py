"""What a restored collector answers to kubectl, held against what the original answered."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fix_apiserver import running
from fix_collector import Sender
from fix_evidence_api import EvidenceApi, served
from fix_objects import Objects
from gateway_stream import CLUSTER, Pod, Stream
from pki import Authority
from population_speaker import BASE, Speaker

from chaperone_collector.archive.commands import command
from chaperone_collector.checkpoint import LogKeys
from chaperone_evidence import policyfile
from chaperone_evidence.policy import Policy
from chaperone_evidence.population import Covered, Ended

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(300)]

LIMIT_S = 60.0


def answers(api: EvidenceApi) -> dict[str, Any]:
    """All that can be asked of the namespace, but for who asked. A coverage's version is the size of the log."""
    names = ("sessions", "commands", "coverages", "populations/newest")
    found = {name: api.get(f"{BASE}/namespaces/agents/{name}") for name in names}
    for one in found["coverages"]["items"]:
        del one["metadata"]["resourceVersion"]
    tallies = api.get(f"{BASE}/tallies")["items"]
    return {name: said.get("items", said) for name, said in found.items()} | {"tallies": tallies}


def until_archived(api: EvidenceApi) -> None:
    (wanted,) = api.collector.rows("SELECT max(idx) + 1 FROM entry")[0]
    pause, ends = threading.Event(), time.monotonic() + LIMIT_S
    while (api.collector.rows("SELECT max(first + count) FROM archived WHERE done_us > 0")[0][0] or 0) < wanted:
        assert time.monotonic() < ends, api.collector.log.read_text()
        pause.wait(0.2)


def restored(api: EvidenceApi, archive: Path, folder: Path) -> Path:
    origin = f"chaperone.dev/log/{CLUSTER}"
    keys = tuple(one.key for one in LogKeys(api.collector.data, may_make=False).signers(origin))
    (folder / "log.policy").write_text(policyfile.render(Policy(origin, keys, 2)))
    assert command(["export-keys", "--data", str(api.collector.data), "--out", str(folder / "keys.json")]) == 0
    given = ["--archive", str(archive), "--log-policy", str(folder / "log.policy")]
    given += ["--data", str(folder / "back"), "--data-keys", str(folder / "keys.json")]
    assert command(["restore", *given]) == 0
    (folder / "back" / "log.key").write_bytes((api.collector.data / "log.key").read_bytes())
    return folder / "back"


async def test_kubectl_sees_no_difference(objects: Objects, gateway_ca: Authority, tmp_path: Path) -> None:
    archive = objects.archive("evidence", segmentSeconds=1)
    (tmp_path / "server").mkdir()
    (tmp_path / "api").mkdir()
    with (
        running(tmp_path / "server") as server,
        served(server, gateway_ca, tmp_path / "api", "--archive", str(archive)) as api,
    ):
        pod, now_us = Pod(gateway_ca), time.time_ns() // 1000
        speaker = Speaker(api, "agents")
        other = Covered("missing", "other-0", "other", now_us)
        speaker.say(Covered(pod.pod_uid, pod.pod, pod.identity, now_us), other)
        stream = Stream(pod)
        session = stream.open_session()
        stream.conclude(session, stream.intend(session, "SELECT name FROM customers"), rows=7)
        stream.intend(session, "DROP TABLE customers", decision="Deny", rule="never")
        stream.close_session(session, 2, 1)
        stream.close()
        async with Sender(api.collector, pod) as sender:
            await sender.ship(stream)
        ended = Ended(pod.pod_uid, pod.pod, pod.identity, now_us, "Succeeded", 0, now_us)
        speaker.say(ended, Ended("missing", "other-0", "other", now_us, "Deleted", None, now_us))
        before = answers(api)
        assert before["commands"][0]["spec"]["command"] == "SELECT name FROM customers"
        assert sorted(one["status"]["state"] for one in before["coverages"]) == ["Ended", "Missing"]
        until_archived(api)
        api.collector.stop()
        api.collector.data = restored(api, archive, tmp_path)
        api.collector.start()
        api.register()
        assert answers(api) == before
        speaker.say(ended)  # the operator goes on from the epoch that it knows
