"""The world that policy is compiled in: objects from a directory or from the cluster, and the compiler's snapshots.

Everything that decides without a gateway, and `chaperone dev`, starts here.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from chaperone_cli.kubectl import CannotAsk, Cluster, ask, place
from chaperone_cli.say import say
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.compile.binding import Binding, bind, bind_cluster
from chaperone_operator.compile.model import ClusterPolicySpec, IdentitySpec, PolicySpec, decode

LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
NAMESPACED: Final = ("AgentIdentity", "AccessPolicy")
KINDS: Final = (*NAMESPACED, "AccessTarget", "ClusterAccessPolicy", "Secret", "Namespace")
RESOURCES: Final = {
    "AgentIdentity": "agentidentities.chaperone.dev",
    "AccessPolicy": "accesspolicies.chaperone.dev",
    "AccessTarget": "accesstargets.chaperone.dev",
    "ClusterAccessPolicy": "clusteraccesspolicies.chaperone.dev",
}

type Object = dict[str, Any]
type Objects = dict[str, list[Object]]


class Unusable(Exception):
    """The arguments, manifests or objects cannot be used; the text says why."""


class World:
    """Objects by kind, and what the compiler makes of each namespace's."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._snapshots: dict[str, Snapshot] = {}

    def namespace_of(self, identity: str) -> str:
        """The namespace of an AgentIdentity.

        Raises:
            Unusable: there is none, or there are several.
        """
        named = (one for one in self.objects["AgentIdentity"] if _name(one) == identity)
        found = sorted({one["metadata"].get("namespace", "default") for one in named})
        if not found:
            raise Unusable(f'There is no AgentIdentity "{identity}"{self._known("AgentIdentity")}.')
        if len(found) > 1:
            raise Unusable(f'AgentIdentity "{identity}" is in {", ".join(found)}; name one of them with -n.')
        return str(found[0])

    def labels(self, namespace: str) -> dict[str, str]:
        """Labels of a Namespace."""
        for found in self.objects["Namespace"]:
            if _name(found) == namespace:
                return dict(found["metadata"].get("labels") or {}) | {"kubernetes.io/metadata.name": namespace}
        return {"kubernetes.io/metadata.name": namespace}

    def snapshot(self, namespace: str) -> Snapshot:
        """A namespace, compiled. Problems are told on stderr.

        Raises:
            Unusable: it does not compile.
        """
        if namespace not in self._snapshots:
            self._snapshots[namespace] = self._compile(namespace)
        return self._snapshots[namespace]

    def bindings(self, namespace: str, identity: str, target: str) -> Iterator[Binding]:
        """The policies that are bound to an identity at a target, those of the namespace first."""
        here = [one for one in self.objects["AccessPolicy"] if one["metadata"]["namespace"] == namespace]
        own = [one for one in (decode(item, PolicySpec)[0] for item in here) if one is not None]
        every = [decode(one, ClusterPolicySpec)[0] for one in self.objects["ClusterAccessPolicy"]]
        cluster = [one for one in every if one is not None]
        identities = [one for one in self.objects["AgentIdentity"] if one["metadata"].get("namespace") == namespace]
        decoded = [decode(one, IdentitySpec)[0] for one in identities if _name(one) == identity]
        named = [one for one in decoded if one is not None]
        for one in (*bind(own), *bind_cluster(cluster, namespace, self.labels(namespace), named, (target,))):
            if (one.identity, one.target) == (identity, target):
                yield one

    def _compile(self, namespace: str) -> Snapshot:
        os.environ.setdefault("CHAPERONE_OPA", opa_program())  # the compiler checks policies' own Rego with it
        snapshot = compile_namespace(
            namespace,
            self.objects["AgentIdentity"],
            self.objects["AccessTarget"],
            self.objects["AccessPolicy"],
            self.objects["ClusterAccessPolicy"],
            namespace_labels=self.labels(namespace),
        )
        for problem in snapshot.problems:
            level = "error" if problem.is_blocking else "note"
            say(f"{level}: {problem.kind} {problem.name}: {problem.reason}: {problem.message}", err=True)
        if not snapshot.is_usable:
            raise Unusable("The policies do not compile; nothing is decided with them.")
        return snapshot

    def _known(self, kind: str) -> str:
        names = sorted({_name(one) for one in self.objects[kind]})
        return f"; there is {', '.join(names)}" if names else ""


def from_directory(directory: Path, identity: str = "") -> World:
    """Objects of a directory's manifests.

    Args:
        directory: with YAML files.
        identity: objects without a namespace are in that of this identity; else in `default`.

    Raises:
        Unusable: a file is not YAML.
    """
    objects = load(directory)
    home = "default"
    for found in objects["AgentIdentity"]:
        if _name(found) == identity:
            home = found["metadata"].get("namespace", home)
    for kind in NAMESPACED:
        for found in objects[kind]:
            found["metadata"].setdefault("namespace", home)
    for found in objects["AgentIdentity"]:
        found["metadata"].setdefault("uid", f"dev-{_name(found)}")
        found["metadata"].setdefault("generation", 1)
    return World(objects)


def from_cluster(cluster: Cluster, namespace: str) -> tuple[World, str]:
    """A namespace's objects as kubectl gives them, with the person's own rights; and which namespace it is.

    Raises:
        Unusable: they cannot be read.
    """
    objects: Objects = {kind: [] for kind in KINDS}
    try:
        where = place(cluster, namespace)
        for kind, resource in RESOURCES.items():
            there = ("-n", where) if kind in NAMESPACED else ()
            answer = ask(cluster, "get", resource, *there, "-o", "json")
            objects[kind] = msgspec.json.decode(answer, type=_List).items
        objects["Namespace"] = [msgspec.json.decode(ask(cluster, "get", "namespace", where, "-o", "json"))]
    except CannotAsk as error:
        raise Unusable(f"The policies of the cluster cannot be read: {error}") from error
    except msgspec.DecodeError as error:
        raise Unusable("kubectl gave no objects that can be read.") from error
    return World(objects), where


def load(directory: Path) -> Objects:
    """All objects in the YAML files of a directory, by kind.

    Raises:
        Unusable: a file is not YAML, or an object has no name.
    """
    objects: Objects = {kind: [] for kind in KINDS}
    for path in sorted((*directory.glob("*.yaml"), *directory.glob("*.yml"))):
        try:
            documents = list(yaml.safe_load_all(path.read_text()))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise Unusable(f"{path.name} is not YAML: {error}") from error
        for document in documents:
            kind = document.get("kind") if isinstance(document, dict) else None
            if kind not in objects:
                continue
            metadata = document.get("metadata")
            if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
                raise Unusable(f"{path.name}: an object of kind {kind} has no metadata.name.")
            objects[kind].append(document)
    return objects


def set_local_aside(targets: list[Object]) -> dict[str, str]:
    """Take loopback upstreams out of the targets and return them by target.

    In a pod loopback would be the pod itself, so the compiler refuses it; here the database on this machine is the
    point.
    """
    local = {}
    for target in targets:
        upstream = (target.get("spec") or {}).get("upstream") or {}
        if upstream.get("host") in LOCAL_HOSTS:
            local[target["metadata"]["name"]] = upstream.pop("host")
    return local


def opa_program() -> str:
    """The path of opa.

    Raises:
        Unusable: it is not installed.
    """
    cached = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin")) / "opa"
    found = os.environ.get("CHAPERONE_OPA") or shutil.which("opa") or (str(cached) if cached.exists() else None)
    if found is None:
        raise Unusable("The program opa is not installed; run `make setup`, or set CHAPERONE_OPA to its path.")
    return found


class _List(msgspec.Struct):
    items: list[Object]


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])
