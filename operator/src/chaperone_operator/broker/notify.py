"""Tells people's tools about requests, by a webhook of theirs: signed JSON, or what Slack takes.

Telling never holds up an approval: events go into a bounded queue, and what does not fit or is not taken after some
tries is counted and dropped. The replica that made or moved a request tells of it, so each is told once at most.

A receiver checks `Chaperone-Signature`: `v1=` and the hex HMAC-SHA-256, under the shared key, of the value of
`Chaperone-Timestamp`, a full stop and the body; and that the timestamp is not old. `Chaperone-Delivery` is the same
for all tries of one event.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import aiohttp
import msgspec

from chaperone_operator.approval import Request

MAX_QUEUE: Final = 256  # events; a receiver that is down for long loses the rest, and the requests still stand
MAX_TRIES: Final = 5
FIRST_PAUSE_S: Final = 1.0  # doubles with each try
TIMEOUT_S: Final = 10.0
MAX_SLACK_TEXT: Final = 2500  # characters of a command; Slack's blocks take 3000
_SLACK: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})

_log = logging.getLogger(__name__)

type Format = Literal["JSON", "Slack"]
type Count = Callable[[str], None]


class Receiver(msgspec.Struct, frozen=True):
    """Where events go, and how.

    Attributes:
        folder: with the files `url` and, for signatures, `key`; read for each event, so a renewed Secret counts.
        has_text: whether the masked text of the command is sent along.
    """

    folder: Path
    format: Format = "JSON"
    has_text: bool = False


class Notifier:
    """Sends events while `run` runs.

    Args:
        receiver: where to.
        count: told `sent`, `failed` or `dropped` of each event.
        first_pause_s: before the second try.
    """

    def __init__(self, receiver: Receiver, count: Count = lambda _: None, first_pause_s: float = FIRST_PAUSE_S) -> None:
        self._receiver = receiver
        self._count = count
        self._first_pause_s = first_pause_s
        self._queue: asyncio.Queue[Request] = asyncio.Queue(MAX_QUEUE)

    def tell(self, request: Request) -> None:
        """Queue what became of a request; never waits."""
        try:
            self._queue.put_nowait(request)
        except asyncio.QueueFull:
            self._count("dropped")

    async def run(self) -> None:
        """Send until cancelled."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers={"User-Agent": "chaperone-broker"}) as session:
            while True:
                request = await self._queue.get()
                self._count("sent" if await self._sent(session, request) else "failed")

    async def _sent(self, session: aiohttp.ClientSession, request: Request) -> bool:
        """Whether the receiver took the event, after all tries."""
        body = encode(request, self._receiver)
        delivery, pause_s = secrets.token_hex(16), self._first_pause_s
        for attempt in range(MAX_TRIES):
            if attempt:
                await asyncio.sleep(pause_s)
                pause_s *= 2
            try:
                url, headers = await asyncio.to_thread(self._addressed, body)
                headers["Chaperone-Delivery"] = delivery
                # A redirect could lead anywhere, with the signature.
                async with session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                    if response.status < 300:
                        return True
                    why = f"status {response.status}"
                    if response.status < 500 and response.status not in {408, 429}:
                        break  # it will not take this one
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                why = type(error).__name__  # its text may hold the URL, and that is often the secret
        _log.warning("the receiver of notifications did not take one about %s: %s", request.metadata.name, why)
        return False

    def _addressed(self, body: bytes) -> tuple[str, dict[str, str]]:
        url = (self._receiver.folder / "url").read_text().strip()
        key_file = self._receiver.folder / "key"
        headers = {"Content-Type": "application/json"}
        if key_file.exists():
            at = str(int(time.time()))
            headers |= {"Chaperone-Timestamp": at, "Chaperone-Signature": sign(key_file.read_bytes().strip(), at, body)}
        elif self._receiver.format == "JSON":
            raise ValueError("a key is needed")
        return url, headers


def sign(key: bytes, timestamp: str, body: bytes) -> str:
    """The value of `Chaperone-Signature`."""
    return "v1=" + hmac.digest(key, timestamp.encode() + b"." + body, hashlib.sha256).hex()


def encode(request: Request, receiver: Receiver) -> bytes:
    """The body that tells of a request."""
    told = _slack(request, receiver) if receiver.format == "Slack" else _event(request, receiver)
    return msgspec.json.encode(told)


def _event(request: Request, receiver: Receiver) -> dict[str, Any]:
    spec, who, tally = request.spec, request.spec.requester, request.tally()
    told: dict[str, Any] = {
        "event": f"approval.{request.status.state.lower()}",
        "namespace": request.metadata.namespace,
        "name": request.metadata.name,
        "state": request.status.state,
        "message": request.status.message,
        "identity": who.identity,
        "pod": who.pod,
        "owner": who.owner.name,
        "session": spec.session,
        "target": spec.target,
        "effects": list(spec.effects),
        "policy": spec.policy,
        "rule": spec.rule,
        "groups": list(spec.approval.groups),
        "approvals": tally.approvals,
        "needed": tally.needed,
        "shape": spec.shape,
        "binding": spec.binding,
        "created_at": spec.created_at,
        "expires_at": spec.expires_at,
    }
    return told | ({"text": spec.text} if receiver.has_text else {})


def _slack(request: Request, receiver: Receiver) -> dict[str, Any]:
    spec, who, where = request.spec, request.spec.requester, request.metadata
    line = (
        f"*{request.status.state}*: {who.identity} wants {', '.join(spec.effects)} at {spec.target} "
        f"(rule {spec.rule}, {request.tally()} approvals, until {spec.expires_at:%H:%M:%S} UTC)"
    ).translate(_SLACK)
    command = f"kubectl chaperone approve {where.name} -n {where.namespace}".translate(_SLACK)
    parts = [line, f"`{command}`"]
    if receiver.has_text:
        text = spec.text[:MAX_SLACK_TEXT].replace("`", "'").translate(_SLACK)
        parts.append(f"```{text}```")
    told = "\n".join(parts)
    return {"text": line, "blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": told[:3000]}}]}
