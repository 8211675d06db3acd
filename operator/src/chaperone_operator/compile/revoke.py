"""The last good snapshot, less what was withdrawn since: for a namespace whose present policy does not compile.

A broken policy must not shield anybody from the kill switch. While a namespace keeps its last good snapshot, identities
that are suspended or gone are taken out of force, and so are targets that are gone or do not admit the namespace any
more. Nothing is ever added or loosened here; what came new has to wait until the policy compiles again.
"""

from __future__ import annotations

import base64
import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from chaperone_operator.compile import check
from chaperone_operator.compile.model import Suspension, TargetSpec, decode
from chaperone_operator.compile.snapshot import OWN, Json, Snapshot, build, suspended
from chaperone_operator.compile.suspension import is_suspended, last_change

DELETED: Final = Suspension(reason="the AgentIdentity was deleted")


def revoke(
    last: Mapping[str, str],
    namespace: str,
    identities: Iterable[Json],
    targets: Iterable[Json],
    *,
    namespace_labels: Mapping[str, str],
) -> Snapshot:
    """The snapshot to store when `compile_namespace` gave an unusable one.

    Args:
        last: `binaryData` of the namespace's ConfigMap, written by this version or an older one.
        namespace: the namespace.
        identities: AgentIdentities, as the API gives them.
        targets: all AccessTargets of the cluster.
        namespace_labels: labels of the Namespace.

    Returns:
        A snapshot without problems; the same bytes and revision when nothing was withdrawn.

    Raises:
        ValueError: `last` cannot be read.
    """
    bundle, gateway_json, leases_json = (
        base64.b64decode(last[name], validate=True) for name in ("bundle.tar.gz", "gateway.json", "leases.json")
    )
    data, engine, modules = _unpacked(bundle)
    gateway: dict[str, dict[str, Any]] = msgspec.json.decode(gateway_json)
    leases: dict[str, dict[str, dict[str, Any]]] = msgspec.json.decode(leases_json)

    present = dict(_identities(namespace, identities))
    active = {name for name, suspension in present.items() if suspension is None}
    withdrawn = _withdrawn(
        targets, namespace, namespace_labels, {target for one in gateway.values() for target in _names(one)}
    )
    for name, config in gateway.items():
        config["targets"] = [one for one in config["targets"] if one["name"] not in withdrawn]
        if name not in active:
            before = config.get("suspension", {"targets": config["targets"]})
            config.update(suspended(before["targets"], present.get(name) or DELETED))
            data["identities"][name] = {"suspended": True}
    leases = {
        name: {target: ref for target, ref in refs.items() if target not in withdrawn}
        for name, refs in leases.items()
        if name in active
    }
    data["grants"] = {
        name: {target: grant for target, grant in granted.items() if target not in withdrawn}
        for name, granted in data["grants"].items()
    }
    asked: dict[str, Any] = msgspec.json.decode(
        base64.b64decode(last.get("approvals.json", ""), validate=True) or b"{}"
    )
    return build(data, gateway, leases, engine, modules, asked)


def _unpacked(bundle: bytes) -> tuple[dict[str, Any], bytes, dict[str, str]]:
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:gz") as archive:
            for member in archive:
                content = archive.extractfile(member)
                files[member.name] = content.read() if content is not None else b""
        data: dict[str, Any] = msgspec.json.decode(files["chaperone/data.json"])
        del data["revision"]
        modules = {
            name.removeprefix(OWN).removesuffix(".rego"): content.decode()
            for name, content in files.items()
            if name.startswith(OWN)
        }
        return data, files["chaperone/engine.rego"], modules
    except (tarfile.TarError, OSError, KeyError) as error:
        raise ValueError(f"the bundle of the last snapshot cannot be read ({error})") from error


def _identities(namespace: str, items: Iterable[Json]) -> Iterable[tuple[str, Suspension | None]]:
    """Name and suspension of each identity, None where it is not suspended, whether or not the rest of it is sound."""
    for item in items:
        metadata = item.get("metadata") or {}
        if metadata.get("namespace") == namespace:
            yield metadata.get("name", ""), last_change(item) if is_suspended(item) else None


def _withdrawn(items: Iterable[Json], namespace: str, labels: Mapping[str, str], used: set[str]) -> set[str]:
    """Targets in use that are gone or do not admit the namespace; one that cannot be read stays as it was."""
    present = {(item.get("metadata") or {}).get("name", ""): item for item in items}
    withdrawn = used - present.keys()
    for name in used & present.keys():
        target, _ = decode(present[name], TargetSpec)
        if target is not None and not check.admits(target, namespace, labels):
            withdrawn.add(name)
    return withdrawn


def _names(config: Mapping[str, Any]) -> list[str]:
    return [target["name"] for target in config["targets"]]
