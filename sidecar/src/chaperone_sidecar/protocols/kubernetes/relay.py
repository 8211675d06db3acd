"""An answer of the API server on its way to the client: masked, counted, recorded, and then told.

What is masked or counted is read as a whole, a watch and a log line by line; the rest passes as it comes. The outcome
is in the spool before the end of the answer is sent.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import web

from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.effects import Conclude, Intent
from chaperone_sidecar.errors import LimitReached, ProtocolError, Unmaskable, UpstreamUnavailable
from chaperone_sidecar.protocols.kubernetes.classify import JSON, is_secret
from chaperone_sidecar.protocols.kubernetes.mask import MAX_ANSWER_BYTES, Lines, Mask
from chaperone_sidecar.protocols.kubernetes.request import Request
from chaperone_sidecar.protocols.kubernetes.server import bounded
from chaperone_sidecar.protocols.kubernetes.upstream import Login, Upstream

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

UNAUTHORIZED: Final = 401
_TEXT: Final = frozenset({"text/plain", "application/jwk-set+json", ""})
SERVER: Final = {"Server": "chaperone"}  # what aiohttp would say names its version
_SHOWN: Final = ("Audit-Id", "Retry-After", "Warning", "Allow")


class Relay:
    """One request's answer.

    Args:
        http: the request.
        asked: the same, read.
        conduct: of the session.
        intent: the command's.
        masker: of the target; None where nothing is masked.
    """

    def __init__(
        self, http: web.BaseRequest, asked: Request, conduct: Conduct, intent: Intent, masker: Masker | None
    ) -> None:
        self._http = http
        self._asked = asked
        self._conduct = conduct
        self._intent = intent
        self._mask = Mask(masker, is_secret=is_secret(asked))
        self._rows = 0
        self._size_bytes = 0

    async def run(
        self, upstream: Upstream, headers: Mapping[str, str], body: bytes, fail: Callable[[Exception], None]
    ) -> web.StreamResponse:
        """Send the request and give the answer.

        Raises:
            UpstreamUnavailable, Unmaskable, LimitReached, SpoolFull: there is none, or not the whole of it.
        """
        login = await upstream.login()
        try:
            return await self._try(login, headers, body, fail)
        except _Unauthorized:
            upstream.refused(login)
            login = await upstream.login()
            try:
                return await self._try(login, headers, body, fail)
            except _Unauthorized:
                upstream.refused(login)
                raise UpstreamUnavailable(
                    f'Target "{upstream.target.name}" does not accept the credential that the gateway shows.'
                ) from None

    async def _try(
        self, login: Login, headers: Mapping[str, str], body: bytes, fail: Callable[[Exception], None]
    ) -> web.StreamResponse:
        asked = self._asked
        is_stream = asked.verb == "watch" or asked.subresource == "log"
        async with login.request(asked.method, asked.target, headers, body, fail, is_stream=is_stream) as answer:
            if answer.status == UNAUTHORIZED:
                raise _Unauthorized
            if 300 <= answer.status < 400:
                raise ProtocolError("The API server answers with a redirection, which is not followed.", "upstream")
            if is_stream and answer.status == web.HTTPOk.status_code:
                return await self._stream(answer)
            return await self._whole(answer)

    async def _whole(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        is_json = answer.content_type == JSON
        if not is_json and answer.content_type not in _TEXT:
            raise Unmaskable(f"The API server answers in the form {answer.content_type[:60]!r}, which is not read.")
        if self._mask.is_idle and not self._conduct.meter.counts_rows:
            return await self._pass(answer)
        raw, rows = await bounded(answer.content, MAX_ANSWER_BYTES), 0
        if raw is None:
            raise Unmaskable("The answer is too long to be masked or counted; ask for less with limit=500.")
        if raw:
            raw, rows = self._mask.json(raw) if is_json else (self._mask.text(raw), 0)
        self._take(rows, len(raw))
        self._show(raw)
        await self._conclude(answer)
        return web.Response(status=answer.status, body=raw, headers=self._headers(answer))

    async def _pass(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        """As it comes; an answer that fits into one read is sent at once."""
        response: web.StreamResponse | None = None
        last = b""
        async for part in answer.content.iter_any():
            self._take(0, len(part))
            self._show(part)
            if last:
                response = response or await self._begun(answer)
                await self._write(response, last)
            last = part
        await self._conclude(answer)
        if response is None:
            return web.Response(status=answer.status, body=last, headers=self._headers(answer))
        await response.write(last)
        await response.write_eof()
        return response

    async def _stream(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = await self._begun(answer)
        async for part in self._parts(answer):
            self._show(part)
            await self._write(response, part)
        await self._conclude(answer)
        await response.write_eof()
        return response

    async def _parts(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Pieces that may be shown: whole lines where something is masked or counted."""
        is_watch = self._asked.verb == "watch"
        if self._mask.is_idle and not (is_watch and self._conduct.meter.counts_rows):
            async for part in answer.content.iter_any():
                self._take(0, len(part))
                yield part
            return
        lines = Lines()
        async for part in answer.content.iter_any():
            found = b"".join(map(self._line, lines.feed(part)))
            if found:
                yield found
        if rest := lines.end():
            yield self._line(rest)

    def _line(self, line: bytes) -> bytes:
        if self._asked.verb == "watch":
            found = self._mask.json(line)[0].rstrip(b"\n") + b"\n" if line.strip() else line
            self._take(1, len(found))
            return found
        found = self._mask.text(line)
        self._take(0, len(found))
        return found

    async def _begun(self, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=self._headers(answer))
        await response.prepare(self._http)
        return response

    async def _write(self, response: web.StreamResponse, part: bytes) -> None:
        if self._conduct.results is not None:
            await self._conduct.shown()
        await response.write(part)

    def _take(self, rows: int, size_bytes: int) -> None:
        self._rows += rows
        self._size_bytes += size_bytes
        self._conduct.log.bytes_out += size_bytes
        reached = self._conduct.meter.take(self._rows, size_bytes)
        if reached is not None:
            raise LimitReached(reached)

    def _show(self, raw: bytes) -> None:
        """Put what the client is about to get into the spool."""
        log = self._conduct.results
        if log is not None and raw:
            log.begin(self._intent.command_id)
            log.data(raw, "copy")
            log.flush()

    async def _conclude(self, answer: aiohttp.ClientResponse) -> None:
        is_ok = answer.status < 400
        status, code = ("ok", "") if is_ok else ("error", str(answer.status))
        ended = Conclude(self._intent, status, code, self._rows, self._size_bytes)  # type: ignore[arg-type]
        await self._conduct.told(self._conduct.conclude(ended))

    def _headers(self, answer: aiohttp.ClientResponse) -> dict[str, str]:
        found = SERVER | {name: answer.headers[name] for name in _SHOWN if name in answer.headers}
        if is_secret(self._asked):
            found.pop("Warning", None)  # it may quote what was sent
        elif "Warning" in found:
            found["Warning"] = self._mask.text(found["Warning"].encode()).decode()
        found["Content-Type"] = answer.headers.get("Content-Type", JSON)
        return found


class _Unauthorized(Exception):
    """The API server does not know the token."""
