"""The webhooks of Chaperone: an HTTPS server of our own in every replica.

`/mutate-pod` and `/validate-pod` inject and judge pods, `/validate-exec` keeps people out of our containers and notes
who enters an agent's, `/validate-crd` judges our own kinds, `/mutate-approval` signs votes on ApprovalRequests and
`/validate-approval` judges them, `/mutate-suspension` and `/validate-suspension` do so with who suspends an agent.

Whatever goes wrong ends in a refusal with a reason: an identity that cannot be read, an API server that does not
answer, a request that is not understood, a defect. The registrations have failurePolicy Fail, so silence refuses too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from chaperone_operator.admission import approval, resource, suspension
from chaperone_operator.admission.identities import Identities, NotKnown
from chaperone_operator.admission.inject import Agent, Settings
from chaperone_operator.admission.names import IDENTITY_LABEL
from chaperone_operator.admission.protect import Violation
from chaperone_operator.admission.review import Answer, Request, connect, labels_of, mutate, validate
from chaperone_operator.approval import broker_user
from chaperone_operator.kube import PODS, ApiError, Client, Object
from chaperone_operator.metrics import Metrics
from chaperone_operator.notice import post
from chaperone_operator.reconcile.snapshot import Declared

MAX_BODY_BYTES: Final = 8 << 20  # two pods of an update at etcd's limit of 1.5 MiB, escaped
LOOKUP_TIMEOUT_S: Final = 3.0  # of the pod of a port-forward; the registrations give up after 5 s
MAX_LOOKUPS: Final = 16  # at once; more wait within the timeout
NOTE_TIMEOUT_S: Final = 1.5  # to record who enters a pod; without a record nobody enters

_log = logging.getLogger(__name__)

_WRITES: Final = {("CREATE", ""), ("UPDATE", "")}
_APPROVAL_WRITES: Final = _WRITES | {("UPDATE", "status")}

type Decide = Callable[[Request], Awaitable[Answer]]
type Declares = Callable[[str], Declared | None]
"""What is declared in a namespace; None while that is not known."""


class _Review(msgspec.Struct):
    request: Request


class Webhooks:
    """Routes of the admission server.

    Args:
        client: to look up the pod that somebody enters, and to record it.
        identities: must be running; until it is synced all pods are refused.
        settings: what is injected.
        declares: for warnings about policies.
        metrics: counts requests.
        instance: this replica, for events.

    Attributes:
        settings: may be replaced while the server runs.
        is_stopping: each answer is then the last one of its connection, or the API server would send the next request
            on it just when it is closed.
    """

    def __init__(
        self,
        client: Client,
        identities: Identities,
        settings: Settings,
        *,
        declares: Declares = lambda _: None,
        metrics: Metrics | None = None,
        instance: str = "chaperone-operator",
    ) -> None:
        self._client = client
        self._identities = identities
        self.settings = settings
        self.is_stopping = False
        self._declares = declares
        self._metrics = metrics or Metrics()
        self._instance = instance
        self._lookups = asyncio.Semaphore(MAX_LOOKUPS)

    def application(self) -> web.Application:
        """The routes; serve them by TLS alone. `/readyz` says whether the identities are known."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/mutate-pod", self._route("mutate-pod", self._mutate)),
                web.post("/validate-pod", self._route("validate-pod", self._validate)),
                web.post("/validate-exec", self._route("validate-exec", self._connect)),
                web.post("/validate-crd", self._route("validate-crd", self._resource)),
                web.post("/mutate-approval", self._route("mutate-approval", self._stamp)),
                web.post("/validate-approval", self._route("validate-approval", self._approval)),
                web.post("/mutate-suspension", self._route("mutate-suspension", self._suspend)),
                web.post("/validate-suspension", self._route("validate-suspension", self._suspension)),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
            ]
        )
        return app

    async def _mutate(self, request: Request) -> Answer:
        _expect(request, {("CREATE", ""), ("UPDATE", "ephemeralcontainers")})
        return mutate(request, self._agents(request, request.pod), self.settings)

    async def _validate(self, request: Request) -> Answer:
        _expect(request, {("CREATE", ""), ("UPDATE", ""), ("UPDATE", "ephemeralcontainers"), ("UPDATE", "resize")})
        if (
            request.operation == "UPDATE"
            and not request.sub_resource
            and labels_of(request.pod) == labels_of(request.old)
        ):
            # Who selects it cannot have changed, and finalizers must come off whatever state the identities are in.
            return validate(request, (), (), self.settings)
        before = self._agents(request, request.old) if request.operation == "UPDATE" else ()
        return validate(request, self._agents(request, request.pod), before, self.settings)

    async def _connect(self, request: Request) -> Answer:
        _expect(request, {("CONNECT", sub) for sub in ("exec", "attach", "portforward")})
        answer = connect(request, None)  # our own containers are refused before anything is looked up
        if not answer.violations:
            pod = await self._pod(request)
            answer = connect(request, pod)
            if pod is not None and IDENTITY_LABEL in labels_of(pod) and not answer.violations:
                await self._note(request, pod)
        _log.info(
            "%s into %s/%s by %r: %s",
            request.sub_resource,
            request.namespace,
            request.name,
            request.user_info.username,
            "refused" if answer.violations else "allowed",
        )
        return answer

    async def _resource(self, request: Request) -> Answer:
        if not resource.is_ours(request) or (request.operation, request.sub_resource) not in _WRITES:
            raise _unexpected(request)
        return await asyncio.to_thread(resource.judge, request, self._declares(request.namespace))

    async def _stamp(self, request: Request) -> Answer:
        if not approval.is_ours(request) or (request.operation, request.sub_resource) != ("UPDATE", "status"):
            raise _unexpected(request)
        return approval.stamp(request, broker_user(self.settings.system_namespace), time.time())

    async def _approval(self, request: Request) -> Answer:
        if not approval.is_ours(request) or (request.operation, request.sub_resource) not in _APPROVAL_WRITES:
            raise _unexpected(request)
        return approval.judge(request, broker_user(self.settings.system_namespace), time.time())

    async def _suspend(self, request: Request) -> Answer:
        if not suspension.is_ours(request) or (request.operation, request.sub_resource) not in _WRITES:
            raise _unexpected(request)
        return suspension.stamp(request, time.time())

    async def _suspension(self, request: Request) -> Answer:
        if not suspension.is_ours(request) or (request.operation, request.sub_resource) not in _WRITES:
            raise _unexpected(request)
        return suspension.judge(request, time.time())

    async def _note(self, request: Request, pod: Object) -> None:
        """Record who enters an agent's container, before it happens; what is run there may hold secrets."""
        if request.dry_run:
            return
        who, what = request.user_info.username, request.sub_resource
        container = request.pod.get("container") or pod["spec"]["containers"][0]["name"]
        about = {"apiVersion": "v1", "kind": "Pod", **pod}
        async with asyncio.timeout(NOTE_TIMEOUT_S):
            await post(
                self._client, about, reason="AgentEntered", action=what.capitalize(), instance=self._instance,
                note=f"{who} entered the container {container} by {what}.", is_warning=False,
            )  # fmt: skip

    def _agents(self, request: Request, pod: Object) -> tuple[Agent, ...]:
        return self._identities.selecting(request.namespace, labels_of(pod))

    async def _pod(self, request: Request) -> Object | None:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S), self._lookups:
            try:
                return await self._client.get(PODS, request.name, request.namespace)
            except ApiError as error:
                if error.status == 404:
                    return None  # the API server will say so itself
                raise

    def _route(self, name: str, decide: Decide) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def respond(http: web.Request) -> web.Response:
            try:
                request = msgspec.json.decode(await http.read(), type=_Review).request
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise web.HTTPBadRequest(text="This is no AdmissionReview of admission.k8s.io/v1.") from None
            with self._metrics.review_seconds.labels(name).time():
                answer = await _decided(decide, request)
            self._metrics.reviews.labels(name, "refused" if answer.violations else "allowed").inc()
            body = msgspec.json.encode(answer.review(request.uid))
            response = web.Response(body=body, content_type="application/json")
            if self.is_stopping:
                response.force_close()
            return response

        return respond

    async def _livez(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _readyz(self, _: web.Request) -> web.Response:
        if self._identities.mirror.synced.is_set():
            return web.Response(text="ok")
        return web.Response(status=503, text="The AgentIdentities have not been read yet.")


async def _decided(decide: Decide, request: Request) -> Answer:
    try:
        return await decide(request)
    except (NotKnown, _Unexpected) as error:
        return _refused("not-known", str(error))
    except (ApiError, TimeoutError):
        return _refused("not-known", "The API server did not say what this pod is; try again.")
    except Exception as error:  # a defect must refuse with a reason, and its text may quote the pod
        _log.exception("the request %s on %s/%s was refused", request.uid, request.namespace, request.name)
        return _refused("defect", f"Chaperone failed to judge this ({type(error).__name__}); see the operator's log.")


class _Unexpected(Exception):
    """A request that this webhook was not made for."""


def _expect(request: Request, known: set[tuple[str, str]]) -> None:
    is_pod = request.resource.get("group", "") == "" and request.resource.get("resource") == "pods"
    if not is_pod or (request.operation, request.sub_resource) not in known:
        raise _unexpected(request)


def _unexpected(request: Request) -> _Unexpected:
    what = "/".join(part for part in (request.resource.get("resource", ""), request.sub_resource) if part)
    return _Unexpected(f"This webhook does not judge {request.operation} of {what}; correct its registration.")


def _refused(rule: str, message: str) -> Answer:
    return Answer((Violation(rule, message),))
