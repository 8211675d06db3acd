"""What a gateway asks an approval for, and the ApprovalRequest that is made of it. Pure.

The name of a request follows from who asks for what under which revision, and from the request before it; so a gateway
that asks again, or asks another replica, comes to the same one, and two replicas cannot make two.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Annotated, Any, Final

import msgspec

from chaperone_operator import approval
from chaperone_operator.admission.names import CREATOR_ANNOTATION
from chaperone_operator.approval import Access, Delegator, Person, Requester, Settings, Spec, Terms
from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.peer import Peer
from chaperone_operator.broker.pod import IDENTITY_LABEL
from chaperone_operator.kube import APPROVAL_REQUESTS, Object

MAX_TEXT_BYTES: Final = 16_384
SHAPE_LABEL: Final = "chaperone.dev/shape"
NAME: Final = re.compile(r"apr-[a-z2-7]{20}")
_NAME_DIGITS: Final = 20  # base-32: 100 bits

type Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
type Word = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
type Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]
type Part = Annotated[str, msgspec.Meta(max_length=512)]


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/approvals`; text and objects are masked by the gateway."""

    revision: Word
    policy: Annotated[str, msgspec.Meta(min_length=1, max_length=320)]
    rule: Annotated[str, msgspec.Meta(min_length=1, max_length=63)]
    target: Name
    session: Word
    kind: Word
    text: str
    binding: Digest
    accesses: Annotated[tuple[Affected, ...], msgspec.Meta(min_length=1, max_length=200)]
    shape: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16,63}$")]
    estimated_rows: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None
    user: Acting | None = None


class Acting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The person on whose behalf the command is asked for, as this broker said before."""

    subject: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    issuer: Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
    email: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Affected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One access of the command."""

    effect: Annotated[str, msgspec.Meta(min_length=1, max_length=32)]
    object: Part
    through: Part = ""


def key(peer: Peer, wanted: Wanted) -> tuple[str, ...]:
    """What makes two questions one."""
    return peer.identity, peer.pod_uid, wanted.binding, wanted.revision, wanted.policy, wanted.rule


def key_of(spec: Spec) -> tuple[str, ...]:
    """The same of a request."""
    who = spec.requester
    return who.identity, who.pod_uid, spec.binding, spec.revision, spec.policy, spec.rule


def name(identified: tuple[str, ...], before: str) -> str:
    """The name of a request; `before` is the uid of the one for the same that has ended, "" when there was none."""
    digest = hashlib.sha256(msgspec.json.encode([*identified, before])).digest()
    return "apr-" + base64.b32encode(digest).decode("ascii").lower()[:_NAME_DIGITS]


def requester(peer: Peer, pod: Object, owner: Person, settings: Settings) -> Requester:
    """Who asks, as the pod says.

    Raises:
        Refused: 403, when it does not say who created it and that person may not vote.
    """
    metadata = pod["metadata"]
    creator = (metadata.get("annotations") or {}).get(CREATOR_ANNOTATION, "")
    if not creator and not settings.self_approval:
        raise Refused(
            403,
            "Creator not known",
            f"The pod {peer.namespace}/{peer.pod} does not say who created it, so nobody can be told from that person. "
            "Make it anew.",
        )
    controllers = [one for one in metadata.get("ownerReferences") or () if one.get("controller")]
    workload = f"{controllers[0]['kind']}/{controllers[0]['name']}" if controllers else ""
    return Requester(
        identity=peer.identity,
        pod=peer.pod,
        pod_uid=peer.pod_uid,
        service_account=pod["spec"].get("serviceAccountName") or "default",
        workload=workload,
        created_by=creator,
        owner=owner,
    )


def build(
    wanted: Wanted, who: Requester, namespace: str, protocol: str, settings: Settings, named: str, now_unix: float
) -> Object:
    """The ApprovalRequest.

    Raises:
        Refused: 400, when the text is too long to be shown.
    """
    if len(wanted.text.encode()) > MAX_TEXT_BYTES:
        raise Refused(
            400, "Command too long", f"Nobody can approve what is not shown whole: over {MAX_TEXT_BYTES} bytes."
        )
    terms = Terms(
        groups=settings.groups,
        count=settings.count,
        deny_count=settings.deny_count,
        wait_seconds=settings.wait_s,
        valid_for_seconds=settings.valid_s,
        reason=settings.reason,
        self_approval=settings.self_approval,
    )
    if wanted.user is not None:
        delegator = Delegator(wanted.user.subject, wanted.user.issuer, wanted.user.email)
        who = msgspec.structs.replace(who, on_behalf_of=delegator)
    asking = msgspec.to_builtins(who)
    if who.on_behalf_of is None:
        del asking["onBehalfOf"]
    spec: dict[str, Any] = {
        "requester": asking,
        "excluded": list(approval.excluded(who, namespace, self_approval=settings.self_approval)),
        "session": wanted.session,
        "target": wanted.target,
        "protocol": protocol,
        "kind": wanted.kind,
        "text": wanted.text,
        "binding": wanted.binding,
        "accesses": [msgspec.to_builtins(Access(one.effect, one.object, one.through)) for one in wanted.accesses],
        "effects": list(dict.fromkeys(one.effect for one in wanted.accesses)),
        "policy": wanted.policy,
        "rule": wanted.rule,
        "revision": wanted.revision,
        "approval": msgspec.to_builtins(terms),
        "createdAt": approval.timestamp(now_unix),
        "expiresAt": approval.timestamp(now_unix + settings.valid_s),
        "shape": wanted.shape,
    }
    if wanted.estimated_rows is not None:
        spec["estimatedRows"] = wanted.estimated_rows
    return {
        "apiVersion": APPROVAL_REQUESTS.api_version,
        "kind": APPROVAL_REQUESTS.kind,
        "metadata": {"name": named, "labels": {SHAPE_LABEL: wanted.shape, IDENTITY_LABEL: who.identity}},
        "spec": spec,
    }
