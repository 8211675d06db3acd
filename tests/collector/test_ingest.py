"""The gateways' side over real mTLS, against a real collector process."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

import aiohttp
import msgspec
import pytest
from fix_collector import Collector, Sender, entries
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import entry

on_both_stores = pytest.mark.parametrize("collector", ["directory", "server"], indirect=True)


def _worked(pod: Pod, commands: int = 3) -> Stream:
    stream = Stream(pod)
    stream.head()
    session = stream.open_session()
    for number in range(commands):
        stream.conclude(session, stream.intend(session, f"SELECT {number}"))
    stream.head()
    return stream


@on_both_stores
async def test_records_are_acknowledged_and_stored_byte_by_byte(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    frames = b"".join(stream.frames)
    async with Sender(collector, pod) as sender:
        assert await sender.acked(stream.id) == -1
        answer = await sender.ship(stream)
        assert answer["acked"] == stream.chain.count - 1
        assert answer["credit"] > 0
        assert await sender.acked(stream.id) == stream.chain.count - 1
    stored = [row[0] for row in collector.rows("SELECT bytes FROM entry ORDER BY idx")]
    assert stored == entries(frames)
    assert collector.rows("SELECT commands, denied FROM session") == [(3, 0)]
    assert collector.rows("SELECT count(*) FROM outcome") == [(3,)]
    assert collector.rows("SELECT * FROM finding") == []


@on_both_stores
async def test_a_range_sent_again_changes_nothing(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    frames = list(stream.frames)
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
        for first in (0, 2, len(frames) - 1):
            status, answer = await sender.post(stream.id, first, b"".join(frames[first:]))
            assert (status, answer["acked"]) == (200, len(frames) - 1)
        stream.head("idle")
        status, answer = await sender.post(stream.id, 4, b"".join([*frames[4:], *stream.frames]))
        assert (status, answer["acked"]) == (200, len(frames))
    assert collector.rows("SELECT count(*) FROM entry") == [(len(frames) + 1,)]


@on_both_stores
async def test_a_range_sent_again_with_another_byte_is_a_fork(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    frames = list(stream.frames)
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
        forged = bytearray(b"".join(frames[3:5]))
        forged[40] ^= 1
        status, answer = await sender.post(stream.id, 3, bytes(forged))
        assert (status, answer["acked"]) == (409, len(frames) - 1)
    assert collector.rows("SELECT reason, seq, bytes FROM quarantine") == [("fork", 3, bytes(forged))]


async def test_a_gap_is_refused_with_what_is_stored(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    frames = list(stream.frames)
    async with Sender(collector, pod) as sender:
        status, answer = await sender.post(stream.id, 0, b"".join(frames[:2]))
        assert status == 200
        status, answer = await sender.post(stream.id, 3, b"".join(frames[3:]))
        assert (status, answer["acked"]) == (409, 1)
        status, answer = await sender.post(stream.id, 2, b"".join(frames[2:]))
        assert (status, answer["acked"]) == (200, len(frames) - 1)


@on_both_stores
async def test_a_broken_link_stores_nothing_of_the_batch_and_is_quarantined(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    frames = list(stream.frames)
    without_one = b"".join(frames[:4] + frames[5:])
    async with Sender(collector, pod) as sender:
        status, answer = await sender.post(stream.id, 0, without_one)
        assert (status, answer["acked"]) == (409, -1)
        for _ in range(3):  # the same bytes again are kept once
            await sender.post(stream.id, 0, without_one)
        assert await sender.acked(stream.id) == -1
        await sender.ship(stream)
        async with sender.http.get(f"{collector.metrics}/metrics") as answer_metrics:
            text = await answer_metrics.text()
    assert 'chaperone_collector_chain_breaks_total{reason="link"} 4.0' in text
    assert collector.rows("SELECT reason, pod_uid FROM quarantine") == [("link", pod.pod_uid)]


async def test_a_head_signed_by_another_key_is_refused(collector: Collector, gateway_ca: Authority) -> None:
    pod, thief = Pod(gateway_ca), Pod(gateway_ca)
    stream = Stream(pod)
    stream.head(signer=thief.signer)
    async with Sender(collector, pod) as sender:
        status, answer = await sender.post(stream.id, *stream.take())
        assert (status, answer["acked"]) == (409, -1)
        assert "head" in answer["detail"]


async def test_nothing_comes_after_the_signed_end(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    stream.close()
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
        stream.open_session()
        status, answer = await sender.post(stream.id, *stream.take())
        assert status == 409
        assert "signed end" in answer["detail"]


@pytest.mark.parametrize(
    "other", [{"pod_uid": "another-uid"}, {"namespace": "elsewhere"}, {"identity": "admin-agent"}, {"pod": "other-0"}]
)
async def test_a_stream_of_another_pod_namespace_or_identity_is_refused(
    collector: Collector, gateway_ca: Authority, other: dict[str, str]
) -> None:
    pod, victim = Pod(gateway_ca), Pod(gateway_ca, **other)
    stream = Stream(victim)
    async with Sender(collector, pod) as sender:
        status, _ = await sender.post(stream.id, *stream.take())
        assert status == 409
        assert await sender.acked(stream.id) == -1


async def test_a_stream_open_that_its_certificate_does_not_bind_is_refused(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod, other = Pod(gateway_ca), Pod(gateway_ca)
    probe = Stream(pod)
    foreign = Pod(Authority("not the gateway CA"))
    for change in (
        {"vkey": other.signer.verifier.vkey},
        {"owner": "someone", "namespace": "kube-system"},
        {"certificate": Stream(foreign).stream_open().certificate},
        {"certificate": "!!"},
    ):
        stream = Stream(pod, opened=msgspec.structs.replace(probe.stream_open(), **change))
        async with Sender(collector, pod) as sender:
            status, _ = await sender.post(stream.id, *stream.take())
            assert status == 409, change
    assert collector.rows("SELECT count(*) FROM stream") == [(0,)]


async def test_another_pod_can_neither_continue_nor_see_a_stream(collector: Collector, gateway_ca: Authority) -> None:
    pod, other = Pod(gateway_ca), Pod(gateway_ca, pod_uid="another-uid")
    stream = _worked(pod)
    async with Sender(collector, pod) as sender:
        await sender.ship(stream)
    stream.head()
    async with Sender(collector, other) as sender:
        status, _ = await sender.post(stream.id, *stream.take())
        assert status == 403
        async with sender.http.get(f"{collector.ingest}/v1/streams/{stream.id}") as answer:
            assert answer.status == 403


@on_both_stores
async def test_the_next_process_of_a_pod_ships_what_its_predecessor_left(
    collector: Collector, gateway_ca: Authority
) -> None:
    before, after = Pod(gateway_ca), Pod(gateway_ca)  # same pod, new keys and certificate
    old = _worked(before)
    new = Stream(after, previous=old)
    new.head()
    async with Sender(collector, after) as sender:
        await sender.ship(old)
        await sender.ship(new)
    assert collector.rows("SELECT superseded FROM stream WHERE name = ?", old.id) == [(1,)]
    assert collector.rows("SELECT * FROM finding") == []


async def test_two_successors_of_one_stream_are_kept_and_found(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    old = _worked(pod)
    async with Sender(collector, pod) as sender:
        await sender.ship(old)
        for _ in range(2):
            await sender.ship(Stream(pod, previous=old))
    assert collector.rows("SELECT count(*) FROM stream") == [(3,)]
    assert "fork" in collector.rows("SELECT what FROM finding")[0][0]


@on_both_stores
async def test_what_is_badly_said_is_stored_in_its_place_with_a_finding(
    collector: Collector, gateway_ca: Authority
) -> None:
    """Nothing is refused for its content after the command ran; the chain goes on through it."""
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    session = stream.open_session()
    header = b'{"not": "canonical"}'
    from chaperone_evidence.chain import next_link

    stream.chain.link = next_link(stream.chain.link, entry.CLASS_RECORD, header)
    stream.chain.count += 1
    stream.frames.append(entry.frame(bytes((1, entry.CLASS_RECORD)) + stream.chain.link + header))
    intent = stream.intend(session)
    stream.conclude(session, intent)
    stream.conclude(session, intent)  # a second outcome
    stream.conclude(session, (0, "no command"))
    stream.intend("01jd0000000000000000000000", "SELECT 'no session'")
    stream.close_session(session, commands=7)
    stream.head()
    async with Sender(collector, pod) as sender:
        answer = await sender.ship(stream)
        assert answer["acked"] == stream.chain.count - 1
    findings = dict(collector.rows("SELECT seq, what FROM finding"))
    assert set(findings) == {2, 5, 6, 7, 8}
    assert "canonical" in findings[2] or "JSON" in findings[2]
    assert "holds 1" in findings[8]


async def test_a_record_with_another_number_than_its_place_is_refused(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod = Pod(gateway_ca)
    stream = Stream(pod)
    count = stream.chain.count
    stream.chain.count = 9
    stream.open_session()
    stream.chain.count = count + 1
    async with Sender(collector, pod) as sender:
        status, answer = await sender.post(stream.id, 0, b"".join(stream.frames))
        assert status == 409
        assert "number 9" in answer["detail"]


async def test_bodies_are_idempotent_and_hashed(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    body = bytes(32) + b"SELECT 1"
    commit = entry.body_commit(body)
    async with Sender(collector, pod) as sender:
        assert await sender.put(commit, body) == 204
        assert await sender.put(commit, body) == 204
        assert await sender.put(commit, body + b" ") == 400
        assert await sender.put(b"\x00" * 32, body) == 400
    assert collector.rows("SELECT hash, bytes FROM body") == [(commit, body)]


async def test_many_bodies_go_at_once(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod, 20)
    frames = b"".join(entry.body_frame(body[:32], body[32:]) for body in stream.bodies.values())
    async with Sender(collector, pod) as sender:
        for data, status in ((frames, 204), (frames, 204), (frames[:-1], 400), (bytes((2 << 20) + 1), 413)):
            async with sender.http.post(f"{collector.ingest}/v1/bodies", data=data) as answer:
                assert answer.status == status
    assert dict(collector.rows("SELECT hash, bytes FROM body")) == stream.bodies


@on_both_stores
async def test_a_body_that_a_record_names_no_longer_counts_as_waiting(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    async with Sender(collector, pod) as sender:
        for commit, body in stream.bodies.items():
            assert await sender.put(commit, body) == 204
        assert collector.rows("SELECT count(*) FROM unnamed") == [(3,)]
        await sender.ship(stream)
    assert collector.rows("SELECT count(*) FROM unnamed") == [(0,)]


async def test_caps_on_batches_bodies_and_names(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod)
    async with Sender(collector, pod) as sender:
        status, _ = await sender.post(stream.id, 0, bytes((1 << 20) + 1))
        assert status == 413
        status, _ = await sender.post(stream.id, 0, b"\x00\x05abc")  # a frame that is cut
        assert status == 400
        status, _ = await sender.post("NOT-A-ULID-NOT-A-ULID-1234", 0, b"")
        assert status == 400
        assert await sender.put(b"\x01" * 32, bytes(entry.MAX_BODY_BYTES + 1)) == 413
        async with sender.http.post(f"{collector.ingest}/v1/streams/{stream.id}/records?from=-1", data=b"x") as answer:
            assert answer.status == 400
            assert answer.content_type == "application/problem+json"

        async def unsized() -> object:
            yield b"x"

        url = f"{collector.ingest}/v1/streams/{stream.id}/records?from=0"
        async with sender.http.post(url, data=unsized()) as answer:
            assert answer.status == 411


async def test_without_a_certificate_of_the_gateway_ca_nothing_is_heard(
    collector: Collector, gateway_ca: Authority
) -> None:
    stranger = Pod(Authority("another CA"))
    server = gateway_ca.server_pair("localhost")
    del server
    bare = ssl.create_default_context(cadata=collector.service_ca.pem)
    bare.verify_flags &= ~ssl.VERIFY_X509_STRICT
    for context in (bare, stranger.client_tls(collector.service_ca.pem)):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http:
            with pytest.raises((aiohttp.ClientError, ConnectionError)):
                await http.get(f"{collector.ingest}/v1/streams/01jd0000000000000000000000")


async def test_streams_at_once_share_commits_and_lose_nothing(collector: Collector, gateway_ca: Authority) -> None:
    async def one(number: int) -> int:
        pod = Pod(gateway_ca, pod_uid=f"uid-{number}")
        stream = Stream(pod)
        session = stream.open_session()
        async with Sender(collector, pod) as sender:
            for _ in range(10):
                stream.conclude(session, stream.intend(session))
                stream.head()
                await sender.ship(stream)
        return stream.chain.count

    counts = await asyncio.gather(*(one(number) for number in range(8)))
    assert collector.rows("SELECT count(*), max(idx) + 1 FROM entry") == [(sum(counts), sum(counts))]


@on_both_stores
async def test_two_requests_for_one_stream_at_once_store_it_once(collector: Collector, gateway_ca: Authority) -> None:
    pod = Pod(gateway_ca)
    stream = _worked(pod, 50)
    first, data = stream.take()
    async with Sender(collector, pod) as sender:
        answers = await asyncio.gather(*(sender.post(stream.id, first, data) for _ in range(4)))
    assert [status for status, _ in answers] == [200] * 4
    assert collector.rows("SELECT count(*) FROM entry") == [(stream.chain.count,)]


async def test_a_renewed_server_certificate_is_served_without_a_restart(
    collector: Collector, gateway_ca: Authority
) -> None:
    pod = Pod(gateway_ca)
    old = collector.service_ca
    collector.service_ca = Authority("next service CA")
    collector.write_pair()
    async with asyncio.timeout(30):
        while True:
            try:
                async with Sender(collector, pod) as sender:
                    assert await sender.acked(Stream(pod).id) == -1
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.2)  # the collector looks every few seconds
    collector.service_ca = old
    async with Sender(collector, pod) as sender:
        with pytest.raises(aiohttp.ClientConnectorError):
            await sender.acked(Stream(pod).id)


async def test_a_gateway_ca_that_was_taken_away_ends_open_connections_too(
    collector_with: Callable[..., Collector], gateway_ca: Authority
) -> None:
    collector = collector_with()
    pod = Pod(gateway_ca)
    async with Sender(collector, pod) as sender:
        stream = Stream(pod)
        await sender.ship(stream)
        (collector.folder / "gateway-ca.crt").write_text(Authority("next gateway CA").pem)
        url = f"{collector.ingest}/v1/streams/{stream.id}"
        async with asyncio.timeout(30):
            while True:
                try:
                    async with sender.http.get(url) as answer:
                        if answer.status == 401:
                            break
                except aiohttp.ClientError:
                    break  # the connection was closed and the new one is refused in the handshake
                await asyncio.sleep(0.2)
