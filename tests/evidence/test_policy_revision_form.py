"""Revisions of policy: their one form, and that only what the operator signed for each identity is one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import statement
from chaperone_evidence.canonical import MAX_INTEGER
from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed, NotCanonical
from chaperone_evidence.note import Signer
from chaperone_evidence.revision import Files, open_bodies, open_files, read_entry

KEY = Signer("c1/operator", Ed25519PrivateKey.from_private_bytes(b"\1" * 32))
SALTS = [bytes([number]) * 32 for number in range(3)]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def made(*identities: str, serial: int = 7, revision: str = "0123456789abcdef", key: Signer = KEY,
         note: Callable[[str, str], str] = lambda _, body: body) -> Files:  # fmt: skip
    bundle = b"a bundle"
    configs = {name: {"identity": name} for name in sorted(identities or ("billing",))}
    notes = {}
    for name, config in configs.items():
        said = digest(msgspec.json.encode(config))
        body = f"chaperone.dev/policy\nagents/{name}\n{serial}\n{revision}\n{said}\n{digest(bundle)}\n"
        notes[name] = key.sign(note(name, body)).decode()
    return Files(bundle, msgspec.json.encode(configs), msgspec.json.encode(notes))


def test_what_the_operator_signed_is_a_revision() -> None:
    found = open_files(made("a", "b"), KEY.verifier)
    assert (found.cluster, found.namespace, found.serial, found.identities) == ("c1", "agents", 7, ("a", "b"))
    said = found.statement(SALTS, 99)
    data = statement.encode(said).encode()
    assert data[1] == statement.CLASS_POLICY
    assert read_entry(data) == said
    assert open_bodies(said, found.bodies(SALTS), KEY.verifier) == found


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: made(note=lambda _, body: body.replace("chaperone.dev/policy", "chaperone.dev/population")),
        lambda: made(note=lambda _, body: body.replace("agents/billing", "agents/another")),
        lambda: made(note=lambda _, body: body.replace("\n7\n", "\n07\n")),
        lambda: made(note=lambda _, body: body.replace("\n7\n", "\n0\n")),
        lambda: made(note=lambda _, body: body + "more\n"),
        lambda: made("a", "b", note=lambda name, body: body if name == "a" else body.replace("\n7\n", "\n8\n")),
        lambda: made("a", "b", note=lambda name, body: body if name == "a" else body.replace("agents/", "others/")),
        lambda: made(serial=MAX_INTEGER + 1),
        lambda: made(key=Signer("c1/operator", Ed25519PrivateKey.from_private_bytes(b"\2" * 32))),
        lambda: made(key=Signer("c2/operator", Ed25519PrivateKey.from_private_bytes(b"\1" * 32))),
        lambda: msgspec.structs.replace(made(), bundle=b"another"),
        lambda: msgspec.structs.replace(made(), gateway=b'{"billing":{"identity":"x"}}'),
        lambda: msgspec.structs.replace(made(), gateway=b'{"billing":{"identity": "billing"}}'),
        lambda: msgspec.structs.replace(made(), gateway=b'{"billing":{},"billing":{"identity":"billing"}}'),
        lambda: msgspec.structs.replace(made(), gateway=made("a").gateway),
        lambda: msgspec.structs.replace(made(), notes=b"{}", gateway=b"{}"),
        lambda: msgspec.structs.replace(made(), notes=b"[]"),
        lambda: msgspec.structs.replace(made(), notes=b'{"billing":"\\ud800"}'),
        lambda: msgspec.structs.replace(made(), notes=b"\xff"),
    ],
)
def test_anything_else_is_none(wrong: Callable[[], Files]) -> None:
    with pytest.raises((Malformed, BadSignature)):
        open_files(wrong(), KEY.verifier)


def test_another_kind_of_key_signs_no_policy() -> None:
    key = Signer("c1/gateway", Ed25519PrivateKey.from_private_bytes(b"\1" * 32))
    with pytest.raises(Malformed, match="that of no operator"):
        open_files(made(key=key), key.verifier)


def test_an_entry_stands_in_its_class_alone() -> None:
    found = statement.encode(open_files(made(), KEY.verifier).statement(SALTS, 1))
    for other in (msgspec.structs.replace(found, cls=statement.CLASS_POPULATION),
                  msgspec.structs.replace(found, link=b"\1" * 32)):  # fmt: skip
        with pytest.raises(NotCanonical):
            read_entry(other.encode())
    read = statement.EvidenceRead(wall_us=1, user="u", verb="get", resource="sessions", rows=1)
    with pytest.raises(Malformed, match="no revision of policy"):
        read_entry(statement.encode(read).encode())


@given(st.integers(0, 2), st.binary(max_size=80))
def test_a_body_that_is_another_or_missing_is_none(place: int, data: bytes) -> None:
    found = open_files(made(), KEY.verifier)
    said, bodies = found.statement(SALTS, 1), found.bodies(SALTS)
    for changed in ([*bodies[:place], data, *bodies[place + 1 :]], bodies[:place], [*bodies, data]):
        with pytest.raises(EvidenceError):
            open_bodies(said, changed, KEY.verifier)


@given(st.binary(max_size=200), st.binary(max_size=200), st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_and_nothing_else(bundle: bytes, gateway: bytes, notes: bytes) -> None:
    with pytest.raises(EvidenceError):
        open_files(Files(bundle, gateway, notes), KEY.verifier)
