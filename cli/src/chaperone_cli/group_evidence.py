"""Commands about evidence: verify, convert, compare, fetch and deliver it, and witness the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from chaperone_cli import consistency as comparing
from chaperone_cli import convert as converting
from chaperone_cli import export as exporting
from chaperone_cli import receipt as checking
from chaperone_cli import redact as redacting
from chaperone_cli import verify as verification
from chaperone_cli.kubectl import EVERYWHERE, Cluster
from chaperone_cli.options import where


@click.command()
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
@click.option(
    "--operator-key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the key that signs populations and policy; without it a bundle's own is taken, and that is said.",
)
@click.option("--identity", default="", help="Is it proved that this AgentIdentity did nothing --from … --to …?")
@click.option("--from", "begin", default="", metavar="TIME", help="Such as 2026-11-27T10:00:00Z.")
@click.option("--to", "end", default="", metavar="TIME", help="As --from.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(
    evidence: Path, trust: Path | None, log_policy: Path | None, operator_key: Path | None, identity: str, begin: str,
    end: str, as_json: bool,
) -> None:  # fmt: skip
    """Verify an evidence directory or a bundle (tar) offline.

    Exit status: 0 everything holds, 1 something is wrong or not proved, 2 it cannot be verified.
    """
    question = verification.Question(operator_key, identity, begin, end)
    raise SystemExit(verification.run(evidence, trust, log_policy, question, as_json=as_json))


@click.command()
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


@click.command()
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


@click.command()
@click.argument("session", default="")
@click.option("--coverage", is_flag=True, help="In place of a session: who had to be heard in the namespace, and was.")
@click.option("-n", "--namespace", default="", help="Where the session's pod is; default: that of the context.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Default: SESSION.tar.")
@click.option(
    "--receipt", type=click.Path(dir_okay=False, path_type=Path), help="Fetch a COSE receipt (RFC 9942) there, too."
)
@click.option("--kubeconfig", default="", help="As kubectl's.")
@click.option("--context", default="", help="As kubectl's.")
@click.option("--system-namespace", default="chaperone-system", show_default=True, help="Where Chaperone runs.")
def export(
    session: str, coverage: bool, namespace: str, output: Path | None, receipt: Path | None, kubeconfig: str,
    context: str,
    system_namespace: str,
) -> None:  # fmt: skip
    """Fetch the proof of a SESSION as a bundle for `verify`, with the gateway CA and the log's keys beside it.

    SESSION is a name from `kubectl get sessions`. Uses kubectl and your rights: get on sessions/proof, or with
    --coverage on populations/proof.
    """
    if bool(session) is coverage:
        raise click.UsageError("Give a SESSION, or --coverage.")
    cluster = Cluster(kubeconfig, context)
    if coverage and receipt is not None:
        raise click.UsageError("A receipt is of a SESSION.")
    wanted = None if coverage else session
    raise SystemExit(exporting.run(cluster, wanted, namespace, system_namespace, output, receipt))


@click.command()
@click.argument("bundle", type=click.Path(exists=True, path_type=Path))
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The new bundle.")
@click.option(
    "--keep", multiple=True, metavar="[STREAM/]RECORD", help="Keep the texts of this record (spec.stream, spec.seq)."
)
def redact(bundle: Path, output: Path, keep: tuple[str, ...]) -> None:
    """Leave texts out of BUNDLE: statements, parameters, recordings. All of them, but for those of records to --keep.

    The new bundle verifies as the old one: records commit to texts by salted hashes. Exit status: 0, or 2 it cannot be
    read.
    """
    raise SystemExit(redacting.run(bundle, output, keep))


@click.group()
def receipt() -> None:
    """Receipts of the log in COSE (RFC 9942)."""


@receipt.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--entry",
    "evidence",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="The evidence (a directory or a bundle) that has the record.",
)
@click.option(
    "--log-policy",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The log's keys (C2SP tlog-policy).",
)
def check(file: Path, evidence: Path, log_policy: Path) -> None:
    """Check offline that the receipt in FILE proves a record to be in the log.

    Exit status: 0 it does, 1 it proves nothing of this evidence, 2 that cannot be told.
    """
    raise SystemExit(checking.run(file, evidence, log_policy))


@click.command()
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


@click.command()
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
@where
def stream(
    to: str, state: Path, form: str, ca: Path | None, token_file: Path | None, all_namespaces: bool,
    namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Deliver commands and sessions to a RECEIVER, each at least once, from the beginning of the log; then go on.

    Uses kubectl and your rights: watch on commands and sessions. Texts of commands are not sent. Ends on SIGTERM.
    """
    from chaperone_cli import stream as streaming  # noqa: PLC0415 - verify needs no TLS

    place = EVERYWHERE if all_namespaces else namespace
    options = streaming.Options(to, state, form, ca, token_file)
    raise SystemExit(streaming.run(Cluster(kubeconfig, context), place, options))


@click.command()
@click.option("--identity", default="", help="Of this AgentIdentity only.")
@click.option("--session", default="", help="Of this session only.")
@click.option("--refused", "is_refused", is_flag=True, help="Only commands that policy did not let pass.")
@click.option("--from-start", is_flag=True, help="From the beginning of the log, not from now.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@where
def follow(
    identity: str, session: str, is_refused: bool, from_start: bool, all_namespaces: bool, namespace: str,
    kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Show what agents do as it happens: sessions, commands, decisions and ends, over all protocols. Ends on ctrl-C.

    Uses kubectl and your rights: list and watch on commands and sessions; with watch on approvalrequests, what waits
    for people is shown while it waits.
    """
    from chaperone_cli import follow as following  # noqa: PLC0415 - verify needs no watches

    place = EVERYWHERE if all_namespaces else namespace
    chosen = following.Chosen(identity, session, is_refused)
    raise SystemExit(following.run(Cluster(kubeconfig, context), place, chosen, from_start=from_start))


def _session(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options that say which session is meant, and where it is read from."""
    existing = click.Path(exists=True, path_type=Path)
    for option in (
        click.option("--log-policy", type=existing, help="With --bundle: the log's keys, as for verify."),
        click.option("--trust", type=existing, help="With --bundle: certificate of the gateway CA, as for verify."),
        click.option(
            "--bundle", type=existing, help="An evidence directory or bundle; without it the cluster is asked."
        ),
        click.argument("session"),
    ):
        command = option(command)
    return where(command)


@click.command()
@click.option("--speed", type=click.FloatRange(0, min_open=True), help="Play it so many times as fast as it was.")
@click.option("--idle-limit", type=click.FloatRange(0), help="Seconds: no pause is longer.")
@click.option("--from", "from_s", type=click.FloatRange(0, 10**9), default=0.0, help="Seconds from its beginning.")
@click.option("--cast", type=click.Path(dir_okay=False, path_type=Path), help="Write asciicast v2 instead of printing.")
@_session
def replay(
    session: str, bundle: Path | None, trust: Path | None, log_policy: Path | None, speed: float | None,
    idle_limit: float | None, from_s: float, cast: Path | None, namespace: str, kubeconfig: str, context: str,
) -> None:  # fmt: skip
    """Show what happened in a SESSION: statements, decisions, what the agent was shown, and approvals.

    With kubectl and your rights: get on sessions/recording. With --bundle offline, and verified on the way; exit status
    0 all of it holds, 1 something does not and nothing after it is shown, 2 it cannot be shown.
    """
    from chaperone_cli import replay as replaying  # noqa: PLC0415 - verify needs no decompressor

    where_from = replaying.Where(session, bundle, trust, log_policy, Cluster(kubeconfig, context), namespace)
    raise SystemExit(replaying.replay(where_from, replaying.Pace(speed or 0, idle_limit, from_s), cast))


@click.command()
@_session
def show(
    session: str, bundle: Path | None, trust: Path | None, log_policy: Path | None, namespace: str, kubeconfig: str,
    context: str,
) -> None:  # fmt: skip
    """Show a SESSION on one page: who, where, on whose behalf, and each command with its decision and end.

    With kubectl and your rights: get on sessions/recording. With --bundle offline, and verified on the way.
    """
    from chaperone_cli import replay as replaying  # noqa: PLC0415 - verify needs no decompressor

    where_from = replaying.Where(session, bundle, trust, log_policy, Cluster(kubeconfig, context), namespace)
    raise SystemExit(replaying.show(where_from))


COMMANDS = (verify, convert, consistency, export, redact, receipt, witness, stream, follow, replay, show)
