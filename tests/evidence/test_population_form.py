"""Populations: their one form, what is refused, and that only the operator of the cluster can say one."""

from __future__ import annotations

import base64

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from chaperone_evidence import statement
from chaperone_evidence.canonical import MAX_INTEGER
from chaperone_evidence.errors import BadSignature, EvidenceError, Malformed, NotCanonical
from chaperone_evidence.note import Signer
from chaperone_evidence.population import (
    FIRST,
    MAX_NOTE_BYTES,
    Covered,
    Ended,
    Population,
    Retention,
    Uncovered,
    note_hash,
    open_population,
    parse,
)
from chaperone_evidence.record import Commitment

KEY = Signer("c1/operator", Ed25519PrivateKey.from_private_bytes(b"\1" * 32))
USUAL = Population(
    cluster="c1",
    namespace="agents",
    epoch=7,
    previous=note_hash(b"before"),
    wall_us=1_763_940_000_000_000,
    covered=(Covered("a1", "billing-0", "billing-agent", 1_763_930_000_000_000), Covered("a3", "new", "billing", 0)),
    uncovered=(Uncovered("a2", "old", "billing-agent", "ExistedBefore"),),
    ended=(Ended("a0", "gone", "billing", 0, "Deleted", None, 5), Ended("a4", "job", "billing", 4, "Failed", 137, 6)),
)

KEPT = msgspec.structs.replace(
    USUAL, retention=(Retention("billing-agent", 400, is_held=False), Retention("crm", 0, is_held=True))
)

_names = st.from_regex(r"[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?", fullmatch=True)
_labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
_reasons = st.from_regex(r"[A-Z][A-Za-z0-9]{0,20}", fullmatch=True)
_numbers = st.integers(0, MAX_INTEGER)


@st.composite
def populations(draw: st.DrawFn) -> Population:
    epoch = draw(st.integers(1, MAX_INTEGER))
    previous = FIRST if epoch == 1 else draw(st.binary(min_size=32, max_size=32).filter(lambda one: one != FIRST))
    uids = draw(st.lists(_names, unique=True, max_size=12))
    kinds: tuple[list[str], ...] = ([], [], [])
    for uid in sorted(uids):
        kinds[draw(st.integers(0, 2))].append(uid)
    return Population(
        cluster=draw(_labels), namespace=draw(_labels), epoch=epoch, previous=previous, wall_us=draw(_numbers),
        covered=tuple(Covered(uid, draw(_names), draw(_names), draw(_numbers)) for uid in kinds[0]),
        uncovered=tuple(Uncovered(uid, draw(_names), draw(_names), draw(_reasons)) for uid in kinds[1]),
        ended=tuple(
            Ended(uid, *(draw(one) for one in (_names, _names, _numbers, _reasons, st.none() | _numbers, _numbers)))
            for uid in kinds[2]
        ),
        retention=tuple(
            Retention(name, draw(_numbers), draw(st.booleans()))
            for name in sorted(draw(st.lists(_names, unique=True, max_size=4)))
        ),
    )  # fmt: skip


@given(populations())
def test_what_is_written_is_read_alike(said: Population) -> None:
    assert parse(said.body) == said


@given(populations(), st.data())
def test_a_changed_text_is_refused_or_says_something_else_in_its_one_form(
    said: Population, data: st.DataObject
) -> None:
    text = said.body
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters(codec="utf-8")) + text[at + data.draw(st.integers(0, 1)) :]
    try:
        found = parse(changed)
    except EvidenceError:
        return
    assert found.body == changed


@given(st.text())
def test_any_text_is_a_population_or_refused(text: str) -> None:
    with pytest.raises((Malformed, NotCanonical)):
        parse(text)


def test_the_form_is_fixed() -> None:
    previous = base64.b64encode(note_hash(b"before")).decode()
    assert USUAL.body == (
        f"chaperone.dev/population/c1/agents\nepoch 7\nprevious {previous}\ntime 1763940000000000\n"
        "covered a1 billing-0 billing-agent 1763930000000000\ncovered a3 new billing 0\n"
        "uncovered a2 old billing-agent ExistedBefore\n"
        "ended a0 gone billing 0 Deleted - 5\nended a4 job billing 4 Failed 137 6\n"
    )
    assert USUAL.count == 3
    assert KEPT.body == (
        f"{USUAL.body}retention billing-agent 400 -\nretention crm 0 held\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("retention crm 0", "retention billing-agent 0"),  # twice
        ("retention crm 0", "retention abc 0"),  # out of order
        ("400 -", "0400 -"), ("400 -", "-1 -"), ("400 -", "400 free"), ("400 -", "9007199254740992 -"),
        ("0 held\n", "0 held\ncovered z9 billing-1 billing-agent 5\n"),  # not in its place
    ],
)  # fmt: skip
def test_another_word_on_retention_is_refused(old: str, new: str) -> None:
    assert old in KEPT.body
    with pytest.raises(Malformed):
        parse(KEPT.body.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epoch 7", "epoch 07"),
        ("epoch 7", "epoch 0"),
        ("epoch 7", "epoch 1"),  # the first one follows none
        ("epoch 7", "epoch 9007199254740992"),
        ("covered a1", "covered a3"),  # twice
        ("covered a1", "covered a5"),  # out of order
        ("uncovered a2", "uncovered a1"),  # of two kinds
        ("uncovered", "unknown"),
        ("ExistedBefore", "existed before"),
        ("Deleted - 5", "Deleted -1 5"),
        ("Deleted - 5", "Deleted 5"),
        ("Failed 137 6\n", "Failed 137 6"),
        ("Failed 137 6\n", "Failed 137 6\n\n"),
        ("/c1/", "/c1/x/"),
        ("chaperone.dev/population", "chaperone.dev/policy"),
    ],
)
def test_another_form_is_refused(old: str, new: str) -> None:
    assert old in USUAL.body
    with pytest.raises(Malformed):
        parse(USUAL.body.replace(old, new, 1))


def test_the_hash_has_one_form() -> None:
    encoded = base64.b64encode(USUAL.previous).decode()
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = last[last.index(encoded[-2]) ^ 1]
    with pytest.raises(NotCanonical):
        parse(USUAL.body.replace(encoded, f"{encoded[:-2]}{twin}=", 1))


def test_only_the_clusters_operator_is_believed() -> None:
    note = KEY.sign(USUAL.body)
    assert open_population(note, KEY.verifier) == USUAL
    other = Signer("c1/operator", Ed25519PrivateKey.generate())
    with pytest.raises(BadSignature):
        open_population(note, other.verifier)
    with pytest.raises(BadSignature):
        open_population(note.replace(b"billing-0", b"billing-1"), KEY.verifier)
    abroad = Signer("c2/operator", Ed25519PrivateKey.generate())
    with pytest.raises(Malformed, match="another cluster"):
        open_population(abroad.sign(USUAL.body), abroad.verifier)


def test_a_namespace_of_five_thousand_pods_has_room() -> None:
    uid = "6f1f0a52-0000-4000-8000-{:012d}"
    pods = tuple(Covered(uid.format(n), f"billing-agent-{n:032d}", "billing-agent", 1 << 50) for n in range(5000))
    crowd = KEY.sign(
        Population(cluster="c1", namespace="agents", epoch=1, previous=FIRST, wall_us=1, covered=pods).body
    )
    assert len(crowd) <= MAX_NOTE_BYTES
    assert open_population(crowd, KEY.verifier).count == 5000
    with pytest.raises(Malformed):
        open_population(b"x" * MAX_NOTE_BYTES + crowd, KEY.verifier)


def test_its_entry_is_small_and_of_class_3() -> None:
    said = statement.PopulationEpoch(
        wall_us=1, namespace="agents", epoch=7, previous="A" * 43 + "=", count=5000,
        body=Commitment("A" * 43 + "=", MAX_NOTE_BYTES),
    )  # fmt: skip
    entry = statement.encode(said)
    assert (entry.cls, entry.link) == (3, bytes(32))
    assert len(entry.encode()) < 512
    assert statement.decode(entry) == said
