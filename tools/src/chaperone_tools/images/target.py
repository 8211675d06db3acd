"""What goes into which image. Data; a name that is not here is no image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from chaperone_tools.errors import ToolsError


@dataclass(frozen=True)
class Target:
    """One stage of `images/Dockerfile` and what is prepared for it outside the build."""

    name: str
    members: tuple[str, ...] = ()  # workspace folders whose packages the image carries; the first one is its command
    extras: tuple[str, ...] = ()  # of the first member
    group: str = ""  # dependency group of tools/pyproject.toml whose packages it carries instead
    binaries: tuple[str, ...] = ()  # programs from the cache
    files: tuple[str, ...] = ()  # files from images/
    clients: tuple[str, ...] = ()  # programs of MySQL's packages, with the libraries that they need
    needs_base: bool = True  # stands on PYTHON_IMAGE; the others stand on nothing

    @property
    def has_python(self) -> bool:
        """Whether it carries Python packages."""
        return bool(self.members or self.group)


_ALL: Final = (
    Target("gateway", members=("sidecar", "evidence"), extras=("ssh",)),
    # opa checks Rego of policies, and a program of the gateway's package reads the statements of their tests.
    Target("operator", members=("operator", "sidecar", "evidence"), binaries=("opa",)),
    Target("collector", members=("collector", "evidence")),
    Target("opa", binaries=("opa",), needs_base=False),
    Target("pause", binaries=("pause",), needs_base=False),
    Target("coredns", binaries=("coredns",), needs_base=False),
    Target("postgres", files=("postgres/entrypoint.sh",)),
    Target("agent", group="agent", binaries=("kubectl",), files=("agent/mysql",), clients=("mysql",)),
    Target("servers", files=("servers/mariadb.sh", "servers/sshd_config")),
)
TARGETS: Final = {target.name: target for target in _ALL}
NODE: Final = ("pause", "coredns")  # what a local cluster's node needs before any other image


def target_of(name: str) -> Target:
    """The target of that name.

    Raises:
        ToolsError: there is none; names those that are.
    """
    if name not in TARGETS:
        raise ToolsError(f"there is no image {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
