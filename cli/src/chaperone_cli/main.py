"""`chaperone` and `kubectl chaperone`: what auditors, policy authors and platform engineers type."""

from __future__ import annotations

import click

from chaperone_cli import group_evidence, group_people, group_policy, group_report


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="chaperone-cli", prog_name="chaperone")
def main() -> None:
    """Chaperone: what AI agents do, decided, recorded and provable."""


for _command in (
    *group_evidence.COMMANDS, *group_people.COMMANDS, *group_policy.COMMANDS, *group_report.COMMANDS,
):  # fmt: skip
    main.add_command(_command)


if __name__ == "__main__":
    main()
