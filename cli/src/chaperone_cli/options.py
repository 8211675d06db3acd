"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable

import click


def where(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that say which cluster and namespace is meant."""
    for option in (
        click.option("--context", default="", help="As kubectl's."),
        click.option("--kubeconfig", default="", help="As kubectl's."),
        click.option("-n", "--namespace", default="", help="Default: that of the context."),
    ):
        command = option(command)
    return command
