"""Commands for authors of policies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from chaperone_cli.kubectl import Cluster
from chaperone_cli.options import where

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _policy(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which policies are meant: those of a directory, else those of the cluster."""
    directory = click.Path(exists=True, file_okay=False, path_type=Path)
    about = "A directory with YAML; without it the cluster is asked, by kubectl and with your rights."
    return click.option("--manifests", type=directory, help=about)(where(command))


@click.command()
@click.argument("text", metavar="SQL")
@click.option("--identity", required=True, help="Name of the AgentIdentity.")
@click.option("--target", default="", help="Name of the AccessTarget; not needed where there is one.")
@click.option("--rows", type=click.IntRange(0), help="As if the database expected so many rows.")
@click.option("--at", default="", metavar="TIME", help="As if it were then, such as 2026-07-03T10:00:00+02:00.")
@click.option("-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True)
@_policy
def explain(
    text: str, identity: str, target: str, rows: int | None, at: str, output: str, manifests: Path | None,
    namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Say what SQL would meet, and why: its effects, the decision, and each rule that speaks of it.

    Nothing is executed, and no database is asked. Exit status: 0 allowed, 1 denied, 3 needs approval, 2 cannot be told.
    """
    from chaperone_cli import policy_commands  # noqa: PLC0415 - the compiler is an extra that auditors don't install

    cluster = Cluster(kubeconfig, context)
    raise SystemExit(
        policy_commands.explain(
            manifests, cluster, namespace, identity, target, text, rows=rows, at=at, as_json=output == "json"
        )
    )


@click.command("replay-policy")
@click.option(
    "--evidence", required=True, type=click.Path(exists=True, path_type=Path), help="A directory or a bundle."
)
@click.option("-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True)
@_policy
def replay_policy(
    evidence: Path, output: str, manifests: Path | None, namespace: str, kubeconfig: str, context: str
) -> None:
    """Say what recorded commands would meet under other policies, and what would change.

    Exit status: 0 nothing would change, 1 something would, 2 it cannot be told.
    """
    from chaperone_cli import policy_commands  # noqa: PLC0415 - the compiler is an extra that auditors don't install

    cluster = Cluster(kubeconfig, context)
    raise SystemExit(policy_commands.replay(manifests, cluster, namespace, evidence, as_json=output == "json"))


@click.command()
@click.argument("evidence", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--from", "begin", default="", metavar="DATE", help="In place of EVIDENCE: sessions from this day on.")
@click.option("--to", "end", default="", metavar="DATE", help="The last day; it is in the period.")
@click.option("--trust", type=_FILE, help="Certificate of the gateway CA; as of verify.")
@click.option("--log-policy", type=_FILE, help="The log's keys (C2SP tlog-policy); as of verify.")
@click.option("--operator-key", type=_FILE, help="The key that signs policy; as of verify.")
@click.option("-o", "--output", type=click.Choice(("text", "json")), default="text", show_default=True)
@where
def reperform(
    evidence: Path | None, begin: str, end: str, trust: Path | None, log_policy: Path | None,
    operator_key: Path | None, output: str, namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Make each recorded decision again, by the revision of policy that made it, and name every difference.

    EVIDENCE is a bundle (or a directory), read offline. With --from and --to in its place every session of the
    namespace in these days is fetched, with kubectl and your rights. Exit status: 0 no decision differs, 1 one does or
    the evidence does not hold, 2 it cannot be told.
    """
    from chaperone_cli import reperform_commands as again  # noqa: PLC0415 - the compiler is an extra
    from chaperone_cli.period_bundles import Keys  # noqa: PLC0415 - with it

    if (evidence is None) is not bool(begin and end):
        raise click.UsageError("Give EVIDENCE, or --from and --to.")
    keys, as_json = Keys(trust, log_policy, operator_key), output == "json"
    if evidence is not None:
        raise SystemExit(again.run(evidence, keys, as_json=as_json))
    raise SystemExit(again.run_period(Cluster(kubeconfig, context), namespace, begin, end, keys, as_json=as_json))


@click.command()
@click.argument("what", nargs=-1)
@click.option("--revision", "revisions", multiple=True, help="Given twice: the revisions of policy to compare.")
@click.option("--from", "begin", default="", metavar="DATE", help="With --revision: sessions from this day on.")
@click.option("--to", "end", default="", metavar="DATE", help="The last day; it is in the period.")
@click.option("--log-policy", type=_FILE, help="With --revision: the log's keys; as of verify.")
@click.option("--operator-key", type=_FILE, help="With --revision: the key that signs policy; as of verify.")
@click.option("--json", "as_json", is_flag=True, help="Print all that differs as JSON.")
@where
def diff(
    what: tuple[str, ...], revisions: tuple[str, ...], begin: str, end: str, log_policy: Path | None,
    operator_key: Path | None, as_json: bool, namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Say what one session did that another did not; or which decisions two revisions of policy make differently.

    WHAT is two sessions (names, fetched with kubectl and your rights, or their bundles); with --revision, given twice,
    bundles, or nothing and --from and --to. Exit status: 0 same, 1 different, 2 it cannot be told.
    """
    from chaperone_cli import diff_revisions, diff_sessions  # noqa: PLC0415 - the compiler is an extra
    from chaperone_cli.period_bundles import Keys  # noqa: PLC0415 - with it

    cluster = Cluster(kubeconfig, context)
    if not revisions:
        if len(what) != 2 or begin or end:
            raise click.UsageError("Give two sessions, or --revision twice.")
        raise SystemExit(diff_sessions.run(*what, cluster, namespace, as_json=as_json))
    if len(revisions) != 2 or bool(what) is bool(begin and end):
        raise click.UsageError("Give --revision twice, and bundles, or --from and --to.")
    paths, keys = tuple(map(Path, what)), Keys(None, log_policy, operator_key)
    raise SystemExit(
        diff_revisions.run(paths, (revisions[0], revisions[1]), (begin, end), cluster, namespace, keys, as_json=as_json)
    )


@click.command()
@click.option(
    "--evidence", required=True, type=click.Path(exists=True, path_type=Path), help="A directory or a bundle."
)
@click.option("-n", "--namespace", default="", help="Default: every one in the evidence.")
@click.option("--identity", default="", help="Default: every one in the evidence.")
def suggest(evidence: Path, namespace: str, identity: str) -> None:
    """Draft the AccessPolicies that were missing, from commands that no rule covered or would have covered.

    Nothing critical is ever in a rule of a draft, only in its comments. Exit status: 0, or 2 it cannot be read.
    """
    from chaperone_cli import policy_commands  # noqa: PLC0415 - the compiler is an extra that auditors don't install

    raise SystemExit(policy_commands.suggest(evidence, namespace, identity))


@click.command()
@click.option("--manifests", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--identity", required=True, help="Name of the AgentIdentity to act as.")
@click.option("--evidence", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--listen", required=True, multiple=True, metavar="TARGET=HOST:PORT", help="May be given several times.")
def dev(manifests: Path, identity: str, evidence: Path, listen: tuple[str, ...]) -> None:
    """Run the gateway without a cluster, for policy authors and tests.

    MANIFESTS holds AgentIdentity, AccessTarget, AccessPolicy, ClusterAccessPolicy and Secret YAML. Prints `ready` when
    it listens; SIGTERM or ctrl-C ends it cleanly.
    """
    from chaperone_cli.dev import run  # noqa: PLC0415 - the gateway is an extra that auditors don't install

    raise SystemExit(run(manifests, identity, evidence, listen))


COMMANDS = (explain, replay_policy, reperform, diff, suggest, dev)
