"""What every kind of cluster can be asked, and how the kind is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Provider(Protocol):
    """A cluster, wherever it runs. Every method raises ToolsError with the next step when it can't."""

    def up(self) -> bool:
        """Bring it up; False when it was. Returns when its node is Ready and names resolve."""
        ...

    def down(self) -> None:
        """Take it down and leave nothing. Idempotent."""
        ...

    def status(self) -> str:
        """What runs and what does not, for a person."""
        ...

    def load_image(self, reference: str, archive: Path) -> None:
        """Make an image of the cache (a docker-archive that holds `reference`) known to the node."""
        ...

    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        ...

    def logs(self, part: str, lines: int) -> str:
        """The last lines of a part's log; of all parts when `part` is empty."""
        ...
