"""ClusterAccessPolicies: whom they mean, by names and by labels of namespaces and identities."""

from __future__ import annotations

import json

import pytest
from manifests import Object, cluster_policy, identity, policy, rule, target

from chaperone_operator.compile import Snapshot, compile_namespace
from chaperone_operator.compile.check import alone

DROP = rule("drop", "Deny", ["destroy"])
CORE, PROD = {"matchLabels": {"tier": "core"}}, {"matchLabels": {"stage": "prod"}}
NOT_PROD = {"matchExpressions": [{"key": "stage", "operator": "NotIn", "values": ["prod"]}]}


def labelled(item: Object, **labels: str) -> Object:
    return item | {"metadata": item["metadata"] | {"labels": labels}}


def compiled(*subjects: Object, **labels: str) -> Snapshot:
    identities = [labelled(identity("a"), tier="core"), identity("b")]
    limit = cluster_policy([DROP], subjects=list(subjects), limits={"connections": 3})
    own = policy([rule("r", "Allow", ["read"])], subjects=[{"identity": "a"}, {"identity": "b"}])
    return compile_namespace("agents", identities, [target()], [own], [limit], namespace_labels=labels)


@pytest.mark.parametrize(
    ("subject", "labels", "expected"),
    [
        ({"identity": "*"}, {}, {"a", "b"}),
        ({"identity": "a"}, {}, {"a"}),
        ({"identity": "a", "namespace": "*"}, {}, {"a"}),
        ({"identity": "*", "namespace": "agents"}, {}, {"a", "b"}),
        ({"identity": "*", "namespace": "others"}, {}, set()),
        ({"identitySelector": CORE}, {}, {"a"}),
        ({"identitySelector": CORE, "namespace": "others"}, {}, set()),
        ({"identity": "*", "namespaceSelector": PROD}, {"stage": "prod"}, {"a", "b"}),
        ({"identity": "*", "namespaceSelector": PROD}, {"stage": "test"}, set()),
        ({"identity": "*", "namespaceSelector": PROD}, {}, set()),
        ({"identity": "*", "namespaceSelector": NOT_PROD}, {}, {"a", "b"}),
        ({"identitySelector": CORE, "namespaceSelector": PROD}, {"stage": "prod"}, {"a"}),
    ],
)
def test_a_guardrail_holds_for_whom_its_subjects_mean(
    subject: Object, labels: dict[str, str], expected: set[str]
) -> None:
    snapshot = compiled(subject, **labels)
    assert snapshot.is_usable, snapshot.problems
    told = json.loads(snapshot.gateway)
    assert {name for name, one in told.items() if "limits" in one["targets"][0]} == expected


@pytest.mark.parametrize(
    ("subject", "fragment"),
    [
        ({}, "spec.subjects[0]: name identity or identitySelector, one of them"),
        ({"identity": "*", "identitySelector": CORE}, "name identity or identitySelector, one of them"),
        (
            {"identity": "*", "namespace": "a", "namespaceSelector": PROD},
            "name namespace or namespaceSelector, not both",
        ),
        ({"identitySelector": {}}, "spec.subjects[0].identitySelector: selects all; name labels"),
        ({"identity": "a", "namespaceSelector": {}}, "spec.subjects[0].namespaceSelector: selects all"),
    ],
)
def test_subjects_that_leave_open_whom_they_mean_are_refused(subject: Object, fragment: str) -> None:
    made = cluster_policy([DROP], subjects=[subject])
    assert fragment in alone(made)[0].message
    assert fragment in compiled(subject).problems[0].message
