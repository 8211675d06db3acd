"""A service account of the cluster that the broker may speak for, and the target that leads to the cluster's API."""

from __future__ import annotations

from typing import Final

from stage import AGENTS_LABEL, Object, make_namespace, named, secret

from chaperone_tools.cluster.pki import Authority
from chaperone_tools.kubectl import Kubectl

ACCOUNTS: Final = "e2e-accounts"
TARGET: Final = "e2e-cluster"
DOWN: Final = f"down.{ACCOUNTS}.svc"  # where nothing listens
FORGED: Final = f"forged.{ACCOUNTS}.svc"  # whose certificate is of another authority than its target says


def make_kube_target(kubectl: Kubectl, system: str, namespace: str) -> None:
    """The account, which may do in a namespace what an administrator of it may, and the target."""
    address = kubectl.json("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    ca = kubectl.json("configmap", "kube-root-ca.crt", "--namespace=default")["data"]["ca.crt"]
    make_namespace(kubectl, ACCOUNTS)
    kubectl("create", "serviceaccount", "triage", f"--namespace={ACCOUNTS}")
    kubectl(
        "create", "rolebinding", "triage", "--clusterrole=admin", f"--serviceaccount={ACCOUNTS}:triage",
        f"--namespace={namespace}",
    )  # fmt: skip
    kubectl("create", "role", "tokens", "--verb=create,delete", "--resource=secrets", f"--namespace={ACCOUNTS}")
    kubectl(
        "create", "role", "triage", "--verb=create", "--resource=serviceaccounts/token", "--resource-name=triage",
        f"--namespace={ACCOUNTS}",
    )  # fmt: skip
    for role in ("tokens", "triage"):
        kubectl(
            "create", "rolebinding", f"broker-{role}", f"--role={role}",
            f"--serviceaccount={system}:chaperone-broker", f"--namespace={ACCOUNTS}",
        )  # fmt: skip
    place = {
        "protocol": "Kubernetes",
        "hosts": ["kubernetes.default.svc", address],
        "upstream": {"host": "kubernetes.default.svc", "port": 443},
        "tls": {"mode": "VerifyFull", "caSecretRef": {"name": TARGET}},
        "credential": {"kubernetesToken": {"serviceAccount": "triage", "namespace": ACCOUNTS, "validFor": "10m"}},
        "allowedNamespaces": {"selector": {"matchLabels": {AGENTS_LABEL: "true"}}},
    }
    other = Authority("another CA").pair.certificate.decode()
    forged = {"mode": "VerifyFull", "caSecretRef": {"name": f"{TARGET}-forged"}}
    kubectl.apply(
        secret(TARGET, system, **{"ca.crt": ca}), secret(f"{TARGET}-forged", system, **{"ca.crt": other}),
        _service("down"), _service("forged"),
        named("AccessTarget", TARGET, place),
        named("AccessTarget", f"{TARGET}-down", place | {"hosts": [DOWN], "upstream": {"host": DOWN, "port": 443}}),
        named("AccessTarget", f"{TARGET}-forged", place | {"hosts": [FORGED], "tls": forged}),
    )  # fmt: skip


def _service(name: str) -> Object:
    """A name with an address, behind which there is nothing."""
    metadata = {"name": name, "namespace": ACCOUNTS}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 443}]}}


def may_read_pods(kubectl: Kubectl, namespace: str) -> None:
    """The account may look at the pods of a namespace, too."""
    kubectl(
        "create", "rolebinding", "triage", "--clusterrole=view", f"--serviceaccount={ACCOUNTS}:triage",
        f"--namespace={namespace}",
    )  # fmt: skip


def drop_kube_target(kubectl: Kubectl) -> None:
    """Take both away."""
    kubectl("delete", "accesstarget", TARGET, f"{TARGET}-down", f"{TARGET}-forged")
    kubectl("delete", "namespace", ACCOUNTS, "--wait=false")
