"""Ways out of the agent's pod that do not ask the gateway, and who would have received what was sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from chaperone_tools.demo.staging import AGENT, DATA, FREE, addresses
from chaperone_tools.demo.story import Story, with_stdin
from chaperone_tools.kubectl import Kubectl

LISTENER_PORT: Final = "9999"


@dataclass(frozen=True)
class Attempt:
    """A way out that does not ask the gateway. `arguments` are those of escape.py."""

    what: str
    arguments: tuple[str, ...]
    is_free: bool = True  # whether a pod without a fence gets through, on every kernel


def escape(story: Story, kubectl: Kubectl, pod: Mapping[str, Any], certificate: str) -> None:
    """Show that each is stopped, and that each is open to a pod without a fence."""
    story.chapter("The agent tries to get out another way, as root; each way is open to a pod without a fence")
    outside = addresses(kubectl.json("pod", "outside", f"--namespace={DATA}"))
    results = []
    for attempt in _attempts(kubectl, outside):
        arguments = ("--", "python3", "-", *attempt.arguments)
        if attempt.is_free:
            story.run(*with_stdin(FREE), *arguments, script="escape.py", shows=("reached:",))
        said = story.run(*with_stdin(AGENT), *arguments, script="escape.py")
        # Where something answers for the database, it must be the gateway, which asks, decides and records.
        is_gateway = attempt.arguments[0] == "postgresql" and "reached: a server" in said and certificate not in said
        is_stopped = said.startswith("stopped:") or is_gateway
        story.expect(is_stopped, f"{attempt.what} was not stopped")
        results.append((attempt.what, "held by the gateway" if is_gateway else "stopped" if is_stopped else "GOT OUT"))
    story.chapter("What the pod outside has received: the words of the free pod, none of the agent's")
    log = story.run("kubectl", "logs", "-n", DATA, "outside")
    for address in addresses(pod):
        heard = re.search(rf"from (::ffff:)?{re.escape(address)} ", log)
        story.expect(heard is None, f"something of the agent's reached the pod outside from {address}")
    print()
    for what, result in results:
        print(f"  {what:<60} {result}")


def _attempts(kubectl: Kubectl, outside: Sequence[str]) -> Iterator[Attempt]:
    database = addresses(kubectl.json("pod", "orders-db-0", f"--namespace={DATA}"))[0]
    # Its Service is a target of the agent's, which the gateway answers for.
    api = kubectl.json("endpoints", "kubernetes", "--namespace=default")["subsets"][0]
    yield Attempt("PostgreSQL at the address of the database's pod", ("postgresql", database, "5432"))
    where = (api["addresses"][0]["ip"], str(api["ports"][0]["port"]))
    yield Attempt("the API server at its own address", ("https", *where))
    for address in outside:
        family = "IPv6" if ":" in address else "IPv4"
        yield Attempt(f"TCP to another pod, {family}", ("tcp", address, LISTENER_PORT))
        yield Attempt(f"UDP to another pod, {family}", ("udp", address, LISTENER_PORT))
    address = outside[0]
    yield Attempt("TCP that claims to be the gateway's", ("marked", address, LISTENER_PORT), is_free=False)
    yield Attempt("a question to a resolver of its own", ("dns", address, "53"))
    yield Attempt("ping", ("ping", address))
