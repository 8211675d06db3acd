"""HTML as nested elements. Every text is escaped, because there is no way to put one in that is not."""

from __future__ import annotations

from html import escape
from typing import Final

from chaperone_cli.say import printable

_VOID: Final = frozenset({"meta", "wbr"})


class Html(str):
    """Markup that was made here."""

    __slots__ = ()


type Child = Html | str | int | list[Html]


def tag(name: str, /, *children: Child, **attributes: str) -> Html:
    """An element; a trailing underscore of an attribute's name is left out, inner ones become hyphens."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(value))}"' for key, value in attributes.items()
    )
    inner = "".join(_inner(child) for child in children)
    return Html(f"<{name}{shown}>" if name in _VOID else f"<{name}{shown}>{inner}</{name}>")


def style(text: str) -> Html:
    """A style sheet of ours."""
    return Html(f"<style>{text}</style>")


def _inner(child: Child) -> str:
    if isinstance(child, list):
        return "".join(child)
    return child if isinstance(child, Html) else escape(printable(str(child)))
