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
@click.option("--operator-key", type=_FILE, help="The key that signs populations and policy; default: the cluster's.")
@click.option("--system-namespace", default="chaperone-system", show_default=True, help="Where Chaperone runs.")
@click.option("--totals", "compared", type=_FILE, multiple=True, help="What `totals compare -o` wrote; several times.")
@where
def soc2(
    first: str, last: str, output: Path, all_namespaces: bool, nonce: str, sample: int | None, trust: Path | None,
    log_policy: Path | None, operator_key: Path | None, system_namespace: str, compared: tuple[Path, ...],
    namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Make a package for SOC 2: populations, samples with their proofs, controls, and what was not shown.

    Uses kubectl and your rights: list on what evidence.chaperone.dev and chaperone.dev hold, get on their proofs and
    checkpoints. Exit status: 0 the package is there, 1 it is not.
    """
    from chaperone_cli.report import build  # noqa: PLC0415 - verify stays light

    where_to = EVERYWHERE if all_namespaces else namespace
    options = build.Options(first, last, where_to, nonce, sample or 0, output, system_namespace, trust, log_policy,
                            compared, operator_key)  # fmt: skip
    raise SystemExit(build.run(Cluster(kubeconfig, context), options))


@report.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--trust", type=_FILE, help="Certificate of the gateway CA that you were given; default: the package's.")
@click.option("--log-policy", type=_FILE, help="The log's keys that you were given; default: the package's.")
@click.option("--operator-key", type=_FILE, help="The operator's key that you were given; default: the package's.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def check(
    directory: Path, trust: Path | None, log_policy: Path | None, operator_key: Path | None, as_json: bool
) -> None:
    """Check a package, offline: hashes, counts, samples drawn again and proved, populations, decisions made again.

    Exit status: 0 it holds, 1 something does not, 2 it cannot be checked.
    """
    from chaperone_cli.report import check as checking  # noqa: PLC0415 - verify stays light

    raise SystemExit(checking.run(directory, trust, log_policy, operator_key, as_json=as_json))


@click.group()
def totals() -> None:
    """Hold a back end's own counters against the records: what went past the gateways shows."""


@totals.command()
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="A new file.")
@click.option(
    "--database-file",
    type=_FILE,
    help="libpq's pg_service.conf whose section [chaperone] says how to connect; default: as psql connects.",
)
def take(output: Path, database_file: Path | None) -> None:
    """Read the counters of a PostgreSQL server into a snapshot, by psql and with your own credentials.

    Needs the role pg_read_all_stats, and the database that has the extension pg_stat_statements. Exit status: 0 the
    snapshot is there, 1 it is not.
    """
    from chaperone_cli.totals import take as taking  # noqa: PLC0415 - verify stays light

    raise SystemExit(taking.run(output, database_file))


@totals.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.argument("target", nargs=-1, required=True)
@click.option("--role", multiple=True, help="A role of the server that only agents use, if no session names it.")
@click.option("--skew", default=2.0, show_default=True, type=click.FloatRange(0, 3600), help="Of clocks, in seconds.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file for `report soc2`.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--kubeconfig", default="", help="As kubectl's.")
@click.option("--context", default="", help="As kubectl's.")
def compare(
    before: Path, after: Path, target: tuple[str, ...], role: tuple[str, ...], skew: float, output: Path | None,
    as_json: bool, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Compare what a server counted between two snapshots with what is recorded of every TARGET at that server.

    Uses kubectl and your rights: list on sessions and commands of all namespaces. Exit status: 0 all roles agree,
    1 one does not, 2 they cannot be compared.
    """
    from chaperone_cli.totals import compare as comparing  # noqa: PLC0415 - verify stays light

    cluster = Cluster(kubeconfig, context)
    raise SystemExit(comparing.run(cluster, before, after, target, role, skew, output, as_json=as_json))


COMMANDS = (report, totals)
