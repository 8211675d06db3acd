"""Is this the gateway of a pod that we injected? Answered from a reviewed token and the pod as the API server has it.

The token says which pod it was made for; everything else is read from the Pod. Labels of a pod can be edited and its
containers cannot, so the identity counts only where both say the same.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, Final

import msgspec

from chaperone_operator.broker.errors import Refused
from chaperone_operator.kube import TOKEN_REVIEWS, ApiError, Client, Object

AUDIENCE: Final = "chaperone-broker"
IDENTITY_LABEL: Final = "chaperone.dev/identity"
GATEWAY: Final = "chaperone-gateway"
INJECTED: Final = frozenset({"chaperone-fence", GATEWAY, "chaperone-opa"})
ENROLLED: Final = "chaperone.dev/GatewayEnrolled"
MAX_TOKEN: Final = 16_384  # characters; a service-account token has about 1 200
_EXTRA: Final = "authentication.kubernetes.io/"
_USER: Final = re.compile(r"system:serviceaccount:(?P<namespace>[^:]+):(?P<account>[^:]+)\Z")
_RECORD: Final = re.compile(r"start=(?P<start>\d+) keys=(?P<keys>[0-9a-f]{64})\Z")


class Claim(msgspec.Struct, frozen=True):
    """What a reviewed token proves of its holder."""

    namespace: str
    account: str
    pod: str
    pod_uid: str
    node: str


class Enrolment(msgspec.Struct, frozen=True):
    """The last exchange of a pod, as recorded in its status.

    Attributes:
        start: restarts of the gateway container that the API server knew of then.
        keys: digest of the stream key and the TLS key that were certified.
    """

    start: int
    keys: str

    @property
    def message(self) -> str:
        """How it is written."""
        return f"start={self.start} keys={self.keys}"


async def review(client: Client, token: str) -> Claim:
    """Ask the API server whose token this is.

    Raises:
        Refused: 401, when it is not valid for our audience; 403, when it is not bound to a pod.
        ApiError: the API server does not answer.
    """
    if not token or len(token) > MAX_TOKEN or not token.isascii():
        raise _unknown()
    asked: Object = {
        "apiVersion": TOKEN_REVIEWS.api_version,
        "kind": TOKEN_REVIEWS.kind,
        "spec": {"token": token, "audiences": [AUDIENCE]},
    }
    try:
        answer = await client.create(TOKEN_REVIEWS, asked)
    except ApiError as error:
        raise ApiError("The API server does not review tokens.", error.status, error.reason) from None
    status = answer.get("status") or {}
    if status.get("authenticated") is not True or AUDIENCE not in (status.get("audiences") or ()):
        raise _unknown()
    user = status.get("user") or {}
    account = _USER.match(user.get("username", ""))
    extra = user.get("extra") or {}
    name, uid = _one(extra, "pod-name"), _one(extra, "pod-uid")
    if account is None or not name or not uid:
        raise Refused(403, "Not a pod's token", "Only a token that is bound to a pod is exchanged for a certificate.")
    return Claim(account["namespace"], account["account"], name, uid, _one(extra, "node-name"))


def identity_of(pod: Object, claim: Claim) -> str:
    """The AgentIdentity of an injected, living pod that fits the claim.

    Raises:
        Refused: 403, with what does not fit.
    """
    spec, metadata = pod.get("spec") or {}, pod.get("metadata") or {}
    where = f"The pod {claim.namespace}/{claim.pod}"
    if metadata.get("uid") != claim.pod_uid:
        raise _unfit(f"{where} is another one than the token was made for.")
    if spec.get("serviceAccountName") != claim.account:
        raise _unfit(f"{where} does not run as the service account {claim.account}.")
    if claim.node and spec.get("nodeName") not in {None, claim.node}:
        raise _unfit(f"{where} does not run on the node that the token names.")
    if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        raise _unfit(f"{where} has ended.")
    return injected_identity(pod)


def injected_identity(pod: Object) -> str:
    """The AgentIdentity of a pod that carries what the operator injects.

    Raises:
        Refused: 403.
    """
    metadata, spec = pod.get("metadata") or {}, pod.get("spec") or {}
    where = f"The pod {metadata.get('namespace')}/{metadata.get('name')}"
    identity: str = (metadata.get("labels") or {}).get(IDENTITY_LABEL, "")
    if not identity:
        raise _unfit(f"{where} has no label {IDENTITY_LABEL}: it is not covered. Make it anew under an AgentIdentity.")
    initial = {container.get("name"): container for container in spec.get("initContainers") or ()}
    if not initial.keys() >= INJECTED or initial[GATEWAY].get("restartPolicy") != "Always":
        raise _unfit(f"{where} lacks the containers that Chaperone injects. Make it anew.")
    told = {one.get("name"): one.get("value") for one in initial[GATEWAY].get("env") or ()}
    if told.get("CHAPERONE_IDENTITY") != identity:
        raise _unfit(f"The label {IDENTITY_LABEL} of {where} was changed after injection. Make the pod anew.")
    others = [*(spec.get("containers") or ()), *(spec.get("ephemeralContainers") or ())]
    others += [container for name, container in initial.items() if name != GATEWAY]
    ours = {volume.get("name") for volume in spec.get("volumes") or () if _has_broker_token(volume)}
    for container in others:
        if ours & {mount.get("name") for mount in container.get("volumeMounts") or ()}:
            raise _unfit(f"The container {container.get('name')} of {where} mounts a token for the broker.")
    return identity


def gateway_start(pod: Object) -> int:
    """How often the gateway container was restarted, as far as the API server knows."""
    status = pod.get("status") or {}
    for one in status.get("initContainerStatuses") or ():
        if one.get("name") == GATEWAY:
            count = one.get("restartCount", 0)
            return count if isinstance(count, int) else 0
    return 0


def enrolment(pod: Object) -> Enrolment | None:
    """The last exchange recorded in the pod's status.

    Raises:
        Refused: 409, when the record cannot be read.
    """
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == ENROLLED:
            match = _RECORD.match(condition.get("message", ""))
            if match is None:
                raise Refused(409, "Unreadable enrolment", f"The condition {ENROLLED} was changed. Make the pod anew.")
            return Enrolment(int(match["start"]), match["keys"])
    return None


def keys_digest(stream_key: str, tls_key: bytes) -> str:
    """What an exchange is remembered by: both keys that the certificate binds."""
    return hashlib.sha256(f"{stream_key}\n".encode() + tls_key).hexdigest()


def _one(extra: dict[str, Any], name: str) -> str:
    values = extra.get(_EXTRA + name)
    return values[0] if isinstance(values, list) and len(values) == 1 and isinstance(values[0], str) else ""


def _has_broker_token(volume: Object) -> bool:
    sources = (volume.get("projected") or {}).get("sources") or ()
    return any((source.get("serviceAccountToken") or {}).get("audience") == AUDIENCE for source in sources)


def _unfit(detail: str) -> Refused:
    return Refused(403, "Pod refused", detail)


def _unknown() -> Refused:
    return Refused(401, "Unknown caller", f"The token is not valid for the audience {AUDIENCE}.")
