"""MySQL's JDBC driver, Connector/J, for the tests that go through the gateway as Java programs do.

    python -m chaperone_tools.connector_j     prints where the jar lies

Maven fetches it; its SHA-256 is pinned, and it goes to `CHAPERONE_CACHE`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Final

from chaperone_tools.cache import binary, cache, filled
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

VERSION: Final = "26.10.0"
SHA256: Final = "cef70caf532833c9ab8f41f74773ce22c08bf503fad215c9c2ee1e9db87e759e"
FETCH_LIMIT_S: Final = 300.0  # 2.5 MB, and what Maven itself needs the first time
_JAR: Final = f"mysql-connector-j-{VERSION}.jar"


def jar() -> Path:
    """The driver; fetched if the cache lacks it.

    Raises:
        ToolsError: there is no Maven, or the jar cannot be had, or it is another one.
    """
    return filled(cache() / "drivers" / f"connector-j-{VERSION}-{SHA256[:16]}", _fetch) / _JAR


def _fetch(scratch: Path) -> Path:
    made = scratch / "made"
    run(
        binary("mvn"), "--quiet", "--batch-mode", "dependency:copy",
        f"-Dartifact=com.mysql:mysql-connector-j:{VERSION}", f"-DoutputDirectory={made}",
        limit_s=FETCH_LIMIT_S, cwd=scratch,
    )  # fmt: skip
    if hashlib.sha256((made / _JAR).read_bytes()).hexdigest() != SHA256:
        raise ToolsError(f"{_JAR} is not the one that is pinned")
    return made


def main() -> None:
    """Print where the jar lies, fetching it if it is missing."""
    try:
        sys.stdout.write(f"{jar()}\n")
    except ToolsError as error:
        sys.exit(f"connector_j: {error}")


if __name__ == "__main__":
    main()
