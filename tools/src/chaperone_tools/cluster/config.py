"""Configuration files of a local cluster's parts. Pure: a plan in, bytes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from chaperone_tools.cluster.plan import Plan


def containerd(plan: Plan, pause_image: str, cni_binaries: Path) -> bytes:
    """For containerd 1.6 and 1.7: everything it keeps, network namespaces too, lies under the cluster's folder."""
    quoted = json.dumps  # a JSON string of these characters is a TOML string
    return f"""version = 2
root = {quoted(str(plan.state / "containerd"))}
state = {quoted(str(plan.state / "containerd-run"))}
# containerd itself may not lower its score where the machine's root lacks CAP_SYS_RESOURCE; 0 asks for nothing.
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing", "io.containerd.internal.v1.opt"]

[grpc]
  address = {quoted(str(plan.containerd_socket))}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {quoted(pause_image)}
  # Without it no sandbox starts where root lacks CAP_SYS_RESOURCE: runc may not write a lower oom_score_adj.
  restrict_oom_score_adj = true
  # Taking the cluster down then is: unmount what lies under one folder.
  netns_mounts_under_state_dir = true
  stream_server_address = {quoted(plan.node_ipv4)}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = {quoted(str(cni_binaries))}
    conf_dir = {quoted(str(plan.etc / "cni"))}
""".encode()


def cni(plan: Plan) -> bytes:
    """Pods hang on the bridge and get one address of each family. No masquerading: nothing outside is to be reached."""
    bridge = {
        "type": "bridge",
        "bridge": plan.bridge,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "dataDir": str(plan.state / "addresses"),
            "ranges": [
                [{"subnet": plan.pods_ipv4, "gateway": plan.node_ipv4}],
                [{"subnet": plan.pods_ipv6, "gateway": plan.node_ipv6}],
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    loopback = {"type": "loopback"}
    return json.dumps({"cniVersion": "0.4.0", "name": plan.bridge, "plugins": [bridge, loopback]}, indent=2).encode()


def kubelet(plan: Plan) -> bytes:
    """Loose limits: the node is a shared developer machine, and images that were imported can't be pulled again."""
    return _document(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": plan.node_ipv4,
            "healthzPort": 0,
            "readOnlyPort": 0,
            "tlsCertFile": str(plan.pki / "kubelet.crt"),
            "tlsPrivateKeyFile": str(plan.pki / "kubelet.key"),
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(plan.pki / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{plan.containerd_socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{plan.cgroup}",
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "clusterDomain": plan.domain,
            "clusterDNS": [plan.dns],
            "resolvConf": str(plan.etc / "resolv.conf"),
            "podLogsDir": str(plan.logs / "pods"),
            "volumePluginDir": str(plan.state / "volume-plugins"),
            "staticPodPath": "",
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
                "nodefs.inodesFree": "1%",
            },
            "maxPods": 200,
            "serializeImagePulls": False,
            "nodeStatusUpdateFrequency": "5s",
            "syncFrequency": "10s",
            "logging": {"verbosity": 1},
        }
    )


def kube_proxy(plan: Plan) -> bytes:
    """In nftables mode; conntrack limits stay the machine's."""
    return _document(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": plan.node,
            "clientConnection": {"kubeconfig": str(plan.etc / "kube-proxy.kubeconfig")},
            "clusterCIDR": plan.pods,
            "detectLocalMode": "ClusterCIDR",
            "bindAddress": plan.node_ipv4,
            "healthzBindAddress": f"{plan.node_ipv4}:10256",
            "metricsBindAddress": f"{plan.node_ipv4}:10249",
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "nftables": {"minSyncPeriod": "200ms", "syncPeriod": "30s"},
        }
    )


def scheduler(plan: Plan) -> bytes:
    """No leader election: there is one."""
    return _document(
        {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(plan.etc / "kube-scheduler.kubeconfig")},
            "leaderElection": {"leaderElect": False},
        }
    )


def _document(content: dict[str, Any]) -> bytes:
    return yaml.safe_dump(content, sort_keys=False).encode()
