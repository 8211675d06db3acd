"""Objects a fresh local cluster gets: cluster DNS, rights of kube-proxy, and volumes for claims. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from chaperone_tools.cluster.plan import Plan

VOLUMES = 64  # a released one is not used again, and a test run takes a handful
VOLUME_SIZE = "100Gi"  # nominal: a folder on the node's disk has no quota
DNS_PORT = 1053  # over 1023, so that CoreDNS needs no capability
DNS_USER = 65532

# No `forward`: nothing outside is to be reached, so a name outside is refused at once rather than after a timeout.
_COREFILE = """.:{port} {{
    errors
    health :8080 {{
        lameduck 1s
    }}
    ready :8181
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        pods verified
        ttl 5
    }}
    cache 5
}}
"""


def objects(plan: Plan, coredns_image: str) -> str:
    """All of them as one YAML stream."""
    documents = [*_dns(plan, coredns_image), *_proxy_rights(plan), _storage_class(), *_volumes(plan)]
    return yaml.safe_dump_all(documents, sort_keys=False)


def _dns(plan: Plan, image: str) -> list[dict[str, Any]]:
    meta = {"name": "coredns", "namespace": "kube-system"}
    labels = {"k8s-app": "kube-dns"}
    rules = [
        {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    container = {
        "name": "coredns",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": DNS_PORT, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": DNS_PORT, "protocol": "TCP"},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "initialDelaySeconds": 30},
        "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}, "limits": {"memory": "170Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": DNS_USER,
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    pod = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": "coredns"}}],
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        _role("system:coredns", rules),
        _binding("system:coredns", {"kind": "ServiceAccount", **meta}),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": meta,
            "data": {"Corefile": _COREFILE.format(port=DNS_PORT, domain=plan.domain)},
        },
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": meta | {"labels": labels},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
            "spec": {
                "clusterIP": plan.dns,
                "selector": labels,
                "ports": [
                    {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"},
                    {"name": "dns-tcp", "port": 53, "targetPort": "dns-tcp", "protocol": "TCP"},
                ],
            },
        },
    ]


def _proxy_rights(plan: Plan) -> list[dict[str, Any]]:
    user = {"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-proxy"}
    # The API server's own client at the kubelet (logs, exec) is an ordinary user too.
    kubelet_client = user | {"name": "kube-apiserver-kubelet-client"}
    return [
        _binding("system:node-proxier", user, name=f"{plan.name}:node-proxier"),
        _binding("system:kubelet-api-admin", kubelet_client, name=f"{plan.name}:kubelet-api-admin"),
    ]


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": "standard",
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
        "reclaimPolicy": "Delete",
    }


def _volumes(plan: Plan) -> list[dict[str, Any]]:
    affinity = {
        "nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [plan.node]}]}
        ]
    }
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": path.name},
            "spec": {
                "capacity": {"storage": VOLUME_SIZE},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "standard",
                "local": {"path": str(path)},
                "nodeAffinity": {"required": affinity},
            },
        }
        for path in (plan.state / "volumes" / f"volume-{number}" for number in range(VOLUMES))
    ]


def _role(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }


def _binding(role: str, subject: dict[str, Any], name: str = "") -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name or role},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [subject],
    }
