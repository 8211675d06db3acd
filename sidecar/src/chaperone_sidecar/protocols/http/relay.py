"""A target's answer on its way to the client: decoded, masked, freed of the credential, counted, recorded, then told.

What is masked is read as a whole, events and lines one by one as they come; the rest passes as it comes. What the
client gets is in the spool before it is sent, and the outcome before the end of the answer is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

from chaperone_sidecar.command import Command
from chaperone_sidecar.conduct import Conduct
from chaperone_sidecar.decision import Decision
from chaperone_sidecar.effects import Ask, Conclude, Intent
from chaperone_sidecar.errors import LimitReached, Unmaskable
from chaperone_sidecar.protocols.http import classify, codec, grpc
from chaperone_sidecar.protocols.http.classify import Asked
from chaperone_sidecar.protocols.http.dialect import Dialect
from chaperone_sidecar.protocols.http.exchange import Exchange
from chaperone_sidecar.protocols.http.mask import (
    MAX_ANSWER_BYTES,
    Cutter,
    Decoder,
    Form,
    Redactor,
    Units,
    data_of,
    event_of,
    masked,
)
from chaperone_sidecar.protocols.http.messages import AnswerHead, Fields, value
from chaperone_sidecar.protocols.http.upstream import Connection

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

# Other ways to the target, past the gateway; and what is said of bytes that the client does not get.
_DROPPED: Final = classify.FRAMING | {"alt-svc"}
_CHANGED: Final = frozenset({"content-digest", "digest", "content-md5", "accept-ranges"})
_ERROR_STATUS: Final = 400
MAX_CODE_CHARACTERS: Final = 16


class Relay:
    """One request's answer.

    Args:
        exchange: with the client.
        asked: the request.
        conduct: of the session.
        intent: the command's.
        masker: of the target; None where nothing is masked.
        redactor: takes the credential out.
        dialect: what travels in HTTP here.
    """

    def __init__(
        self, exchange: Exchange, asked: Asked, conduct: Conduct, intent: Intent, masker: Masker | None,
        redactor: Redactor, dialect: Dialect,
    ) -> None:  # fmt: skip
        self._exchange = exchange
        self._asked = asked
        self._conduct = conduct
        self._intent = intent
        self._masker = masker
        self._redactor = redactor
        self._dialect = dialect
        self._results = conduct.new_results()
        self._size_bytes = 0
        self._is_concluded = False
        self._messages = grpc.Messages() if asked.is_grpc else None

    async def run(self, answer: AnswerHead, connection: Connection) -> None:
        """Give the answer.

        Raises:
            UpstreamUnavailable, ProtocolError, Unmaskable, LimitReached, SpoolFull: not, or not the whole of it.
        """
        has_body = not (self._asked.method == "HEAD" or answer.status in codec.WITHOUT_BODY or answer.size_bytes == 0)
        coding = value(answer.fields, "content-encoding").strip().lower()
        is_decoded = has_body and coding not in ("", "identity") and not self._is_idle
        fields = self._fields(answer, is_decoded=is_decoded)
        if not has_body:
            async for _ in connection.pieces():
                pass
            size = answer.size_bytes if self._asked.method == "HEAD" and self._is_idle else None
            await self._empty(answer.status, fields, size if self._asked.method == "HEAD" else 0)
            return
        raw = connection.pieces()
        content = self._decoded(raw, coding) if is_decoded else raw
        form = Form(value(answer.fields, "content-type"))
        if self._dialect.reads_answers and form.is_stream:
            content = self._dialect.events(self._asked, self._read(content, form))
        elif self._dialect.reads_answers and form.is_json:
            content = self._read_whole(content)
        if self._masker is None or self._may_pass(form):
            size_bytes = answer.size_bytes if self._is_idle else None
            await self._pass(answer, fields, self._clean(content), size_bytes, connection)
        elif form.is_stream:
            await self._pass(answer, fields, self._clean(self._units(content, form)), None, connection)
        else:
            whole = await self._whole(content)
            shown = self._redactor.feed(masked(self._masker, form, whole)) + self._redactor.end()
            self._show_head(answer.status, fields)
            self._take(shown)
            await self._conclude(answer.status)
            await self._exchange.start(answer.status, fields, len(shown))
            await self._exchange.send(shown)
            await self._exchange.finish()

    @property
    def _is_idle(self) -> bool:
        """Whether the answer passes as it is."""
        return self._masker is None and self._redactor.is_idle and not self._dialect.reads_answers

    def _may_pass(self, form: Form) -> bool:
        if form.is_maskable:
            return False
        if self._conduct.target.masks.unmaskable == "Allow":
            return True
        raise Unmaskable(f"The target answers in the form {form.kind[:60]!r}, which cannot be masked.")

    async def _pass(
        self, answer: AnswerHead, fields: Fields, content: AsyncIterator[bytes], size_bytes: int | None,
        connection: Connection,
    ) -> None:  # fmt: skip
        self._show_head(answer.status, fields)
        await self._exchange.start(answer.status, fields, size_bytes)
        async for data in content:
            self._take(data)
            if self._size_bytes == size_bytes:  # the client sees the end by the length
                await self._conclude(answer.status)
            await self._exchange.send(data)
        trailers = self._shown(connection.trailers)
        self._show_trailers(trailers)
        await self._conclude(answer.status, trailers)
        await self._exchange.finish(trailers)

    async def _empty(self, status: int, fields: Fields, size_bytes: int | None) -> None:
        self._show_head(status, fields)
        self._flush()
        await self._conclude(status, fields)
        await self._exchange.start(status, fields, size_bytes)
        await self._exchange.finish()

    async def _whole(self, content: AsyncIterator[bytes]) -> bytes:
        parts, size = [], 0
        async for part in content:
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                raise Unmaskable(f"The answer has more than {MAX_ANSWER_BYTES >> 20} MiB, too much to be masked.")
            parts.append(part)
        return b"".join(parts)

    async def _decoded(self, content: AsyncIterator[bytes], coding: str) -> AsyncIterator[bytes]:
        decoder = Decoder(coding)
        async for part in content:
            for data in decoder.feed(part):
                yield data
        yield decoder.end()

    async def _read_whole(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        yield await self._dialect.shown(await self._whole(content), self._judge)

    async def _read(self, content: AsyncIterator[bytes], form: Form) -> AsyncIterator[bytes]:
        cutter = Cutter(form)
        async for part in content:
            for event in cutter.feed(part):
                yield await self._event(event)
        for event in cutter.end():
            yield await self._event(event)

    async def _event(self, event: bytes) -> bytes:
        others, data = data_of(event)
        if data.lstrip()[:1] not in (b"{", b"["):  # of the old transport: where to send messages
            return event
        return event_of(others, await self._dialect.shown(data, self._judge), event)

    async def _judge(self, command: Command) -> Decision:
        found = self._conduct.ask(Ask(command))
        return found if isinstance(found, Decision) else await found

    async def _units(self, content: AsyncIterator[bytes], form: Form) -> AsyncIterator[bytes]:
        assert self._masker is not None  # noqa: S101 - only what is masked is cut
        units = Units(self._masker, form)
        async for part in content:
            yield units.feed(part)
        yield units.end()

    async def _clean(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for part in content:
            is_message = self._messages is not None and self._messages.feed(part)
            data = part if self._redactor.is_idle else self._redactor.feed(part)
            if is_message:  # the client may have to see it whole before anything else comes
                data += self._redactor.end()
            if data:
                yield data
        if rest := self._redactor.end():
            yield rest

    def _fields(self, answer: AnswerHead, *, is_decoded: bool) -> Fields:
        dropped = _DROPPED | (frozenset() if self._is_idle else _CHANGED)
        dropped |= {"content-encoding"} if is_decoded else frozenset()
        named = {one.strip().lower() for one in value(answer.fields, "connection").split(",")}
        return self._shown(tuple(one for one in answer.fields if one[0].lower() not in dropped | named))

    def _shown(self, fields: Fields) -> Fields:
        """Fields or trailers as the client may see them."""
        return tuple((name, self._value(name, found)) for name, found in fields if not self._is_opaque(name))

    def _is_opaque(self, name: str) -> bool:
        """Whether the value is bytes in base64, in which nothing that is to be masked could be told."""
        is_masked = self._masker is not None and self._conduct.target.masks.unmaskable != "Allow"
        return is_masked and self._messages is not None and name.lower().endswith(grpc.BINARY)

    def _value(self, name: str, text: str) -> str:
        if self._messages is None or name.lower() != grpc.MESSAGE:
            return self._text(text)
        plain = grpc.meant(text).decode("latin-1")
        found = self._text(plain)
        return text if found == plain else grpc.told(found)

    def _text(self, text: str) -> str:
        found = self._redactor.text(text)
        if self._masker is not None:
            found = self._masker.mask_text(found.encode("latin-1")).decode("latin-1")
        return found

    def _take(self, data: bytes) -> None:
        """Count and keep what the client is about to get."""
        reached = self._conduct.meter.take(0, len(data))
        if reached is not None:
            raise LimitReached(reached)
        self._size_bytes += len(data)
        if self._results is not None:
            self._results.data(data, "copy")
            self._results.flush()

    def _show_head(self, status: int, fields: Fields) -> None:
        if self._results is None:
            return
        self._results.begin(self._intent.command_id)
        self._results.data(_text(f"{self._exchange.version} {status}", fields) + b"\n", "copy")

    def _show_trailers(self, trailers: Fields) -> None:
        if self._results is not None and trailers:
            self._results.data(_text("", trailers), "copy")
            self._results.flush()

    def _flush(self) -> None:
        if self._results is not None:
            self._results.flush()

    async def _conclude(self, status: int, trailers: Fields = ()) -> None:
        if self._is_concluded:
            return
        self._is_concluded = True
        code = "" if status < _ERROR_STATUS else str(status)
        if self._messages is not None and not code and (said := value(trailers, grpc.STATUS) or "none") != "0":
            code = f"{grpc.STATUS}:{said[:MAX_CODE_CHARACTERS]}"
        ended = Conclude(self._intent, "error" if code else "ok", code, 0, self._size_bytes)
        await self._conduct.told(self._conduct.conclude(ended))


def _text(first: str, fields: Fields) -> bytes:
    lines = [f"{name}: {classify.HIDDEN if name.lower() in classify.SECRET else found}" for name, found in fields]
    return ("\n".join([first, *lines]) + "\n").encode("latin-1")
