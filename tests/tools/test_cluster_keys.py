"""Certificates and kubeconfigs of the local cluster."""

from __future__ import annotations

import base64
import ipaddress
import stat
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from chaperone_tools.cluster.kubeconfig import kubeconfig
from chaperone_tools.cluster.pki import Authority


def test_a_server_certificate_verifies_for_its_addresses_and_names():
    authority = Authority("cluster CA")
    pair = authority.server("kube-apiserver", ["10.244.0.1", "fd00::1", "kubernetes.default.svc"])
    store = Store([x509.load_pem_x509_certificate(authority.pair.certificate)])
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    for subject in (
        x509.IPAddress(ipaddress.ip_address("10.244.0.1")),
        x509.IPAddress(ipaddress.ip_address("fd00::1")),
        x509.DNSName("kubernetes.default.svc"),
    ):
        PolicyBuilder().store(store).build_server_verifier(subject).verify(leaf, [])


def test_user_and_groups_stand_where_kubernetes_reads_them():
    leaf = x509.load_pem_x509_certificate(Authority("CA").client("admin", "system:masters", "others").certificate)
    assert [name.value for name in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["admin"]
    groups = leaf.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    assert {name.value for name in groups} == {"system:masters", "others"}


def test_a_client_certificate_is_no_server_certificate():
    leaf = x509.load_pem_x509_certificate(Authority("CA").client("admin").certificate)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_written_key_is_readable_by_its_owner_alone(tmp_path: Path):
    Authority("CA").pair.write(tmp_path, "ca")
    assert stat.S_IMODE((tmp_path / "ca.key").stat().st_mode) == 0o600


def test_a_kubeconfig_carries_everything_inside():
    authority = Authority("CA")
    login = authority.client("admin")
    config = yaml.safe_load(kubeconfig("dev", "https://10.244.0.1:6443", authority.pair.certificate, login))
    assert config["current-context"] == config["contexts"][0]["name"] == "dev"
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    assert base64.b64decode(cluster["certificate-authority-data"]) == authority.pair.certificate
    assert base64.b64decode(user["client-key-data"]) == login.key
    assert base64.b64decode(user["client-certificate-data"]) == login.certificate
