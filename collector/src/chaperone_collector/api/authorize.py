"""Who may: one SubjectAccessReview per question, remembered for ten seconds under everything the answer depends on."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from chaperone_collector.api.frontproxy import User
from chaperone_collector.api.kubernetes import Kubernetes
from chaperone_collector.api.status import GROUP, VERSION, ApiError

REMEMBER_S: Final = 10.0  # how long a right that was taken away may still work
MAX_REMEMBERED: Final = 4096


class Attributes(msgspec.Struct, frozen=True):
    """What is asked for."""

    verb: str
    resource: str
    subresource: str
    namespace: str  # empty: all
    name: str


class Authorizer:
    """Asks the API server."""

    def __init__(self, kubernetes: Kubernetes, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._kubernetes = kubernetes
        self._clock_s = clock_s
        self._known: OrderedDict[tuple[User, Attributes], tuple[float, bool, str]] = OrderedDict()

    async def check(self, user: User, asked: Attributes) -> None:
        """Return when it is allowed.

        Raises:
            ApiError: 403, or 503 when nobody could say.
        """
        key = (user, asked)
        known = self._known.get(key)
        if known is None or known[0] <= self._clock_s():
            allowed, why = await self._kubernetes.review(_spec(user, asked))
            known = (self._clock_s() + REMEMBER_S, allowed, why)
            self._known[key] = known
            self._known.move_to_end(key)
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
        if not known[1]:
            raise _forbidden(user, asked, known[2])


def _spec(user: User, asked: Attributes) -> dict[str, Any]:
    attributes = {
        "verb": asked.verb, "group": GROUP, "version": VERSION, "resource": asked.resource,
        "subresource": asked.subresource, "namespace": asked.namespace, "name": asked.name,
    }  # fmt: skip
    return {
        "user": user.name, "uid": user.uid, "groups": list(user.groups),
        "extra": {key: list(values) for key, values in user.extra},
        "resourceAttributes": {key: value for key, value in attributes.items() if value},
    }  # fmt: skip


def _forbidden(user: User, asked: Attributes, why: str) -> ApiError:
    resource = f"{asked.resource}/{asked.subresource}" if asked.subresource else asked.resource
    name = f' "{asked.name}"' if asked.name else ""
    where = f' in the namespace "{asked.namespace}"' if asked.namespace else " at the cluster scope"
    message = (
        f'{asked.resource}.{GROUP}{name} is forbidden: User "{user.name}" cannot {asked.verb} resource "{resource}" '
        f'in API group "{GROUP}"{where}'
    )
    return ApiError(403, "Forbidden", f"{message}: {why}" if why else message)
