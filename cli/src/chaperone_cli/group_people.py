"""Commands with which people decide: approvals and the kill switch."""

from __future__ import annotations

from collections.abc import Callable

import click

from chaperone_cli import approvals as approving
from chaperone_cli import suspension as switching
from chaperone_cli.kubectl import EVERYWHERE, Cluster
from chaperone_cli.options import where


@click.command()
@click.option("-w", "--watch", is_flag=True, help="Show the list anew every two seconds, until ctrl-C.")
@click.option("-A", "--all-namespaces", is_flag=True, help="Of all namespaces.")
@click.option("--all", "has_ended", is_flag=True, help="Also requests that are decided or over.")
@where
def approvals(
    watch: bool, all_namespaces: bool, has_ended: bool, namespace: str, kubeconfig: str, context: str
) -> None:
    """List the commands that wait for people.

    Uses kubectl and your rights: list on approvalrequests.
    """
    cluster = Cluster(kubeconfig, context)
    place = EVERYWHERE if all_namespaces else namespace
    raise SystemExit(approving.show(cluster, place, has_ended=has_ended, is_watching=watch))


@click.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; some rules ask for it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before voting.")
@where
def approve(name: str, reason: str, yes: bool, namespace: str, kubeconfig: str, context: str) -> None:
    """Approve the command of the approval request NAME, after showing it.

    Uses kubectl and your rights: get on approvalrequests, patch on approvalrequests/status.
    """
    raise SystemExit(approving.vote(Cluster(kubeconfig, context), name, namespace, "Approve", reason, is_sure=yes))


@click.command()
@click.argument("name")
@click.option("--reason", required=True, help="Why; the agent reads it.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask before voting.")
@where
def deny(name: str, reason: str, yes: bool, namespace: str, kubeconfig: str, context: str) -> None:
    """Deny the command of the approval request NAME, after showing it.

    Uses kubectl and your rights: get on approvalrequests, patch on approvalrequests/status.
    """
    raise SystemExit(approving.vote(Cluster(kubeconfig, context), name, namespace, "Deny", reason, is_sure=yes))


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
    return where(command)


def _wanted(names: tuple[str, ...], selector: str, namespace: str, *, everywhere: bool) -> switching.Wanted:
    if not names and not selector:
        raise click.UsageError("Name AgentIdentities, or give --selector.")
    return switching.Wanted(EVERYWHERE if everywhere else namespace, names, selector)


@click.command()
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


@click.command()
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


COMMANDS = (approvals, approve, deny, suspend, resume)
