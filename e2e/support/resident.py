"""How much memory a gateway takes, as the kernel of its node counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from stage import Pod

_PROGRAM: Final = """
import pathlib, sys
for entry in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        is_its = sys.argv[1].replace("-", "_") in (entry / "cgroup").read_text().replace("-", "_")
        if is_its and b"chaperone-gateway" in (entry / "cmdline").read_bytes():
            told = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
            print(*(told[name].split()[0] for name in ("VmRSS", "RssAnon", "RssFile")))
    except OSError:
        continue
"""


@dataclass(frozen=True)
class Resident:
    """Memory of the process, in MiB: all of it, its own pages, and pages of files."""

    now: float
    own: float
    of_files: float


def resident(node: Pod, agent: Pod) -> Resident:
    """Of an agent's gateway.

    Args:
        node: sees the processes of the node.
        agent: whose gateway is meant.
    """
    told = node.python(_PROGRAM, agent.seen["metadata"]["uid"])
    return Resident(*(int(one) / 1024 for one in told.out.split()))
