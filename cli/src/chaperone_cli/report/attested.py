"""coverage.csv: the populations of each namespace, with the operator's signature, verified from a bundle of coverage.

The bundle is what `chaperone export --coverage` fetches: every population as it was signed, the newest one's proof that
the log has it, and the streams. What epochs.csv lists has to be in it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chaperone_cli import completeness
from chaperone_cli.evidence import MAX_TRUST_BYTES, OPERATOR_KEY, CannotVerify, Source, bodies, open_source, populations
from chaperone_cli.export import CannotExport, fetch_bundle, proof_path
from chaperone_cli.kubectl import CannotAsk, Cluster
from chaperone_cli.report import tables
from chaperone_cli.report.tables import EPOCHS, Row
from chaperone_cli.verify import Trust, judge
from chaperone_evidence import entry, population
from chaperone_evidence.completeness import FINE
from chaperone_evidence.errors import EvidenceError

FOLDER: Final = "evidence/coverage"


def name_of(namespace: str) -> str:
    """The file of a namespace's coverage."""
    return f"{FOLDER}/{namespace}.tar"


def fetch(cluster: Cluster, folder: Path) -> Iterator[str]:
    """Fetch the bundle of each namespace that epochs.csv names; what could not be had is noted.

    Raises:
        BadTable: the table cannot be read.
    """
    for namespace in namespaces(folder):
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        try:
            fetch_bundle(cluster, proof_path(cluster, None, namespace), folder / name_of(namespace))
        except (CannotExport, CannotAsk, CannotVerify) as error:
            yield f"the populations of {namespace} were not given with their signatures: {error}"


def operator_key(folder: Path) -> bytes:
    """The key that a bundle of the package names as the operator's; nothing where none does."""
    for namespace in namespaces(folder):
        if (folder / name_of(namespace)).is_file():
            with open_source(folder / name_of(namespace)) as source:
                if OPERATOR_KEY in source.names():
                    return source.read(OPERATOR_KEY, MAX_TRUST_BYTES)
    return b""


def rows(folder: Path, trust: Trust, key: Path | None) -> Iterator[dict[str, object]]:
    """The rows of the table, as the bundles of the package give them.

    Raises:
        BadTable: epochs.csv cannot be read.
    """
    for namespace in namespaces(folder):
        row: dict[str, object] = {
            "namespace": namespace, "bundle": name_of(namespace), "operator": "", "first_epoch": "", "last_epoch": "",
            "as_of": "", "pods": "", "heard": "",
        }  # fmt: skip
        path = folder / name_of(namespace)
        try:
            why = _examine(path, trust, key, namespace, folder, row) if path.is_file() else "its bundle is not here"
        except (CannotVerify, EvidenceError, OSError) as error:
            why = str(error) or "it cannot be read"
        yield row | {"proved": not why, "why": why}


def namespaces(folder: Path) -> list[str]:
    """Namespaces that epochs.csv has."""
    return sorted({row["namespace"] for row in tables.read(folder, EPOCHS)})


def _examine(path: Path, trust: Trust, key: Path | None, namespace: str, folder: Path, row: dict[str, object]) -> str:
    """Fill in what a bundle shows; returns what speaks against it.

    A pod that was not heard is an exception of its own, and does not.
    """
    with open_source(path) as source:
        return _judged(source, trust, key, namespace, folder, row)


def _judged(
    source: Source, trust: Trust, key: Path | None, namespace: str, folder: Path, row: dict[str, object]
) -> str:
    verdict = judge(source, trust.authorities, trust.log)
    found = completeness.cover(source, verdict, key, trust.log, None)
    if found is None or found.coverage.namespace != namespace:
        return "it holds no populations of the namespace"
    coverage = found.coverage
    row |= {
        "operator": found.vkey, "first_epoch": coverage.epochs[0], "last_epoch": coverage.epochs[1],
        "as_of": completeness.moment(coverage.as_of_us), "pods": len(coverage.pods),
        "heard": sum(one.verdict.state in FINE for one in coverage.pods),
    }  # fmt: skip
    wrong = [one for one in coverage.problems if not one.where.startswith("pod ")]
    for problem in (*wrong, *verdict.problems):
        return str(problem)
    if trust.log is None:
        return "that the log has it was not checked, for want of the log's keys"
    return _unlisted(source, namespace, tables.read(folder, EPOCHS))


def _unlisted(source: Source, namespace: str, listed: Iterator[Row]) -> str:
    """What epochs.csv says of the namespace and the signed populations do not."""
    _, names = populations(source)
    signed = {
        str(epoch): base64.b64encode(population.note_hash(body[entry.SALT_BYTES :])).decode()
        for epoch, body in enumerate(bodies(source, names, f"populations of {namespace}"), 1)
    }
    for row in listed:
        if row["namespace"] == namespace and tables.cell(signed.get(row["epoch"])) != row["hash"]:
            return f"epoch {row['epoch']} of {EPOCHS} is not the one that the operator signed"
    return ""
