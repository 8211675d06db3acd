"""The auditor: what was done, by whom, what was shown, what was refused, and the proof of it."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chaperone_tools.demo.staging import AGENTS
from chaperone_tools.demo.story import Story
from chaperone_tools.install import diagnosis, wait_for
from chaperone_tools.kubectl import Kubectl

SHOWN: Final = {
    "MySQL": ("FROM customers", "z***@example.org"),
    "HTTP": ("GET /v1/payments/4", "[Email]", '"disputed"'),
    "MCP": ("tickets/call", "[Email]", "Deny by agents/tickets/never"),
    "SSH": ("tail -n 3", "[PaymentCard]"),
    "Kubernetes": ("DELETE /apis/apps/v1/", "Deny by agents/worker/never"),
}
"""What the replay of a session of each protocol shows; that of PostgreSQL is looked at offline."""
HIDDEN: Final = ("zuse@", "4111")
CLOSED: Final = 15  # sessions of PostgreSQL 11, one each of the others at least but Kubernetes, whose client keeps some
REFUSED: Final = 6
RECORDED_LIMIT_S: Final = 60.0  # the gateway ships as it records
SIGNED_LIMIT_S: Final = 45.0  # a head every ten seconds


def audit(story: Story, kubectl: Kubectl, pod: Mapping[str, Any], system_namespace: str) -> None:
    """Show it."""
    story.chapter("The auditor: what was done, by whom, what was refused")
    name = pod["metadata"]["name"]
    wait_for(
        "the records of all sessions at the collector",
        RECORDED_LIMIT_S,
        lambda: _not_recorded(kubectl, name),
        lambda: diagnosis(kubectl, system_namespace),
    )
    story.run("kubectl", "get", "sessions", "-n", AGENTS, shows=("billing-agent", "orders-db", "Closed", *SHOWN))
    story.run(
        "kubectl", "get", "commands", "-n", AGENTS,
        shows=("read-orders", "settle-invoices", "delete-invoices", "never", "uncovered", "Allow", "Deny"),
    )  # fmt: skip
    for protocol, shown in SHOWN.items():
        session = _most_refused(kubectl, name, protocol)
        story.run(
            "kubectl", "chaperone", "replay", session["metadata"]["name"], "-n", AGENTS, shows=shown, hides=HIDDEN
        )
    session = _most_refused(kubectl, name, "PostgreSQL")
    session_name, last = session["metadata"]["name"], session["status"]["lastSeq"]
    story.run(
        "kubectl", "get", "sessions", session_name, "-n", AGENTS, "-o", "yaml",
        shows=("owner: Billing on-call", f"pod: {name}", "state: Closed"),
    )  # fmt: skip
    wait_for(
        "a signed head after the session",
        SIGNED_LIMIT_S,
        lambda: "" if _last_seq(kubectl, session_name) > last else "the next head of the stream",
        lambda: diagnosis(kubectl, system_namespace),
    )
    story.chapter("The proof, checked offline")
    with tempfile.TemporaryDirectory(prefix="chaperone-demo-") as folder:
        bundle, trust = Path(folder) / f"{session_name}.tar", Path(folder) / f"{session_name}.trust.pem"
        story.run("chaperone", "export", session_name, "-n", AGENTS, "-o", str(bundle), shows=("bundle:", "trust:"))
        if not (bundle.exists() and trust.exists()):
            return
        log_keys = ("--log-policy", str(bundle.with_suffix(".log.policy")))
        story.run("chaperone", "verify", str(bundle), "--trust", str(trust), *log_keys, shows=("log:", "verify: OK"))
        story.run(
            "chaperone", "replay", session_name, "--bundle", str(bundle), "--trust", str(trust), *log_keys,
            shows=("not allowed", "verify: OK"),
        )  # fmt: skip
        print(f"\nOne byte of the bundle is changed, at {_change_a_byte(bundle)}.")
        story.run("chaperone", "verify", str(bundle), "--trust", str(trust), shows=("verify: FAILED",), status=1)


def _not_recorded(kubectl: Kubectl, pod: str) -> str:
    """What the collector lacks of the story."""
    found = _sessions(kubectl, pod)
    absent = {"PostgreSQL", *SHOWN} - {one["spec"]["protocol"] for one in found}
    closed = sum(one["status"]["state"] == "Closed" for one in found)
    refused = sum(one["status"]["denied"] > 0 for one in found)
    if not absent and closed >= CLOSED and refused >= REFUSED:
        return ""
    return f"{closed} of {CLOSED} sessions closed, {refused} of {REFUSED} with a refusal, of {sorted(absent)} none"


def _sessions(kubectl: Kubectl, pod: str) -> list[dict[str, Any]]:
    found = kubectl.json("sessions", f"--namespace={AGENTS}")["items"]
    return [one for one in found if one["spec"].get("pod") == pod]


def _most_refused(kubectl: Kubectl, pod: str, protocol: str) -> dict[str, Any]:
    """The session of a protocol with a refusal, if there is one, and with most commands."""
    found = [one for one in _sessions(kubectl, pod) if one["spec"]["protocol"] == protocol]
    return max(found, key=lambda one: (one["status"]["denied"] > 0, one["status"]["commands"]))


def _last_seq(kubectl: Kubectl, session: str) -> int:
    last: int = kubectl.json("sessions", session, f"--namespace={AGENTS}")["status"]["lastSeq"]
    return last


def _change_a_byte(bundle: Path) -> int:
    """Change one byte of the first record that lies in a bundle; gives its place."""
    with tarfile.open(bundle) as tar:
        segment = next(one for one in tar if "streams/" in one.name and one.isfile())
    place = segment.offset_data + 200  # inside the first record's header
    with bundle.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    return place
