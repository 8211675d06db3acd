"""The criteria of the Trust Services Criteria that Chaperone has something to say about, in words of our own.

Each says what was in place, of which population, what went otherwise, what was established and what was not.
Numbers are facts (model.py). Nothing here is a conclusion: whether a criterion is met is the auditor's word.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import msgspec

from chaperone_cli.report.model import SAMPLES, Criterion, Fact, Line
from chaperone_cli.report.tables import (
    APPROVALS,
    COMMANDS,
    COVERAGE,
    EPOCHS,
    GAPS,
    IDENTITIES,
    OBJECTS,
    PODS,
    READERS,
    READS,
    REFUSED,
    REPERFORMED,
    REVISIONS,
    SESSIONS,
    SILENCE,
    TOTALS,
)
from chaperone_cli.report.texts import ESTABLISHED, MISSED, NEEDS, NOT_ESTABLISHED

_YES: Final = ["yes"]
_HEARD: Final = ["Covered", "Ended"]


def facts() -> list[Fact]:
    """Every number that a report holds, not counted yet."""
    return [
        _fact("identities", "AgentIdentities", IDENTITIES),
        _fact("ownerless", "AgentIdentities without a person who answers for them", IDENTITIES, has_owner=["no"]),
        _fact("suspended", "AgentIdentities that are suspended now", IDENTITIES, suspended=_YES),
        _fact("not-ready", "AgentIdentities that are not ready", IDENTITIES, not_ready=["True"]),
        _fact("pods", "Pods of agents", PODS),
        _fact("heard", "Pods heard to now, or to a proved end", PODS, state=_HEARD),
        _fact("unheard", "Pods uncovered, missing, silent, lost, cut off, forked or unknown", PODS, not_state=_HEARD),
        _fact("uncovered", "Pods that no gateway holds", PODS, state=["Uncovered"]),
        _fact("unnamed", "Pods with a stream that no population names", PODS, named=[""]),
        _fact("gaps", "Times of a pod without proof", GAPS),
        _fact("epochs", "Populations that the operator signed", EPOCHS),
        _fact("attested", "Namespaces whose populations bear the operator's signature", COVERAGE, proved=_YES),
        _fact("unattested", "Namespaces whose populations could not be verified", COVERAGE, proved=["no"]),
        _fact("broken-epochs", "Populations that do not follow the one before", EPOCHS, follows=["no"]),
        _fact("sessions", "Sessions", SESSIONS),
        _fact("totals-agree", "Sessions whose count of commands agrees with the list", SESSIONS, total=["agrees"]),
        _fact("totals-differ", "Sessions whose count of commands differs from the list", SESSIONS, total=["differs"]),
        _fact("totals-open", "Sessions that cannot be counted against the list (not over, or not within the period)",
              SESSIONS, total=["not comparable"]),
        _fact("lost", "Sessions that ended without an end of their own", SESSIONS, state=["Lost"]),
        _fact("findings", "Sessions in streams that said what cannot be", SESSIONS, has_findings=_YES),
        _fact("breaks", "Sessions in streams whose chain somebody tried to break", SESSIONS, has_chain_breaks=_YES),
        _fact("commands", "Commands", COMMANDS),
        _fact("allowed", "Commands that policy allowed", COMMANDS, **{"class": ["allowed"]}),
        _fact("approved", "Commands that people released after policy held them", COMMANDS, **{"class": ["approved"]}),
        _fact("refused", "Commands that were refused", REFUSED),
        _fact("failed", "Commands that the back end answered with an error", COMMANDS, status=["Error"]),
        _fact("pending", "Allowed commands without an outcome", COMMANDS, status=["Pending", "Unknown"]),
        _fact("masked", "Commands whose text is kept with masked values", COMMANDS, masked=_YES),
        _fact("approvals", "Approval requests", APPROVALS),
        _fact("approvals-used", "Approval requests that were approved and used", APPROVALS, state=["Used"]),
        _fact("approvals-denied", "Approval requests that people denied", APPROVALS, state=["Denied"]),
        _fact("approvals-gone", "Approval requests that commands name, and that are not there any more", APPROVALS,
              state=["Gone"]),
        _fact("self-approved", "Approval requests with a vote by who asked, owns or created the agent", APPROVALS,
              self_approved=_YES),
        _fact("objects", "Policies and targets", OBJECTS),
        _fact("policies", "Policies", OBJECTS, kind=["AccessPolicy", "ClusterAccessPolicy"]),
        _fact("targets", "AccessTargets", OBJECTS, kind=["AccessTarget"]),
        _fact("observed", "Policies that only observe", OBJECTS, mode=["Observe"]),
        _fact("objects-not-ready", "Policies and targets that are not ready", OBJECTS, not_ready=["True"]),
        _fact("revisions", "Revisions of policy by which commands were decided", REVISIONS),
        _fact("unrevised", "Commands that name no revision", COMMANDS, revision=[""]),
        _fact("reads", "Reads of evidence", READS),
        _fact("readers", "People and programs who read evidence", READERS),
        _fact("proofs", "Bundles with texts that were fetched", READS, resource=["sessions/proof"]),
        _fact("silent", "Identities whose silence is attested", SILENCE, verdict=["attested"]),
        _fact("unknown", "Identities without commands of which nothing is known", SILENCE, verdict=["unknown"]),
        _fact("witnessed", "Roles of back ends whose own counters agree with the records", TOTALS, verdict=["Agrees"]),
        _fact("bypassed", "Roles of back ends that count more than is recorded", TOTALS, verdict=["BackendHasMore"]),
        _fact("overcounted", "Roles of back ends that count less than is recorded", TOTALS,
              verdict=["RecordedHasMore"]),
        _fact("uncompared", "Roles of back ends whose counters could not be compared", TOTALS,
              verdict=["NotComparable"]),
        _fact("asked-again", "Commands of the sampled sessions", REPERFORMED),
        _fact("reperformed", "Decisions that were made again with their own revision of policy", REPERFORMED,
              verdict=["agrees", "differs"]),
        _fact("differs", "Decisions that policy does not make again", REPERFORMED, verdict=["differs"]),
        _fact("not-repeatable", "Decisions that cannot be made again from the record", REPERFORMED,
              verdict=["not repeatable"]),
        _fact("samples", "Sampled commands", SAMPLES),
        _fact("unproved", "Sampled commands that could not be proved", SAMPLES, proved=["no"]),
    ]  # fmt: skip


def criteria(missing: Set[str]) -> list[Criterion]:
    """What a report says of each criterion, when some of what it rests on is missing (`Report.missing`)."""
    return [_criterion(one, missing) for one in _ALL]


class _Criterion(msgspec.Struct, frozen=True):
    id: str
    title: str
    in_place: tuple[str, ...]  # sentences, or `=fact`
    population: tuple[str, ...]  # facts
    samples: tuple[str, ...]
    exceptions: tuple[str, ...]  # facts
    established: tuple[str, ...]  # keys of texts
    not_established: tuple[str, ...]


def _fact(name: str, label: str, file: str, **where: list[str]) -> Fact:
    """A fact; `not_column` of the arguments is `!column`."""
    columns = {("!" + key.removeprefix("not_") if key.startswith("not_") else key): v for key, v in where.items()}
    return Fact(id=name, label=label, file=file, where=columns)


def _criterion(one: _Criterion, missing: Set[str]) -> Criterion:
    shown = [key for key in one.established if not missing & set(NEEDS[key])]
    not_shown = [key for key in one.established if key not in shown]
    return Criterion(
        id=one.id, title=one.title, samples=list(one.samples),
        in_place=[Line("", text[1:]) if text.startswith("=") else Line(text) for text in one.in_place],
        population=[Line("", name) for name in one.population],
        exceptions=[Line("", name) for name in one.exceptions],
        established=[Line(ESTABLISHED[key]) for key in shown],
        not_established=[
            *(Line(MISSED[key]) for key in not_shown), *(Line(NOT_ESTABLISHED[key]) for key in one.not_established),
        ],
    )  # fmt: skip


_EVERY: Final = ("allowed", "approved", "refused")
_ALL: Final = (
    _Criterion(
        "CC6.1", "Access to information is restricted to who is authorised",
        ("Each agent has an identity and reaches a back end through a gateway beside it, which holds the credential in "
         "its place and lets nothing pass that policy does not cover.", "=identities", "=targets", "=policies"),
        ("identities", "pods", "sessions", "commands"), _EVERY,
        ("unheard", "uncovered", "ownerless", "lost", "bypassed"), ("population", "checkpoint", "samples", "witness"),
        ("credentials", "unsampled"),
    ),
    _Criterion(
        "CC6.2", "Access is granted after registration, and taken away",
        ("An agent without an AgentIdentity has no access; suspending one cuts its sessions.", "=identities",
         "=suspended"),
        ("identities", "approvals"), ("approved",), ("ownerless", "suspended", "not-ready"), ("live",),
        ("deleted", "authors"),
    ),
    _Criterion(
        "CC6.3", "Access follows roles and least privilege, with duties kept apart",
        ("A command is allowed only when rules cover each of its effects on each object. Where a rule asks for it, "
         "people decide, and each decision is bound to one exact command.", "=policies", "=approvals-used"),
        ("objects", "revisions", "approvals", "asked-again", "reperformed"), ("approved", "refused"),
        ("self-approved", "approvals-gone", "observed", "differs", "not-repeatable"),
        ("revisions", "approvals", "decisions"), ("unused", "review", "names", "not-asked-again"),
    ),
    _Criterion(
        "CC6.6", "The boundary is guarded against what is outside",
        ("A pod's traffic is fenced: it leaves through the gateway, and to declared targets.", "=targets", "=heard"),
        ("pods", "targets"), ("refused",), ("uncovered", "unnamed", "bypassed"),
        ("population", "witness"), ("egress",),
    ),
    _Criterion(
        "CC6.7", "Information in motion is restricted and protected",
        ("Each command is recorded before it has an effect, with the rows and bytes of its answer. Targets say how "
         "TLS is used.", "=targets"),
        ("commands", "sessions"), ("allowed",), ("failed", "pending"), ("samples", "checkpoint"), ("tls", "content"),
    ),
    _Criterion(
        "CC6.8", "Unauthorised software is kept out",
        ("Effects that change schema or privileges, or run code, match only rules that name them.", "=refused"),
        ("commands", "refused"), ("refused",), ("observed",), ("samples",), ("images",),
    ),
    _Criterion(
        "CC7.1", "Changes of configuration are noticed",
        ("Each decision names the revision of policy that made it, which the log keeps as the operator signed it.",
         "=revisions", "=reperformed", "=objects"),
        ("objects", "revisions"), (), ("objects-not-ready", "unrevised", "differs"),
        ("revisions", "decisions", "live"), ("drift", "deleted"),
    ),
    _Criterion(
        "CC7.2", "What is unusual is noticed",
        ("Gateways sign that they live every ten seconds; who falls silent is stated lost in the log.", "=epochs"),
        ("pods", "epochs", "attested", "sessions", "totals-agree", "totals-open", "witnessed"), (),
        ("gaps", "unheard", "findings", "breaks", "broken-epochs", "unattested", "totals-differ", "unknown", "bypassed",
         "overcounted", "uncompared"),
        ("population", "signatures", "totals", "silence", "witness"), ("alerts",),
    ),
    _Criterion(
        "CC7.3", "Events are judged",
        ("Refusals and failures are records like any other, with the rule that decided.", "=refused", "=failed"),
        ("refused",), ("refused",), ("failed", "lost"), ("samples",), ("incidents",),
    ),
    _Criterion(
        "CC7.4", "Incidents are answered",
        ("An identity can be suspended; every gateway of it cuts its sessions and records who did it.", "=suspended"),
        ("identities", "sessions"), (), ("suspended",), ("live",), ("incidents", "cuts"),
    ),
    _Criterion(
        "CC8.1", "Changes are authorised and tested",
        ("Commands that change data or schema are decided one by one; those that a rule holds wait for people. "
         "A policy that does not compile is not applied.", "=approved", "=revisions"),
        ("commands", "approvals", "objects"), ("approved",),
        ("self-approved", "approvals-gone", "approvals-denied", "approved", "objects-not-ready"),
        ("approvals", "samples", "revisions"),
        ("authors", "tests"),
    ),
    _Criterion(
        "A1.2", "Records can be recovered",
        ("Records leave the pod at once and are stored by the collector before it acknowledges them.", "=sessions"),
        ("pods", "sessions", "totals-agree", "totals-open"), (), ("gaps", "lost", "pending"),
        ("checkpoint", "totals"), ("restore",),
    ),
    _Criterion(
        "C1.1", "Confidential information is known and protected",
        ("Targets classify columns; masks of all policies are united. Reading evidence is itself recorded.", "=targets",
         "=readers"),
        ("targets", "commands", "reads"), ("allowed",), ("masked", "proofs"), ("reads", "samples"), ("content",),
    ),
    _Criterion(
        "C1.2", "Confidential information is disposed of",
        ("Texts are kept apart from records, by their hash, so that they can be erased while the proof stays.",
         "=commands"),
        ("commands",), (), ("proofs",), ("checkpoint",), ("disposal",),
    ),
)  # fmt: skip
