"""`chaperone-cluster`: one command for a test cluster, whatever it runs on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from chaperone_tools.cluster.current import Current
from chaperone_tools.cluster.kind import Kind
from chaperone_tools.cluster.local import Local
from chaperone_tools.cluster.plan import STATE
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.errors import ToolsError
from chaperone_tools.images.archive import Image, newest
from chaperone_tools.images.build import build_all
from chaperone_tools.images.builder import docker_answers
from chaperone_tools.images.target import NODE, TARGETS
from chaperone_tools.progress import phase

DEFAULT_NAME = "dev"
PROVIDERS = ("kind", "local", "current")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="chaperone-cluster", description="A Kubernetes cluster to test Chaperone on.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--provider", choices=PROVIDERS, help="default: kind where Docker answers, else local")
    common.add_argument("--name", default=DEFAULT_NAME, help=f"default: {DEFAULT_NAME}")
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("up", parents=[common], help="bring it up; returns when it is usable")
    commands.add_parser("down", parents=[common], help="take it down and leave nothing")
    commands.add_parser("status", parents=[common], help="what runs")
    commands.add_parser("kubeconfig", parents=[common], help="print the path of an administrator's kubeconfig")
    load = commands.add_parser("load-image", parents=[common], help="put built images on the node")
    load.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)}; default: all that are built")
    logs = commands.add_parser("logs", parents=[common], help="the end of the logs")
    logs.add_argument("part", nargs="?", default="", help="default: all")
    logs.add_argument("--lines", type=int, default=40)
    return top


def provider(kind: str | None, name: str, state: Path = STATE) -> Provider:
    """The provider asked for; without a wish a local cluster that is here, kind where Docker answers, else local."""
    if kind is None:
        kind = "local" if (state / name).exists() or not docker_answers() else "kind"
    if kind == "kind":
        return Kind(name)
    if kind == "current":
        return Current()
    return Local(name, lambda: build_all(NODE), state)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `chaperone-cluster`; 0, or 1 with the reason on stderr."""
    given = parser().parse_args(argv)
    try:
        cluster = provider(given.provider, given.name)
        if given.command == "up":
            cluster.up()
            print(cluster.kubeconfig())
        elif given.command == "down":
            cluster.down()
        elif given.command == "status":
            print(cluster.status())
        elif given.command == "kubeconfig":
            print(cluster.kubeconfig())
        elif given.command == "load-image":
            _load(cluster, given.target)
        else:
            print(cluster.logs(given.part, given.lines))
    except ToolsError as error:
        print(f"chaperone-cluster: {error}", file=sys.stderr)
        return 1
    return 0


def _load(cluster: Provider, names: Sequence[str]) -> None:
    for image in [newest(name) for name in names] if names else _built():
        with phase(f"loading {image.target}"):
            cluster.load_image(image.reference, image.archive)
        print(image.reference)


def _built() -> list[Image]:
    images = []
    for name in TARGETS:
        try:
            images.append(newest(name))
        except ToolsError:
            continue
    return images
