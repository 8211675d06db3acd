"""The maskers of a gateway's targets, made when they are needed and shared by the sessions there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from chaperone_sidecar.config import Target

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker


class Maskers:
    """By target.

    Args:
        has_columns: whether answers of the protocol have columns that may be classified.
    """

    def __init__(self, *, has_columns: bool) -> None:
        self._has_columns = has_columns
        self._made: dict[str, Masker] = {}

    def of(self, target: Target, key: bytes) -> Masker | None:
        """The masker of a target, None where policy masks nothing; masks that hash need the namespace's key.

        Raises:
            ConfigError: masks that cannot be obeyed; nothing may be shown then.
        """
        rules, classified = target.masks.rules, target.masks.classified if self._has_columns else ()
        if not rules and not classified:
            return None
        found = self._made.get(target.name)
        if found is None:
            # RE2 takes 5 MiB: a gateway without masks does not load it.
            from chaperone_sidecar.masking.mask import Masker  # noqa: PLC0415

            found = self._made[target.name] = Masker(rules, classified, key)
        return found

    def clear(self) -> None:
        """Another configuration is in force."""
        self._made.clear()
