"""A base image without a registry: Debian with Python, made by debootstrap from Debian's signed archive."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

from chaperone_tools.cache import binary, cache, checkout
from chaperone_tools.images.archive import REGISTRY
from chaperone_tools.images.builder import Builder
from chaperone_tools.images.key import key_of
from chaperone_tools.progress import phase
from chaperone_tools.run import run

SUITE = "trixie"
MIRROR = "http://deb.debian.org/debian"  # plain HTTP: packages are checked against the archive's signature
PACKAGES = ("python3", "ca-certificates")
BOOTSTRAP_LIMIT_S = 1800.0
PYTHON_IMAGE = "CHAPERONE_PYTHON_IMAGE"  # environment variable: a python:3.13-slim-trixie to use instead
_SOURCES = f"""deb {MIRROR} {SUITE} main
deb {MIRROR} {SUITE}-updates main
deb http://deb.debian.org/debian-security {SUITE}-security main
"""
# As the official slim images: package contents that no process of ours reads.
_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian",
             "var/lib/apt/lists", "var/cache", "var/log")  # fmt: skip
_EXCLUDES = "".join(f"path-exclude /{path}/*\n" for path in _UNWANTED if path.startswith("usr/share"))


def python_image(build: Builder) -> str:
    """The image to stand on: the one the environment names, else Debian's Python, built once and cached."""
    if chosen := os.environ.get(PYTHON_IMAGE):
        return chosen
    dockerfile = checkout() / "images" / "base.Dockerfile"
    inputs = [("Dockerfile", dockerfile.read_bytes()), ("sources", _SOURCES.encode()), ("excludes", _EXCLUDES.encode())]
    inputs += [("packages", " ".join(PACKAGES).encode()), ("unwanted", " ".join(_UNWANTED).encode())]
    key = key_of(inputs)
    reference = f"{REGISTRY}/python:{key}"
    if not build.has(reference):
        with phase(f"Debian {SUITE} with Python"):
            context = cache() / "images" / "python" / key
            _bootstrap(context)
            build.build(dockerfile, "", context, reference, ())
            shutil.rmtree(context)
    return reference


def _bootstrap(context: Path) -> None:
    root = context / "root"
    shutil.rmtree(context, ignore_errors=True)
    context.mkdir(parents=True)
    debootstrap = (binary("debootstrap"), "--variant=minbase", f"--include={','.join(PACKAGES)}", "--merged-usr")
    # Debootstrap looks for its helpers on the PATH.
    env = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    run(*debootstrap, SUITE, root, MIRROR, limit_s=BOOTSTRAP_LIMIT_S, env=env)
    for unwanted in _UNWANTED:
        shutil.rmtree(root / unwanted)
        (root / unwanted).mkdir()
    (root / "etc/apt/sources.list").write_text(_SOURCES)
    (root / "etc/dpkg/dpkg.cfg.d/slim").write_text(_EXCLUDES)
    (root / "etc/hostname").unlink(missing_ok=True)
    with tarfile.open(context / "base.tar", "w") as tar:
        tar.add(root, arcname=".")
    shutil.rmtree(root)
