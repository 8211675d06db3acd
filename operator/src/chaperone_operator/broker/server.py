"""The calls of docs/architecture.md §5 over HTTPS, and health and metrics over plain HTTP.

Client certificates are optional in the handshake and demanded route by route: only the exchange of a token has none.
Every refusal is problem+json with what to do next; an error that nobody foresaw is answered without its text, because
that text may quote what was read.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from chaperone_operator.broker import pod as pods
from chaperone_operator.broker.approval import Approvals, Use
from chaperone_operator.broker.confirmation import Confirmations
from chaperone_operator.broker.enrolment import Enrolments
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.lease import Leases, LeaseWanted
from chaperone_operator.broker.limit import Limit
from chaperone_operator.broker.maskkey import MaskKeys
from chaperone_operator.broker.metrics import CONTENT_TYPE, Metrics
from chaperone_operator.broker.peer import Peers
from chaperone_operator.broker.report import Reports
from chaperone_operator.broker.snapshots import MAX_WAIT_S, Snapshots
from chaperone_operator.broker.source import NotRevoked
from chaperone_operator.broker.ticket import NAME, Wanted
from chaperone_operator.broker.user import Users, UserWanted
from chaperone_operator.kube import ApiError, Client

MAX_BODY_BYTES: Final = 16_384  # a certificate request and a key have 1 kB
MAX_ASKED_BYTES: Final = 512 * 1024  # a command of 16 KiB, each byte escaped, and what it touches
CALL_TIMEOUT_S: Final = 20.0  # several calls to the API server; the gateway itself gives up after 10 s
MAX_REVIEWS: Final = 16  # tokens under review at once: each costs the API server a signature check and a look-up
POLICY_NOTE: Final = "Chaperone-Policy-Note"
_APPROVALS: Final = "/v1/approvals"
_ROUTES: Final = frozenset(
    {
        "/v1/certificates",
        "/v1/config",
        "/v1/bundle",
        "/v1/leases",
        "/v1/leases/renew",
        "/v1/leases/release",
        "/v1/mask-key",
        "/v1/users",
        _APPROVALS,
    }
)

_log = logging.getLogger(__name__)

type Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Exchange(msgspec.Struct):
    csr: str
    stream_key: str


class _Named(msgspec.Struct):
    id: str


class Broker:
    """Routes of the broker."""

    def __init__(
        self,
        client: Client,
        enrolments: Enrolments,
        snapshots: Snapshots,
        leases: Leases,
        mask_keys: MaskKeys,
        approvals: Approvals,
        users: Users,
        metrics: Metrics,
        reports: Reports,
    ) -> None:
        self._client = client
        self._enrolments = enrolments
        self._snapshots = snapshots
        self._leases = leases
        self._mask_keys = mask_keys
        self._approvals = approvals
        self._users = users
        self._confirmations = Confirmations(client)
        self._reports = reports
        self._peers = Peers()
        self._is_stopping = False
        self._reviews = asyncio.Semaphore(MAX_REVIEWS)
        self.metrics = metrics
        self._by_address = Limit(per_minute=60, burst=60)  # before anything is known of the caller
        self._exchanges = Limit(per_minute=6, burst=6)  # a gateway that cannot enrol is restarted with growing pauses
        self._reads = Limit(per_minute=60, burst=30)  # one long poll after the other, and a bundle for each change
        self._given = Limit(per_minute=60, burst=60)  # one a target every 15 minutes, and again after failures
        self._kept = Limit(per_minute=600, burst=200)  # a session's end, and its renewals
        self._keys = Limit(per_minute=60, burst=30)  # one for each change of a policy that hashes
        self._tokens = Limit(
            per_minute=120, burst=60
        )  # a user's token that the gateway has not seen; a burst of wrong ones
        self._asked = Limit(per_minute=30, burst=10)  # each is an object in etcd, and a person's time
        self._polls = Limit(per_minute=240, burst=60)  # long polls, uses and withdrawals of all that a pod has open

    def application(self) -> web.Application:
        """The HTTPS application for gateways."""
        app = web.Application(middlewares=[self._answer], client_max_size=MAX_ASKED_BYTES)
        app.router.add_post("/v1/certificates", self._certificates)
        app.router.add_get("/v1/config", self._config)
        app.router.add_get("/v1/bundle", self._bundle)
        app.router.add_post("/v1/leases", self._lease)
        app.router.add_post("/v1/leases/renew", self._renew_lease)
        app.router.add_post("/v1/leases/release", self._release_lease)
        app.router.add_get("/v1/mask-key", self._mask_key)
        app.router.add_post("/v1/users", self._user)
        app.router.add_post(_APPROVALS, self._ask)
        app.router.add_get(_APPROVALS + "/{name}", self._show)
        app.router.add_delete(_APPROVALS + "/{name}", self._cancel)
        app.router.add_post(_APPROVALS + "/{name}/use", self._use)
        return app

    def observation(self) -> web.Application:
        """The plain HTTP application for kubelet and Prometheus."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthy)
        app.router.add_get("/readyz", self._ready)
        app.router.add_get("/metrics", self._measured)
        return app

    async def _certificates(self, request: web.Request) -> web.Response:
        body = await _body(request, _Exchange)
        header = request.headers.get("Authorization")
        if header is None:
            peer = self._peers.of(request)
            self._exchanges.take(peer.pod_uid)
            issued = await self._enrolments.renew(peer, body.csr, body.stream_key)
        else:
            self._by_address.take(request.remote or "")
            scheme, _, token = header.partition(" ")
            if scheme.lower() != "bearer":
                raise Refused(401, "Unknown caller", "Send the pod's token as Authorization: Bearer.")
            async with self._reviews:
                claim = await pods.review(self._client, token.strip())
            self._exchanges.take(claim.pod_uid)
            issued = await self._enrolments.exchange(claim, body.csr, body.stream_key)
            _log.info("certificate for pod %s/%s (%s)", claim.namespace, claim.pod, claim.pod_uid)
        return _json(issued)

    async def _config(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._reads.take(peer.pod_uid)
        revision = request.query.get("revision", "")
        # A gateway of an earlier version says only what it has read.
        self._reports.note(peer, request.query.get("in_force", revision))
        await self._confirmations.note(peer, revision, self._snapshots.of(peer.namespace))
        snapshot = await self._snapshots.wait(peer.namespace, revision, _wait_s(request))
        if snapshot is None:
            return web.Response(status=304)
        # Beside the configuration and not around it, so that its bytes are those that the operator signed.
        note = base64.b64encode(snapshot.note(peer.identity).encode()).decode("ascii")
        return web.Response(
            body=snapshot.config(peer.identity), content_type="application/json", headers={POLICY_NOTE: note}
        )

    async def _bundle(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._reads.take(peer.pod_uid)
        snapshot = self._snapshots.of(peer.namespace)
        snapshot.config(peer.identity)  # an identity without a configuration has no business with the policy either
        tag = f'"{snapshot.revision}"'
        if request.headers.get("If-Match", tag) != tag:
            raise Refused(412, "Another revision", f"Revision {snapshot.revision} is in force; ask for what is new.")
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=snapshot.bundle, content_type="application/gzip", headers={"ETag": tag})

    async def _lease(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._given.take(peer.pod_uid)
        wanted = await _body(request, LeaseWanted)
        await self._enrolments.check_current(peer)
        lease = await self._leases.give(peer, self._snapshots.of(peer.namespace), wanted)
        pod = f"{peer.namespace}/{peer.pod}"
        _log.info("lease %s of %s for pod %s (%s)", lease.id, wanted.target, pod, peer.pod_uid)
        return _json(lease)

    async def _renew_lease(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._kept.take(peer.pod_uid)
        wanted = await _body(request, _Named)
        await self._enrolments.check_current(peer)
        return _json(await self._leases.renew(peer, self._snapshots.of(peer.namespace), wanted.id))

    async def _release_lease(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._kept.take(peer.pod_uid)
        try:
            await self._leases.release(peer, (await _body(request, _Named)).id)
        except NotRevoked as error:  # the ledger has it still
            _log.warning("%s", error)
        return web.Response(status=204)

    async def _mask_key(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._keys.take(peer.pod_uid)
        self._snapshots.of(peer.namespace).config(peer.identity)  # who has no configuration has nothing to mask
        await self._enrolments.check_current(peer)
        _log.info("mask key for pod %s/%s (%s)", peer.namespace, peer.pod, peer.pod_uid)
        return _json(self._mask_keys.give(peer.namespace))

    async def _user(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._tokens.take(peer.pod_uid)
        wanted = await _body(request, UserWanted)
        await self._enrolments.check_current(peer)
        delegation = self._snapshots.of(peer.namespace).described(peer.identity).delegation
        user = await self._users.identify(peer.identity, delegation, wanted.token)
        _log.info("a user of %s for pod %s/%s (%s)", user.issuer, peer.namespace, peer.pod, peer.pod_uid)
        return _json(user)

    async def _ask(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._asked.take(peer.pod_uid)
        wanted = await _body(request, Wanted, MAX_ASKED_BYTES)
        pod = await self._enrolments.check_current(peer)
        shown = await self._approvals.ask(peer, pod, wanted)
        _log.info("approval request %s of pod %s/%s (%s)", shown.name, peer.namespace, peer.pod, peer.pod_uid)
        return _json(shown)

    async def _show(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._polls.take(peer.pod_uid)
        return _json(await self._approvals.show(peer, _name(request), _wait_s(request)))

    async def _use(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._polls.take(peer.pod_uid)
        use = await _body(request, Use)
        await self._enrolments.check_current(peer)
        shown = await self._approvals.use(peer, _name(request), use)
        _log.info("approval %s used by pod %s/%s (%s)", shown.name, peer.namespace, peer.pod, peer.pod_uid)
        return _json(shown)

    async def _cancel(self, request: web.Request) -> web.Response:
        peer = self._peers.of(request)
        self._polls.take(peer.pod_uid)
        return _json(await self._approvals.cancel(peer, _name(request)))

    async def _healthy(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    def stop(self) -> None:
        """From now on this replica is not ready, and each answer is the last one of its connection."""
        self._is_stopping = True

    async def _ready(self, _: web.Request) -> web.Response:
        if self._is_stopping:
            return web.Response(status=503, text="stopping")
        if self._snapshots.synced.is_set():
            return web.Response(text="ready")
        return web.Response(status=503, text="the policies are not read yet")

    async def _measured(self, _: web.Request) -> web.Response:
        self.metrics.waiters.set(self._snapshots.waiters)
        self.metrics.snapshots.set(self._snapshots.count)
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        path = _APPROVALS if request.path.startswith(_APPROVALS + "/") else request.path
        route = path if path in _ROUTES else "other"
        began = time.perf_counter()
        response = await self._settled(request, handler)
        self.metrics.calls.labels(route, str(response.status)).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
        if self._is_stopping:
            response.force_close()  # or a gateway would send its next call on a connection that is just being closed
        return response

    async def _settled(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        waits_s = MAX_WAIT_S if request.method == "GET" and "wait" in request.query else 0
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S + waits_s):
                return await handler(request)
        except Refused as refused:
            _log.info("%s %s: %d %s", request.method, request.path, refused.status, refused.title)
            return _problem(refused.status, refused.title, str(refused), refused.retry_after_s)
        except web.HTTPException as error:
            return _problem(error.status, error.reason, "The broker has the calls of its documentation.")
        except ApiError as error:
            _log.warning("%s %s: %s", request.method, request.path, error)
            if error.status in (401, 403):
                detail = "The broker lacks rights at the Kubernetes API server; is Chaperone still installed?"
            else:
                detail = "The Kubernetes API server does not answer the broker; call again."
            return _problem(503, "API server not available", detail, 1)
        except TimeoutError:
            return _problem(503, "Too slow", "The Kubernetes API server answers too slowly; call again.", 1)
        except Exception as error:  # the last line of defence: whatever it is, its text may hold a secret
            _log.error("%s %s failed: %s", request.method, request.path, type(error).__name__)
            return _problem(500, "Internal error", "The broker failed; its log names the call.")


def _wait_s(request: web.Request) -> float:
    try:
        return max(0, min(float(request.query.get("wait", "0")), MAX_WAIT_S))
    except ValueError:
        raise Refused(400, "Bad request", "The parameter wait is a number of seconds.") from None


def _name(request: web.Request) -> str:
    name = request.match_info["name"]
    if not NAME.fullmatch(name):
        raise Refused(404, "No such request", "There is no approval request of that name.")
    return name


async def _body[T: msgspec.Struct](request: web.Request, shape: type[T], most: int = MAX_BODY_BYTES) -> T:
    raw = await request.read()
    if len(raw) > most:
        raise web.HTTPRequestEntityTooLarge(most, len(raw))
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = ", ".join(field.name for field in msgspec.structs.fields(shape) if field.required)
        raise Refused(400, "Bad request", f"The body is a JSON object with {fields}.") from None


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(answer), content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _problem(status: int, title: str, detail: str, retry_after_s: int = 0) -> web.Response:
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s else None
    body = msgspec.json.encode({"title": title, "detail": detail, "status": status})
    return web.Response(status=status, body=body, content_type="application/problem+json", headers=headers)
