"""The examples of docs/guides/export.md: each command is run, and says or delivers what the guide says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from evidence_directory import write_frames, write_stream
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority
from receiver import https_receiver, syslog_receiver

from chaperone_cli.main import main

pytestmark = pytest.mark.peer

GUIDE = (Path(__file__).parents[2] / "docs/guides/export.md").read_text()
OFFLINE = re.findall(r"^    \$ chaperone (.+)\n((?:    [^$].*\n)+)", GUIDE, re.MULTILINE)
STREAMS = re.findall(r"^    \$ kubectl chaperone (stream .+)\n", GUIDE, re.MULTILINE)


def write_evidence(folder: Path) -> None:
    """Seven records of a gateway that stopped in order, and the same with one that was changed."""
    authority = Authority("gateway CA")
    stream = Stream(Pod(authority))
    session = stream.open_session()
    stream.conclude(session, stream.intend(session))
    stream.intend(session, "DROP TABLE orders", decision="Deny", rule="never")
    stream.close_session(session, 2, 1)
    stream.close()
    write_stream(folder / "evidence", stream)
    frames = list(stream.frames)
    frames[2] = frames[2].replace(b'"Allow"', b'"Allox"')
    write_frames(folder / "broken", stream.id, frames)
    (folder / "gateway-ca.pem").write_text(authority.pem)


def test_there_is_an_example_of_each_way() -> None:
    assert [shlex.split(command)[0] for command, _ in OFFLINE] == ["convert"] * 3
    assert len(STREAMS) == 3


@pytest.mark.parametrize(("command", "told"), OFFLINE, ids=lambda text: text.splitlines()[0][:40])
def test_a_conversion_says_what_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    write_evidence(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(command))
    position = 0
    for line in told.splitlines():
        found = done.output.find(line.removeprefix("    "), position)
        assert found >= 0, f"{line}\n{done.output}"
        position = found


@pytest.mark.parametrize("command", STREAMS, ids=lambda command: shlex.split(command)[2][:12])
async def test_a_stream_delivers_as_the_guide_says(
    tmp_path: Path, evidence_api: EvidenceApi, gateway_ca: Authority, command: str
) -> None:
    pod = Pod(gateway_ca, identity="guided-agent", pod_uid=f"uid-{tmp_path.name}")
    stream = Stream(pod)
    session = stream.open_session()
    stream.conclude(session, stream.intend(session))
    async with Sender(evidence_api.collector, pod) as sender:
        await sender.ship(stream)
    (tmp_path / "token").write_text("t0ken")
    receiving = https_receiver if "https:" in command else syslog_receiver
    with receiving(tmp_path) as receiver:
        shutil.copy(receiver.ca, tmp_path / "ca.pem")
        kubectl = evidence_api.command()
        arguments = shlex.split(command.replace("siem.example.com", f"localhost:{receiver.port}"))
        process = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, "-m", "chaperone_cli.main", *arguments, *kubectl[1:3]], cwd=tmp_path,
            stdout=subprocess.PIPE, env=os.environ | {"PATH": f"{Path(kubectl[0]).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        try:
            if "--to -" in command:
                assert process.stdout is not None
                assert json.loads(await asyncio.to_thread(process.stdout.readline))["object"]["apiVersion"]
            else:
                await asyncio.to_thread(
                    receiver.wait, lambda: any(stream.id in json.dumps(event) for event in receiver.events())
                )
        finally:
            process.terminate()
            assert process.stdout is not None
            process.stdout.close()
            process.wait(30)
