"""What the local cluster's parts are told: they agree with one plan and with each other."""

from __future__ import annotations

import ipaddress
import json
import tomllib
from pathlib import Path

import yaml

from chaperone_tools.cluster import config, kind, manifests, parts
from chaperone_tools.cluster.plan import plan_of

PLAN = plan_of("dev")


def test_everything_containerd_keeps_lies_under_the_clusters_folder():
    said = tomllib.loads(config.containerd(PLAN, "chaperone.local/pause:x", Path("/usr/lib/cni")).decode())
    cri = said["plugins"]["io.containerd.grpc.v1.cri"]
    kept = [said["root"], said["state"], said["grpc"]["address"], cri["cni"]["conf_dir"]]
    assert all(PLAN.state in Path(path).parents for path in kept)
    assert cri["netns_mounts_under_state_dir"] is True
    assert cri["sandbox_image"] == "chaperone.local/pause:x"


def test_containerd_starts_pods_where_root_may_not_lower_oom_scores():
    said = tomllib.loads(config.containerd(PLAN, "pause", Path("/usr/lib/cni")).decode())
    assert said["plugins"]["io.containerd.grpc.v1.cri"]["restrict_oom_score_adj"] is True


def test_pods_get_an_address_of_each_family_from_ranges_whose_gateway_is_the_node():
    ipam = json.loads(config.cni(PLAN))["plugins"][0]["ipam"]
    ranges = [entry for (entry,) in ipam["ranges"]]
    assert [ipaddress.ip_network(entry["subnet"]).version for entry in ranges] == [4, 6]
    for entry in ranges:
        assert ipaddress.ip_address(entry["gateway"]) in ipaddress.ip_network(entry["subnet"])
    assert [entry["gateway"] for entry in ranges] == [PLAN.node_ipv4, PLAN.node_ipv6]


def test_the_dns_address_is_one_of_the_service_range_and_kubelet_hands_it_to_pods():
    assert ipaddress.ip_address(PLAN.dns) in ipaddress.ip_network(PLAN.services_ipv4)
    assert yaml.safe_load(config.kubelet(PLAN))["clusterDNS"] == [PLAN.dns]
    services = [item for item in yaml.safe_load_all(manifests.objects(PLAN, "dns")) if item["kind"] == "Service"]
    assert [service["spec"]["clusterIP"] for service in services] == [PLAN.dns]


def test_pod_and_service_ranges_of_a_family_do_not_overlap():
    for pods, services in ((PLAN.pods_ipv4, PLAN.services_ipv4), (PLAN.pods_ipv6, PLAN.services_ipv6)):
        assert not ipaddress.ip_network(pods).overlaps(ipaddress.ip_network(services))


def test_the_api_server_listens_on_the_bridge_and_etcd_on_loopback():
    assert f"--bind-address={PLAN.node_ipv4}" in parts.kube_apiserver(PLAN, 2379)
    listeners = [word for word in parts.etcd(PLAN, 2379, 2380) if word.startswith("--listen")]
    assert listeners
    assert all("//127.0.0.1:" in word for word in listeners)


def test_kubelet_asks_who_is_there_and_whether_they_may():
    said = yaml.safe_load(config.kubelet(PLAN))
    assert said["authentication"]["anonymous"]["enabled"] is False
    assert said["authorization"]["mode"] == "Webhook"
    assert said["readOnlyPort"] == 0


def test_pods_of_a_cluster_live_in_a_cgroup_of_its_own():
    assert yaml.safe_load(config.kubelet(PLAN))["cgroupRoot"] == "/chaperone-cluster-dev"
    assert plan_of("other").cgroup != PLAN.cgroup


def test_cluster_dns_runs_without_rights_over_its_node():
    (deployment,) = (
        item for item in yaml.safe_load_all(manifests.objects(PLAN, "dns")) if item["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True


def test_a_kind_cluster_has_both_address_families_too():
    assert yaml.safe_load(kind.cluster())["networking"]["ipFamily"] == "dual"
