"""The package as OSCAL assessment results (1.1), for tools of governance: one observation a criterion, and no findings.

A finding says that an objective is satisfied or not. That is the auditor's word, so none is written here. UUIDs follow
from the log's root and the parameters: the same package made again has the same ones.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Final

import msgspec

from chaperone_cli.report.files import listing
from chaperone_cli.report.model import CHECKPOINT, MODEL, OSCAL, PAGE, PDF, SAMPLES, Criterion, Fact, Line, Report

OSCAL_VERSION: Final = "1.1.3"
NAMESPACE: Final = "https://chaperone.dev/ns/oscal"
_ROOT: Final = uuid.UUID("7a0f4d52-58c1-5d37-9b54-0d1c5f7e2b11")  # of our UUIDs; never changes
_UNNAMED: Final = frozenset({OSCAL, PDF, PAGE})  # made after this, or of the same

type Json = dict[str, Any]


def render(report: Report, folder: Path) -> bytes:
    """The document, over the files that are in the package."""
    return msgspec.json.format(msgspec.json.encode({"assessment-results": _results(report, folder)}), indent=2) + b"\n"


def _results(report: Report, folder: Path) -> Json:
    facts = {fact.id: fact for fact in report.facts}
    files = {name: listed for name, listed in listing(folder).items() if name not in _UNNAMED}
    plan = _uuid(report, "plan")
    asked = report.parameters
    title = f"Evidence of controls over AI agents, {asked.since[:10]} to before {asked.until[:10]}"
    return {
        "uuid": _uuid(report, "document"),
        "metadata": {
            "title": title, "last-modified": report.made_at, "version": report.version,
            "oscal-version": OSCAL_VERSION,
        },
        "import-ap": {"href": f"#{plan}"},
        "results": [
            {
                "uuid": _uuid(report, "result"), "title": title,
                "description": "What was in place, the populations, samples and exceptions of a period. It holds no "
                "finding: whether an objective is satisfied is for the auditor to say.",
                "start": asked.since, "end": asked.until,
                "props": [
                    _prop("log-origin", report.log.origin), _prop("log-size", str(report.log.size)),
                    _prop("log-root", report.log.root), _prop("nonce", asked.nonce),
                ],
                "reviewed-controls": {
                    "control-selections": [
                        {"include-controls": [{"control-id": _control(one)} for one in report.criteria]}
                    ]
                },
                "observations": [_observation(one, report, facts) for one in report.criteria],
            }
        ],
        "back-matter": {
            "resources": [
                {
                    "uuid": plan, "title": "No assessment plan",
                    "description": "There is no plan in OSCAL: the period, the nonce and the table of sample sizes in "
                    f"{MODEL} are the whole of it.",
                },
                *(
                    {
                        "uuid": _uuid(report, f"file {name}"), "title": name,
                        "rlinks": [
                            {"href": f"../{name}", "hashes": [{"algorithm": "SHA-256", "value": listed.sha256}]}
                        ],
                    }
                    for name, listed in files.items()
                ),
            ]
        },
    }  # fmt: skip


def _observation(one: Criterion, report: Report, facts: dict[str, Fact]) -> Json:
    numbered = [facts[line.fact] for line in (*one.in_place, *one.population, *one.exceptions) if line.fact]
    files = dict.fromkeys([CHECKPOINT, *([SAMPLES] if one.samples else []), *(fact.file for fact in numbered)])
    said = (
        ("In place", one.in_place), ("Population", one.population), ("Exceptions", one.exceptions),
        ("Established", one.established), ("Not established", one.not_established),
    )  # fmt: skip
    return {
        "uuid": _uuid(report, f"observation {one.id}"), "title": f"{one.id} {one.title}",
        "description": "\n\n".join(
            f"{name}:\n" + "\n".join(f"* {_line(line, facts)}" for line in lines) for name, lines in said
        ),
        "props": [_prop("control-id", _control(one)), *(
            _prop("count", str(fact.count) if fact.is_known else "not-known", fact.id)
            for fact in {fact.id: fact for fact in numbered}.values()
        )],
        "methods": ["EXAMINE", "TEST"] if one.samples else ["EXAMINE"], "types": ["control-objective"],
        "relevant-evidence": [
            {"href": f"#{_uuid(report, f'file {name}')}", "description": name} for name in files
        ],
        "collected": report.made_at,
    }  # fmt: skip


def _line(line: Line, facts: dict[str, Fact]) -> str:
    if not line.fact:
        return line.text
    fact = facts[line.fact]
    return f"{fact.label}: {fact.count if fact.is_known else 'not known'}"


def _control(one: Criterion) -> str:
    return one.id.lower()


def _prop(name: str, value: str, kind: str = "") -> Json:
    return {"name": name, "ns": NAMESPACE, "value": value.strip() or "none", **({"class": kind} if kind else {})}


def _uuid(report: Report, what: str) -> str:
    asked = msgspec.json.encode(report.parameters).decode()
    return str(uuid.uuid5(_ROOT, f"{report.log.origin} {report.log.root} {asked} {report.made_at} {what}"))
