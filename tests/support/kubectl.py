"""`Kubectl`: the program a person would use, for tests that prove what that person would see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chaperone_tools.cache import binary
from chaperone_tools.run import run


@dataclass(frozen=True)
class Kubectl:
    """kubectl with one kubeconfig; calling it runs it and returns what it printed."""

    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        return run(binary("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin)

    def apply(self, *objects: dict[str, Any]) -> None:
        self("apply", "--filename=-", stdin=yaml.safe_dump_all(objects))

    def python(self, namespace: str, pod: str, program: str) -> str:
        """Run a Python program in a pod's first container."""
        return self("exec", "--namespace", namespace, pod, "--", "python3", "-c", program)
