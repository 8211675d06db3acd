"""What the operator knows of the cluster: fed by watch events and by whole lists, in whatever order they come.

Every object carries a resourceVersion, and the younger one stays: a list that was read before an event came cannot undo
the event, nor bring back what was deleted since. Lists repair what events lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, Final

from chaperone_operator.kube import (
    ACCESS_POLICIES,
    ACCESS_TARGETS,
    AGENT_IDENTITIES,
    CLUSTER_ACCESS_POLICIES,
    NAMESPACES,
    Listing,
    Object,
    Resource,
)
from chaperone_operator.mirror import Key, key_of
from chaperone_operator.reconcile.coverage import Pod, digest
from chaperone_operator.reconcile.snapshot import Declared

KINDS: Final = (NAMESPACES, AGENT_IDENTITIES, ACCESS_TARGETS, ACCESS_POLICIES, CLUSTER_ACCESS_POLICIES)
"""What is kept whole. Of pods only a digest is kept, and only in namespaces with identities."""

MAX_GONE: Final = 1000  # deleted pods of a namespace that are remembered, until it is said of them how they ended


class Change(StrEnum):
    """What has to be looked at again."""

    POLICY = "policy"  # of one namespace
    PODS = "pods"  # of one namespace
    STATUS = "status"  # what its objects say of what is in force
    EVERYTHING = "everything"  # something that belongs to no namespace changed


type OnChange = Callable[[Change, str], None]


class World:
    """Objects by kind. Used from one event loop only.

    Args:
        on_change: told what changed, with the namespace or "".
    """

    def __init__(self, on_change: OnChange) -> None:
        self._on_change = on_change
        self._kinds = {resource: _Kind() for resource in KINDS}
        self._pods: dict[str, dict[str, Pod]] = {}
        self._gone: dict[str, dict[str, Pod]] = {}  # by uid, as they were at last

    def take(self, resource: Resource, item: Object, *, is_gone: bool) -> None:
        """One event of a watch."""
        key = key_of(item)
        if self._kinds[resource].take(key, item, is_gone=is_gone):
            self._tell(resource, key)

    def replace(self, resource: Resource, listing: Listing) -> None:
        """A whole list."""
        for key in self._kinds[resource].replace(listing):
            self._tell(resource, key)

    def take_pod(self, item: Object, *, is_gone: bool) -> None:
        """One event of a pod; passed over where no identity is."""
        namespace, name = key_of(item)
        pods = self._pods.get(namespace)
        if pods is None:
            return
        seen = digest(item)
        fresh = None if is_gone else seen
        if pods.get(name) == fresh:
            return
        if is_gone:
            self._bury(namespace, seen)
        if fresh is None:
            del pods[name]
        else:
            pods[name] = fresh
        self._on_change(Change.PODS, namespace)

    def replace_pods(self, namespace: str, items: Iterable[Mapping[str, Any]]) -> None:
        """All pods of a namespace; from now on events of its pods are followed."""
        fresh = {pod.name: pod for pod in map(digest, items)}
        known = self._pods.get(namespace)
        if known != fresh:
            for name, pod in (known or {}).items():
                if name not in fresh or fresh[name].uid != pod.uid:
                    self._bury(namespace, pod)
            self._pods[namespace] = fresh
            self._on_change(Change.PODS, namespace)

    def forget_pods(self, namespace: str) -> None:
        """Stop following the pods of a namespace."""
        self._pods.pop(namespace, None)
        self._gone.pop(namespace, None)

    def follows_pods(self, namespace: str) -> bool:
        """Whether the pods of a namespace are known."""
        return namespace in self._pods

    def followed(self) -> list[str]:
        """The namespaces whose pods are known."""
        return sorted(self._pods)

    def pods(self, namespace: str) -> list[Pod]:
        """The pods of a namespace; none when they are not followed."""
        return list(self._pods.get(namespace, {}).values())

    def gone_pods(self, namespace: str) -> list[Pod]:
        """Pods of a namespace that were deleted, as they were at last; the newest `MAX_GONE`."""
        return list(self._gone.get(namespace, {}).values())

    def all(self, resource: Resource) -> list[Object]:
        """All objects of a kind."""
        return list(self._kinds[resource].objects.values())

    def of(self, resource: Resource, namespace: str) -> list[Object]:
        """The objects of a kind in a namespace."""
        return [item for key, item in self._kinds[resource].objects.items() if key[0] == namespace]

    def get(self, resource: Resource, key: Key) -> Object | None:
        """One object."""
        return self._kinds[resource].objects.get(key)

    def labels(self, namespace: str) -> Mapping[str, str] | None:
        """The labels of a Namespace; None when there is no such Namespace."""
        item = self.get(NAMESPACES, ("", namespace))
        return None if item is None else (item["metadata"].get("labels") or {})

    def declared(self, namespace: str) -> Declared | None:
        """Everything that the snapshot of a namespace is made from; None when there is no such Namespace."""
        labels = self.labels(namespace)
        if labels is None:
            return None
        return Declared(
            namespace,
            labels,
            self.of(AGENT_IDENTITIES, namespace),
            self.all(ACCESS_TARGETS),
            self.of(ACCESS_POLICIES, namespace),
            self.all(CLUSTER_ACCESS_POLICIES),
            frozenset(pod.identity for pod in self.pods(namespace) if pod.identity and not pod.is_over),
        )

    def identity_namespaces(self) -> set[str]:
        """Namespaces that have identities."""
        return {namespace for namespace, _ in self._kinds[AGENT_IDENTITIES].objects}

    def policy_namespaces(self) -> set[str]:
        """Namespaces that have identities or policies."""
        return self.identity_namespaces() | {namespace for namespace, _ in self._kinds[ACCESS_POLICIES].objects}

    def _bury(self, namespace: str, pod: Pod) -> None:
        gone = self._gone.setdefault(namespace, {})
        gone[pod.uid] = pod
        if len(gone) > MAX_GONE:
            del gone[next(iter(gone))]

    def _tell(self, resource: Resource, key: Key) -> None:
        if resource in {ACCESS_TARGETS, CLUSTER_ACCESS_POLICIES}:
            self._on_change(Change.EVERYTHING, "")
        else:
            self._on_change(Change.POLICY, key[1] if resource == NAMESPACES else key[0])


class _Kind:
    """The objects of one kind, and what was deleted since the last list."""

    def __init__(self) -> None:
        self.objects: dict[Key, Object] = {}
        self._gone: dict[Key, int] = {}

    def take(self, key: Key, item: Object, *, is_gone: bool) -> bool:
        """Whether the event was news."""
        age = _version(item["metadata"].get("resourceVersion"))
        known = self.objects.get(key)
        newest = max(_version_of(known), self._gone.get(key, -1))
        if age is not None and age < newest:
            return False
        if is_gone:
            if age is not None:
                self._gone[key] = age
            return self.objects.pop(key, None) is not None
        self._gone.pop(key, None)
        self.objects[key] = item
        return known is None or _says(known) != _says(item)

    def replace(self, listing: Listing) -> list[Key]:
        """The keys that came, changed or went."""
        age = _version(listing.resource_version)
        fresh = {key_of(item): item for item in listing.items}
        if age is not None:
            for key, gone in self._gone.items():
                if gone > age:
                    fresh.pop(key, None)
            for key, item in self.objects.items():
                if _version_of(item) > age:
                    fresh[key] = item
        self._gone = {key: gone for key, gone in self._gone.items() if age is not None and gone > age}
        known, self.objects = self.objects, fresh
        return [
            key
            for key in known.keys() | fresh.keys()
            if key not in known or key not in fresh or _says(known[key]) != _says(fresh[key])
        ]


def _says(item: Object) -> tuple[object, ...]:
    """What of an object matters: not its status, which we write ourselves, nor its resourceVersion."""
    metadata = item["metadata"]
    return metadata.get("uid"), metadata.get("generation"), metadata.get("labels"), item.get("spec")


def _version_of(item: Object | None) -> int:
    found = None if item is None else _version(item["metadata"].get("resourceVersion"))
    return -1 if found is None else found


def _version(value: object) -> int | None:
    """A resourceVersion as a number; None when this server's are none, and then the last to come stays."""
    return int(value) if isinstance(value, str) and value.isdecimal() else None
