"""The two programs that can build an image here: docker where its daemon answers, else buildah."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from chaperone_tools.cache import binary, cache
from chaperone_tools.run import run, succeeds

BUILD_LIMIT_S = 1800.0
ANSWER_LIMIT_S = 10.0


class Builder(Protocol):
    """Builds one stage of a Dockerfile and saves it."""

    def build(self, dockerfile: Path, stage: str, context: Path, reference: str, arguments: Sequence[str]) -> None:
        """Build a stage and name it; `arguments` are NAME=VALUE."""
        ...

    def has(self, reference: str) -> bool:
        """Whether an image of that name is in its storage."""
        ...

    def save(self, reference: str, archive: Path) -> None:
        """Write the image as a docker-archive."""
        ...


class Docker:
    """Docker with BuildKit."""

    def build(self, dockerfile: Path, stage: str, context: Path, reference: str, arguments: Sequence[str]) -> None:
        """See Builder."""
        given = [word for argument in arguments for word in ("--build-arg", argument)]
        chosen = ("--target", stage) if stage else ()
        run("docker", "build", "--quiet", "--file", dockerfile, *chosen, *given, "--tag", reference, context,
            limit_s=BUILD_LIMIT_S)  # fmt: skip

    def has(self, reference: str) -> bool:
        """See Builder."""
        return succeeds("docker", "image", "inspect", reference)

    def save(self, reference: str, archive: Path) -> None:
        """See Builder."""
        run("docker", "save", "--output", archive, reference, limit_s=BUILD_LIMIT_S)


class Buildah:
    """Buildah without a daemon, with storage of its own in the cache. Needs root, as the local cluster does."""

    def build(self, dockerfile: Path, stage: str, context: Path, reference: str, arguments: Sequence[str]) -> None:
        """See Builder."""
        given = [word for argument in arguments for word in ("--build-arg", argument)]
        chosen = ("--target", stage) if stage else ()
        self._buildah("bud", "--isolation", "chroot", "--layers", "--force-rm", "--format", "docker", *given,
                      "--file", str(dockerfile), *chosen, "--tag", reference, str(context))  # fmt: skip

    def has(self, reference: str) -> bool:
        """See Builder."""
        return bool(self._buildah("images", "--quiet", "--filter", f"reference={reference}").strip())

    def save(self, reference: str, archive: Path) -> None:
        """See Builder."""
        self._buildah("push", "--quiet", reference, f"docker-archive:{archive}:{reference}")

    def _buildah(self, *arguments: str) -> str:
        home = cache() / "buildah"
        storage = ("--root", home / "storage", "--runroot", home / "run", "--storage-driver", "overlay")
        return run(binary("buildah"), *storage, *arguments, limit_s=BUILD_LIMIT_S)


def builder() -> Builder:
    """Docker where it answers, else buildah."""
    return Docker() if docker_answers() else Buildah()


def docker_answers() -> bool:
    """Whether a Docker daemon is there."""
    return shutil.which("docker") is not None and succeeds("docker", "info", limit_s=ANSWER_LIMIT_S)
