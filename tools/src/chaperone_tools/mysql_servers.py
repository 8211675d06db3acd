"""A MariaDB and a MySQL server for tests, from Debian's packages, beside the machine and never into it.

    python -m chaperone_tools.mysql_servers [NAME …]     prints where they lie: mariadb mysql

MariaDB is that of the machine's own Debian; MySQL is in Debian's unstable suite alone, with libraries newer than the
machine's, and so it is started with the loader that it came with. Both are fetched by apt, which checks the archive's
signatures, with settings of their own: neither the machine's lists nor its packages change. What is fetched is kept in
`CHAPERONE_CACHE`.

The packages of MySQL itself are pinned by their SHA-256, for the unstable suite has another version any day: then the
pins here are to be brought up to date, after a look at what has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaperone_tools.cache import cache, filled
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

FETCH_LIMIT_S: Final = 300.0  # the larger one has 66 MB of packages
FORM: Final = "2"  # of what is kept; another one fetches anew
_LIBRARIES: Final = "usr/lib/x86_64-linux-gnu"
_MARIADB: Final = ("mariadb-server-core", "mariadb-server", "mariadb-client", "mariadb-client-core")
_UNUSED: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/perl*",
    "usr/share/icu",
    "usr/share/locale",
    "usr/include",
    f"{_LIBRARIES}/perl*",
    f"{_LIBRARIES}/libperl*",
    f"{_LIBRARIES}/gconv",
    "usr/lib/galera*",
    "usr/share/gconv",
    "usr/bin/*myisam*",
    "usr/bin/aria*",
    "usr/bin/mysqlslap",
    "usr/bin/mysqlpump",
    "usr/bin/*mysqlbackup*",
    "usr/lib/mysql/plugin/group_replication.so",
    "usr/lib/mysql/plugin/component_telemetry.so",
    "usr/lib/mysql/plugin/*clone*",
    "usr/bin/perl*",
    "usr/bin/innochecksum",
    "usr/bin/mariadb-backup",
)
"""What a server of tests does not need: a copy of the rest is made for each run."""
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True)
class Server:
    """One kind of server: which packages make it, and from which suite."""

    packages: tuple[str, ...]
    daemon: str
    suite: str = ""  # "" for what the machine's own lists have
    sha256: tuple[str, ...] = ()  # of packages that are pinned, in their order


SERVERS: Final = {
    "mariadb": Server(_MARIADB, "mariadbd"),
    "mysql": Server(
        ("mysql-server-core", "mysql-client-core"),
        "mysqld",
        "sid",
        (
            "628d2d7d2dc827507bcae80677a9950766b002bec2c658cb96343d9f324f8660",  # 9.7.4-2
            "73f0067920c22ec85fc9354e8eea7786507609a59ba90e8d404535e84db4fba7",
        ),
    ),
}


def server(name: str) -> Path:
    """The root folder of an unpacked server, with usr/sbin and usr/share; fetched if the cache lacks it.

    Raises:
        ToolsError: no such server, or its packages cannot be had.
    """
    if name not in SERVERS:
        raise ToolsError(f"there is no server {name}, only {', '.join(SERVERS)}")
    kept = cache() / "mysql" / f"{name}-{FORM}"
    return filled(kept, lambda scratch: _unpack(SERVERS[name], scratch))


def command(root: Path, program: str) -> list[str]:
    """How a program of an unpacked server is started: with the loader and the libraries that came with it, if any."""
    libraries = f"{root / _LIBRARIES}:{root / 'usr/lib'}:{root / 'lib/x86_64-linux-gnu'}"
    loader = root / _LIBRARIES / "ld-linux-x86-64.so.2"
    found = next(path for path in (root / "usr/sbin" / program, root / "usr/bin" / program) if path.exists())
    own = loader if loader.exists() else Path("/lib64/ld-linux-x86-64.so.2")
    return [str(own), "--library-path", libraries, str(found)]


def files(root: Path, program: str) -> list[Path]:
    """A program of an unpacked server that came with a loader, that loader, and the libraries that it finds for it."""
    loader, *options, found = command(root, program)
    listed = run(loader, *options, "--list", found).splitlines()
    libraries = [Path(line.split()[2]) for line in listed if "=> /" in line]
    return [Path(found), Path(loader), *libraries]


def _unpack(wanted: Server, scratch: Path) -> Path:
    settings = _settings(wanted.suite, scratch)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolsError("the servers come from Debian's packages, and this machine has neither apt-get nor dpkg-deb")
    try:
        _apt(settings, "update")
        # With nothing taken for installed apt fetches every library, too: the servers need none of the machine's.
        _apt(settings, "install", "--yes", "--download-only", "--no-install-recommends", *wanted.packages)
    except ToolsError as error:
        raise ToolsError(f"{wanted.packages[0]} cannot be fetched: {error}") from error
    _check(wanted, scratch / "cache/archives")
    root = scratch / "root"
    for package in sorted((scratch / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, root, limit_s=FETCH_LIMIT_S)
    if not (root / "usr/sbin" / wanted.daemon).exists():
        raise ToolsError(f"{wanted.packages[0]} has no {wanted.daemon}")
    for pattern in _UNUSED:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    return root


def _check(wanted: Server, archives: Path) -> None:
    """Whether what was fetched is what is pinned."""
    for package, sha256 in zip(wanted.packages, wanted.sha256, strict=bool(wanted.sha256)):
        for path in archives.glob(f"{package}_*.deb"):
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise ToolsError(f"{path.name} is not the one that {Path(__file__).name} pins; see there")


def _settings(suite: str, scratch: Path) -> Path:
    """The apt.conf of one fetch: lists, packages and what counts as installed are in the scratch folder."""
    for folder in ("lists/partial", "cache/archives/partial", "etc"):
        (scratch / folder).mkdir(parents=True)
    (scratch / "status").touch()
    lines = [
        f'Dir::State::lists "{scratch}/lists";',
        f'Dir::Cache "{scratch}/cache";',
        f'Dir::State::status "{scratch}/status";',
        'APT::Sandbox::User "root";',
        'Debug::NoLocking "true";',
    ]
    if suite:
        (scratch / "etc/sources.list").write_text(f"deb [signed-by={_KEYRING}] {_site()} {suite} main\n")
        lines += [f'Dir::Etc::sourcelist "{scratch}/etc/sources.list";', 'Dir::Etc::sourceparts "-";']
    settings = scratch / "apt.conf"
    settings.write_text("\n".join(lines) + "\n")
    return settings


def _site() -> str:
    """Where this machine has Debian from."""
    told = run("apt-get", "indextargets", "--format", "$(SITE)", limit_s=FETCH_LIMIT_S)
    sites = [line for line in told.splitlines() if line.rstrip("/").endswith("/debian")]
    if not sites:
        raise ToolsError("this machine's apt names no archive of Debian")
    return sites[0]


def _apt(settings: Path, *arguments: str) -> None:
    environment = os.environ | {"APT_CONFIG": str(settings), "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "-qq", *arguments, env=environment, limit_s=FETCH_LIMIT_S)


def main() -> None:
    """Print where the servers lie, fetching those that are missing."""
    try:
        for name in sys.argv[1:] or SERVERS:
            sys.stdout.write(f"{server(name)}\n")
    except ToolsError as error:
        sys.exit(f"mysql_servers: {error}")


if __name__ == "__main__":
    main()
