"""Objects in Kubernetes' protobuf: read as Kubernetes itself reads them, and not at all where one is not known."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kube_protobuf import BYTES, VARINT, data, encoded, envelope, field, message, varint

from chaperone_sidecar.protocols.kubernetes.body import MAX_BODY_BYTES, MAX_VALUES, Unread
from chaperone_sidecar.protocols.kubernetes.protobuf import PREFIX, schema, to_json
from chaperone_tools import kubernetes_schema
from chaperone_tools.cache import checkout

RELEASES = ("HEAD", "v1.32.0", "v1.33.0")  # whose objects k8s.io/api keeps, each field filled in, in JSON and protobuf
MAX_LEVELS = 16  # of messages in messages; the reader's stack is bounded by it
POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
    "spec": {"containers": [{"name": "c", "image": "i"}], "hostPID": True},
}  # fmt: skip


@cache
def modules() -> dict[str, dict[str, str]]:
    """The sources that the table is made of."""
    return kubernetes_schema.modules()


def samples(release: str) -> list[Path]:
    """Objects of stable versions in protobuf."""
    known = {
        f"{version.rpartition('/')[0] or 'core'}.{version.rpartition('/')[2]}.{kind}.pb"
        for version, kinds in schema().kinds.items()
        for kind in kinds
    }
    folder = Path(modules()["k8s.io/api"]["Dir"]) / "testdata" / release
    return sorted(one for one in folder.glob("*.pb") if one.name in known)


@pytest.mark.peer
def test_the_table_is_made_of_the_modules_that_the_cluster_is_built_of() -> None:
    assert (checkout() / kubernetes_schema.FILE).read_text() == kubernetes_schema.schema(modules())


@pytest.mark.peer
@pytest.mark.parametrize("release", RELEASES)
def test_every_object_is_read_as_the_json_that_kubernetes_writes(release: str) -> None:
    found = samples(release)
    assert len(found) > 60
    for one in found:
        assert json.loads(to_json(one.read_bytes())) == json.loads(one.with_suffix(".json").read_text()), one.name
    if release == "HEAD":
        kinds = sum(len(one) for version, one in schema().kinds.items() if version != "meta/v1")
        assert len(found) == kinds


def test_messages_are_not_endlessly_deep() -> None:
    def levels(kind: str, above: tuple[str, ...]) -> int:
        assert kind not in above, f"{kind} is in itself"
        inner = {type_ for _, _, type_, _ in schema().messages.get(kind, ())}
        return 1 + max((levels(one, (*above, kind)) for one in inner), default=0)

    assert max(levels(kind, ()) for kinds in schema().kinds.values() for kind in kinds.values()) <= MAX_LEVELS


def test_what_go_writes_without_a_value_is_left_out() -> None:
    pod = encoded(POD | {"spec": {"containers": [{"name": "c", "image": ""}], "hostPID": False, "nodeName": ""}})
    found = json.loads(to_json(pod))
    assert found["spec"] == {"containers": [{"name": "c"}]}
    zero = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 0, "paused": False}}
    assert json.loads(to_json(encoded(zero)))["spec"]["replicas"] == 0  # a pointer in Go: 0 is not the default
    volume = POD | {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    assert json.loads(to_json(encoded(volume)))["spec"]["volumes"] == [{"name": "v", "emptyDir": {}}]
    port = {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80, "targetPort": 0}]}}
    assert json.loads(to_json(encoded(port)))["spec"]["ports"][0]["targetPort"] == 0
    revision = {"apiVersion": "apps/v1", "kind": "ControllerRevision", "data": {}, "revision": 1}
    assert json.loads(to_json(encoded(revision)))["data"] == {}


@pytest.mark.parametrize(
    ("seconds", "nanos", "whole", "micro"),
    [
        (0, 0, "1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000000Z"),
        (1, 999_999_999, "1970-01-01T00:00:01Z", "1970-01-01T00:00:01.999999Z"),
        (-62_135_596_800, 0, "0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_times_are_as_precise_as_kubernetes_keeps_them(seconds: int, nanos: int, whole: str, micro: str) -> None:
    moment = field(1, "int64", seconds) + field(2, "int32", nanos)
    metadata = data(1, data(9, moment))
    assert json.loads(to_json(envelope("v1", "Pod", metadata)))["metadata"] == {"deletionTimestamp": whole}
    lease = data(2, data(3, moment))
    found = json.loads(to_json(envelope("coordination.k8s.io/v1", "Lease", lease)))
    assert found["spec"] == {"acquireTime": micro}


NAME = data(1, b"p")
META = data(1, NAME)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"{}", "no object of Kubernetes"), (b"", "no object of Kubernetes"), (b"k8s", "no object of Kubernetes"),
        (envelope("v1", "Widget", b""), 'kind "Widget" in "v1" are not known'),
        (envelope("example.com/v1", "Pod", b""), 'kind "Pod" in "example.com/v1" are not known'),
        (envelope("apps/v1beta1", "Deployment", b""), "are not known"), (envelope("", "", b""), "are not known"),
        (PREFIX, "are not known"),
        (envelope("v1", "Pod", META, encoding="gzip"), "something else than protobuf"),
        (envelope("v1", "Pod", META, form="application/json"), "something else than protobuf"),
        (envelope("v1", "Pod", META) + data(5, b"x"), "field 5 of Unknown is not known"),
        (envelope("v1", "Pod", META + data(99, b"x")), "field 99 of core/v1.Pod is not known"),
        (envelope("v1", "Pod", data(0, b"")), "no number"),
        (envelope("v1", "Pod", data(1, NAME + data(77, b"x"))), "field 77 of meta/v1.ObjectMeta is not known"),
        (envelope("v1", "Pod", META + META), "'metadata' is twice in core/v1.Pod"),
        (envelope("v1", "ConfigMap", data(2, data(1, b"a")) * 2), "'a' is twice in core/v1.ConfigMap"),
        (envelope("v1", "ConfigMap", data(2, data(1, b"a") * 2)), "twice in a map's entry"),
        (envelope("v1", "ConfigMap", data(2, data(3, b"a"))), "field 3 of a map's entry is not known"),
        (envelope("v1", "ConfigMap", varint(2 << 3 | VARINT) + varint(1)), "wire type 0"),
        (envelope("v1", "ConfigMap", varint(1 << 3 | VARINT) + varint(1)), "wire type 0"),
        (envelope("v1", "ConfigMap", data(4, b"\1")), "wire type 2"),
        (envelope("v1", "ConfigMap", varint(4 << 3 | VARINT) + varint(2)), "neither 0 nor 1"),
        (envelope("v1", "Pod", varint(1 << 3 | 1) + bytes(8)), "wire type 1 is not used"),
        (envelope("v1", "Pod", varint(1 << 3 | 3) + bytes(1)), "wire type 3 is not used"),
        (envelope("v1", "Pod", varint(1 << 3 | BYTES) + varint(1 << 40)), "longer than its message"),
        (envelope("v1", "Pod", data(1, varint(1 << 3 | BYTES) + varint(9) + b"x")), "longer than its message"),
        (envelope("v1", "Pod", b"\xff" * 11), "no end"), (envelope("v1", "Pod", b"\x80"), "no end"),
        (envelope("v1", "Pod", varint(1 << 3 | BYTES) + b"\xff" * 9 + b"\x02"), "no end"),
        (envelope("v1", "Pod", data(1, data(1, b"\xff"))), "not UTF-8"),
        (envelope("v1", "Pod", data(1, data(9, field(1, "int64", 1 << 62)))), "time in the body is out of range"),
        (envelope("v1", "Pod", data(1, data(9, field(2, "int32", -1)))), "time in the body is out of range"),
        (envelope("apps/v1", "Deployment", data(2, field(1, "int64", 1 << 40))), "more than 32 bits"),
        (envelope("v1", "Service", data(1, b"") + data(2, data(1, data(4, field(1, "int64", 2))))), "is neither"),
        (envelope("apps/v1", "ControllerRevision", data(2, data(1, b"k8s\0x"))), "no JSON"),
        (envelope("apps/v1", "ControllerRevision", data(2, data(1, b'{"a":1,"a":2}'))), "no JSON"),
        (envelope("apps/v1", "ControllerRevision", data(2, data(1, b"[" * 5000))), "JSON|deep"),
        (envelope("v1", "Pod", data(1, data(14, b"") * MAX_VALUES)), "more than 50,000 values"),
        (envelope("v1", "ConfigMap", data(3, data(2, bytes(MAX_BODY_BYTES * 4 // 5)))), "as JSON"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
def test_what_is_not_understood_is_not_read(raw: bytes, why: str) -> None:
    with pytest.raises(Unread, match=why):
        to_json(raw)


def test_what_a_later_version_writes_without_a_value_is_left_out() -> None:
    later = data(99, b"") + varint(98 << 3 | VARINT) + varint(0)
    assert json.loads(to_json(envelope("v1", "Pod", META + later)))["metadata"] == {"name": "p"}
    with pytest.raises(Unread, match="field 98"):
        to_json(envelope("v1", "Pod", META + varint(98 << 3 | VARINT) + varint(1)))


def test_deletions_say_how_in_the_version_of_what_they_delete() -> None:
    options = {"apiVersion": "apps/v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"}
    assert json.loads(to_json(encoded(options))) == options


@given(st.binary(max_size=300))
def test_any_bytes_are_an_object_or_not_read(raw: bytes) -> None:
    for one in (raw, PREFIX + raw, envelope("v1", "Pod", raw), envelope("apps/v1", "Deployment", data(2, raw))):
        try:
            assert isinstance(json.loads(to_json(one)), dict)
        except Unread as error:
            assert str(error)


@given(st.data())
def test_an_object_with_another_byte_is_an_object_or_not_read(draw: st.DataObject) -> None:
    raw = bytearray(encoded(POD))
    for _ in range(draw.draw(st.integers(1, 4))):
        raw[draw.draw(st.integers(4, len(raw) - 1))] = draw.draw(st.integers(0, 255))
    try:
        assert isinstance(json.loads(to_json(bytes(raw))), dict)
    except Unread as error:
        assert str(error)


def objects(kind: str, depth: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    """JSON of a message, a few of its fields at a time."""
    fields = [one for one in schema().messages[kind] if depth < 3 or "." not in one[2]]
    return st.lists(st.sampled_from(fields or [None]), max_size=4, unique_by=str).flatmap(
        lambda chosen: st.fixed_dictionaries(
            {name: values(type_, label, depth) for _, name, type_, label in filter(None, chosen) if label != "inline"}
        )
    )


def values(type_: str, label: str, depth: int) -> st.SearchStrategy[Any]:
    """Values of a field that a reader cannot take for none."""
    match type_:
        case "bool":
            one: st.SearchStrategy[Any] = st.just(value=True)
        case "int32":
            one = st.integers(-(2**31), -1) | st.integers(1, 2**31 - 1)
        case "int64":
            one = st.integers(-(2**63), -1) | st.integers(1, 2**63 - 1)
        case "string":
            one = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
        case "bytes":
            one = st.sampled_from(["AA==", "aGk="])
        case "Quantity":
            one = st.sampled_from(["1", "500m", "2Gi"])
        case "Raw":
            one = st.sampled_from([{}, {"a": [1, None, "b"]}])
        case "Strings":
            one = st.lists(st.text(st.characters(codec="utf-8"), max_size=4), min_size=1, max_size=2)
        case "IntOrString":
            one = st.integers(0, 65535) | st.sampled_from(["http", "25%"])
        case "Time":
            one = st.sampled_from(["2026-01-02T03:04:05Z", "1969-12-31T23:59:59Z"])
        case "MicroTime":
            one = st.sampled_from(["2026-01-02T03:04:05.000006Z"])
        case _:
            one = objects(type_, depth + 1).filter(bool)
    if label == "list":
        return st.lists(one, min_size=1, max_size=2)
    return st.dictionaries(st.text("abc", max_size=3), one, min_size=1, max_size=2) if label == "map" else one


KINDS = [(version, kind) for version, kinds in schema().kinds.items() if version != "meta/v1" for kind in kinds]


@settings(max_examples=25)  # they are long
@given(st.sampled_from(KINDS).flatmap(lambda one: st.tuples(st.just(one), objects(schema().kinds[one[0]][one[1]]))))
def test_what_is_written_in_protobuf_is_read_the_same(one: tuple[tuple[str, str], dict[str, Any]]) -> None:
    (version, kind), content = one
    raw = envelope(version, kind, message(schema().kinds[version][kind], content))
    assert json.loads(to_json(raw)) == {"kind": kind, "apiVersion": version} | content
