"""The admission decisions: pure functions from a request, and the agents that select its pod, to an answer."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from chaperone_operator.admission.inject import Agent, Json, Settings, inject, missing, patch, without_ours
from chaperone_operator.admission.names import CONTAINERS, IDENTITY_LABEL, PREFIX
from chaperone_operator.admission.protect import (
    Violation,
    claims,
    drops_raw_sockets,
    update_violations,
    violations,
)

MAX_MESSAGE: Final = 4096  # characters; a person reads the first few reasons, and the API server cuts long ones


class User(msgspec.Struct, frozen=True):
    """Who asks."""

    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()


class Request(msgspec.Struct, frozen=True, rename="camel"):
    """The part of an AdmissionRequest (admission.k8s.io/v1) that is looked at."""

    uid: str
    operation: str
    resource: dict[str, str]
    sub_resource: str = ""
    name: str = ""
    namespace: str = ""
    user_info: User = User()
    dry_run: bool | None = None
    object: dict[str, Any] | None = None
    old_object: dict[str, Any] | None = None

    @property
    def pod(self) -> Json:
        """The object, {} when there is none."""
        return self.object or {}

    @property
    def old(self) -> Json:
        """The object before an update, {} when there is none."""
        return self.old_object or {}


class Answer(msgspec.Struct, frozen=True):
    """Refused when there are violations; else allowed, with a patch and with warnings for whoever asks."""

    violations: tuple[Violation, ...] = ()
    patch: tuple[Json, ...] = ()
    warnings: tuple[str, ...] = ()

    def review(self, uid: str) -> Json:
        """As an AdmissionReview."""
        response: Json = {"uid": uid, "allowed": not self.violations}
        if self.violations:
            told = " ".join(f"[{one.rule}] {one.message}" for one in self.violations)
            message = f"Chaperone refuses: {told}"
            if len(message) > MAX_MESSAGE:
                message = message[: MAX_MESSAGE - 1] + "…"
            response["status"] = {"code": 403, "reason": "Forbidden", "message": message}
        elif self.patch:
            response["patchType"] = "JSONPatch"
            response["patch"] = base64.b64encode(msgspec.json.encode(self.patch)).decode("ascii")
        if self.warnings:
            response["warnings"] = list(self.warnings)
        return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


def labels_of(pod: Json) -> dict[str, str]:
    """The labels of a pod, {} when there are none."""
    return (pod.get("metadata") or {}).get("labels") or {}


def mutate(request: Request, agents: tuple[Agent, ...], settings: Settings) -> Answer:
    """Inject a new pod; take raw sockets from ephemeral containers. A pod that is no agent's is left alone."""
    pod = request.pod
    if request.operation == "UPDATE":
        return _mutate_ephemeral(pod)
    if not agents:
        return Answer()
    if refused := _unfit(pod, agents, settings):
        return Answer(refused)
    return Answer(patch=tuple(patch(pod, inject(pod, settings, agents[0], request.user_info.username))))


def validate(request: Request, agents: tuple[Agent, ...], before: tuple[Agent, ...], settings: Settings) -> Answer:
    """Judge a pod as it would be stored, after all other webhooks.

    Args:
        request: creation or update of a pod, or of its ephemeral containers.
        agents: those that select the pod's labels.
        before: those that select its labels before an update.
        settings: what is injected.
    """
    if request.operation == "UPDATE":
        return Answer(tuple(_of_update(request, agents, before, settings)))
    if not agents:
        return Answer(claims(request.pod))
    refused = _unfit(request.pod, agents, settings)
    return Answer(refused or missing(request.pod, settings, agents[0], request.user_info.username))


def connect(request: Request, pod: Json | None) -> Answer:
    """Refuse exec and attach into our containers, and port-forward into any injected pod.

    Args:
        request: CONNECT to exec, attach or portforward.
        pod: as stored; None when there is none.
    """
    if request.sub_resource == "portforward":
        if IDENTITY_LABEL in labels_of(pod or {}):
            return _refusal(
                "port-forward",
                "A forwarded port goes past the fence into the pod; declare spec.ingress.ports and use a Service.",
            )
        return Answer()
    container = request.pod.get("container") or ""
    if container in CONTAINERS:
        return _refusal(
            "our-container",
            f"Nobody enters {container} by {request.sub_resource}; read its log, or choose the agent's own container.",
        )
    return Answer()


def _refusal(rule: str, message: str) -> Answer:
    return Answer((Violation(rule, message),))


def _mutate_ephemeral(pod: Json) -> Answer:
    if IDENTITY_LABEL not in labels_of(pod):
        return Answer()
    found: list[Json] = []
    for index, container in enumerate((pod.get("spec") or {}).get("ephemeralContainers") or ()):
        if not drops_raw_sockets(container):
            context = dict(container.get("securityContext") or {})
            capabilities = dict(context.get("capabilities") or {})
            capabilities["drop"] = [*(capabilities.get("drop") or ()), "NET_RAW"]
            path = f"/spec/ephemeralContainers/{index}/securityContext"
            found.append({"op": "add", "path": path, "value": {**context, "capabilities": capabilities}})
    return Answer(patch=tuple(found))


def _unfit(pod: Json, agents: tuple[Agent, ...], settings: Settings) -> tuple[Violation, ...]:
    if len(agents) > 1:
        return (_conflict(agents),)
    own = without_ours(pod, settings, agents[0])
    return violations(pod, settings.runtime_classes) + claims(own)


def _conflict(agents: tuple[Agent, ...]) -> Violation:
    names = ", ".join(agent.identity for agent in agents)
    return Violation(
        "two-identities", f"AgentIdentities {names} select this pod; change selectors or labels so that one does."
    )


def _of_update(
    request: Request, agents: tuple[Agent, ...], before: tuple[Agent, ...], settings: Settings
) -> Iterable[Violation]:
    old, new = request.old, request.pod
    yield from update_violations(old, new)
    own = labels_of(old).get(IDENTITY_LABEL)
    names, known = {agent.identity for agent in agents}, {agent.identity for agent in before}
    if own is not None:
        if names - known - {own}:
            yield _conflict((Agent(own), *(agent for agent in agents if agent.identity != own)))
    elif names - known:
        yield Violation(
            "label-change",
            f"These labels would make a running pod an agent ({', '.join(sorted(names))}) unfenced; make it anew.",
        )
    if request.sub_resource == "ephemeralcontainers" and (own is not None or names):
        classes = settings.runtime_classes
        yield from sorted(set(violations(new, classes)) - set(violations(old, classes)))
        earlier = {one.get("name") for one in (old.get("spec") or {}).get("ephemeralContainers") or ()}
        for index, container in enumerate((new.get("spec") or {}).get("ephemeralContainers") or ()):
            name = str(container.get("name", ""))
            if name in earlier:
                continue
            if name.startswith(PREFIX):
                where = f"spec.ephemeralContainers[{index}] ({name})"
                yield Violation(
                    "reserved-name", f"{where}: names that begin with {PREFIX} are Chaperone's; use another."
                )
            if own is not None and not drops_raw_sockets(container):
                yield Violation("capability", f"The ephemeral container {name} must drop the capability NET_RAW.")
