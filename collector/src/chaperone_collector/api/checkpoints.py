"""Checkpoints, and the log itself as C2SP tlog-tiles lays it out.

Any tool for such logs reads this one under `checkpoints/log/`: `checkpoint`, `tile/<level>/<index>` and
`tile/entries/<index>`, up to the newest checkpoint. `policy` says with which keys the log signs; it comes from the
cluster that is audited, so who relies on it compares it with a copy from elsewhere.

Hashes tell nothing of what they are hashes of. Entries are evidence of all namespaces: they have a name of their own
in roles (`checkpoints/entries`), and reading them is recorded.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any, Final

from chaperone_collector.api.names import duration, micros, seconds, uid
from chaperone_collector.api.question import Found, Page, Question, Range, paged
from chaperone_collector.api.status import GROUP, VERSION, ApiError
from chaperone_collector.checkpoint import newest, read_origin
from chaperone_collector.database import Connection, stream
from chaperone_collector.tree import read_bundle, read_tile
from chaperone_evidence import note
from chaperone_evidence.errors import Malformed
from chaperone_evidence.tiles import ENTRIES, Tile, parse_path, width_at

RESOURCE: Final = "checkpoints"
LOG: Final = "log"  # the name under which the whole log is read
OBJECT_PAGE: Final = 200  # checkpoints in one answer; each carries 3 KiB of signatures

COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "Name", "type": "string", "format": "name", "priority": 0, "description": "Entries that are signed."},
    {"name": "Root", "type": "string", "format": "", "priority": 0, "description": "Root of the tree over them."},
    {"name": "Signed", "type": "string", "format": "", "priority": 0, "description": "By the collector's clock."},
    {"name": "Signatures", "type": "integer", "format": "", "priority": 0, "description": "Of the log and others."},
    {"name": "Age", "type": "string", "format": "", "priority": 0, "description": "Since it was signed."},
]


class Checkpoints:
    """Reads checkpoints.

    Args:
        now_us: the collector's clock.
    """

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    def page(self, db: Connection, question: Question, part: Range) -> Page:
        """The checkpoints of at most `part.size` entries, the oldest first."""
        shown = (self._show(read_origin(db), *row) for row in _rows(db, question, part))
        return paged(shown, min(part.limit, OBJECT_PAGE))

    def _show(self, origin: str, size: int, wall_us: int, root: bytes, signed: bytes) -> Found:
        shown_root = base64.b64encode(root).decode()
        signatures = [one.name for one in note.parse(bytes(signed)).signatures]
        value = {
            "kind": "Checkpoint", "apiVersion": f"{GROUP}/{VERSION}",
            "metadata": {
                "name": str(size), "uid": uid(origin, size), "resourceVersion": str(size),
                "creationTimestamp": seconds(wall_us),
            },
            "spec": {"origin": origin, "size": size, "root": shown_root, "note": bytes(signed).decode()},
            "status": {"signedAt": micros(wall_us), "signers": signatures},
        }  # fmt: skip
        cells = [str(size), shown_root, seconds(wall_us), len(signatures), duration(self._now_us() - wall_us)]
        return Found(size, size - 1, value, cells)


def newest_note(db: Connection) -> bytes:
    """The newest signed checkpoint.

    Raises:
        ApiError: 404, there is none yet.
    """
    row = db.execute("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1").fetchone()
    if row is None:
        raise ApiError(404, "NotFound", "the log has signed no checkpoint yet")
    return bytes(row[0])


def place(path: str) -> Tile:
    """The tile that a path below the log's prefix names.

    Raises:
        ApiError: 404, there can be no such tile.
    """
    try:
        return parse_path(path)
    except Malformed as error:
        raise ApiError(404, "NotFound", f"{path[:100]} is no tile of a log") from error


def content(db: Connection, tile: Tile) -> bytes:
    """Hashes or entries of a tile that the newest checkpoint covers.

    Raises:
        ApiError: 404, it covers none so wide.
    """
    if width_at(tile.level, tile.index, newest(db)) < tile.width:
        raise ApiError(404, "NotFound", f"{tile.path} is not in the signed log (yet)")
    return read_bundle(db, tile) if tile.level == ENTRIES else read_tile(db, tile)


def _rows(db: Connection, question: Question, part: Range) -> Iterator[tuple[int, int, bytes, bytes]]:
    if not all(requirement.holds({}) for requirement in question.labels):
        return
    where, values = "WHERE size > ? AND size <= ?", [part.after, part.size]
    for term in question.terms("metadata.name"):
        where += " AND size = ?" if term.is_equal else " AND size <> ?"
        values.append(
            int(term.value) if term.value.isascii() and term.value.isdecimal() and len(term.value) < 19 else -1
        )
    yield from stream(db, f"SELECT size, wall_us, root, note FROM checkpoint {where} ORDER BY size", values)  # noqa: S608
