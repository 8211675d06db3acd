"""What an agent may see of an answer: values of Secrets never, and of the rest what detectors leave.

JSON is read, masked value by value, and written anew; so a value is found however it was escaped. Keys stay, and so do
numbers that no detector finds; others become null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from chaperone_sidecar.errors import Unmaskable
from chaperone_sidecar.protocols.kubernetes.classify import hidden

if TYPE_CHECKING:
    from chaperone_sidecar.masking.mask import Masker

MAX_ANSWER_BYTES: Final = 32 << 20  # of an answer that is read as a whole; a list of 500 pods has some 5 MiB
MAX_LINE_BYTES: Final = 4 << 20  # of one event of a watch, or one line of a log


class Mask:
    """The masks of one request's answer.

    Args:
        masker: of the target; None where nothing is masked.
        is_secret: whether the answer holds what nobody is shown.
    """

    def __init__(self, masker: Masker | None, *, is_secret: bool = False) -> None:
        self._masker = None if masker is None or masker.is_idle else masker
        self._is_secret = is_secret

    @property
    def is_idle(self) -> bool:
        """Whether answers pass as they are."""
        return self._masker is None and not self._is_secret

    def json(self, raw: bytes) -> tuple[bytes, int]:
        """An object or a list as the client may see it, and how many rows it is.

        Raises:
            Unmaskable: it is no JSON.
        """
        try:
            content = msgspec.json.decode(raw)
            rows = _rows(content)
            if self.is_idle:
                return raw, rows
            if self._is_secret:
                content = hidden(content)
            if self._masker is not None:
                content = _masked(content, self._masker)
            return msgspec.json.encode(content), rows
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Unmaskable("The API server's answer is no JSON, so its values cannot be masked.") from error

    def text(self, raw: bytes) -> bytes:
        """Lines as the client may see them.

        Raises:
            Unmaskable: nobody can say what of it is a Secret's value.
        """
        if self._is_secret:
            raise Unmaskable("The API server's answer about a Secret is no JSON, so its values cannot be masked.")
        return raw if self._masker is None else self._masker.mask_text(raw)


class Lines:
    """Cuts a stream into whole lines, each with its end."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now.

        Raises:
            Unmaskable: one is too long to be kept.
        """
        self._rest += data
        if len(self._rest) > MAX_LINE_BYTES:
            raise Unmaskable("A line of the API server's answer is too long to be masked.")
        *lines, rest = self._rest.split(b"\n")
        self._rest = bytearray(rest)
        return [bytes(line) + b"\n" for line in lines]

    def end(self) -> bytes:
        """What is left without an end."""
        return bytes(self._rest)


def _rows(content: Any) -> int:  # noqa: ANN401 - any JSON
    if not isinstance(content, dict):
        return 0
    for key in ("items", "rows"):
        if isinstance(found := content.get(key), list):
            return len(found)
    return 0 if content.get("kind") == "Status" else 1


def _masked(content: Any, masker: Masker) -> Any:  # noqa: ANN401
    places: list[tuple[Any, Any]] = []  # container and key of every value
    cells: list[bytes] = []
    root = [content]
    stack: list[Any] = [root]
    while stack:
        found = stack.pop()
        for key, value in found.items() if isinstance(found, dict) else enumerate(found):
            if isinstance(value, dict | list):
                stack.append(value)
            elif isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool)):
                places.append((found, key))
                cells.append(str(value).encode("utf-8", "surrogatepass"))
    for (container, key), cell, masked in zip(places, cells, masker.mask_row(cells), strict=True):
        if masked != cell:
            is_text = isinstance(container[key], str)
            container[key] = masked.decode("utf-8", "replace") if is_text and masked is not None else None
    return root[0]
