"""What setting attributes of a file counts as."""

from __future__ import annotations

from typing import Final

import asyncssh

from chaperone_sidecar.command import Effect

SPECIAL_BITS: Final = 0o7000  # set-user-id, set-group-id, sticky: who runs it becomes another one

type Effects = tuple[tuple[Effect, str], ...]


def special(path: str, attrs: asyncssh.SFTPAttrs) -> Effects:
    """What owners and special bits count as beside what is done."""
    is_special = bool((attrs.permissions or 0) & SPECIAL_BITS) or attrs.uid is not None or attrs.gid is not None
    return ((Effect.PRIVILEGE, path),) if is_special else ()


def setting(path: str, attrs: asyncssh.SFTPAttrs) -> Effects:
    """What setting attributes of what is there counts as."""
    return ((Effect.MODIFY, path), *special(path, attrs))
