"""The command lines of a local cluster's parts. Pure: a plan in, argument lists out."""

from __future__ import annotations

from chaperone_tools.cluster.plan import Plan

FRONT_PROXY = "front-proxy-client"  # the one name whose X-Remote-User headers are believed


def etcd(plan: Plan, client_port: int, peer_port: int) -> list[str]:
    """On loopback. The data is thrown away with the cluster, so it need not survive the machine."""
    return [
        f"--data-dir={plan.state / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client_port}",
        f"--advertise-client-urls=http://127.0.0.1:{client_port}",
        f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def containerd(plan: Plan) -> list[str]:
    """A containerd of this cluster alone."""
    return [f"--config={plan.etc / 'containerd.toml'}", "--log-level=info"]


def kube_apiserver(plan: Plan, etcd_port: int) -> list[str]:
    """The API server on the bridge's address, so that pods reach it and nobody outside this machine does."""
    pki = plan.pki
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--bind-address={plan.node_ipv4}",
        f"--advertise-address={plan.node_ipv4}",
        f"--secure-port={plan.port}",
        f"--service-cluster-ip-range={plan.services}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'apiserver-kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'apiserver-kubelet-client.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-issuer=https://kubernetes.default.svc.{plan.domain}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        # Webhooks and APIServices are reached at pod addresses: the node needs no route to service addresses.
        "--enable-aggregator-routing=true",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        f"--requestheader-allowed-names={FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-uid-headers=X-Remote-Uid",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
        "--profiling=false",
    ]


def kube_controller_manager(plan: Plan) -> list[str]:
    """The controllers, each with its own service account's rights."""
    config = plan.etc / "kube-controller-manager.kubeconfig"
    return [
        f"--kubeconfig={config}",
        "--secure-port=0",
        "--leader-elect=false",
        f"--root-ca-file={plan.pki / 'ca.crt'}",
        f"--service-account-private-key-file={plan.pki / 'sa.key'}",
        "--use-service-account-credentials=true",
        f"--cluster-signing-cert-file={plan.pki / 'ca.crt'}",
        f"--cluster-signing-key-file={plan.pki / 'ca.key'}",
        "--allocate-node-cidrs=false",
        f"--service-cluster-ip-range={plan.services}",
    ]


def kube_scheduler(plan: Plan) -> list[str]:
    """The scheduler; serves nothing itself."""
    return [f"--config={plan.etc / 'kube-scheduler.yaml'}", "--secure-port=0"]


def kubelet(plan: Plan) -> list[str]:
    """The one node, with an address of each family."""
    return [
        f"--config={plan.etc / 'kubelet.yaml'}",
        f"--kubeconfig={plan.etc / 'kubelet.kubeconfig'}",
        f"--root-dir={plan.state / 'kubelet'}",
        f"--cert-dir={plan.state / 'kubelet-pki'}",
        f"--hostname-override={plan.node}",
        f"--node-ip={plan.node_ipv4},{plan.node_ipv6}",
    ]


def kube_proxy(plan: Plan) -> list[str]:
    """Service addresses in nftables."""
    return [f"--config={plan.etc / 'kube-proxy.yaml'}"]
