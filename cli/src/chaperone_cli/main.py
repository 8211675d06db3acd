"""`chaperone` and `kubectl chaperone`: what auditors, policy authors and platform engineers type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from chaperone_cli import approvals as approving
from chaperone_cli import consistency as comparing
from chaperone_cli import convert as converting
from chaperone_cli import export as exporting
from chaperone_cli import suspension as switching
from chaperone_cli import verify as verification
from chaperone_cli.kubectl import Cluster


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="chaperone-cli", prog_name="chaperone")
def main() -> None:
    """Chaperone: what AI agents do, decided, recorded and provable."""


@main.command()
@click.argument("evidence", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--trust",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate of the gateway CA; without it the one inside EVIDENCE is taken, and that is said.",
)
@click.option(
    "--log-policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The log's keys and witnesses (C2SP tlog-policy): a bundle's records must then be in that log.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(evidence: Path, trust: Path | None, log_policy: Path | None, as_json: bool) -> None:
    """Verify an evidence directory or a bundle (tar) offline.

    Exit status: 0 everything holds, 1 something is wrong, 2 it cannot be verified.
    """
    raise SystemExit(verification.run(evidence, trust, log_policy, as_json=as_json))


@main.command()
@click.argument("evidence", type=click.Path(exists=True, path_type=Path))
@click.option("--to", "form", type=click.Choice(converting.FORMS), required=True, help="OCSF events, or the records.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: standard output.")
@click.option(
    "--trust",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificate of the gateway CA; without it the one inside EVIDENCE is taken, and that is said.",
)
def convert(evidence: Path, form: converting.Form, output: Path | None, trust: Path | None) -> None:
    """Write the records of EVIDENCE (a directory or a bundle) as lines of JSON, verified on the way, offline.

    Exit status: 0 all is written, 1 a record does not hold and what precedes it is written, 2 it cannot be converted.
    """
    raise SystemExit(converting.run(evidence, trust, form, output))


@main.command()
@click.argument("old", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--log-policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The log's keys and witnesses (C2SP tlog-policy).",
)
@click.option(
    "--proof",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A consistency proof, one base64 hash a line; without it the log's tiles are fetched.",
)
@click.option("--kubeconfig", default="", help="As kubectl's.")
@click.option("--context", default="", help="As kubectl's.")
def consistency(old: Path, new: Path, log_policy: Path, proof: Path | None, kubeconfig: str, context: str) -> None:
    """Check that the log of checkpoint NEW continues that of checkpoint OLD (checkpoints, or .tlog-proof files).

    Exit status: 0 it does, 1 nothing shows that it does, 2 that cannot be told. Two of one size need no proof.
    """
    raise SystemExit(comparing.run(old, new, log_policy, proof, Cluster(kubeconfig, context)))


@main.command()
@click.argument("session")
@click.option("-n", "--namespace", default="", help="Where the session's pod is; default: that of the context.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: SESSION.tar.")
@click.option("--kubeconfig", default="", help="As kubectl's.")
@click.option("--context", default="", help="As kubectl's.")
@click.option("--system-namespace", default="chaperone-system", show_default=True, help="Where Chaperone runs.")
def export(
    session: str, namespace: str, output: Path | None, kubeconfig: str, context: str, system_namespace: str
) -> None:
    """Fetch the proof of a SESSION as a bundle for `verify`, with the gateway CA and the log's keys beside it.

    SESSION is a name from `kubectl get sessions`. Uses kubectl and your rights: get on sessions/proof.
    """
    cluster = Cluster(kubeconfig, context)
    raise SystemExit(exporting.run(cluster, session, namespace, system_namespace, output))


@main.command()
@click.option("--dir", "directory", type=click.Path(file_okay=False, path_type=Path), required=True, help="Its memory.")
@click.option("--name", required=True, help="Of its keys, such as a host and path: witness.example/w1.")
@click.option(
    "--log",
    "policies",
    multiple=True,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A log that it signs for, as a C2SP tlog-policy (SESSION.log.policy of an export); may be given again.",
)
@click.option("--listen", default="127.0.0.1:8080", show_default=True, help="HOST:PORT.")
@click.option(
    "--tls", nargs=2, type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Certificate and key (PEM)."
)
def witness(directory: Path, name: str, policies: tuple[Path, ...], listen: str, tls: tuple[Path, Path] | None) -> None:
    """Sign the checkpoints of a log as long as it only grows, for the collector's `--witnesses`.

    Prints the lines that name it in such a file, then `ready`.
    """
    from chaperone_cli import witness as witnessing  # noqa: PLC0415 - verify needs no TLS

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise click.BadParameter("It is HOST:PORT.", param_hint="--listen")
    raise SystemExit(witnessing.run(directory, name, policies, (host, int(port)), tls))


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which cluster and namespace is meant."""
    for option in (
        click.option("--context", default="", help="As kubectl's."),
        click.option("--kubeconfig", default="", help="As kubectl's."),
        click.option("-n", "--namespace", default="", help="Default: that of the context."),
    ):
        command = option(command)
    return command


@main.command()
@click.option("--to", required=True, metavar="RECEIVER", help="https://HOST/PATH, syslog+tls://HOST:PORT, or - .")
@click.option(
    "--state", required=True, type=click.Path(dir_okay=False, path_type=Path), help="What the receiver has, kept here."
)
@click.option("--format", "form", type=click.Choice(converting.FORMS), default="ocsf", show_default=True)
@click.option("--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="CA of the receiver (PEM).")
@click.option(
    "--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Bearer token for https."
)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@_where
def stream(
    to: str, state: Path, form: str, ca: Path | None, token_file: Path | None, all_namespaces: bool,
    namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Deliver commands and sessions to a RECEIVER, each at least once, from the beginning of the log; then go on.

    Uses kubectl and your rights: watch on commands and sessions. Texts of commands are not sent. Ends on SIGTERM.
    """
    from chaperone_cli import stream as streaming  # noqa: PLC0415 - verify needs no TLS

    place = streaming.EVERYWHERE if all_namespaces else namespace
    options = streaming.Options(to, state, form, ca, token_file)
    raise SystemExit(streaming.run(Cluster(kubeconfig, context), place, options))


@main.command()
@click.option("-w", "--watch", is_flag=True, help="Show the list anew every two seconds, until ctrl-C.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@click.option("--all", "has_ended", is_flag=True, help="Also requests that are decided or over.")
@_where
def approvals(
    watch: bool, all_namespaces: bool, has_ended: bool, namespace: str, kubeconfig: str, context: str
) -> None:
    """List the commands that wait for people.

    Uses kubectl and your rights: list on approvalrequests.
    """
    cluster = Cluster(kubeconfig, context)
    place = approving.EVERYWHERE if all_namespaces else namespace
    raise SystemExit(approving.show(cluster, place, has_ended=has_ended, is_watching=watch))


@main.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; some rules ask for it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before voting.")
@_where
def approve(name: str, reason: str, yes: bool, namespace: str, kubeconfig: str, context: str) -> None:
    """Approve the command of the approval request NAME, after showing it.

    Uses kubectl and your rights: get on approvalrequests, patch on approvalrequests/status.
    """
    raise SystemExit(approving.vote(Cluster(kubeconfig, context), name, namespace, "Approve", reason, is_sure=yes))


@main.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; the agent reads it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before voting.")
@_where
def deny(name: str, reason: str, yes: bool, namespace: str, kubeconfig: str, context: str) -> None:
    """Deny the command of the approval request NAME, after showing it.

    Uses kubectl and your rights: get on approvalrequests, patch on approvalrequests/status.
    """
    raise SystemExit(approving.vote(Cluster(kubeconfig, context), name, namespace, "Deny", reason, is_sure=yes))


def _policy(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which policies are meant: those of a directory, else those of the cluster."""
    directory = click.Path(exists=True, file_okay=False, path_type=Path)
    about = "A directory with YAML; without it the cluster is asked, by kubectl and with your rights."
    return click.option("--manifests", type=directory, help=about)(_where(command))


@main.command()
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


@main.command("replay-policy")
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


@main.command()
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


def _many(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments and options that say which identities are meant, and why."""
    for option in (
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--reason", required=True, help="Why; it is recorded."),
        click.option("-l", "--selector", default="", help="Those with these labels, as kubectl's."),
        click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces."),
        click.argument("names", nargs=-1, metavar="[NAME]..."),
    ):
        command = option(command)
    return _where(command)


def _wanted(names: tuple[str, ...], selector: str, namespace: str, *, everywhere: bool) -> switching.Wanted:
    if not names and not selector:
        raise click.UsageError("Name AgentIdentities, or give --selector.")
    return switching.Wanted(switching.EVERYWHERE if everywhere else namespace, names, selector)


@main.command()
@_many
def suspend(
    names: tuple[str, ...], all_namespaces: bool, selector: str, reason: str, yes: bool, namespace: str,
    kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Take every access of agents away, and cut their sessions, in seconds.

    Uses kubectl and your rights: list and patch on agentidentities. Exit status 0 when every gateway has confirmed.
    """
    wanted = _wanted(names, selector, namespace, everywhere=all_namespaces)
    raise SystemExit(switching.switch(Cluster(kubeconfig, context), "suspend", wanted, reason, is_sure=yes))


@main.command()
@_many
def resume(
    names: tuple[str, ...], all_namespaces: bool, selector: str, reason: str, yes: bool, namespace: str,
    kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Give suspended agents back what policy allows them.

    Uses kubectl and your rights: list and patch on agentidentities, resume on agentidentities/suspension.
    """
    wanted = _wanted(names, selector, namespace, everywhere=all_namespaces)
    raise SystemExit(switching.switch(Cluster(kubeconfig, context), "resume", wanted, reason, is_sure=yes))


@main.command()
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


if __name__ == "__main__":
    main()
