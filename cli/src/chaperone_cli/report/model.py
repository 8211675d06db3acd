"""What a report says, as data: `controls.json`. The page, the PDF and OSCAL are drawn from it and say nothing else.

Every number is a `Fact`: a file of the package, which rows of it are counted, and the count. So whoever has the package
counts again, and whoever reads a number is led to its rows.
"""

from __future__ import annotations

from typing import Final

import msgspec

FORMAT: Final = "chaperone.dev/soc2-report/v1"
MODEL: Final = "controls.json"
PAGE: Final = "report.html"
PDF: Final = "report.pdf"
MANIFEST: Final = "manifest.json"
CHECKPOINT: Final = "checkpoint.txt"
SAMPLES: Final = "samples.csv"
OSCAL: Final = "oscal/assessment-results.json"
TRUST_FILE: Final = "evidence/trust.pem"
POLICY_FILE: Final = "evidence/log.policy"
OPERATOR_FILE: Final = "evidence/operator.vkey"


class Fact(msgspec.Struct, kw_only=True):
    """A number and the rows behind it: those whose column holds one of the values; `!column` means none of them."""

    id: str
    label: str
    file: str
    where: dict[str, list[str]] = {}
    count: int = 0
    is_known: bool = True  # false: what it counts was not to be had, and 0 says nothing


class Line(msgspec.Struct, frozen=True):
    """One sentence; `fact` names the number that belongs to it."""

    text: str
    fact: str = ""


class Criterion(msgspec.Struct, kw_only=True):
    """What a package has to say about one criterion."""

    id: str
    title: str
    in_place: list[Line]
    population: list[Line]
    samples: list[str]
    exceptions: list[Line]
    established: list[Line]
    not_established: list[Line]


class Stratum(msgspec.Struct, kw_only=True):
    """A population that was sampled."""

    name: str
    label: str
    fact: str
    population: int
    size: int
    proved: int


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked. Times are RFC 3339, UTC; `until` is not in the period."""

    since: str
    until: str
    namespace: str  # empty: all
    nonce: str
    is_nonce_given: bool
    sample: int  # 0: by the table


class Log(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that a report rests on. Root is base64; `signed_at` is empty where no signature says a time."""

    origin: str
    size: int
    root: str
    signed_at: str
    witnesses: list[str]
    is_verified: bool


class Report(msgspec.Struct, kw_only=True):
    """All of it."""

    format: str
    version: str  # of the program
    made_at: str
    parameters: Parameters
    log: Log
    versions: dict[str, str]  # resourceVersion at which each resource was listed
    notes: list[str]  # what could not be asked, and why
    facts: list[Fact]
    strata: list[Stratum]
    criteria: list[Criterion]

    @property
    def missing(self) -> set[str]:
        """What there was not, tables that could not be listed among it.

        `log` stands for keys to verify by, `proof` for a sample's, `signature` for that of a population, `decision` for
        any that could be made again.
        """
        found = {fact.file for fact in self.facts if not fact.is_known}
        if not self.log.is_verified:
            found.add("log")
        if any(one.proved < one.size for one in self.strata):
            found.add("proof")
        counts = {fact.id: fact.count for fact in self.facts}
        if counts.get("unattested") or not counts.get("attested"):
            found.add("signature")
        if not counts.get("reperformed"):
            found.add("decision")
        return found

    def fact(self, name: str) -> Fact:
        """The fact of this id.

        Raises:
            KeyError: there is none.
        """
        for one in self.facts:
            if one.id == name:
                return one
        raise KeyError(name)


class Listed(msgspec.Struct, frozen=True):
    """A file of the package."""

    sha256: str
    size: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What belongs to the package. It names every file but itself."""

    format: str
    version: str
    parameters: Parameters
    log: Log
    files: dict[str, Listed]
