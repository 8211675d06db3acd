"""Built images in the cache: one docker-archive a target and key, and which of them is newest.

`<cache>/images/<target>/<key>.tar`, beside it `<key>.cdx.json` (an SBOM) for images that carry Python packages, and
`dev`, a link to the archive that was built last.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from chaperone_tools.cache import cache
from chaperone_tools.errors import ToolsError

REGISTRY = "chaperone.local"  # no such host: a node that lacks the image fails at once instead of asking somebody
KEPT = 3  # archives a target: the one in use, the one before, and one that a cluster may still name


@dataclass(frozen=True)
class Image:
    """One built image."""

    target: str
    key: str

    @property
    def reference(self) -> str:
        """The name that manifests use; the key in it makes a changed image roll out."""
        return f"{REGISTRY}/{self.target}:{self.key}"

    @property
    def archive(self) -> Path:
        """The docker-archive that holds it."""
        return folder(self.target) / f"{self.key}.tar"

    @property
    def sbom(self) -> Path:
        """CycloneDX list of the Python packages in it; may not exist."""
        return folder(self.target) / f"{self.key}.cdx.json"


def folder(target: str) -> Path:
    """Where a target's archives lie."""
    return cache() / "images" / target


def newest(target: str) -> Image:
    """The image of that target that was built last.

    Raises:
        ToolsError: none was.
    """
    link = folder(target) / "dev"
    if not link.exists():
        raise ToolsError(f"no image {target!r} was built: `chaperone-images build --target {target}`")
    return Image(target, link.resolve().stem)


def publish(image: Image) -> None:
    """Make this the newest of its target and drop archives beyond the last few."""
    home = folder(image.target)
    fresh = home / "dev.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(image.archive.name)
    fresh.rename(home / "dev")
    image.archive.touch()  # age is by last use, not by first build
    archives = sorted(home.glob("*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in archives[KEPT:]:
        old.unlink(missing_ok=True)  # another build may drop it too
        old.with_suffix(".cdx.json").unlink(missing_ok=True)
