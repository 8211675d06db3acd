"""Masks of policies and targets: the compiler's checks are the gateway's, and the gateway is told their union."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace, pattern, revoke
from chaperone_operator.compile.check import NOWHERE, World, rules_problems, target_problems
from chaperone_operator.compile.model import PolicySpec, TargetSpec, decode
from chaperone_operator.compile.vocabulary import DETECTORS, METHODS
from chaperone_sidecar.config import Target
from chaperone_sidecar.config import decode as gateway_reads
from chaperone_sidecar.errors import ConfigError
from chaperone_sidecar.masking import engine
from chaperone_sidecar.masking.detectors import BUILTIN
from chaperone_sidecar.masking.mask import MAX_CUSTOM_DETECTORS, Masker
from chaperone_sidecar.masking.methods import STRICTNESS
from chaperone_sidecar.masking.rule import Classified, MaskRule, Masks, Pattern

READ = rule("read", "Allow", ["read"])
EMAIL = {"detectors": ["Email"], "method": "Partial"}
COLUMN = {"columns": ["public.customers.email"], "method": "Hash"}
CUSTOMER = {"patterns": [{"name": "Customer", "pattern": "CU-[0-9]{8}"}], "method": "Redact"}
KEY = b"k" * 32
STRICTEST = ["Deny", "Redact", "Allow"]
CRDS = Path(__file__).parents[2] / "crds"


def compiled(*policies: Object, targets: list[Object] | None = None, **changed: Any) -> Snapshot:
    return compile_namespace(
        "agents", changed.get("identities", [identity(), identity("other-agent")]),
        targets or [target(), target("files-db")],
        [one for one in policies if one["kind"] == "AccessPolicy"],
        [one for one in policies if one["kind"] == "ClusterAccessPolicy"],
        namespace_labels={},
    )  # fmt: skip


def told(snapshot: Snapshot, agent: str = "billing-agent", at: str = "orders-db") -> Masks:
    """What the gateway of an agent reads, with its own reader; and its masker takes it."""
    assert snapshot.is_usable, snapshot.problems
    config = gateway_reads(json.dumps(json.loads(snapshot.gateway)[agent]).encode())
    masks = next(one.masks for one in config.targets if one.name == at)
    Masker(masks.rules, masks.classified, KEY)
    return masks


def test_words_are_those_of_the_gateway() -> None:
    assert frozenset(BUILTIN) == DETECTORS
    assert METHODS == STRICTNESS
    for name in ("accesspolicies", "clusteraccesspolicies"):
        version = yaml.safe_load((CRDS / f"{name}.yaml").read_text())["spec"]["versions"][0]
        mask = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["masks"]["items"]["properties"]
        assert frozenset(mask["detectors"]["items"]["enum"]) == DETECTORS
        assert mask["patterns"]["items"]["properties"]["pattern"]["maxLength"] == pattern.MAX_PATTERN
        assert mask["patterns"]["maxItems"] == MAX_CUSTOM_DETECTORS


GOOD = [
    "CU-[0-9]{8}", r"\bID\d+", "(?i)abc", "a|b", "[$]x", "[^a]b", r"\$5", "é+", r"(?P<n>a)b", "(?s).+", "a*?b", r"\pN+",
    r"\Qa.b\E", "x{1,900}", "[[:alpha:]]+", "a" * 1000, " ", "\n", r"\b", r"[]^]a", r"a\b|\bx", "(a{1,30}){1,30}",
]  # fmt: skip
BAD = [
    "", "a*", "(a", "a)|(?:b", r"\Qabc", "^a", "a$", r"\Aa", r"a\z", r"\Z", "(?=a)b", r"(a)\1", "(?<!a)b", "a" * 1001,
    "x{1001}", "(?:a{1,100}){1,100}", "[a", "a\\", "*", "a**", r"\B", "a|", "(?x)a",
]  # fmt: skip


@pytest.mark.parametrize("text", [*GOOD, *BAD])
def test_operator_and_gateway_agree_about_patterns(text: str) -> None:
    try:
        pattern.check(text)
        operator_says = True
    except pattern.BadExpression as error:
        assert len(str(error)) < 300 + len(text)
        operator_says = False
    try:
        engine.custom("Own", text)
        Masker([MaskRule("Redact", detectors=(Pattern("Own", text),))]).mask_value(b"some text, and no end of it")
        gateway_says = True
    except ConfigError:
        gateway_says = False
    assert operator_says == gateway_says == (text in GOOD)


@given(st.text(st.sampled_from("ab(|)[]*+?{}1,2\\QEbBAz^$.:-\x00é"), max_size=12))
def test_operator_and_gateway_agree_about_any_text(text: str) -> None:
    try:
        pattern.check(text)
    except pattern.BadExpression:
        with pytest.raises(ConfigError):
            engine.custom("Own", text)
    else:
        Masker([MaskRule("Redact", detectors=(Pattern("Own", text),))]).mask_value(b"ab1 abba")


@pytest.mark.parametrize(
    "name", ["Customer", "a", "A-_9", "email", "x" * 48, "Email", "1a", "", "a b", "x" * 49, "é", "a\n"]
)
def test_operator_and_gateway_agree_about_names(name: str) -> None:
    try:
        pattern.check_name(name)
    except pattern.BadExpression:
        with pytest.raises(ConfigError):
            Masker([MaskRule("Redact", detectors=(Pattern(name, "a"),))])
    else:
        Masker([MaskRule("Redact", detectors=(Pattern(name, "a"),))])


def test_text_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(pattern.BadExpression, match="no Unicode"):
        pattern.check("\ud800")


def test_masks_reach_the_gateway_of_the_pair_that_the_policy_binds_and_no_other() -> None:
    snapshot = compiled(policy([READ], masks=[COLUMN, EMAIL, CUSTOMER], unmaskable="Redact"))
    assert told(snapshot) == Masks(
        (
            MaskRule("Redact", (), (Pattern("Customer", "CU-[0-9]{8}"),)),
            MaskRule("Hash", ("public.customers.email",)),
            MaskRule("Partial", (), ("Email",)),
        ),
        (),
        "Redact",
    )
    assert told(snapshot, "other-agent") == told(snapshot, at="files-db") == Masks()
    assert b"masks" not in compiled(policy([READ])).gateway


def test_masks_of_all_policies_are_united() -> None:
    more = {"columns": ["a.b.c"], "detectors": ["IBAN"], "method": "Hash"}
    both = compiled(
        policy([READ], masks=[COLUMN]), policy([READ], "more", masks=[more]), cluster_policy([], masks=[EMAIL])
    )
    assert told(both).rules == (
        MaskRule("Hash", ("a.b.c", "public.customers.email"), ("IBAN",)),
        MaskRule("Partial", (), ("Email",)),
    )
    assert told(both, "other-agent", "files-db").rules == (MaskRule("Partial", (), ("Email",)),)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(None, True)], "Deny"),
        ([("Allow", True)], "Allow"),
        ([("Redact", True), ("Allow", True)], "Redact"),
        ([("Allow", True), (None, True)], "Deny"),
        ([("Allow", True), (None, False)], "Allow"),  # a policy that masks nothing and says nothing has no say
        ([("Allow", True), ("Deny", False)], "Deny"),
        ([("Redact", True), ("Redact", False)], "Redact"),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_cluster_last", [True, False])
def test_strictest_unmaskable_counts(said: list[tuple[str | None, bool]], expected: str, is_cluster_last: bool) -> None:
    policies = []
    for index, (unmaskable, has_masks) in enumerate(said):
        spec: Object = ({"unmaskable": unmaskable} if unmaskable else {}) | ({"masks": [EMAIL]} if has_masks else {})
        made = cluster_policy if is_cluster_last and index == len(said) - 1 else policy
        policies.append(made([READ], f"p{index}", **spec))
    assert told(compiled(*policies)).unmaskable == expected


def test_classified_columns_are_told_to_every_identity_and_what_lineage_cannot_follow_is_denied() -> None:
    orders = target(classified=[{"columns": ["public.customers.*", "db.a.b.c"], "class": "email"}])
    snapshot = compiled(policy([READ]), targets=[orders])
    expected = Masks((), (Classified(("db.a.b.c", "public.customers.*"), "email"),), "Deny")
    assert told(snapshot) == told(snapshot, "other-agent") == expected


def test_no_policy_of_a_namespace_loosens_what_the_cluster_classifies_or_says() -> None:
    orders = target(classified=[{"columns": ["public.customers.*"], "class": "email"}])
    alone = compiled(policy([READ], masks=[EMAIL], unmaskable="Allow"), targets=[orders])
    assert told(alone).unmaskable == "Deny"
    loosened = compiled(policy([READ], unmaskable="Allow"), cluster_policy([], unmaskable="Redact"), targets=[orders])
    assert told(loosened).unmaskable == "Redact"
    unsaid = compiled(policy([READ], unmaskable="Allow"), cluster_policy([], masks=[EMAIL]))
    assert told(unsaid).unmaskable == "Deny"
    guarded = compiled(policy([READ], unmaskable="Allow"), cluster_policy([], unmaskable="Deny"), targets=[orders])
    assert told(guarded).unmaskable == "Deny"


def test_unmaskable_alone_masks_nothing() -> None:
    assert told(compiled(policy([READ], unmaskable="Redact"))) == Masks()


def test_masks_alone_grant_nothing() -> None:
    snapshot = compiled(policy([], masks=[EMAIL]))
    assert told(snapshot).rules
    assert snapshot.leases == b"{}"


def test_suspended_identity_has_no_masks() -> None:
    snapshot = compiled(policy([READ], masks=[COLUMN]), identities=[identity(suspended=True)])
    assert snapshot.is_usable
    assert b"masks" not in snapshot.gateway


def test_masks_stand_while_the_present_policy_does_not_compile() -> None:
    last = compiled(policy([READ], masks=[COLUMN]))
    kept = revoke(last.binary_data(), "agents", [identity()], [target(), target("files-db")], namespace_labels={})
    assert told(kept) == told(last)


def clash(*policies: Object) -> list[tuple[str, str, str]]:
    snapshot = compiled(*policies)
    assert not snapshot.is_usable
    assert snapshot.gateway == b""
    return [(found.kind, found.name, found.reason) for found in snapshot.problems if found.is_blocking]


def other(name: str = "Customer", text: str = "KD[0-9]+") -> Object:
    return {"patterns": [{"name": name, "pattern": text}], "method": "Null"}


def test_two_patterns_of_one_name_are_a_problem_of_both_policies() -> None:
    problems = compiled(policy([READ], masks=[CUSTOMER]), policy([READ], "more", masks=[other()])).problems
    assert [(found.name, found.reason) for found in problems] == [
        ("billing", "PatternClash"),
        ("more", "PatternClash"),
    ]
    assert problems[0].message == (
        "spec.masks: for identity billing-agent at orders-db, pattern 'Customer' is another one in agents/more; "
        "rename one of them."
    )
    assert clash(policy([READ], masks=[CUSTOMER]), cluster_policy([], masks=[other()])) == [
        ("AccessPolicy", "billing", "PatternClash"),
        ("ClusterAccessPolicy", "guardrail", "PatternClash"),
    ]


def test_same_pattern_twice_and_patterns_that_never_meet_do_not_clash() -> None:
    assert told(compiled(policy([READ], masks=[CUSTOMER]), policy([READ], "more", masks=[CUSTOMER])))
    elsewhere = policy([READ], "more", masks=[other()], subjects=[{"identity": "other-agent"}])
    assert told(compiled(policy([READ], masks=[CUSTOMER]), elsewhere))
    foreign = policy([READ], "more", namespace="other", masks=[other()])
    assert told(compiled(policy([READ], masks=[CUSTOMER]), foreign))


def test_more_patterns_together_than_a_gateway_takes_are_a_problem_of_all_that_have_some() -> None:
    def many(name: str, count: int) -> Object:
        own = [{"name": f"{name}-{index}", "pattern": f"{name}{index}x"} for index in range(count)]
        return policy([READ], name, masks=[{"patterns": own, "method": "Redact"}])

    assert told(compiled(many("a", 20), many("b", 12)))
    assert clash(many("a", 20), many("b", 13), policy([READ], "c", masks=[EMAIL])) == [
        ("AccessPolicy", "a", "TooManyPatterns"),
        ("AccessPolicy", "b", "TooManyPatterns"),
    ]


@pytest.mark.parametrize("protocol", ["HTTP", "MCP"])
def test_what_has_no_columns_has_no_classes_and_is_masked_by_detectors(protocol: str) -> None:
    shell = target("shell", protocol=protocol, classified=[{"columns": ["a.b.c"], "class": "email"}])
    document, _ = decode(shell, TargetSpec)
    assert document is not None
    assert "MaskNotPossible" in {found.reason for found in target_problems(document)}
    bound, _ = decode(policy([], masks=[EMAIL], targets=[{"name": "shell"}]), PolicySpec)
    assert bound is not None
    world = World("agents", frozenset({"billing-agent"}), {"shell": document}, frozenset(), frozenset({"shell"}))
    assert not list(rules_problems(bound, ["shell"], world))
    assert not list(rules_problems(bound, ["shell"], NOWHERE))


def test_columns_are_masked_only_where_answers_have_them() -> None:
    place, _ = decode(target("shell", protocol="Kubernetes"), TargetSpec)
    assert place is not None
    world = World("agents", frozenset({"billing-agent"}), {"shell": place}, frozenset(), frozenset({"shell"}))
    for mask, expected in ((EMAIL, []), (COLUMN, ["MaskNotPossible"])):
        bound, _ = decode(policy([], masks=[mask], targets=[{"name": "shell"}]), PolicySpec)
        assert bound is not None
        assert [one.reason for one in rules_problems(bound, ["shell"], world)] == expected


def test_change_of_masks_ends_open_sessions() -> None:
    def orders(*policies: Object, **spec: Any) -> Target:
        snapshot = compiled(*policies, targets=[target(**spec)])
        return gateway_reads(json.dumps(json.loads(snapshot.gateway)["billing-agent"]).encode()).targets[0]

    plain = orders(policy([READ]))
    masked = orders(policy([READ], masks=[EMAIL]))
    classified = orders(policy([READ]), classified=[{"columns": ["a.b.c"], "class": "email"}])
    loosened = orders(policy([READ], masks=[EMAIL], unmaskable="Allow"))
    limited = orders(policy([READ], masks=[EMAIL], limits={"connections": 2}))
    for one in (plain, masked, classified, loosened):
        assert [one.is_same_place(another) for another in (plain, masked, classified, loosened)].count(True) == 1
    assert masked.is_same_place(limited)


def test_key_is_asked_for_where_something_is_masked_and_only_there() -> None:
    def is_masked(*masks: Object) -> bool:
        one = policy([READ], masks=list(masks)) if masks else policy([READ])
        raw = json.loads(compiled(one).gateway)["billing-agent"]
        return gateway_reads(json.dumps(raw).encode()).is_masked

    assert is_masked(EMAIL, COLUMN)
    assert is_masked(CUSTOMER)
    assert not is_masked()


masks = st.fixed_dictionaries(
    {
        "columns": st.lists(st.sampled_from(["a.b.c", "a.b.*", "d.a.b.c", "*.*.e"]), max_size=3, unique=True),
        "detectors": st.lists(st.sampled_from(sorted(DETECTORS)), max_size=3, unique=True),
        "method": st.sampled_from(METHODS),
    },
    optional={"patterns": st.just([{"name": "Customer", "pattern": "CU-[0-9]{8}"}])},
).filter(lambda mask: bool(mask["columns"] or mask["detectors"] or "patterns" in mask))
specs = st.tuples(
    st.lists(masks, min_size=1, max_size=3).filter(lambda found: sum("patterns" in one for one in found) < 2),
    st.sampled_from([None, "Deny", "Redact", "Allow"]),
    st.booleans(),
)


@given(made=st.lists(specs, min_size=1, max_size=4), shuffle=st.randoms(use_true_random=False))
def test_order_of_policies_and_masks_is_without_meaning_and_none_gets_lost(
    made: list[tuple[list[Object], str | None, bool]], shuffle: random.Random
) -> None:
    def turned(items: list[Any], is_turned: bool) -> list[Any]:
        return shuffle.sample(items, len(items)) if is_turned else items

    def build(is_turned: bool) -> Snapshot:
        policies = []
        for index, (own, unmaskable, is_cluster) in enumerate(made):
            mixed = [
                mask | {name: turned(mask[name], is_turned) for name in ("columns", "detectors")}
                for mask in turned(own, is_turned)
            ]
            spec: Object = {"masks": mixed} | ({"unmaskable": unmaskable} if unmaskable else {})
            policies.append((cluster_policy if is_cluster else policy)([READ], f"p{index}", **spec))
        return compiled(*turned(policies, is_turned))

    here = build(False)
    assert here == build(True)
    found = told(here)
    for own, unmaskable, _ in made:
        assert STRICTEST.index(found.unmaskable) <= STRICTEST.index(unmaskable or "Deny")
        for mask in own:
            said = next(one for one in found.rules if one.method == mask["method"])
            assert {*mask["columns"]} <= {*said.columns}
            assert {*mask["detectors"]} <= {*said.detectors}
            assert "patterns" not in mask or Pattern("Customer", "CU-[0-9]{8}") in said.detectors
