"""Notifications at a real HTTP server: what is sent, how it is signed, and that a bad receiver holds up nothing."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from fix_approvals import TEXT, request

from chaperone_operator.approval import Request, read
from chaperone_operator.broker.notify import MAX_QUEUE, MAX_TRIES, Format, Notifier, Receiver

KEY = b"canary-shared-key"
TIMEOUT_S = 20.0


@dataclass
class Hook:
    """A receiver; answers with `statuses`, then 200."""

    folder: Path
    url: str = ""
    statuses: list[int] = field(default_factory=list)
    got: list[tuple[bytes, dict[str, str]]] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, call: web.Request) -> web.Response:
        self.got.append((await call.read(), dict(call.headers)))
        status = self.statuses.pop(0) if self.statuses else 200
        where = {"Location": f"{self.url}/elsewhere"} if status in {301, 302, 307} else None
        return web.Response(status=status, headers=where)

    def count(self, result: str) -> None:
        self.results.append(result)
        self._arrived.set()

    async def result(self, number: int = 1) -> list[str]:
        """The results, once there are so many."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.results) < number:
                self._arrived.clear()
                await self._arrived.wait()
        return self.results

    @contextlib.asynccontextmanager
    async def told(self, how: Format = "JSON", *, has_text: bool = False) -> AsyncIterator[Callable[[Request], None]]:
        """What tells it."""
        notifier = Notifier(Receiver(self.folder, how, has_text), self.count, first_pause_s=0.01)
        running = asyncio.create_task(notifier.run())
        try:
            yield notifier.tell
        finally:
            running.cancel()


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Hook]:
    held = Hook(tmp_path)
    app = web.Application()
    app.router.add_post("/{tail:.*}", held.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    held.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    (tmp_path / "url").write_text(f"{held.url}/hook-secret\n")
    (tmp_path / "key").write_bytes(KEY + b"\n")
    yield held
    await runner.cleanup()


def asked(state: str = "Pending", **spec: Any) -> Request:
    item = request("apr-1", **spec)
    item["metadata"] |= {
        "namespace": "agents", "uid": "u", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return read(item | {"status": {"state": state, "votes": []}})


async def test_event_is_signed_over_time_and_body(hook: Hook) -> None:
    async with hook.told() as tell:
        tell(asked())
        assert await hook.result() == ["sent"]
    [(body, headers)] = hook.got
    signed = headers["Chaperone-Timestamp"].encode() + b"." + body
    assert headers["Chaperone-Signature"] == "v1=" + hmac.new(KEY, signed, hashlib.sha256).hexdigest()
    event = json.loads(body)
    assert (event["event"], event["namespace"], event["name"]) == ("approval.pending", "agents", "apr-1")
    assert (event["identity"], event["target"], event["effects"]) == ("billing-agent", "orders-db", ["modify"])
    assert (event["approvals"], event["needed"], event["groups"]) == (0, 1, ["billing-leads"])


@pytest.mark.parametrize("how", ["JSON", "Slack"])
async def test_text_of_the_command_is_sent_only_where_that_is_wanted(hook: Hook, how: Format) -> None:
    for has_text in (False, True):
        async with hook.told(how, has_text=has_text) as tell:
            tell(asked("Approved"))
            await hook.result(1 + has_text)
        assert (TEXT.encode() in hook.got[-1][0]) == has_text


async def test_slack_gets_blocks_in_which_nothing_of_the_agents_is_obeyed(hook: Hook) -> None:
    (hook.folder / "key").unlink()
    async with hook.told("Slack", has_text=True) as tell:
        tell(asked(text="<!channel> & ```<https://evil.example|click>" + "x" * 10_000))
        assert await hook.result() == ["sent"]
    body, headers = hook.got[0]
    assert "Chaperone-Signature" not in headers
    message = json.loads(body)
    assert message["text"].startswith("*Pending*: billing-agent wants modify at orders-db")
    told = message["blocks"][0]["text"]["text"]
    assert len(told) <= 3000
    assert "kubectl chaperone approve apr-1 -n agents" in told
    assert "&lt;!channel&gt; &amp; '''&lt;https" in told
    assert told.count("```") == 2


async def test_what_is_not_taken_is_sent_again_under_the_same_delivery(hook: Hook) -> None:
    hook.statuses = [500, 429, 503]
    async with hook.told() as tell:
        tell(asked())
        assert await hook.result() == ["sent"]
    assert len(hook.got) == 4
    assert len({headers["Chaperone-Delivery"] for _, headers in hook.got}) == 1


@pytest.mark.parametrize(("status", "tries"), [(500, MAX_TRIES), (404, 1), (307, 1)])
async def test_receiver_that_refuses_is_given_up(
    hook: Hook, status: int, tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    hook.statuses = [status] * MAX_TRIES
    async with hook.told() as tell:
        tell(asked())
        assert await hook.result() == ["failed"]
        tell(asked())
        hook.statuses = []
        assert await hook.result(2) == ["failed", "sent"]
    assert len(hook.got) == tries + 1
    assert "hook-secret" not in caplog.text
    assert KEY.decode() not in caplog.text


async def test_receiver_that_is_gone_or_not_configured_is_given_up(hook: Hook) -> None:
    for content in ("http://127.0.0.1:1/", "no url", ""):
        (hook.folder / "url").write_text(content)
        async with hook.told() as tell:
            tell(asked())
            assert (await hook.result(len(hook.results) + 1))[-1] == "failed"
    (hook.folder / "url").write_text(hook.url)
    (hook.folder / "key").unlink()
    async with hook.told() as tell:
        tell(asked())  # without a key there is no signature, and unsigned nothing is sent
        assert (await hook.result(4))[-1] == "failed"
    assert hook.got == []


async def test_telling_never_waits_and_what_does_not_fit_is_counted(hook: Hook) -> None:
    notifier = Notifier(Receiver(hook.folder), hook.count)
    for _ in range(MAX_QUEUE + 3):
        notifier.tell(asked())
    assert hook.results == ["dropped"] * 3
