"""The demo's command that a person approves: it waits in the agent's pod until one of the leads has voted."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaperone_tools.demo.story import Story
from chaperone_tools.install import wait_for
from chaperone_tools.kubectl import Kubectl

LEAD: Final = "grace"
GROUP: Final = "billing-leads"
ASKED_LIMIT_S: Final = 30.0  # of the 45 s for which the connection is held


def approve(story: Story, kubectl: Kubectl, namespace: str, command: Sequence[str], *, shows: Sequence[str]) -> None:
    """Let the agent run a command that needs an approval, and approve it as a lead meanwhile.

    Raises:
        ToolsError: nobody was asked in time.
    """
    before = _pending(kubectl, namespace)
    agent = threading.Thread(target=story.run, args=command, kwargs={"shows": shows})
    agent.start()
    found: list[str] = []

    def lacking() -> str:
        found[:] = sorted(_pending(kubectl, namespace) - before)
        return "" if found else "an approval request"

    try:
        wait_for("the request for an approval", ASKED_LIMIT_S, lacking, lambda: "")
        with tempfile.TemporaryDirectory(prefix="chaperone-demo-") as folder:
            mine = _kubeconfig(kubectl, Path(folder))
            words = ("kubectl", "chaperone", "approve", found[0], "-n", namespace, f"--kubeconfig={mine}", "--yes")
            story.run(*words, shows=("your vote on",))
    finally:
        agent.join()


def _pending(kubectl: Kubectl, namespace: str) -> set[str]:
    items = kubectl.json("approvalrequests", f"--namespace={namespace}")["items"]
    return {one["metadata"]["name"] for one in items if one.get("status", {}).get("state", "Pending") == "Pending"}


def _kubeconfig(kubectl: Kubectl, folder: Path) -> Path:
    """Of a lead: the administrator's, who says to be that person, as --as and --as-group do."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--output=json"))
    for one in config["users"]:
        one["user"] |= {"as": LEAD, "as-groups": [GROUP, "system:authenticated"]}
    path = folder / f"{LEAD}.kubeconfig"
    path.touch(mode=0o600)
    path.write_text(json.dumps(config))
    return path
