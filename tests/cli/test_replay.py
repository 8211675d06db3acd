"""`chaperone replay` and `show`, from a bundle and from the cluster."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from asciinema.asciicast import open_from_url, v2
from click.testing import CliRunner, Result
from evidence_directory import pack, write_bodies, write_frames
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from pki import Authority
from recorded_scene import Recorded

from chaperone_cli.main import main


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("gateway CA")


@pytest.fixture
def scene(ca: Authority) -> Recorded:
    return Recorded(ca)


@pytest.fixture
def folder(tmp_path: Path, ca: Authority, scene: Recorded) -> Path:
    return scene.write(tmp_path, ca)


def ran(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


BODY = """
           > SELECT id, name
           > FROM people -- \ufffd]0;owned\ufffd\ufffd[2J\ufffd\ufffd31m
           = Allow by agents/billing/read-orders
           | id   | name*
           | -----+-------------------------------------------------
           | 42   | Q***
           | NULL | \ufffd]0;owned\ufffd\ufffd[2J\ufffd\ufffd31m
           | 7    | wwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwwww…
           # SELECT 3
           # ok, 3 rows, 30 bytes, 1.5 ms
           > SELECT 1 / 0
           = Allow by agents/billing/read-orders
           ! ERROR 22012: division by zero
           ! HINT: Do not.\ufffd[1m
           # error, 0 rows, 0 bytes, 1.5 ms
           > DROP TABLE people
           = Deny by agents/billing/never
           ? held for people: apr-1, asked by agents/billing/ask
           ? apr-1: Used, by ann: ok
           > COPY people TO STDOUT
           = Allow by agents/billing/ask, approved as apr-1
           | 1    one
           | 2    two
           # the rest of this result is not recorded: 12 bytes are (maxResultBytes)
           # ok, 2 rows, 20 bytes, 1.5 ms
           # closed: client closed; 4 commands, 1 not allowed
"""


def told(text: str) -> str:
    """The transcript without its times, after its two lines about the session."""
    assert all(re.fullmatch(r"[ \d.]{10} [>=|#!?] .*", line) for line in text.splitlines()[1:])
    return "\n" + "".join(f"{'':10}{line[10:]}\n" for line in text.splitlines()[2:])


def test_a_transcript_says_what_was_asked_decided_shown_and_how_it_ended(folder: Path, scene: Recorded) -> None:
    done = ran("replay", "--bundle", folder, scene.session)
    assert done.exit_code == 0, done.output
    assert told(done.stdout) == BODY
    head, opened, *_ = done.stdout.splitlines()
    assert "agents/billing-agent (billing@example.com), pod billing-agent-0" in head
    assert "at orders-db (PostgreSQL), database orders, application psql, on behalf of user-7" in opened
    assert done.stderr.endswith("verify: OK\n")
    assert "another session" not in done.output


def test_nothing_that_a_terminal_obeys_is_printed(folder: Path, scene: Recorded) -> None:
    for command in ("replay", "show"):
        text = ran(command, "--bundle", folder, scene.session).output
        assert not [c for c in text if not c.isprintable() and c != "\n"]


def test_a_bundle_is_read_like_a_directory(folder: Path, scene: Recorded, ca: Authority, tmp_path: Path) -> None:
    (tmp_path / "bundle.tar").write_bytes(pack(folder))
    (tmp_path / "ca.pem").write_text(ca.pem)
    arguments = ("--bundle", tmp_path / "bundle.tar", "--trust", tmp_path / "ca.pem", scene.session)
    done = ran("replay", *arguments)
    assert told(done.stdout) == BODY
    assert done.stderr == "verify: OK\n"


def test_a_replay_begins_where_it_is_asked_to(folder: Path, scene: Recorded) -> None:
    done = ran("replay", "--bundle", folder, "--from", "3.5", scene.session)
    times = [float(line[:10]) for line in done.stdout.splitlines()[1:] if line[:10].strip()]
    assert done.stdout.startswith(f"session {scene.session}")
    assert min(times) == 4.0
    assert "SELECT id" not in done.stdout


def test_a_replay_that_is_played_says_the_same(folder: Path, scene: Recorded) -> None:
    at_once = ran("replay", "--bundle", folder, scene.session)
    played = ran("replay", "--bundle", folder, "--speed", "1000", "--idle-limit", "0.1", scene.session)
    assert played.stdout == at_once.stdout


def test_a_cast_is_read_by_asciinema(folder: Path, scene: Recorded, tmp_path: Path) -> None:
    path = tmp_path / "session.cast"
    done = ran("replay", "--bundle", folder, "--cast", path, "--speed", "2", "--idle-limit", "1", scene.session)
    assert (done.exit_code, done.stdout) == (0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    with open_from_url(str(path)) as cast:
        assert isinstance(cast, v2.Asciicast)
        events = list(cast.events())
    printed = "".join(text for _, kind, text in events if kind == "o")
    assert printed.replace("\r\n", "\n") == ran("replay", "--bundle", folder, scene.session).stdout
    times = [time for time, _, _ in events]
    assert times == sorted(times)
    assert 1.0 < times[-1] < 3.0  # seven seconds at twice the speed, with no pause longer than half a second


@pytest.mark.parametrize("place", [3, 4, 6])
def test_a_transcript_ends_where_the_stream_does_not_hold(folder: Path, scene: Recorded, place: int) -> None:
    changed = list(scene.stream.frames)
    changed[place] = changed[place].replace(b'"seq":', b'"sEq":')
    write_frames(folder, scene.stream.id, changed)
    done = ran("replay", "--bundle", folder, scene.session)
    assert done.exit_code == 1
    assert f"FAILED at stream {scene.stream.id} record {place}" in done.stderr
    assert "DROP TABLE" not in done.stdout


def test_a_changed_part_of_a_recording_is_missed_and_never_shown(folder: Path, scene: Recorded) -> None:
    bodies = list(scene.stream.bodies.values())
    write_bodies(folder, scene.stream.id, [bodies[0], bodies[1][:-1] + b"x", *bodies[2:]])
    done = ran("replay", "--bundle", folder, scene.session)
    assert "! a part of the recording is missing: its body is not here" in done.stdout
    assert "Q***" not in done.stdout


def test_a_session_that_is_not_there_is_said(folder: Path, scene: Recorded) -> None:
    done = ran("replay", "--bundle", folder, "0" * 26)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "There is no session" in done.stderr


def test_a_page_says_who_where_and_how_each_command_ended(folder: Path, scene: Recorded) -> None:
    done = ran("show", "--bundle", folder, scene.session)
    assert done.exit_code == 0, done.output
    text = done.stdout
    for line in (
        "on behalf of user-7 user-7@example.com, says https://login.example.com",
        "commands     4 (3 Allow, 1 Deny)",
        "recording    3 parts",
        "approval     apr-1: Used, by ann: ok",
        "> DROP TABLE people",
        "= Deny by agents/billing/never",
        "# error, 0 rows, 0 bytes, 1.5 ms",
    ):
        assert line in text, line


@pytest.mark.peer
async def test_the_cluster_tells_the_same(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Recorded(gateway_ca, "replayed-agent")
    scene.stream.head()
    async with Sender(evidence_api.collector, scene.pod) as sender:
        await sender.ship(scene.stream)
    command = evidence_api.command()
    monkeypatch.setenv("PATH", str(Path(command[0]).parent), prepend=":")
    where = ("-n", "agents", "--kubeconfig", command[command.index("--kubeconfig") + 1], scene.session)
    done = await asyncio.to_thread(ran, "replay", *where)
    assert (done.exit_code, done.stderr) == (0, "")
    assert told(done.stdout) == BODY
    late = await asyncio.to_thread(ran, "replay", "--from", "3.5", *where)
    assert "ERROR 22012" in late.stdout
    assert "Q***" not in late.stdout
    page = await asyncio.to_thread(ran, "show", *where)
    assert "commands     4 (3 Allow, 1 Deny)" in page.stdout
    missing = await asyncio.to_thread(ran, "replay", *where[:-1], "0" * 26)
    assert (missing.exit_code, missing.stdout) == (2, "")
    assert "not found" in missing.stderr
