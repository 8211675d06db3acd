"""What the operator signs: notes that an independent reader verifies, and serials that only grow."""

from __future__ import annotations

import base64
import hashlib

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from manifests import identity, policy, rule, target

from chaperone_evidence import note
from chaperone_evidence.errors import BadSignature
from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.signing import NOTES, Signer, signed

NOW_MS = 1_783_933_200_000
KEY = Ed25519PrivateKey.generate()
SIGNER = Signer("cluster-uid/operator", KEY)


def compiled(*effects: str) -> Snapshot:
    found = compile_namespace(
        "agents", [identity(), identity("other-agent")], [target()], [policy([rule("r", "Allow", list(effects))])], [],
        namespace_labels={},
    )  # fmt: skip
    assert found.is_usable, found.problems
    return found


def stored(
    snapshot: Snapshot, before: dict[str, str] | None = None, *, signer: Signer = SIGNER, now_ms: int = NOW_MS,
    namespace: str = "agents",
) -> dict[str, str]:  # fmt: skip
    return signed(snapshot.binary_data(), namespace, snapshot.revision, before, signer, now_ms)


def notes(data: dict[str, str]) -> dict[str, str]:
    return msgspec.json.decode(base64.b64decode(data[NOTES]), type=dict[str, str])


def serials(data: dict[str, str]) -> set[int]:
    return {int(one.split("\n")[2]) for one in notes(data).values()}


def test_the_key_as_text_is_the_one_of_the_evidence_library() -> None:
    assert SIGNER.vkey == note.Signer("cluster-uid/operator", KEY).verifier.vkey


def test_a_note_binds_one_identity_to_the_bytes_of_its_configuration_and_of_the_bundle() -> None:
    snapshot = compiled("read")
    found = notes(stored(snapshot))
    verifier = note.parse_vkey(SIGNER.vkey)
    configs = msgspec.json.decode(snapshot.gateway, type=dict[str, msgspec.Raw])
    assert found.keys() == configs.keys() == {"billing-agent", "other-agent"}
    for name, text in found.items():
        digests = [hashlib.sha256(part).hexdigest() for part in (bytes(configs[name]), snapshot.bundle)]
        body = note.open_note(text.encode(), verifier)
        assert body.splitlines() == [
            "chaperone.dev/policy", f"agents/{name}", str(NOW_MS), snapshot.revision, *digests,
        ]  # fmt: skip


def test_a_note_that_was_altered_is_nobodys() -> None:
    verifier = note.parse_vkey(SIGNER.vkey)
    text = notes(stored(compiled("read")))["billing-agent"]
    with pytest.raises(BadSignature):
        note.open_note(text.replace("agents/billing", "agents/killing").encode(), verifier)


def test_what_did_not_change_is_signed_with_the_serial_before() -> None:
    first = stored(compiled("read"))
    assert stored(compiled("read"), first, now_ms=NOW_MS + 1000) == first


@pytest.mark.parametrize(("later_ms", "expected"), [(1000, NOW_MS + 1000), (0, NOW_MS + 1), (-3_600_000, NOW_MS + 1)])
def test_each_change_has_a_higher_serial_whatever_the_clock_says(later_ms: int, expected: int) -> None:
    first = stored(compiled("read"))
    assert serials(stored(compiled("read", "modify"), first, now_ms=NOW_MS + later_ms)) == {expected}


def test_a_snapshot_that_was_deleted_does_not_begin_anew() -> None:
    first = stored(compiled("read"))
    second = stored(compiled("read", "modify"), first, now_ms=NOW_MS + 1000)
    anew = stored(compiled("read"), None, now_ms=NOW_MS + 2000)
    assert min(serials(anew)) > max(serials(second))


def test_serials_that_others_wrote_count_for_nothing_and_are_signed_over() -> None:
    forged = stored(
        compiled("read"), signer=Signer("cluster-uid/operator", Ed25519PrivateKey.generate()), now_ms=10**15
    )
    elsewhere = stored(compiled("read"), namespace="others", now_ms=10**15)
    broken = stored(compiled("read")) | {NOTES: base64.b64encode(b'{"a": 1}').decode()}
    for before in (forged, elsewhere, broken, broken | {NOTES: "%"}):
        found = stored(compiled("read"), before)
        assert serials(found) == {NOW_MS}
        assert found != before


def test_a_note_that_lacks_is_made_under_a_serial_that_all_share() -> None:
    first = stored(compiled("read"))
    kept = {"billing-agent": notes(first)["billing-agent"]}
    partly = first | {NOTES: base64.b64encode(msgspec.json.encode(kept)).decode()}
    found = stored(compiled("read"), partly, now_ms=NOW_MS)
    assert serials(found) == {NOW_MS + 1}
