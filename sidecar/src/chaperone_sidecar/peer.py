"""Where the ends of a connection are, as records name them."""

from __future__ import annotations

from typing import Any


def named(name: Any) -> str:  # noqa: ANN401 - what getpeername gives depends on the family
    """`address:port` of an internet socket; of a Unix socket the name that it was bound to; "" where there is none.

    The gateway makes Unix sockets itself, for connections that come to it within another one (`tunnel` of Kubernetes);
    their names are in Linux's abstract namespace (unix(7)) and say which.
    """
    if isinstance(name, bytes):
        return name.lstrip(b"\0").decode("utf-8", "replace")
    if isinstance(name, str) or not name:
        return name or ""
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def port(name: Any) -> int | None:  # noqa: ANN401 - as `named`
    """The port of an internet socket; None for any other."""
    return name[1] if isinstance(name, tuple) else None
