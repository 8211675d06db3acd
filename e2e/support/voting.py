"""People who vote on what waits, and the question that they find."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from stage import Object, Ran, Team, until

from chaperone_tools.kubectl import Kubectl

LEADS: Final = "billing-leads"
REQUESTS: Final = "approvalrequests.chaperone.dev"


def may_vote(team: Team) -> None:
    """Let the leads vote in a namespace."""
    team.kubectl(
        "create", "rolebinding", "leads", f"--namespace={team.namespace}", "--clusterrole=chaperone-approver",
        f"--group={LEADS}",
    )  # fmt: skip


def person(kubectl: Kubectl, folder: Path, name: str, *groups: str) -> Kubectl:
    """kubectl as that person has it: the administrator's own, who says to be that one."""
    config: Object = json.loads(kubectl("config", "view", "--raw", "--minify", "--output=json"))
    for one in config["users"]:
        one["user"] |= {"as": name, "as-groups": [*groups, "system:authenticated"]}
    path = folder / f"{name.replace(':', '-')}.kubeconfig"
    path.write_text(json.dumps(config))
    path.chmod(0o600)
    return Kubectl(path)


class Held:
    """A command that waits in the agent's pod."""

    def __init__(self, command: Callable[[], Ran]) -> None:
        self._ended: list[Ran] = []
        self._thread = threading.Thread(target=lambda: self._ended.append(command()), daemon=True)
        self._thread.start()

    def end(self) -> Ran:
        """What came of it."""
        self._thread.join(100)
        assert self._ended, "it still waits"
        return self._ended[0]


def pending(kubectl: Kubectl, team: Team) -> str:
    """The name of the one request that waits."""
    found: list[str] = []

    def is_there() -> bool:
        items = kubectl.json(REQUESTS, f"--namespace={team.namespace}")["items"]
        found[:] = [one["metadata"]["name"] for one in items if one["status"].get("state", "Pending") == "Pending"]
        return bool(found)

    until("somebody is asked", is_there)
    (name,) = found
    return name
