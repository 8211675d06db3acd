"""`chaperone-gateway`: what the injected containers run.

`fence` writes the pod's rules and ends; `ready` says whether the gateway has proved them and serves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from chaperone_sidecar import fence
from chaperone_sidecar.errors import ChaperoneError

READY_FILE: Final = Path("/run/chaperone/ready")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="chaperone-gateway", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fence", help="write the nftables rules of this pod (needs NET_ADMIN)")
    commands.add_parser("ready", help="exit 0 when the gateway serves")
    command = parser.parse_args().command
    if command == "ready":
        raise SystemExit(0 if READY_FILE.exists() else 1)
    try:
        fence.main()
    except ChaperoneError as error:
        sys.stderr.write(f"chaperone-gateway fence: {error}\n")
        raise SystemExit(1) from error
