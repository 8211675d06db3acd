"""Records as OCSF events: valid by the published schemas, whatever records hold, and provable by themselves."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any

import msgspec
import pytest
from gateway_stream import Pod, Stream
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_schema import check, objects
from pki import Authority

from chaperone_evidence import canonical, chain, entry, merkle, record
from chaperone_evidence.errors import Malformed
from chaperone_evidence.ocsf import VERSION, Records, place_of
from chaperone_evidence.ocsf.objects import of_command, of_session
from chaperone_evidence.traceparent import parse

INTEGERS = st.integers(-canonical.MAX_INTEGER, canonical.MAX_INTEGER)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WORDS = {
    "decision": ["Allow", "Deny", "RequireApproval"], "status": ["ok", "error", "refused", "aborted"],
    "protocol": ["PostgreSQL", "SSH", "HTTP"], "state": ["Suspended", "Resumed", "Used"], "session": ["s1", "s2"],
    "client": ["10.1.2.3:99", "[::1]:5432", "[::ffff:10.0.0.1]:1", "10.1.2.3:99999"],
    "address": ["10.0.0.1", "fe80::1%1"],
    "name": ["example.com", "example.com.", "_x._tcp.example.com"], "qtype": ["A"],
    "application": ["psql", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
}  # fmt: skip
EFFECTS = [
    "read", "read_sensitive", "create", "modify", "delete", "bulk_read", "bulk_write", "schema", "destroy", "privilege",
    "execute_code", "external_io", "tunnel", "session", "transaction", "maintain", "unknown",
]  # fmt: skip
TRACE = parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")


def values(name: str, annotation: Any) -> st.SearchStrategy[Any]:
    """What a record's field may hold: any value of its type, and those that have a meaning."""
    if name == "accesses":
        access = st.builds(record.AccessEntry, st.sampled_from(EFFECTS) | TEXTS, TEXTS, TEXTS)
        return st.lists(access, max_size=4).map(tuple)
    if name in ("body", "params"):
        return st.just(msgspec.UNSET) | st.builds(record.Commitment, TEXTS, INTEGERS)
    if name == "delegated":
        return st.just(msgspec.UNSET) | st.builds(record.Delegated, TEXTS, TEXTS, TEXTS)
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return st.sampled_from(WORDS[name]) | TEXTS if name in WORDS else TEXTS
    return st.integers(0, 3) if name == "ref" else INTEGERS


def records_of(kind: type[record.Record]) -> st.SearchStrategy[record.Record]:
    fields = msgspec.structs.fields(kind)
    return st.fixed_dictionaries({field.name: values(field.name, field.type) for field in fields}).map(
        lambda said: kind(**said)
    )


KINDS = record.Known.__value__.__args__
RECORDS = st.one_of([records_of(kind) for kind in KINDS])


def events(found: list[record.Known | record.Unknown], headers: list[bytes]) -> list[dict[str, Any]]:
    made, link, reader = [], chain.first_link("0" * 26), Records()
    for seq, (one, header) in enumerate(zip(found, headers, strict=True)):
        before, link = link, chain.next_link(link, entry.CLASS_RECORD, header)
        data = bytes((entry.VERSION, entry.CLASS_RECORD)) + link + header
        trace = TRACE if isinstance(one, record.CommandIntent) and seq % 2 else None
        made.append(reader.event(one, place_of("0" * 26, seq, before, data), trace))
    return made


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_record_is_a_valid_event(kind: type[record.Record]) -> None:
    @settings(deadline=None, max_examples=40)  # the first event of a class compiles its schema
    @given(records_of(kind))
    def holds(found: Any) -> None:
        for event in events([found], [canonical.encode(found)]):
            check(event)

    holds()


@settings(deadline=None, max_examples=40)
@given(st.lists(RECORDS, max_size=12))
def test_records_that_refer_to_each_other_are_valid_events(found: list[Any]) -> None:
    numbered = [msgspec.structs.replace(one, seq=seq) for seq, one in enumerate(found)]
    made = events(numbered, [canonical.encode(one) for one in numbered])
    for event in made:
        check(event)
    assert len({event["metadata"]["uid"] for event in made}) == len(found)


MOMENTS = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat().replace("+00:00", "Z"))
PLACE = {"stream": TEXTS, "seq": INTEGERS, "identity": TEXTS, "target": TEXTS, "session": TEXTS, "protocol": TEXTS}
METADATA = st.fixed_dictionaries({
    "namespace": TEXTS, "name": TEXTS,
    "labels": st.fixed_dictionaries({}, optional={"chaperone.dev/protocol": st.sampled_from(WORDS["protocol"])}),
})  # fmt: skip
COMMANDS = st.fixed_dictionaries({
    "metadata": METADATA,
    "spec": st.fixed_dictionaries(PLACE, optional={
        "kind": TEXTS, "decision": st.sampled_from(WORDS["decision"]), "policy": TEXTS, "rule": TEXTS,
        "revision": TEXTS, "effects": st.lists(st.sampled_from(EFFECTS)), "objects": st.lists(TEXTS),
        "sizeBytes": INTEGERS,
        "command": TEXTS | st.just(f"SELECT 1 /*traceparent='{TRACE.header if TRACE else ''}'*/"),
    }),
    "status": st.fixed_dictionaries(
        {"status": st.sampled_from(["Pending", "Refused", "Ok", "Error", "Aborted", "Unknown"]), "decidedAt": MOMENTS},
        optional={"code": TEXTS, "rows": INTEGERS, "bytes": INTEGERS, "durationMicroseconds": INTEGERS},
    ),
})  # fmt: skip
SESSIONS = st.fixed_dictionaries({
    "metadata": METADATA,
    "spec": st.fixed_dictionaries(PLACE, optional={
        "owner": TEXTS, "pod": TEXTS, "podUID": TEXTS, "user": TEXTS, "database": TEXTS,
        "application": st.sampled_from(WORDS["application"]), "client": st.sampled_from(WORDS["client"]) | TEXTS,
        "delegated": st.dictionaries(st.sampled_from(["issuer", "subject", "email"]), TEXTS),
    }),
    "status": st.fixed_dictionaries({"startedAt": MOMENTS}, optional={
        "endedAt": MOMENTS, "reason": TEXTS, "commands": INTEGERS, "bytesIn": INTEGERS,
    }),
})  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(COMMANDS)
def test_commands_of_the_api_are_valid_events(value: dict[str, Any]) -> None:
    said = of_command(value)
    check(said.event)
    assert said.uid == said.event["metadata"]["uid"]
    assert (said.trace == TRACE) == ("traceparent" in value["spec"].get("command", ""))


@settings(deadline=None, max_examples=40)
@given(SESSIONS)
def test_sessions_of_the_api_are_valid_events(value: dict[str, Any]) -> None:
    began, ended = of_session(value)
    check(began.event)
    assert (ended is not None) == ("endedAt" in value["status"])
    if ended is not None:
        check(ended.event)
        assert ended.uid != began.uid


@pytest.mark.parametrize("value", [{}, {"metadata": {}, "spec": {}, "status": {}}, {"spec": None}])
def test_what_is_no_object_of_the_api_is_refused(value: dict[str, Any]) -> None:
    for read in (of_command, of_session):
        with pytest.raises(Malformed):
            read(value)


def test_a_record_of_a_later_version_is_a_base_event_with_its_bytes() -> None:
    header = canonical.encode({"type": "tunnel.open", "seq": 0, "wall_us": 1_700_000_000_123_456, "mono_us": 2})
    found = record.decode(header)
    assert isinstance(found, record.Unknown)
    (event,) = events([found], [header])
    check(event)
    assert (event["class_uid"], event["activity_name"], event["time"]) == (0, "tunnel.open", 1_700_000_000_123)
    assert event["raw_data"].encode() == header


def recorded(stream: Stream) -> list[dict[str, Any]]:
    reader, made, link = Records(), [], chain.first_link(stream.id)
    for seq, data in enumerate(entry.frames(b"".join(stream.frames))):
        cls, following, header = entry.split(data)
        if cls == entry.CLASS_RECORD:
            made.append(reader.event(record.decode(header), place_of(stream.id, seq, link, data)))
        link = following
    return made


def written() -> Stream:
    stream = Stream(Pod(Authority("gateway CA")))
    session = stream.open_session(delegated=record.Delegated("https://idp.example", "user-1", "u@example.com"))
    stream.conclude(session, stream.intend(session), rows=7)
    stream.head()
    stream.intend(session, "DROP TABLE orders", decision="Deny", rule="never")
    stream.close_session(session, 2, 1)
    stream.close()
    return stream


def test_an_event_proves_its_own_record_and_its_place() -> None:
    stream = written()
    entries = list(entry.frames(b"".join(stream.frames)))
    for event in recorded(stream):
        check(event)
        seq = event["metadata"]["sequence"]
        (attestation,) = event["attestation_list"]
        before = (
            attestation.get("prev_event", {}).get("fingerprint", {}).get("value", chain.first_link(stream.id).hex())
        )
        link = chain.next_link(bytes.fromhex(before), entry.CLASS_RECORD, event["raw_data"].encode())
        assert attestation["fingerprint"]["value"] == link.hex()
        assert attestation["authority_uid"] == stream.pod.signer.verifier.vkey
        assert event["unmapped"]["leaf_hash"] == merkle.leaf_hash(entries[seq]).hex()


def test_what_an_event_says_of_a_command() -> None:
    made = recorded(written())
    opened, intent, outcome, refused, closed = made[1:6]
    assert [event["type_uid"] for event in made] == [600203, 300201, 600501, 600501, 600501, 300202, 600204]
    assert all(event["metadata"]["version"] == VERSION == "1.9.0" for event in made)
    assert all(event["ai_agent"]["name"] == "billing-agent" for event in made)
    assert opened["src_endpoint"]["owner"] == {"name": "billing@example.com"}
    assert opened["unmapped"]["delegated"]["subject"] == "user-1"
    assert (intent["action_id"], "status_id" in intent) == (1, False)
    assert (outcome["status_id"], outcome["unmapped"]["rows"], outcome["policy"]["name"]) == (1, 7, "agents/billing")
    assert (refused["action_id"], refused["disposition_id"], refused["status_id"]) == (2, 2, 2)
    assert (closed["unmapped"]["commands"], closed["unmapped"]["denied"]) == (2, 1)
    assert "DROP TABLE" not in json.dumps(made)
    assert len(str(intent["time"])) == 13


@pytest.mark.parametrize(
    "broken",
    [
        {"class_uid": 6003}, {"activity_id": 42}, {"invented": 1}, {"time": "now"}, {"actor": {}},
        {"ai_agent": {"owner": "x"}}, {"attestation_list": [{"uid": "x"}]}, {"database": None},
        {"src_endpoint": {"port": 1}}, {"activity_name": "Erase"},
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_no_event(broken: dict[str, Any]) -> None:
    event = {name: value for name, value in (recorded(written())[2] | broken).items() if value is not None}
    with pytest.raises(AssertionError):
        check(event)


def test_the_objects_are_those_that_are_new_in_the_version() -> None:
    assert {"ai_agent", "attestation", "prev_event"} <= set(objects())
