"""Problems that the compiler finds, each with the field and the next step."""

from __future__ import annotations

from typing import Any

import pytest
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Problem, Snapshot, compile_namespace
from chaperone_operator.compile.check import alone

READ = rule("read", "Allow", ["read"])


def mask(**fields: Any) -> Object:
    return {"method": "Redact"} | fields


def own(name: str, pattern: str) -> Object:
    return {"name": name, "pattern": pattern}


def compiled(
    identities: list[Object] | None = None,
    targets: list[Object] | None = None,
    policies: list[Object] | None = None,
    cluster: list[Object] | None = None,
    labels: dict[str, str] | None = None,
) -> Snapshot:
    return compile_namespace(
        "agents",
        [identity()] if identities is None else identities,
        [target()] if targets is None else targets,
        [policy([READ])] if policies is None else policies,
        cluster or [],
        namespace_labels=labels or {},
    )


def only_problem(snapshot: Snapshot) -> Problem:
    assert not snapshot.is_usable
    assert snapshot.bundle == snapshot.gateway == snapshot.leases == b""
    blocking = [problem for problem in snapshot.problems if problem.is_blocking]
    assert len(blocking) == 1, blocking
    return blocking[0]


def reasons(snapshot: Snapshot) -> set[str]:
    return {problem.reason for problem in snapshot.problems}


def test_sound_policy_has_no_problems() -> None:
    snapshot = compiled()
    assert snapshot.problems == ()
    assert len(snapshot.revision) == 16


SECRET: Object = {"name": "a"}
ROLE: Object = {"adminSecretRef": SECRET, "grants": ["app_reader"]}
KV: Object = {"address": "https://vault", "login": {"tokenSecretRef": SECRET}, "path": "apps/orders"}


@pytest.mark.parametrize(
    ("changed", "reason", "fragment"),
    [
        ({"subjects": []}, "NoSubjects", "spec.subjects: empty"),
        ({"subjects": [{"identity": "ghost"}]}, "UnknownIdentity", "has no AgentIdentity 'ghost'"),
        ({"targets": []}, "NoTargets", "spec.targets: empty"),
        ({"targets": [{"name": "ghost-db"}]}, "UnknownTarget", "spec.targets[0].name: there is no AccessTarget"),
        ({"targets": [{"name": "*"}]}, "UnknownTarget", "there is no AccessTarget '*'"),
        ({"rules": []}, "NoRules", "spec.rules: empty"),
        ({"rules": [READ, READ]}, "DuplicateRule", "2 rules are named 'read'"),
        ({"rules": [rule("r", "Allow", [])]}, "NoEffects", "spec.rules[0].match.effects: empty"),
        ({"rules": [READ, rule("r", "Allow", ["raed"])]}, "UnknownEffect", "spec.rules[1].match.effects[0]: 'raed'"),
        ({"rules": [rule("r", "Allow", ["read"], [])]}, "NoObjects", "leave it out to mean every object"),
        ({"rules": [rule("r", "Allow", ["read"], ["a..b"])]}, "BadPattern", "a part between dots is empty"),
        ({"rules": [rule("r", "Allow", ["read"], ["**"])]}, "BadPattern", "* stays within a part"),
        ({"rules": [rule("r", "Allow", ["read"], ["a.[bc]"])]}, "BadPattern", "only * is special"),
        ({"rules": [rule("r", "Allow", ["read"], ["a.b\n"])]}, "BadPattern", "no control characters"),
        ({"rules": [rule("r", "Allow", ["read"], ["x." + "x" * 257])]}, "BadPattern", "1 to 256 characters"),
        ({"rules": [rule("a rule", "Allow", ["read"])]}, "BadRuleName", "spec.rules[0].name"),
        ({"rules": [rule("r", "Deny", ["read"], message="a\nb")]}, "BadMessage", "spec.rules[0].message"),
        ({"rules": [rule("r", "Permit", ["read"])]}, "InvalidSpec", "spec.rules[0].action: Invalid enum value"),
        ({"rules": [{"name": "r", "action": "Deny"}]}, "InvalidSpec", "spec.rules[0]: missing required field `match`"),
        ({"rules": [rule("r", "Allow", ["read"], priority=1)]}, "InvalidSpec", "spec.rules[0]: contains unknown field"),
        ({"rules": [rule("r", "Allow", [3])]}, "InvalidSpec", "spec.rules[0].match.effects[0]: Expected `str`"),  # type: ignore
        ({"limits": {}}, "NoLimit", "spec.limits: empty; name a limit"),
        ({"limits": {"rowsPerCommand": 0}}, "BadLimit", "spec.limits.rowsPerCommand: 0 is not from 1 to"),
        ({"limits": {"connections": 201}}, "BadLimit", "spec.limits.connections: 201 is not from 1 to 200"),
        ({"limits": {"commandsPerMinute": 10**6}}, "BadLimit", "spec.limits.commandsPerMinute: 1000000 is not"),
        ({"limits": {"commandsPerMinute": True}}, "InvalidSpec", "spec.limits.commandsPerMinute: Expected `int"),
        ({"limits": {"bytesPerSession": "50MB"}}, "BadLimit", "'50MB' is not a quantity of bytes such as 50Mi"),
        ({"limits": {"bytesPerSession": -1}}, "BadLimit", "-1 is not a quantity of bytes"),
        ({"limits": {"commandDuration": "1.5s"}}, "BadLimit", "'1.5s' is not a duration"),
        ({"limits": {"rows": 5}}, "InvalidSpec", "spec.limits: contains unknown field `rows`"),
        ({"masks": []}, "NoMask", "spec.masks: empty; name a mask"),
        ({"masks": [mask()]}, "EmptyMask", "spec.masks[0]: names neither columns, detectors nor patterns"),
        ({"masks": [mask(columns=[])]}, "EmptyMask", "so it masks nothing"),
        ({"masks": [mask(detectors=["Email"], method=None)]}, "NoMethod", 'spec.masks[0].method: missing; write'),
        ({"masks": [{"detectors": ["Email"]}]}, "NoMethod", 'Hash or "Null", with the quotation marks'),
        ({"masks": [mask(detectors=["Email"], method="redact")]}, "InvalidSpec", 'use Redact, Partial, Hash or "Null"'),
        ({"masks": [mask(detectors=["Mail"])]}, "UnknownDetector", "spec.masks[0].detectors[0]: 'Mail' is no"),
        ({"masks": [mask(columns=["a.b.c"]), mask(columns=["b.c"])]}, "BadPattern", "spec.masks[1].columns[0]: 'b.c'"),
        ({"masks": [mask(columns=["a.b.c.d.e"])]}, "BadPattern", "a column is schema.table.column"),
        ({"masks": [mask(columns=["a.b.**"])]}, "BadPattern", "write one * for each part"),
        ({"masks": [mask(columns=["a.b."])]}, "BadPattern", "a part between dots is empty"),
        ({"masks": [mask(patterns=[own("1", "a")])]}, "BadPatternName", "spec.masks[0].patterns[0].name: '1': a name"),
        ({"masks": [mask(patterns=[own("Email", "a")])]}, "BadPatternName", "a detector has that name"),
        ({"masks": [mask(patterns=[own("A", "(a")])]}, "BadExpression", "spec.masks[0].patterns[0].pattern: RE2"),
        (
            {"masks": [mask(patterns=[own("A", "a")]), mask(patterns=[own("A", "a")])]},
            "DuplicatePattern",
            "spec.masks: 2 patterns are named 'A'",
        ),
        (
            {"masks": [mask(patterns=[own(f"P{n}", "a") for n in range(33)])]},
            "TooManyPatterns",
            "spec.masks: more than 32 patterns",
        ),
        ({"masks": [mask(detectors=["Email"])] * 51}, "TooManyMasks", "spec.masks: more than 50"),
        ({"masks": [mask(columns=[f"a.b.c{n}" for n in range(101)])]}, "TooManyColumns", "spec.masks[0].columns: more"),
        ({"masks": [mask(detectors=["Email"], name="x")]}, "InvalidSpec", "spec.masks[0]: contains unknown field"),
        ({"unmaskable": "Show"}, "InvalidSpec", "use Deny, Redact or Allow"),
        ({"priority": 1}, "InvalidSpec", "spec: contains unknown field `priority`"),
    ],
    ids=str,
)  # fmt: skip
def test_problem_of_a_policy_names_the_field(changed: Object, reason: str, fragment: str) -> None:
    broken = policy([READ])
    broken["spec"] |= changed
    problem = only_problem(compiled(policies=[broken]))
    assert (problem.kind, problem.namespace, problem.name) == ("AccessPolicy", "agents", "billing")
    assert problem.reason == reason
    assert fragment in problem.message
    assert problem.message.endswith(".")


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"rules": [rule("r", "Deny", ["read"], durability="Synced")]}, "spec.rules[0].durability is not supported"),
        ({"masks": [mask(detectors=["Email"], method="Tokenize")]}, "spec.masks[0].method: Tokenize is not supported"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_built_yet_is_refused_and_never_ignored(changed: Object, fragment: str) -> None:
    early = policy([READ])
    early["spec"] |= changed
    problem = only_problem(compiled(policies=[early]))
    assert problem.reason == "NotSupported"
    assert fragment in problem.message


@pytest.mark.parametrize(
    ("kind", "changed", "fragment"),
    [
        ("target", {"inspection": {"mode": "x"}}, "spec.inspection is not supported yet"),
    ],
)
def test_identities_and_targets_are_refused_what_is_not_built_yet(kind: str, changed: Object, fragment: str) -> None:
    item = identity(**changed) if kind == "identity" else target(**changed)
    assert [problem.reason for problem in alone(item)] == ["NotSupported"]
    assert fragment in alone(item)[0].message


@pytest.mark.parametrize("size", [1023, 0, -1, "65Mi", "1", "1Gi", "some", "1.5Mi"])
def test_results_are_kept_within_bounds(size: int | str) -> None:
    assert [problem.reason for problem in alone(identity(evidence={"maxResultBytes": size}))] == ["BadResultBytes"]


def test_results_are_kept_in_full_or_not_at_all() -> None:
    (problem,) = alone(identity(evidence={"results": "Some"}))
    assert problem.message.endswith("use None or Full.")


ISSUER = {"issuer": "https://login.example.com/realms/a", "audience": "billing-agent"}


@pytest.mark.parametrize(
    ("changed", "fragment"),
    [
        ({"issuer": "x"}, "spec.delegation.issuer: 'x' is no URL"),
        ({"issuer": "http://login.example.com"}, "spec.delegation.issuer: must begin with https://"),
        ({"issuer": "https://u:p@login.example.com"}, "without user, query and fragment"),
        ({"issuer": "https://login.example.com?a"}, "without user, query and fragment"),
        ({"issuer": "https://[::1"}, "is no URL"),
        ({"issuer": "https://169.254.169.254"}, "link-local and cloud metadata"),
        ({"issuer": "https://localhost"}, "it leads to the pod"),
        ({"jwks": {"url": "https://127.0.0.1/keys"}}, "spec.delegation.jwks.url: 127.0.0.1 is refused"),
        ({"jwks": {"caSecretRef": {"name": "A/B"}}}, "no name of a Secret"),
        ({"audience": " "}, "spec.delegation.audience: write what the tokens have in aud"),
        ({"claims": {"user": ""}}, "spec.delegation.claims.user: write the name of a claim"),
        ({"claims": {"groups": "aud"}}, "aud says nothing of a person"),
    ],
    ids=str,
)
def test_delegation_that_no_broker_could_check_is_refused(changed: Object, fragment: str) -> None:
    (problem,) = alone(identity(delegation=ISSUER | changed))
    assert fragment in problem.message
    assert alone(identity(delegation=ISSUER)) == ()


def for_finance(**more: Any) -> Object:
    needs = {"effects": ["read"], "require": {"userGroups": ["finance"]}}
    return policy([{"name": "f", "action": "Allow", "match": needs}], **more)


def test_a_rule_for_groups_of_users_needs_an_identity_that_has_users() -> None:
    problem = only_problem(compiled(policies=[for_finance()]))
    assert problem.reason == "RuleNeverFires"
    assert "give the AgentIdentity spec.delegation" in problem.message
    assert compiled(identities=[identity(delegation=ISSUER)], policies=[for_finance()]).is_usable


@pytest.mark.parametrize("groups", [[], [""], ["a" * 257], [f"g{number}" for number in range(51)]], ids=len)
def test_groups_of_users_are_names(groups: list[str]) -> None:
    needs = {"effects": ["read"], "require": {"userGroups": groups}}
    (problem,) = alone(policy([{"name": "f", "action": "Allow", "match": needs}]))
    assert "match.require.userGroups" in problem.message


def test_a_policys_tests_can_be_on_behalf_of_users() -> None:
    usual = {"name": "t", "accesses": [{"effect": "read", "object": "public.orders"}]}
    tests = [
        usual | {"expect": {"action": "Deny", "rule": "uncovered"}},
        usual | {"user": {"groups": ["staff"]}, "expect": {"action": "Deny"}},
        usual | {"user": {"groups": ["staff", "finance"]}, "expect": {"action": "Allow", "rule": "f"}},
    ]
    assert alone(for_finance(tests=tests)) == ()
    tests[1] |= {"expect": {"action": "Allow"}}
    (problem,) = alone(for_finance(tests=tests))
    assert "only on behalf of a user in finance" in problem.message


def test_policy_cannot_grant_a_target_that_does_not_admit_its_namespace() -> None:
    elsewhere = target(allowedNamespaces={"names": ["other"]})
    problem = only_problem(compiled(targets=[elsewhere]))
    assert problem.reason == "NamespaceNotAllowed"
    assert "does not admit namespace agents" in problem.message


@pytest.mark.parametrize(
    ("selector", "is_admitted"),
    [
        ({}, True),
        ({"matchLabels": {"tier": "prod"}}, True),
        ({"matchLabels": {"tier": "dev"}}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["dev", "prod"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["prod"]}]}, False),
        ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["prod"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"tier": "prod"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    ],
    ids=str,
)
def test_target_admits_namespaces_by_their_labels(selector: Object, is_admitted: bool) -> None:
    chosen = target(allowedNamespaces={"selector": selector})
    assert compiled(targets=[chosen], labels={"tier": "prod"}).is_usable is is_admitted


def test_target_that_admits_no_namespace_is_a_note() -> None:
    idle = target("idle-db", allowedNamespaces={})
    snapshot = compiled(targets=[target(), idle])
    assert snapshot.is_usable
    assert [(found.name, found.reason, found.is_blocking) for found in snapshot.problems] == [
        ("idle-db", "NoNamespaceAllowed", False)
    ]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "0x7f.1", "2130706433", "0.0.0.0", "::1", "::", "localhost", "x.localhost", "LOCALHOST.",
        "169.254.169.254", "169.254.0.0/16", "169.0.0.0/8", "0.0.0.0/0", "::/0", "fe80::1", "::ffff:127.0.0.1",
        "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "100.100.100.200", "168.63.129.16", "metadata",
        "metadata.google.internal", "224.0.0.1", "240.240.0.7", "fd63:6861:7065::7", "10.0.0.1/8", "10.0.0.300", "a b",
        "", "-a.b", "a..b", "*.svc", "db:5432", "http://db", "x" * 64 + ".svc", "user@db", "db\n", "[::1]",
    ],
)  # fmt: skip
def test_host_that_leads_inside_or_means_nothing_is_refused(host: str) -> None:
    assert {problem.reason for problem in alone(target(hosts=[host]))} == {"BadHost"}
    assert {problem.reason for problem in alone(target(upstream={"host": host}))} <= {"BadHost"}
    if host:
        assert {problem.reason for problem in alone(target(upstream={"host": host}))} == {"BadHost"}


@pytest.mark.parametrize("host", ["db", "db.data.svc", "Db.Data.SVC.", "10.1.2.3", "10.1.2.0/24", "fd12::5", "_pg.db"])
def test_ordinary_host_is_accepted(host: str) -> None:
    found = alone(target(hosts=[host], upstream={"host": "db"}))
    assert found == ()


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"hosts": []}, "NoHosts"),
        ({"hosts": ["10.1.2.0/24"]}, "NoUpstream"),
        ({"upstream": {"host": "10.1.2.0/24"}}, "BadHost"),
        ({"credential": None}, "NoCredential"),
        ({"credential": {"secretRef": {"name": "../other/secret"}}}, "BadSecretName"),
        ({"credential": {}}, "CredentialKind"),
        ({"credential": {"secretRef": SECRET, "postgresqlRole": ROLE}}, "CredentialKind"),
        ({"credential": {"secretRef": SECRET, "impersonate": {}}}, "CredentialKind"),
        ({"credential": {"sshCertificate": {"caSecretRef": SECRET, "principals": ["a"]}}}, "CredentialKind"),
        ({"credential": {"kubernetesToken": {"serviceAccount": "a", "namespace": "b"}}}, "CredentialKind"),
        ({"credential": {"httpHeader": {"secretRef": SECRET, "host": "a"}}}, "CredentialKind"),
        ({"credential": {"postgresqlRole": ROLE | {"grants": []}}}, "NoGrants"),
        ({"credential": {"postgresqlRole": ROLE | {"validFor": "25h"}}}, "BadValidFor"),
        ({"credential": {"postgresqlRole": ROLE | {"validFor": "soon"}}}, "BadValidFor"),
        ({"credential": {"postgresqlRole": ROLE | {"adminSecretRef": {"name": "A/B"}}}}, "BadSecretName"),
        ({"credential": {"postgresqlRole": ROLE | {"superuser": True}}}, "InvalidSpec"),
        ({"credential": {"vaultKv": KV | {"address": "http://vault"}}}, "BadVault"),
        ({"credential": {"vaultKv": KV | {"login": {}}}}, "BadVault"),
        ({"credential": {"vaultKv": KV | {"caSecretRef": {"name": "A/B"}}}}, "BadSecretName"),
        ({"tls": {"mode": "VerifyFull", "caSecretRef": {"name": "A/B"}}}, "BadSecretName"),
        ({"tls": {"mode": "Trust"}}, "InvalidSpec"),
        ({"port": 0}, "InvalidSpec"),
        ({"classified": [{"columns": [], "class": "email"}]}, "NoColumns"),
        ({"classified": [{"columns": ["customers.email"], "class": "email"}]}, "BadPattern"),
        ({"classified": [{"columns": ["a.b.c"], "class": "personal data"}]}, "BadClass"),
        ({"classified": [{"columns": ["a.b.c"]}]}, "InvalidSpec"),
        ({"classified": [{"columns": ["a.b.c"], "class": "email"}] * 101}, "TooManyClassified"),
        ({"port": 70000}, "InvalidSpec"),
    ],
    ids=str,
)
def test_broken_target_makes_the_policies_that_name_it_fail(changed: Object, reason: str) -> None:
    broken = target(**changed)
    assert [problem.reason for problem in alone(broken)] == [reason]
    snapshot = compiled(targets=[broken])
    assert not snapshot.is_usable
    assert reasons(snapshot) == {reason, "TargetNotUsable"}


def test_broken_target_that_nobody_names_does_not_stop_a_namespace() -> None:
    snapshot = compiled(targets=[target(), target("broken-db", hosts=["localhost"])])
    assert snapshot.is_usable
    assert b"broken-db" not in snapshot.gateway


def test_tls_off_is_allowed_with_a_note() -> None:
    snapshot = compiled(targets=[target(tls={"mode": "Disable"})])
    assert snapshot.is_usable
    assert [(found.reason, found.is_blocking) for found in snapshot.problems] == [("TlsDisabled", False)]


@pytest.mark.parametrize(
    ("hosts", "others", "collides"),
    [
        (["db.svc"], ["DB.svc."], True),
        (["10.1.0.0/16"], ["10.1.2.3"], True),
        (["10.1.2.3"], ["10.1.0.0/16"], True),
        (["10.1.2.3"], ["10.1.2.4"], False),
        (["db.svc"], ["db2.svc"], False),
    ],
)
def test_two_targets_cannot_claim_one_host_and_port(hosts: list[str], others: list[str], collides: bool) -> None:
    one, other = target(hosts=hosts, upstream={"host": "u"}), target("zzz-db", hosts=others, upstream={"host": "u"})
    snapshot = compiled(targets=[other, one])
    assert snapshot.is_usable is not collides
    if collides:
        problem = only_problem(snapshot)
        assert (problem.name, problem.reason) == ("zzz-db", "HostClaimedTwice")
        assert "AccessTarget orders-db" in problem.message
    other["spec"]["port"] = 5433
    assert compiled(targets=[other, one]).is_usable


def test_claims_of_targets_that_other_namespaces_use_do_not_collide() -> None:
    foreign = target("foreign-db", hosts=["orders-db.data.svc"], allowedNamespaces={"names": ["other"]})
    assert compiled(targets=[target(), foreign]).is_usable


@pytest.mark.parametrize(
    ("mild", "deny", "is_shadowed"),
    [
        ((["read"], None), (["read"], None), True),
        ((["read"], ["a.b"]), (["read"], None), True),
        ((["read"], ["a.b"]), (["*"], ["a.b", "c.d"]), True),
        ((["read", "modify"], ["a.b"]), (["read"], ["a.b"]), False),
        ((["read"], None), (["read"], ["a.b"]), False),
        ((["destroy"], None), (["*"], None), False),
        ((["*"], ["a.b"]), (["*"], None), True),
    ],
    ids=str,
)
def test_rule_that_an_own_deny_always_beats_can_never_fire(mild: Any, deny: Any, is_shadowed: bool) -> None:
    snapshot = compiled(policies=[policy([rule("mild", "Allow", *mild), rule("hard", "Deny", *deny)])])
    assert snapshot.is_usable is not is_shadowed
    if is_shadowed:
        assert only_problem(snapshot).reason == "RuleNeverFires"
        assert "'hard'" in only_problem(snapshot).message


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"selector": {}}, "EmptySelector"),
        ({"owner": {"name": " "}}, "NoOwner"),
        ({"owner": {}}, "InvalidSpec"),
        ({"ingress": {"ports": [0]}}, "InvalidSpec"),
        ({"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}, "InvalidSpec"),
        ({"unknown": 1}, "InvalidSpec"),
    ],
    ids=str,
)
def test_problem_of_an_identity(changed: Object, reason: str) -> None:
    broken = identity(**changed)
    assert [problem.reason for problem in alone(broken)] == [reason]
    assert only_problem(compiled(identities=[broken])).reason == reason


def test_all_problems_are_told_at_once() -> None:
    broken = policy([rule("a b", "Allow", ["sing"]), READ, READ], targets=[{"name": "ghost"}], subjects=[])
    assert {"BadRuleName", "UnknownEffect", "DuplicateRule", "UnknownTarget", "NoSubjects"} <= reasons(
        compiled(policies=[broken])
    )


def test_cluster_policy_is_checked_as_well() -> None:
    for changed, reason in (
        ({"subjects": []}, "NoSubjects"),
        ({"targets": []}, "NoTargets"),
        ({"targets": [{"name": "ghost"}]}, "UnknownTarget"),
        ({"subjects": [{"identity": "ghost", "namespace": "agents"}]}, "UnknownIdentity"),
        ({"rules": [rule("r", "Deny", ["sing"])]}, "UnknownEffect"),
    ):
        broken = cluster_policy([READ])
        broken["spec"] |= changed
        problem = only_problem(compiled(cluster=[broken]))
        assert (problem.kind, problem.namespace, problem.reason) == ("ClusterAccessPolicy", "", reason)


def test_policies_and_identities_of_other_namespaces_are_passed_over() -> None:
    foreign = policy([rule("r", "Allow", ["sing"])], namespace="other")
    assert compiled(policies=[policy([READ]), foreign]) == compiled()
    assert compiled(identities=[identity(), identity("x", "other")]) == compiled()


def test_wrong_kind_or_version_is_refused() -> None:
    old = policy([READ]) | {"apiVersion": "chaperone.dev/v1"}
    assert "apiVersion and kind" in only_problem(compiled(policies=[old])).message


def test_a_statement_is_no_test_for_a_target_that_reads_statements_otherwise() -> None:
    allow = [rule("read", "Allow", ["read"], ["shop.orders"])]
    tests = [{"name": "case", "sql": "SELECT 1 FROM shop.orders", "expect": {"action": "Allow"}}]
    found = only_problem(compiled(targets=[target(protocol="MySQL")], policies=[policy(allow, tests=tests)]))
    assert found.reason == "BadTest"
    assert found.message == (
        "spec.tests[0].sql: is read as PostgreSQL reads it, and target 'orders-db' speaks MySQL; write accesses."
    )
