"""Small manifests for tests of the compiler, the broker and `chaperone dev`: valid by default, changed by arguments."""

from __future__ import annotations

from typing import Any

type Object = dict[str, Any]


def manifest(kind: str, name: str, namespace: str = "", **spec: Any) -> Object:
    """A custom resource of ours."""
    metadata: Object = {"name": name, "uid": f"uid-of-{name}", "generation": 1}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": "chaperone.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def identity(name: str = "billing-agent", namespace: str = "agents", **spec: Any) -> Object:
    """An AgentIdentity."""
    usual: Object = {"selector": {"matchLabels": {"app": name}}, "owner": {"name": "Billing on-call"}}
    return manifest("AgentIdentity", name, namespace, **(usual | spec))


def target(name: str = "orders-db", **spec: Any) -> Object:
    """An AccessTarget that admits namespace `agents`."""
    usual: Object = {
        "protocol": "PostgreSQL",
        "hosts": [f"{name}.data.svc"],
        "credential": {"secretRef": {"name": f"{name}-reader"}},
        "allowedNamespaces": {"names": ["agents"]},
    }
    return manifest("AccessTarget", name, **(usual | spec))


def rule(name: str, action: str, effects: list[str], objects: list[str] | None = None, **more: Any) -> Object:
    """A rule of a policy."""
    match: Object = {"effects": effects}
    if objects is not None:
        match["objects"] = objects
    return {"name": name, "action": action, "match": match, **more}


def policy(rules: list[Object], name: str = "billing", namespace: str = "agents", **spec: Any) -> Object:
    """An AccessPolicy of `billing-agent` for `orders-db`."""
    usual: Object = {"subjects": [{"identity": "billing-agent"}], "targets": [{"name": "orders-db"}], "rules": rules}
    return manifest("AccessPolicy", name, namespace, **(usual | spec))


def cluster_policy(rules: list[Object], name: str = "guardrail", **spec: Any) -> Object:
    """A ClusterAccessPolicy for everybody and everything."""
    usual: Object = {"subjects": [{"identity": "*"}], "targets": [{"name": "*"}], "rules": rules}
    return manifest("ClusterAccessPolicy", name, **(usual | spec))


# At the host of registry_backend.py.
REPOSITORIES = [
    rule("fetch", "Allow", ["read", "create"], ["path:/git/app.git/info/refs", "path:/git/app.git/git-upload-pack"]),
    rule("push", "Allow", ["create"], ["path:/git/app.git/git-receive-pack"]),
    rule("wheels", "Allow", ["read"], ["path:/simple/*", "path:/wheels/*"]),
    rule("scope", "Allow", ["read"], ["path:/@shop*"]),
    rule("never", "Deny", ["read"], ["path:/@shop/secret*"], message="Ask the shop team."),
]
