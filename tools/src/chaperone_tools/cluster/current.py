"""The `current` provider: a cluster that exists already, reached as kubectl reaches it; never made or deleted here."""

from __future__ import annotations

import os
from pathlib import Path

from chaperone_tools.cache import binary
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run


class Current:
    """The cluster of the current kubeconfig context."""

    def up(self) -> bool:
        """See Provider: it has to be up."""
        self._kubectl("get", "--raw=/readyz")
        return False

    def down(self) -> None:
        """See Provider.

        Raises:
            ToolsError: always; this tool did not make the cluster.
        """
        raise ToolsError("the current context's cluster was not made here and is not taken down here")

    def status(self) -> str:
        """See Provider."""
        context = self._kubectl("config", "current-context").strip()
        return f"context {context}\n{self._kubectl('get', 'nodes', '--output=wide').rstrip()}"

    def load_image(self, reference: str, archive: Path) -> None:
        """See Provider.

        Raises:
            ToolsError: always; nodes of a foreign cluster take images from a registry alone.
        """
        raise ToolsError(
            f"{reference} cannot be put on the nodes of the current context: push {archive} to a registry they reach "
            "(`skopeo copy docker-archive:… docker://…`) and install with that name"
        )

    def kubeconfig(self) -> Path:
        """See Provider."""
        path = Path(os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or Path.home() / ".kube" / "config")
        if not path.exists():
            raise ToolsError(f"there is no kubeconfig at {path}: set KUBECONFIG, or choose another provider")
        return path

    def logs(self, part: str, lines: int) -> str:
        """See Provider."""
        chosen = (f"--selector=component={part}",) if part else ("--selector=tier=control-plane",)
        return self._kubectl("logs", "--namespace=kube-system", *chosen, "--prefix", f"--tail={lines}")

    def _kubectl(self, *arguments: str) -> str:
        return run(binary("kubectl"), *arguments, "--request-timeout=20s")
