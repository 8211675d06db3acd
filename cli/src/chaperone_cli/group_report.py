"""Commands for auditors of controls: a package of evidence, and its check."""

from __future__ import annotations

from pathlib import Path

import click

from chaperone_cli.kubectl import EVERYWHERE, Cluster
from chaperone_cli.options import where

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def report() -> None:
    """Make a package of controls and evidence for an audit, and check one offline."""


@report.command()
@click.option("--from", "first", required=True, metavar="DATE", help="The first day, as 2026-01-31 (UTC).")
@click.option("--to", "last", required=True, metavar="DATE", help="The last day; it is in the period.")
@click.option(
    "-o", "--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="A new directory."
)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@click.option("--nonce", default="", help="The auditor's word that the samples are drawn by; default: a random one.")
@click.option("--sample", type=click.IntRange(1, 10_000), help="Of each population; default: by its size, at most 60.")
@click.option("--trust", type=_FILE, help="Certificate of the gateway CA; default: the cluster's.")
@click.option("--log-policy", type=_FILE, help="The log's keys (C2SP tlog-policy); default: the cluster's.")
@click.option("--system-namespace", default="chaperone-system", show_default=True, help="Where Chaperone runs.")
@where
def soc2(
    first: str, last: str, output: Path, all_namespaces: bool, nonce: str, sample: int | None, trust: Path | None,
    log_policy: Path | None, system_namespace: str, namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Make a package for SOC 2: populations, samples with their proofs, controls, and what was not shown.

    Uses kubectl and your rights: list on what evidence.chaperone.dev and chaperone.dev hold, get on sessions/proof and
    checkpoints. Exit status: 0 the package is there, 1 it is not.
    """
    from chaperone_cli.report import build  # noqa: PLC0415 - verify stays light

    where_to = EVERYWHERE if all_namespaces else namespace
    options = build.Options(first, last, where_to, nonce, sample or 0, output, system_namespace, trust, log_policy)
    raise SystemExit(build.run(Cluster(kubeconfig, context), options))


@report.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--trust", type=_FILE, help="Certificate of the gateway CA that you were given; default: the package's.")
@click.option("--log-policy", type=_FILE, help="The log's keys that you were given; default: the package's.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def check(directory: Path, trust: Path | None, log_policy: Path | None, as_json: bool) -> None:
    """Check a package, offline: hashes, counts, samples drawn again, and the proof of each.

    Exit status: 0 it holds, 1 something does not, 2 it cannot be checked.
    """
    from chaperone_cli.report import check as checking  # noqa: PLC0415 - verify stays light

    raise SystemExit(checking.run(directory, trust, log_policy, as_json=as_json))


COMMANDS = (report,)
