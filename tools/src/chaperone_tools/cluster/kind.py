"""The `kind` provider: a cluster in Docker, dual-stack as the local one."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from chaperone_tools.cache import binary, cache
from chaperone_tools.errors import ToolsError
from chaperone_tools.progress import phase
from chaperone_tools.run import run

UP_LIMIT_S = 900.0  # the first start pulls the node image
LOAD_LIMIT_S = 300.0
NODE_READY = "180s"


class Kind:
    """One kind cluster; its kubeconfig is kept in the cache, the user's own is left alone."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._home = cache() / "kind" / name

    def up(self) -> bool:
        """See Provider."""
        if self._name in self._clusters():
            return False
        self._home.mkdir(parents=True, exist_ok=True)
        (self._home / "cluster.yaml").write_bytes(cluster())
        with phase("kind: node, control plane, cluster DNS"):
            self._kind(
                "create", "cluster", "--config", str(self._home / "cluster.yaml"),
                "--kubeconfig", str(self._kubeconfig), "--wait", NODE_READY, limit_s=UP_LIMIT_S,
            )  # fmt: skip
        return True

    def down(self) -> None:
        """See Provider."""
        with phase(f"taking {self._name} down"):
            self._kind("delete", "cluster", "--kubeconfig", str(self._kubeconfig))
        self._kubeconfig.unlink(missing_ok=True)

    def status(self) -> str:
        """See Provider."""
        if self._name not in self._clusters():
            return f"no kind cluster {self._name!r}"
        return run(binary("kubectl"), f"--kubeconfig={self._kubeconfig}", "get", "nodes", "--output=wide").rstrip()

    def load_image(self, reference: str, archive: Path) -> None:
        """See Provider."""
        loaded = run("docker", "exec", f"{self._name}-control-plane", "crictl", "images", "--output=json")
        if reference in {tag for image in json.loads(loaded)["images"] for tag in image["repoTags"]}:
            return
        self._kind("load", "image-archive", str(archive), limit_s=LOAD_LIMIT_S)

    def kubeconfig(self) -> Path:
        """See Provider."""
        if not self._kubeconfig.exists():
            raise ToolsError(f"there is no kind cluster {self._name!r}: `chaperone-cluster up` makes one")
        return self._kubeconfig

    def logs(self, part: str, lines: int) -> str:
        """See Provider. The node runs its parts as pods and units; this is its journal."""
        unit = ("--unit", part) if part else ()
        return run("docker", "exec", f"{self._name}-control-plane", "journalctl", "--lines", str(lines), *unit)

    @property
    def _kubeconfig(self) -> Path:
        return self._home / "kubeconfig"

    def _clusters(self) -> list[str]:
        return run(binary("kind"), "get", "clusters").split()

    def _kind(self, *arguments: str, limit_s: float = 120.0) -> str:
        return run(binary("kind"), *arguments, "--name", self._name, limit_s=limit_s)


def cluster() -> bytes:
    """The cluster's configuration. Pure."""
    return yaml.safe_dump(
        {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "networking": {"ipFamily": "dual", "kubeProxyMode": "nftables", "apiServerAddress": "127.0.0.1"},
            "nodes": [{"role": "control-plane"}],
        },
        sort_keys=False,
    ).encode()
