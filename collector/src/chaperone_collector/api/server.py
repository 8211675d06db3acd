"""The aggregated API's listener: who asks, may they, what is it, and the record of the read before the answer.

Order for every request about evidence: authenticate (front proxy) → authorise (SubjectAccessReview) → read → record the
read durably → answer. Tallies, checkpoints and hashes say nothing of any one command, so reads of them are not
recorded. Health needs nobody; discovery and OpenAPI need the front proxy and no storage.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from chaperone_collector.api import (
    census,
    checkpoints,
    commands,
    coverages,
    discovery,
    evidencereports,
    policyrevisions,
    populations,
    proof,
    reads,
    recording,
    render,
    revisions,
    sessions,
    tallies,
    token,
    watch,
    watches,
)
from chaperone_collector.api.authorize import Attributes, Authorizer
from chaperone_collector.api.flow import Flows
from chaperone_collector.api.frontproxy import FrontProxy, User
from chaperone_collector.api.question import (
    Page,
    Question,
    Range,
    read_flag,
    read_question,
    read_range,
)
from chaperone_collector.api.status import GROUP, VERSION, ApiError, bad_request, not_found, unavailable
from chaperone_collector.errors import CollectorError
from chaperone_collector.metrics import Metrics
from chaperone_collector.store import Store
from chaperone_evidence import canonical, receipt, statement
from chaperone_evidence.tiles import ENTRIES

log = logging.getLogger(__name__)

MAX_STREAMED: Final = 4  # bundles and recordings being sent at once: each may be gigabytes
MAX_QUERY_CHARS: Final = 2048  # of a query kept in the record of a read
MAX_GROUPS_CHARS: Final = 8192  # of the reader's groups kept there

_PREFIX: Final = f"/apis/{GROUP}/{VERSION}"
_RESOURCE: Final = re.compile(
    rf"{re.escape(_PREFIX)}(?:/namespaces/(?P<namespace>[a-z0-9](?:[-a-z0-9]{{0,61}}[a-z0-9])?))?"
    r"/(?P<resource>sessions|commands|reads|checkpoints|populations|policyrevisions|coverages|evidencereports)(?:/(?P<name>[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?)(?:/(?P<sub>[a-z]+))?)?\Z"
)
_LOG: Final = re.compile(
    rf"{re.escape(_PREFIX)}/{checkpoints.RESOURCE}/{checkpoints.LOG}/(?P<path>checkpoint|policy|tile/[a-z0-9/.]{{1,99}})\Z"
)
_CLUSTERED: Final = frozenset({checkpoints.RESOURCE, evidencereports.RESOURCE})  # they have no namespace
_COLUMNS: Final = {
    "sessions": sessions.COLUMNS, "commands": commands.COLUMNS, "reads": reads.COLUMNS,
    checkpoints.RESOURCE: checkpoints.COLUMNS, populations.RESOURCE: populations.COLUMNS,
    coverages.RESOURCE: coverages.COLUMNS, evidencereports.RESOURCE: evidencereports.COLUMNS,
    coverages.RESOURCE: coverages.COLUMNS, policyrevisions.RESOURCE: policyrevisions.COLUMNS,
}  # fmt: skip
_PARTS: Final = {  # of a session: their media types, and what their files are called
    "proof": ("application/x-tar", "tar"),
    "recording": (recording.MEDIA_TYPE, "jsonl"),
}
_CENSUS: Final = (populations.RESOURCE, populations.NEWEST, "proof")
_HEALTH: Final = ("/healthz", "/livez", "/readyz")


class Asked(msgspec.Struct, frozen=True):
    """A request about evidence, taken apart."""

    user: User
    verb: str
    question: Question
    name: str
    subresource: str


type Reader = (
    watch.Reader | checkpoints.Checkpoints | populations.Populations | policyrevisions.PolicyRevisions
    | coverages.Coverages
)  # fmt: skip


type Posted = populations.Populations | policyrevisions.PolicyRevisions


class Api:
    """Serves the API.

    Args:
        store: the log.
        front: whom to believe.
        authorizer: who may.
        is_current: whether a connection was made under the CA that is trusted now.
        key: of `continue` tokens.
        now_us: the collector's clock.
    """

    def __init__(
        self,
        *,
        store: Store,
        front: FrontProxy,
        authorizer: Authorizer,
        is_current: Callable[[ssl.SSLObject | None], bool],
        key: bytes,
        metrics: Metrics,
        now_us: Callable[[], int],
    ) -> None:
        self._store = store
        self._front = front
        self._authorizer = authorizer
        self._is_current = is_current
        self._key = key
        self._metrics = metrics
        self._now_us = now_us
        flows = Flows()
        self._watched: dict[str, watch.Reader] = {
            "sessions": sessions.Sessions(flows, now_us, store.started_us),
            "commands": commands.Commands(flows, now_us),
            "reads": reads.Reads(now_us),
            evidencereports.RESOURCE: evidencereports.EvidenceReports(now_us),
        }
        said, revised = populations.Populations(now_us), policyrevisions.PolicyRevisions(now_us)
        self._posted: dict[str, tuple[re.Pattern[str], Posted]] = {
            populations.RESOURCE: (populations.PLACE, said), policyrevisions.RESOURCE: (policyrevisions.PLACE, revised),
        }  # fmt: skip
        self._read: dict[str, Reader] = {
            **self._watched, checkpoints.RESOURCE: checkpoints.Checkpoints(now_us),
            populations.RESOURCE: said, coverages.RESOURCE: coverages.Coverages(now_us, store.started_us),
            policyrevisions.RESOURCE: revised,
        }  # fmt: skip
        self._watches = watches.Watches(store, metrics)
        self._streamed = 0

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[_statuses], client_max_size=1)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    def stop(self) -> None:
        """End open watches, so that their connections can be closed."""
        self._watches.stop()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.raw_path.split("?", 1)[0]  # as sent: an encoded path names nothing here
        if path in _HEALTH:
            return self._health(path)
        user = self._front.user(request, self._is_current)
        for resource, (form, _) in self._posted.items():
            if request.method == "POST" and (match := form.match(path)) is not None:
                return await self._counted("create", resource, self._take(user, resource, match["namespace"], request))
        if request.method != "GET":
            raise ApiError(405, "MethodNotAllowed", "evidence is read-only: the server allows get, list and watch")
        document = discovery.document(path)
        if document is not None:
            return _json(document)
        if path == f"{_PREFIX}/{tallies.RESOURCE}":
            return await self._tallies(user, request)
        if (match := _LOG.match(path)) is not None:
            return await self._counted("get", checkpoints.RESOURCE, self._log(user, match["path"], request))
        match = _RESOURCE.match(path)
        if match is None:
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        asked = _ask(user, match, request)
        return await self._counted(asked.verb, asked.question.resource, self._answer(asked, request))

    async def _log(self, user: User, path: str, request: web.Request) -> web.StreamResponse:
        """The log as a tool for logs reads it; `path` is below its prefix."""
        tile = checkpoints.place(path) if path.startswith("tile/") else None
        is_evidence = tile is not None and tile.level == ENTRIES
        subresource = "entries" if is_evidence else path.partition("/")[0]
        resource, name = checkpoints.RESOURCE, checkpoints.LOG
        await self._authorizer.check(user, Attributes("get", resource, subresource, "", name))
        if tile is None:
            find = self._store.policy if path == "policy" else checkpoints.newest_note
            return web.Response(body=await self._store.read(find), content_type="text/plain", charset="utf-8")
        data = await self._store.read(lambda db: checkpoints.content(db, tile))
        if is_evidence:
            question = Question(resource, "", (), (), "", "")
            await self._record(Asked(user, "get", question, tile.path, subresource), request, tile.width)
        return web.Response(body=data, content_type="application/octet-stream")

    async def _take(self, user: User, resource: str, namespace: str, request: web.Request) -> web.StreamResponse:
        """What the operator says."""
        await self._authorizer.check(user, Attributes("create", resource, "", namespace, ""))
        return _json(await self._posted[resource][1].take(self._store, namespace, request), 201)

    async def _tallies(self, user: User, request: web.Request) -> web.StreamResponse:
        async def answer() -> web.StreamResponse:
            await self._authorizer.check(user, Attributes("list", tallies.RESOURCE, "", "", ""))
            since = tallies.read_since(request.query, self._store.size)
            return _json(await self._store.read(lambda db: tallies.page(db, since)))

        return await self._counted("list", tallies.RESOURCE, answer())

    async def _counted(self, verb: str, resource: str, answering: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        try:
            answer = await answering
        except ApiError as error:
            self._metrics.requests.labels(verb, resource, str(error.code)).inc()
            raise
        except CollectorError as error:
            self._metrics.requests.labels(verb, resource, "503").inc()
            raise unavailable(str(error)) from error
        self._metrics.requests.labels(verb, resource, str(answer.status)).inc()
        return answer

    def _health(self, path: str) -> web.Response:
        if self._store.failure is not None and path != "/healthz":
            return web.Response(status=503, text=self._store.failure)
        return web.Response(text="ok")

    async def _answer(self, asked: Asked, request: web.Request) -> web.StreamResponse:
        question = asked.question
        await self._authorizer.check(
            asked.user,
            Attributes(asked.verb, question.resource, asked.subresource, question.namespace, asked.name),
        )
        if asked.subresource:
            return await self._stream(asked, request)
        form = render.negotiate(",".join(request.headers.getall("Accept", [])), request.query.get("includeObject", ""))
        if asked.verb == "watch":
            return await self._watch(asked, form, request)
        columns = _COLUMNS[question.resource]
        size = self._store.size
        if asked.verb == "get":
            page = await self._page(question, Range(size, -1, 1))
            await self._record(asked, request, len(page.found))
            if not page.found:
                raise not_found(question.resource, asked.name)
            return _json(render.render_one(form, columns, page.found[0]))
        part = read_range(question, request.query, size, self._key)
        page = await self._page(question, part)
        more = ""
        if page.more_after is not None:
            more = token.seal(self._key, token.Place(part.size, page.more_after, question.hash()))
        await self._record(asked, request, len(page.found))
        return _json(render.render_list(form, question.resource, columns, page.found, version=part.size, more=more))

    async def _page(self, question: Question, part: Range) -> Page:
        reader = self._read[question.resource]
        return await self._store.read(lambda db: reader.page(db, question, part))

    async def _watch(self, asked: Asked, form: render.Form, request: web.Request) -> web.StreamResponse:
        question, user = asked.question, asked.user.name
        reader = self._watched.get(question.resource)
        if reader is None:
            raise ApiError(405, "MethodNotAllowed", f"{question.resource} cannot be watched: list them")
        order = watches.read_order(request.query, self._store.size)
        self._watches.admit(user)
        await self._record(asked, request, 0)
        return await self._watches.send(request, user, reader, question, order, form, _COLUMNS[question.resource])

    async def _stream(self, asked: Asked, request: web.Request) -> web.StreamResponse:
        """A part of a session that may be long: sent as it is read."""
        if self._streamed >= MAX_STREAMED:
            what = "too many bundles and recordings are being sent; try again"
            raise ApiError(429, "TooManyRequests", what, retry_after_s=5)
        self._streamed += 1
        try:
            if _wants_receipt(asked, request):
                return await self._give_receipt(asked, request)
            pieces = await self._pieces(asked, request)
            await self._record(asked, request, 0 if pieces is None else 1)
            if pieces is None:
                raise not_found(asked.question.resource, asked.name)
            media_type, ending = _PARTS[asked.subresource]
            answer = web.StreamResponse(
                headers={
                    "Content-Type": media_type,
                    "Content-Disposition": f'attachment; filename="{asked.name}.{ending}"',
                }
            )
            answer.enable_chunked_encoding()
            await answer.prepare(request)
            async for piece in pieces:
                async with asyncio.timeout(watches.WRITE_TIMEOUT_S):
                    await answer.write(piece)
            await answer.write_eof()
            return answer
        finally:
            self._streamed -= 1

    async def _pieces(self, asked: Asked, request: web.Request) -> AsyncIterator[bytes] | None:
        """What is sent of a session, a revision, or a namespace's population; None when there is none."""
        question = asked.question
        if question.resource == policyrevisions.RESOURCE:
            return await revisions.bundle(self._store, question.namespace, asked.name)
        if question.resource == populations.RESOURCE:
            return await census.bundle(self._store, question.namespace, self._now_us())
        if asked.subresource == "proof":
            return await proof.bundle(self._store, question.namespace, asked.name, self._now_us())
        from_us = recording.read_from(request.query)
        page = await self._page(question, Range(self._store.size, -1, 1))
        if not page.found:
            return None
        return await recording.recording(self._store, question.namespace, asked.name, page.found[0].value, from_us)

    async def _give_receipt(self, asked: Asked, request: web.Request) -> web.Response:
        question = asked.question
        data = await proof.receipt(self._store, question.namespace, asked.name, self._now_us())
        await self._record(asked, request, 0 if data is None else 1)
        if data is None:
            raise not_found(question.resource, asked.name)
        return web.Response(body=data, headers={"Content-Type": receipt.MEDIA_TYPE})

    async def _record(self, asked: Asked, request: web.Request, rows: int) -> None:
        """Keep the read before anything of it is given."""
        question = asked.question
        resource = f"{question.resource}/{asked.subresource}" if asked.subresource else question.resource
        said = statement.EvidenceRead(
            wall_us=self._now_us(), user=asked.user.name, groups=_some_groups(asked.user), verb=asked.verb,
            resource=resource, namespace=question.namespace, name=asked.name, rows=rows,
            query=request.rel_url.raw_query_string[:MAX_QUERY_CHARS],
        )  # fmt: skip
        try:
            if len(canonical.encode(said)) > statement.MAX_HEADER_BYTES:
                raise bad_request("the name of the user is too long to be recorded")
        except UnicodeEncodeError as error:
            raise bad_request("the name of the user is no text that can be recorded") from error
        await self._store.write(lambda tx: tx.say(said))


def _some_groups(user: User) -> list[str]:
    """The reader's groups, as many as an entry has room for."""
    found, size = [], 0
    for group in user.groups:
        size += len(canonical.encode({"group": group}))
        if size > MAX_GROUPS_CHARS:
            break
        found.append(group)
    return found


def _wants_receipt(asked: Asked, request: web.Request) -> bool:
    """Whether a session's proof is asked for in COSE; by the query, too: kubectl sends no Accept of one's own."""
    if (asked.question.resource, asked.subresource) != ("sessions", "proof"):
        return False
    accepted = ",".join(request.headers.getall("Accept", []))
    return request.query.get("form") == "cose" or accepted.partition(";")[0].strip() == "application/cose"


def _ask(user: User, match: re.Match[str], request: web.Request) -> Asked:
    namespace, resource = match["namespace"] or "", match["resource"]
    name, subresource = match["name"] or "", match["sub"] or ""
    is_placed = bool(namespace) or (resource not in _CLUSTERED and not name)
    is_part = (resource == "sessions" and subresource in _PARTS) or (resource, name, subresource) == _CENSUS
    is_part = is_part or (resource, subresource) == (policyrevisions.RESOURCE, "proof")
    if is_placed is (resource in _CLUSTERED) or (subresource and not is_part):
        raise ApiError(404, "NotFound", "the server could not find the requested resource")
    verb = "get" if name else "watch" if read_flag(request.query, "watch") else "list"
    return Asked(user, verb, read_question(resource, namespace, name, request.query), name, subresource)


def _json(value: bytes | dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


@web.middleware
async def _statuses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refusals as `Status` objects."""
    try:
        return await handler(request)
    except ApiError as error:
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else None
        answer = _json(error.status(), error.code, headers)
    if not request.content.is_eof():
        answer.force_close()
    return answer
