"""The process that holds a pod's namespaces: a few lines of Go from this checkout, compiled once into the cache."""

from __future__ import annotations

import os

from chaperone_tools.cache import binary, cache, checkout
from chaperone_tools.images.key import key_of, tree
from chaperone_tools.run import run

BUILD_LIMIT_S = 300.0


def ensure_pause() -> None:
    """Compile it if its source changed and link it as `pause` among the cached tools."""
    source = checkout() / "tools" / "pause"
    home = cache() / "tools" / f"pause-{key_of(tree(source))}"
    if not (home / "pause").exists():
        home.mkdir(parents=True, exist_ok=True)
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
        flags = ("-trimpath", "-ldflags", "-s -w", "-o", home / "pause.part")
        run(binary("go"), "build", *flags, ".", cwd=source, env=env, limit_s=BUILD_LIMIT_S)
        (home / "pause.part").rename(home / "pause")
    link = cache() / "bin" / "pause"
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(home / "pause")
    fresh.rename(link)
