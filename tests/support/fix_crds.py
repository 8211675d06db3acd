"""`crds`: the API server with the custom resources of crds/ established."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fix_apiserver import ApiServer

CRDS = Path(__file__).parents[2] / "crds"
KUBECTL_TIMEOUT_S = 60.0
_BIN = Path(os.environ.get("CHAPERONE_BIN", Path.home() / ".cache" / "chaperone" / "bin"))


def kubectl(server: ApiServer, *arguments: str, stdin: str = "", is_checked: bool = True) -> str:
    """What kubectl prints, errors included."""
    binary = str(_BIN / "kubectl") if (_BIN / "kubectl").exists() else shutil.which("kubectl")
    if binary is None:
        pytest.fail("no kubectl binary: build it from tools/kubernetes or put one on the PATH")
    done = subprocess.run(
        [binary, f"--kubeconfig={server.kubeconfig}", f"--cache-dir={server.folder / 'discovery'}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=KUBECTL_TIMEOUT_S,
        check=False,
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0 or not is_checked, told
    return told


@pytest.fixture(scope="session")
def crds(api_server: ApiServer) -> ApiServer:
    """The API server, which knows our kinds and validates them."""
    establish(api_server)
    return api_server


def establish(api_server: ApiServer) -> None:
    """Install our kinds, and wait until they are served."""
    kubectl(api_server, "apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
    kubectl(api_server, "wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRDS))
