"""`Kubectl`: the program that a person would use, for tools and for tests that prove what that person would see."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaperone_tools.cache import binary
from chaperone_tools.run import COMMAND_LIMIT_S, run


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig; calling it runs it and returns what it printed."""

    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None, limit_s: float = COMMAND_LIMIT_S) -> str:
        """Run it.

        Raises:
            ToolsError: it failed or did not end in time; the text has what it said.
        """
        return run(binary("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin, limit_s=limit_s)

    def json(self, *arguments: str) -> dict[str, Any]:
        """What `kubectl get` finds; of several objects a list with `items`."""
        found: dict[str, Any] = json.loads(self("get", *arguments, "--output=json"))
        return found

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply on the server's side: what is applied then does not lie in an annotation too."""
        documents = "\n---\n".join(map(json.dumps, objects))
        self("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=documents)

    def python(self, namespace: str, pod: str, program: str) -> str:
        """Run a Python program in a pod's first container."""
        return self("exec", "--namespace", namespace, pod, "--", "python3", "-c", program)
