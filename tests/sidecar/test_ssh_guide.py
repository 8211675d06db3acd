"""The policy of docs/guides/ssh.md: its manifests compile, and each line of its table meets what stands beside it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fix_ssh import SshGateway

from chaperone_operator.compile.check import alone
from chaperone_sidecar.protocols.ssh.answers import REFUSED_STATUS

pytestmark = pytest.mark.peer

GUIDE = (Path(__file__).parents[2] / "docs/guides/ssh.md").read_text()
MANIFESTS: dict[str, Any] = {
    one["kind"]: one
    for one in map(yaml.safe_load, re.findall(r"(?:^    .*\n)+", GUIDE, re.MULTILINE))
    if isinstance(one, dict)
}
TABLE = [
    (text.replace("\\|", "|"), verdict)
    for text, verdict in re.findall(r"^\| `(.+)` \| (allowed|refused) \|", GUIDE, re.MULTILINE)
]


@pytest.fixture(scope="module")
def gateway(ssh_gateways: Callable[..., SshGateway]) -> SshGateway:
    spec = MANIFESTS["AccessPolicy"]["spec"]
    return ssh_gateways(spec["rules"], limits=spec["limits"])


@pytest.mark.parametrize("kind", ["AccessTarget", "AccessPolicy"])
def test_the_manifests_of_the_guide_are_sound(kind: str) -> None:
    assert not [one for one in alone(MANIFESTS[kind]) if one.is_blocking]


@pytest.mark.parametrize(("text", "verdict"), TABLE, ids=[text for text, _ in TABLE])
def test_a_command_of_the_guide_meets_what_it_says(gateway: SshGateway, text: str, verdict: str) -> None:
    found = gateway.ssh(text)
    is_refused = found.returncode == REFUSED_STATUS and found.stderr.startswith(b"chaperone: refused")
    assert is_refused == (verdict == "refused"), found


def test_the_table_has_both_answers() -> None:
    assert {verdict for _, verdict in TABLE} == {"allowed", "refused"} and len(TABLE) >= 8
