"""`chaperone-gateway`: what the injected containers run.

`fence` writes the pod's rules and ends; `run` is the gateway; `ready` says whether it has proved the fence and serves.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

READY_FILE: Final = Path("/run/chaperone/ready")


def main() -> None:
    """Entry point. Imports come late: kubelet asks `ready` once a second while a pod starts."""
    parser = argparse.ArgumentParser(prog="chaperone-gateway", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fence", help="write the nftables rules of this pod (needs NET_ADMIN)")
    commands.add_parser("run", help="serve the pod until SIGTERM (needs NET_RAW)")
    commands.add_parser("ready", help="exit 0 when the gateway serves")
    command = parser.parse_args().command
    if command == "ready":
        raise SystemExit(0 if READY_FILE.exists() else 1)
    from chaperone_sidecar.errors import ChaperoneError  # noqa: PLC0415

    try:
        if command == "fence":
            from chaperone_sidecar import fence  # noqa: PLC0415

            fence.main()
        else:
            from chaperone_sidecar import pod  # noqa: PLC0415

            pod.run(READY_FILE)
    except ChaperoneError as error:
        sys.stderr.write(f"chaperone-gateway {command}: {error}\n")
        raise SystemExit(1) from error
