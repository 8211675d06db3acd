"""`chaperone convert`: verified records as OCSF events and as lines, up to the first that does not hold."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from evidence_directory import pack, write_bodies, write_frames, write_stream
from fix_dev import Gateway
from gateway_stream import Pod, Stream
from ocsf_schema import check
from pki import Authority

from chaperone_cli.evidence import open_source
from chaperone_cli.policy_history import History
from chaperone_evidence import chain, entry, frames, merkle

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID = TRACEPARENT.split("-")[1]


def convert(evidence: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "chaperone_cli.main", "convert", str(evidence), *more], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def written(folder: Path) -> tuple[Stream, Path]:
    authority = Authority("gateway CA")
    stream = Stream(Pod(authority))
    session = stream.open_session()
    stream.conclude(session, stream.intend(session, f"SELECT 1 /*db='x',traceparent='{TRACEPARENT}'*/"), rows=1)
    stream.conclude(session, stream.intend(session, f"SELECT '/*traceparent=''{TRACEPARENT}''*/'"))
    stream.close_session(session, 2)
    stream.close()
    write_stream(folder, stream)
    (folder / "ca.pem").write_text(authority.pem)
    return stream, folder / "ca.pem"


@pytest.mark.parametrize("is_bundle", [False, True])
def test_records_become_events_that_others_read(tmp_path: Path, is_bundle: bool) -> None:
    stream, trust = written(tmp_path)
    evidence = tmp_path
    if is_bundle:
        evidence = tmp_path / "bundle.tar"
        evidence.write_bytes(pack(tmp_path))
    done = convert(evidence, "--to", "ocsf", "--trust", str(trust), "--output", str(tmp_path / "out.jsonl"))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert stat.S_IMODE((tmp_path / "out.jsonl").stat().st_mode) == 0o600
    events = lines((tmp_path / "out.jsonl").read_text())
    for event in events:
        check(event)
    assert [event["metadata"]["sequence"] for event in events] == list(range(8))
    assert done.stderr == "convert: OK, 8 records\n"
    traced = [event["metadata"].get("correlation_uid") for event in events]
    assert traced == [None, None, TRACE_ID, TRACE_ID, None, None, None, None]
    assert "SELECT" not in (tmp_path / "out.jsonl").read_text()
    assert all(event["metadata"]["log_name"] == stream.id for event in events)


def test_records_as_they_are_with_their_hashes(tmp_path: Path) -> None:
    stream, trust = written(tmp_path)
    done = convert(tmp_path, "--to", "jsonl", "--trust", str(trust))
    assert done.returncode == 0, done.stderr
    link = chain.first_link(stream.id)
    for line, data in zip(lines(done.stdout), entry.frames(b"".join(stream.frames)), strict=False):
        _, kept, header = entry.split(data)
        link = chain.next_link(link, entry.CLASS_RECORD, header)
        assert line["record"] == json.loads(header)
        assert (line["link"], line["leaf_hash"]) == (link.hex(), merkle.leaf_hash(data).hex())
        assert header.decode() in done.stdout
        assert kept == link
    assert [line.get("traceparent") for line in lines(done.stdout)].count(TRACEPARENT) == 1


def test_a_broken_stream_is_written_up_to_the_record_that_does_not_hold(tmp_path: Path) -> None:
    stream, trust = written(tmp_path)
    frames = list(stream.frames)
    frames[4] = frames[4].replace(b"SELECT", b"select").replace(b'"rule":"read-orders"', b'"rule":"read-ordres"')
    assert frames[4] != stream.frames[4]
    write_frames(tmp_path, stream.id, frames)
    for form in ("ocsf", "jsonl"):
        done = convert(tmp_path, "--to", form, "--trust", str(trust))
        assert done.returncode == 1
        assert len(lines(done.stdout)) == 4
        assert done.stderr == (
            f"convert: FAILED at stream {stream.id} record 4: its link does not follow from the record before it; "
            "the 4 records before it are written\n"
        )


def test_another_ca_a_cut_end_and_no_evidence_are_told(tmp_path: Path) -> None:
    stream, _ = written(tmp_path)
    (tmp_path / "other.pem").write_text(Authority("another CA").pem)
    done = convert(tmp_path, "--to", "ocsf", "--trust", str(tmp_path / "other.pem"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"FAILED at stream {stream.id} record 0" in done.stderr
    (tmp_path / "trust.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
    write_frames(tmp_path, stream.id, stream.frames[:5])
    done = convert(tmp_path, "--to", "ocsf")
    assert (done.returncode, len(lines(done.stdout))) == (0, 5)
    assert "note: this gateway CA lay beside the evidence" in done.stderr
    assert "its last 5 records are not signed yet" in done.stderr
    (tmp_path / "empty").mkdir()
    done = convert(tmp_path / "empty", "--to", "ocsf", "--trust", str(tmp_path / "ca.pem"))
    assert done.returncode == 2
    assert "There is no stream here" in done.stderr


def test_a_text_that_is_another_gives_no_trace(tmp_path: Path) -> None:
    stream, trust = written(tmp_path)
    forged = [body.replace(b"00f067aa0ba902b7", b"00f067aa0ba902b8") for body in stream.bodies.values()]
    write_bodies(tmp_path, stream.id, forged)
    done = convert(tmp_path, "--to", "jsonl", "--trust", str(trust))
    assert done.returncode == 0, done.stderr
    assert not any("traceparent" in line for line in lines(done.stdout))


@pytest.mark.peer
def test_what_a_gateway_recorded_becomes_valid_events(gateway_with: Callable[..., Gateway]) -> None:
    gateway = gateway_with()
    other = TRACEPARENT.replace("4bf9", "5cf9")
    with gateway.connect(application_name=TRACEPARENT, autocommit=True) as connection:
        connection.execute("SELECT 1")
        connection.execute(f"SELECT 2 /*traceparent='{other}'*/")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("DROP TABLE orders")
    gateway.stop()
    done = convert(gateway.evidence, "--to", "ocsf")
    assert done.returncode == 0, done.stderr
    events = lines(done.stdout)
    for event in events:
        check(event)
    commands = [event for event in events if event["metadata"]["event_code"] == "command.intent"]
    asked = [event for event in commands if event["unmapped"]["effects"] != ["session"]]
    assert asked[0]["metadata"]["correlation_uid"] == TRACE_ID
    assert asked[1]["metadata"]["correlation_uid"] == other.split("-")[1]
    assert (asked[2]["action_id"], asked[2]["activity_name"]) == (2, "Delete")
    assert {event["class_uid"] for event in events} >= {3002, 6002, 6005}


def test_the_texts_behind_parts_of_a_recording_are_found(tmp_path: Path) -> None:
    authority = Authority("gateway CA")
    stream = Stream(Pod(authority))
    session = stream.open_session()
    for number in range(2):
        command = stream.intend(session, f"SELECT {number} /*traceparent='{TRACEPARENT}'*/")
        stream.show(session, [frames.Rows(t_us=1, rows=((str(number),),))], command=command[1], number=number)
        stream.conclude(session, command)
    stream.close_session(session, 2)
    stream.close()
    write_stream(tmp_path, stream)
    (tmp_path / "ca.pem").write_text(authority.pem)
    done = convert(tmp_path, "--to", "jsonl", "--trust", str(tmp_path / "ca.pem"))
    found = [line for line in lines(done.stdout) if line["record"]["type"] == "command.intent"]
    assert [line["traceparent"] for line in found] == [TRACEPARENT] * 2
    with open_source(tmp_path) as source:
        assert [one.text is None for one in History(source, has_texts=True)] == [False, False]
