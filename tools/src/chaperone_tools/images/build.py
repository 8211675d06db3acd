"""From a target's name to an image in the cache."""

from __future__ import annotations

from collections.abc import Iterable

from chaperone_tools.cache import cache, checkout
from chaperone_tools.images.archive import Image, publish
from chaperone_tools.images.base import python_image
from chaperone_tools.images.builder import Builder, builder
from chaperone_tools.images.context import Context, context_of, sbom
from chaperone_tools.images.key import key_of
from chaperone_tools.images.pause import ensure_pause
from chaperone_tools.images.target import Target, target_of
from chaperone_tools.progress import phase


def build_all(names: Iterable[str]) -> dict[str, Image]:
    """Build those targets whose inputs changed since they were built last.

    Raises:
        ToolsError: a name is no target, or a build failed.
    """
    targets = [target_of(name) for name in names]
    build: Builder | None = None
    images: dict[str, Image] = {}
    for target in targets:
        if "pause" in target.binaries:
            ensure_pause()
        build = build or builder()
        base = python_image(build) if target.needs_base else ""
        context = context_of(target)
        image = Image(target.name, key_of([("base", base.encode()), *context.inputs()]))
        if not image.archive.exists():
            with phase(f"image {target.name}"):
                _build(build, target, context, image, base)
        publish(image)
        images[target.name] = image
    return images


def _build(build: Builder, target: Target, context: Context, image: Image, base: str) -> None:
    folder = context.write()
    arguments = [f"PYTHON_IMAGE={base}"] if base else []
    build.build(checkout() / "images" / "Dockerfile", target.name, folder, image.reference, arguments)
    if target.has_python:
        image.sbom.write_text(sbom(target))
    # Under another name until it is whole, so that an interrupted build leaves no archive that looks finished.
    part = cache() / "images" / target.name / f"{image.key}.part"
    part.unlink(missing_ok=True)
    build.save(image.reference, part)
    part.rename(image.archive)
