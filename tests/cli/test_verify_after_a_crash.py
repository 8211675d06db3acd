"""What the gateway's own spool leaves behind when the node dies, and what the next process makes of it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from gateway_stream import Pod
from pki import Authority

from chaperone_cli.evidence import Directory
from chaperone_cli.verify import judge
from chaperone_evidence import entry, record
from chaperone_evidence.verify import Verdict
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.recorder import Recorder
from chaperone_sidecar.recording.stream import begin_stream


def _begin(root: Path, ca: Authority) -> Recorder:
    pod = Pod(ca)
    opened = record.StreamOpen(
        seq=0, wall_us=0, mono_us=0, stream="", cluster=pod.cluster, namespace=pod.namespace, pod=pod.pod,
        pod_uid=pod.pod_uid, identity=pod.identity, vkey="",
        certificate=base64.b64encode(pod.certificate.public_bytes(serialization.Encoding.DER)).decode(),
    )  # fmt: skip
    recorder, _ = begin_stream(root, 64 << 20, pod.signer, opened, Ids())
    return recorder


def _crash(root: Path, ca: Authority) -> Path:
    """A process that recorded thirty refusals and was never heard of again; its segment."""
    recorder = _begin(root, ca)
    for number in range(30):
        recorder.deny_dns(f"host-{number}.example", "A", 1)
    return max(root.glob("streams/*/*.seg"))


def _verdict(root: Path, ca: Authority) -> Verdict:
    return judge(Directory(root), [ca.certificate])


def test_a_crash_is_unproved_until_the_next_process_starts(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    _crash(tmp_path, ca)
    assert "under no signature" in _verdict(tmp_path, ca).problems[0].what
    _begin(tmp_path, ca).close("stopped")
    verdict = _verdict(tmp_path, ca)
    assert verdict.problems == []
    assert [report.end for report in verdict.streams] == ["continued", "closed"]


@pytest.mark.parametrize("torn_bytes", [1, 2, 10, 40, 100])
def test_a_torn_write_costs_its_record_and_nothing_else(tmp_path: Path, torn_bytes: int) -> None:
    ca = Authority("gateway CA")
    segment = _crash(tmp_path, ca)
    data = segment.read_bytes()
    used = sum(2 + len(one) for one in entry.frames(data))
    segment.write_bytes(data[: used - torn_bytes] + bytes(len(data) - used + torn_bytes))
    assert len(_verdict(tmp_path, ca).problems) == 1
    _begin(tmp_path, ca).close("stopped")
    verdict = _verdict(tmp_path, ca)
    assert verdict.problems == []
    assert verdict.streams[0].entries == 31  # stream.open, its head, and all refusals but the torn one
    assert any("was not written to its end" in remark for remark in verdict.notes)


def test_records_that_are_cut_off_after_the_next_process_started_are_missed(tmp_path: Path) -> None:
    ca = Authority("gateway CA")
    segment = _crash(tmp_path, ca)
    _begin(tmp_path, ca).close("stopped")
    data = segment.read_bytes()
    ends = [0]
    for one in entry.frames(data):
        ends.append(ends[-1] + 2 + len(one))
    for end in ends[:-1]:
        segment.write_bytes(data[:end] + bytes(len(data) - end))
        assert _verdict(tmp_path, ca).problems, end
