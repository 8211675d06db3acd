"""Build contexts: what an image's stage copies, prepared here by uv instead of by pip inside the build.

A context holds `dependencies/` (third-party packages at the versions and hashes of uv.lock), `packages/` (our own
wheels, unpacked), `bin/` (launchers or binaries), `clients/` (programs with their libraries) and the target's files.
"""

from __future__ import annotations

import configparser
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chaperone_tools import compile as compile_
from chaperone_tools import mysql_servers
from chaperone_tools.cache import binary, cache, checkout
from chaperone_tools.images.dockerfile import stages
from chaperone_tools.images.key import digest_of, tree
from chaperone_tools.images.target import Target
from chaperone_tools.run import run

PYTHON = "3.13"  # of the images; wheels are chosen for it
INSTALL_LIMIT_S = 600.0
COMPILED = "sidecar"  # the member whose data path is compiled
HOME = "/opt/chaperone"  # the virtual environment in the images; images/Dockerfile makes it
# Sources of compiled extensions and stubs: nothing imports them.
_DEAD_WEIGHT = {".c", ".cpp", ".h", ".hpp", ".pxd", ".pyi", ".pyx"}


@dataclass(frozen=True)
class Context:
    """A target's inputs, read once: the key and the folder are made from the same ones."""

    target: Target
    requirements: str

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """Everything in the context, named, for the key."""
        root = checkout()
        yield "stages", stages((root / "images" / "Dockerfile").read_text(), self.target.name).encode()
        yield "requirements", self.requirements.encode()
        for member in self.target.members:
            yield f"{member}/pyproject.toml", (root / member / "pyproject.toml").read_bytes()
            yield from ((f"{member}/src/{name}", digest) for name, digest in tree(root / member / "src"))
        if COMPILED in self.target.members:
            yield "compiled", str(compile_.built()).encode()
        for name in self.target.binaries:
            yield f"bin/{name}", digest_of(binary(name))
        for name in self.target.files:
            yield name, (root / "images" / name).read_bytes()
        for path in self._clients():
            yield f"clients/{path.name}", digest_of(path)

    def write(self) -> Path:
        """Write the folder afresh and return it."""
        root = checkout()
        folder = cache() / "images" / self.target.name / "context"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "bin").mkdir(parents=True)
        for name in self.target.binaries:
            shutil.copy(binary(name), folder / "bin" / name)
        for name in self.target.files:
            shutil.copy(root / "images" / name, folder)
        for path in self._clients():
            (folder / "clients").mkdir(exist_ok=True)
            shutil.copy(path, folder / "clients")
        if self.target.has_python:
            self._install(folder)
        return folder

    def _clients(self) -> list[Path]:
        return [
            path for name in self.target.clients for path in mysql_servers.files(mysql_servers.server("mysql"), name)
        ]

    def _install(self, folder: Path) -> None:
        uv, root = binary("uv"), checkout()
        listed = folder / "requirements.txt"
        listed.write_text(self.requirements)
        into = ("--python-version", PYTHON, "--only-binary", ":all:", "--quiet")
        dependencies, packages = folder / "dependencies", folder / "packages"
        dependencies.mkdir()
        packages.mkdir()
        run(
            uv, "pip", "install", *into, "--require-hashes", "--no-deps",
            "--target", dependencies, "--requirement", listed,
            limit_s=INSTALL_LIMIT_S, cwd=root,
        )  # fmt: skip
        wheels = folder / "wheels"
        for member in self.target.members:
            run(uv, "build", "--wheel", "--quiet", "--out-dir", wheels, root / member, limit_s=INSTALL_LIMIT_S)
        built = sorted(wheels.glob("*.whl"))
        if built:
            run(uv, "pip", "install", *into, "--no-deps", "--target", packages, *built, limit_s=INSTALL_LIMIT_S)
        shutil.rmtree(wheels, ignore_errors=True)
        if COMPILED in self.target.members and (home := compile_.built()) is not None:
            for extension in compile_.extensions(home):
                shutil.copy(extension, packages / extension.relative_to(home))
        for installed in (dependencies, packages):
            _write_launchers(installed, folder / "bin", ours=installed is packages)
            _slim(installed)


def context_of(target: Target) -> Context:
    """Read what a target's image is made of."""
    return Context(target, _export(target, "requirements-txt") if target.has_python else "")


def sbom(target: Target) -> str:
    """The Python packages of an image, as CycloneDX 1.5."""
    return _export(target, "cyclonedx1.5")


def _export(target: Target, form: str) -> str:
    package = target.members[0] if target.members else "tools"
    choice = ("--package", f"chaperone-{package}", *(f"--extra={extra}" for extra in target.extras))
    group = ("--only-group", target.group) if target.group else ("--no-dev",)
    frozen = ("--frozen", "--no-header", "--no-annotate") if form == "requirements-txt" else ("--frozen",)
    emit = ("--no-emit-workspace",) if form == "requirements-txt" else ()
    return run(binary("uv"), "export", "--quiet", "--format", form, *frozen, *emit, *choice, *group, cwd=checkout())


def _write_launchers(installed: Path, folder: Path, *, ours: bool) -> None:
    """Our commands, started by the image's interpreter in isolated mode: no variable changes what is imported."""
    shutil.rmtree(installed / "bin", ignore_errors=True)
    if not ours:
        return
    for listed in installed.glob("*.dist-info/entry_points.txt"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(listed)
        for command, entry in parser["console_scripts"].items() if "console_scripts" in parser else ():
            module, _, function = entry.partition(":")
            launcher = folder / command
            launcher.write_text(
                f"#!{HOME}/bin/python3 -I\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
            )
            launcher.chmod(0o755)


def _slim(installed: Path) -> None:
    for where, folders, files in os.walk(installed):
        for name in files:
            if Path(name).suffix in _DEAD_WEIGHT:
                Path(where, name).unlink()
        for name in [name for name in folders if name == "__pycache__"]:
            shutil.rmtree(Path(where, name))
            folders.remove(name)
