"""`chaperone-images`: build the images of this checkout, list what is built."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from chaperone_tools.errors import ToolsError
from chaperone_tools.images.archive import newest
from chaperone_tools.images.build import build_all
from chaperone_tools.images.target import TARGETS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="chaperone-images", description="Build the images of this checkout.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="build what changed; prints a reference a line")
    build.add_argument("--target", action="append", choices=sorted(TARGETS), help="may repeat; default: all")
    commands.add_parser("list", help="print target, reference and archive of what is built")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `chaperone-images`; 0, or 1 with the reason on stderr."""
    given = parser().parse_args(argv)
    try:
        if given.command == "build":
            for image in build_all(given.target or TARGETS).values():
                print(image.reference)
        else:
            for target in TARGETS:
                _list(target)
    except ToolsError as error:
        print(f"chaperone-images: {error}", file=sys.stderr)
        return 1
    return 0


def _list(target: str) -> None:
    try:
        image = newest(target)
    except ToolsError:
        print(f"{target}\t-\tnot built")
    else:
        print(f"{target}\t{image.reference}\t{image.archive}")
