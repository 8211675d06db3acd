"""Which certificates bind a stream's key to a pod, and which do not."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from pki import DAY, Authority

from chaperone_evidence.certificate import Subject, check_issued, subject_uri
from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed

URI = subject_uri("cluster-1", "agents", "billing-0", "uid-1", "billing-agent")
KEY_URI = "chaperone-stream-key:cluster-1/gateway/uid-1+00000000+AAAA"
IMPORTED_US = time.time_ns() // 1000
HOUR_US = 3_600_000_000

type Change = Callable[[x509.CertificateBuilder], x509.CertificateBuilder]


def _now_us() -> int:
    """The time of the check: certificates are made when a test runs, which may be minutes after this file was read."""
    return time.time_ns() // 1000


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("gateway CA")


def _names(*names: x509.GeneralName) -> Change:
    return lambda builder: builder.add_extension(x509.SubjectAlternativeName(names), critical=True)


def _uris(*uris: str) -> Change:
    return _names(*(x509.UniformResourceIdentifier(uri) for uri in uris))


def _usage(*usages: ObjectIdentifier) -> Change:
    return lambda builder: builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)


CLIENT = _usage(ExtendedKeyUsageOID.CLIENT_AUTH)


def _issue(authority: Authority, *changes: Change, issuer: x509.Name | None = None) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer or authority.name)
        .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + timedelta(hours=1))
    )
    for change in changes:
        builder = change(builder)
    return builder.sign(authority.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_gateways_certificate_binds_key_and_pod(authority: Authority) -> None:
    der = _issue(authority, _uris(URI, KEY_URI), CLIENT)
    expected = Subject(
        "cluster-1", "agents", "billing-0", "uid-1", "billing-agent", KEY_URI.removeprefix("chaperone-stream-key:")
    )
    assert check_issued(der, [authority.certificate], _now_us()) == expected


def test_one_of_several_authorities_is_enough_also_when_their_names_are_alike(authority: Authority) -> None:
    der = _issue(authority, _uris(URI, KEY_URI), CLIENT)
    namesake = Authority("gateway CA").certificate
    assert check_issued(der, [namesake, authority.certificate], _now_us()).pod_uid == "uid-1"
    for authorities in ([], [namesake]):
        with pytest.raises(BadSignature):
            check_issued(der, authorities, _now_us())


@pytest.mark.parametrize(
    "at_us",
    [IMPORTED_US - 3 * HOUR_US, IMPORTED_US + 2 * HOUR_US, -(2**53), 2**53 - 1],
    ids=["before", "after", "first", "last"],
)
def test_a_certificate_proves_nothing_outside_its_time(authority: Authority, at_us: int) -> None:
    der = _issue(authority, _uris(URI, KEY_URI), CLIENT)
    with pytest.raises(Malformed, match="not valid at"):
        check_issued(der, [authority.certificate], at_us)


@pytest.mark.parametrize(
    "changes",
    [
        (CLIENT,),
        (_uris(URI, KEY_URI),),
        (_uris(URI, KEY_URI), _usage(ExtendedKeyUsageOID.SERVER_AUTH)),
        (_uris(URI), CLIENT),
        (_uris(KEY_URI), CLIENT),
        (_uris(URI, URI.replace("billing-0", "billing-1"), KEY_URI), CLIENT),
        (_uris(URI, KEY_URI, KEY_URI + "A"), CLIENT),
        (_uris(URI + "/more", KEY_URI), CLIENT),
        (_uris(URI + "\n", KEY_URI), CLIENT),
        (_uris(URI.replace("chaperone.dev", "chaperone.example"), KEY_URI), CLIENT),
        (_uris(URI.replace("/ns/agents", "/ns/"), KEY_URI), CLIENT),
        (_names(x509.DNSName(URI), x509.DNSName(KEY_URI)), CLIENT),
        (
            _uris(URI, KEY_URI),
            CLIENT,
            lambda builder: builder.add_extension(
                x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00"), critical=True
            ),
        ),
    ],
)
def test_another_certificate_of_the_same_authority_is_refused(
    authority: Authority, changes: tuple[Change, ...]
) -> None:
    with pytest.raises(Malformed):
        check_issued(_issue(authority, *changes), [authority.certificate], _now_us())


def test_a_gateway_cannot_issue_certificates(authority: Authority) -> None:
    gateway = Authority("a gateway's key")
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(gateway.name)
        .issuer_name(authority.name)
        .public_key(gateway.key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
    )
    leaf = builder.sign(authority.key, hashes.SHA256())
    forged = _issue(gateway, _uris(URI, KEY_URI), CLIENT)
    for authorities in ([authority.certificate], [authority.certificate, leaf], [leaf]):
        with pytest.raises(BadSignature):
            check_issued(forged, authorities, _now_us())


@pytest.mark.parametrize("may_sign", [True, False])
def test_a_ca_that_says_what_its_key_is_for_must_say_certificates(may_sign: bool) -> None:
    authority = Authority("gateway CA")
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=may_sign, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    now = datetime.now(UTC)
    ca = (
        x509.CertificateBuilder()
        .subject_name(authority.name)
        .issuer_name(authority.name)
        .public_key(authority.key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority.key, hashes.SHA256())
    )
    der = _issue(authority, _uris(URI, KEY_URI), CLIENT)
    if may_sign:
        assert check_issued(der, [ca], _now_us()).identity == "billing-agent"
    else:
        with pytest.raises(BadSignature):
            check_issued(der, [ca], _now_us())


def test_an_authority_with_another_kind_of_key_is_not_ours(authority: Authority) -> None:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    now = datetime.now(UTC)
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - DAY)
        .not_valid_after(now + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(BadSignature):
        check_issued(_issue(authority, _uris(URI, KEY_URI), CLIENT, issuer=name), [ca], _now_us())


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_no_changed_byte_of_what_is_signed_gets_through_and_none_crashes(authority: Authority) -> None:
    der = _issue(authority, _uris(URI, KEY_URI), CLIENT)
    subject = check_issued(der, [authority.certificate], _now_us())
    signed = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    begin = der.index(signed)
    for position in range(len(der)):
        for mask in (1, 0x80, 0xFF):
            changed = bytearray(der)
            changed[position] ^= mask
            try:
                found = check_issued(bytes(changed), [authority.certificate], _now_us())
            except EvidenceError:
                continue
            # Around the signature a BIT STRING has a byte without meaning.
            assert position >= begin + len(signed)
            assert found == subject
        with pytest.raises(EvidenceError):
            check_issued(der[:position], [authority.certificate], _now_us())
