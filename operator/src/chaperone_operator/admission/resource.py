"""Judging our own custom resources when somebody writes them. Pure; the compiler knows what is wrong.

What is wrong with an object by itself is refused. A name that does not exist (yet) is a warning that the writer reads
and a reason in the status, because tools apply files in any order; what is named so is not in force until it exists.
"""

from __future__ import annotations

from typing import Final

from chaperone_operator.admission import suspension
from chaperone_operator.admission.inject import Json
from chaperone_operator.admission.protect import Violation
from chaperone_operator.admission.review import Answer, Request
from chaperone_operator.compile import Problem, compile_namespace
from chaperone_operator.compile.check import alone
from chaperone_operator.compile.vocabulary import GROUP
from chaperone_operator.reconcile.snapshot import Declared

PLURALS: Final = frozenset({"agentidentities", "accesstargets", "accesspolicies", "clusteraccesspolicies"})
MAX_WARNINGS: Final = 10
MAX_WARNING: Final = 250  # characters; API servers cut the sum of all warnings at 4096


def judge(request: Request, declared: Declared | None) -> Answer:
    """Judge the creation or update of one of our objects.

    Args:
        request: of a kind in `PLURALS`.
        declared: what else is declared in its namespace; None where nothing is known of it.
    """
    item = _named(request.pod)
    if request.operation == "UPDATE" and request.old.get("spec") == item.get("spec"):
        return Answer()  # labels, finalizers and owners may change whatever the state of the spec
    if suspension.is_switch(request):
        return Answer()  # so may the kill switch
    problems = alone(item)
    refused = tuple(Violation(one.reason, one.message) for one in problems if one.is_blocking)
    if refused:
        return Answer(refused)
    warnings = [one.message for one in problems]
    if declared is not None and request.resource.get("resource") == "accesspolicies":
        warnings += [f"Not in force yet: {one.message}" for one in _in_place(item, declared) if one.is_blocking]
    return Answer(warnings=tuple(_short(one) for one in dict.fromkeys(warnings))[:MAX_WARNINGS])


def is_ours(request: Request) -> bool:
    """Whether a request is about one of our kinds."""
    return request.resource.get("group") == GROUP and request.resource.get("resource") in PLURALS


def _in_place(policy: Json, declared: Declared) -> list[Problem]:
    """The problems of a policy among everything else of its namespace."""
    name = policy["metadata"]["name"]
    others = [one for one in declared.policies if one["metadata"]["name"] != name]
    candidate = {**policy, "metadata": {**policy["metadata"], "namespace": declared.namespace}}
    found = compile_namespace(
        declared.namespace,
        declared.identities,
        declared.targets,
        [*others, candidate],
        declared.cluster_policies,
        namespace_labels=declared.labels,
    )
    return [one for one in found.problems if one.kind == "AccessPolicy" and one.name == name]


def _named(item: Json) -> Json:
    """The object with a name, which is still missing when the API server is to generate it."""
    metadata = item.get("metadata") or {}
    if metadata.get("name"):
        return item
    return {**item, "metadata": {**metadata, "name": f"{metadata.get('generateName') or 'unnamed'}0"}}


def _short(text: str) -> str:
    return text if len(text) <= MAX_WARNING else text[: MAX_WARNING - 1] + "…"
