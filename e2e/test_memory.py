"""One gateway with every protocol in use stays within the memory that is asked for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import kubeapi
import pytest
import webapi
from resident import resident
from servers import BUILD, SHOP, Servers
from stage import TARGET, Kubectl, Object, Pod, Team

from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

MOST_MIB: Final = 96  # of the process; what the injected container requests
TARGETS: Final = (TARGET, "e2e-shop", "e2e-build", webapi.TARGET, webapi.TOOLS_TARGET, kubeapi.TARGET)
RULES: tuple[Object, ...] = (
    {"name": "look", "action": "Allow", "match": {"effects": ["read", "bulk_read", "session", "transaction"]}},
)
MASKS = [{"detectors": ["PaymentCard", "Email"], "method": "Redact"}]
MOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
LIST: Final = '{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}'
CURL: Final = ("curl", "--silent", "--show-error", "--max-time", "30")
USES: Final = {
    "PostgreSQL": (),
    "MySQL": ("mariadb", f"--host={SHOP}", "-BNe", "SELECT id, item FROM orders WHERE id = 1", "orders"),
    "SSH": ("ssh", BUILD, "head -c 9 /srv/app/app.log"),
    "HTTP": (*CURL, f"https://{webapi.API}/v1/orders"),
    "MCP": (
        *CURL, "--header", "Content-Type: application/json", "--header", "Accept: application/json, text/event-stream",
        "--data", LIST, f"https://{webapi.TOOLS}/mcp",
    ),
    "Kubernetes": (
        "sh", "-c",
        f"curl --silent --max-time 30 --cacert {MOUNT}/ca.crt --header \"Authorization: Bearer $(cat {MOUNT}/token)\" "
        f"https://kubernetes.default.svc/api/v1/namespaces/$(cat {MOUNT}/namespace)/pods",
    ),
}  # fmt: skip
ANSWERS: Final = {
    "PostgreSQL": "1", "MySQL": "1\tengine", "SSH": "paidwith", "HTTP": '"known":true', "MCP": '"tools":[]',
    "Kubernetes": '"kind":"PodList"',
}  # fmt: skip


@pytest.fixture(scope="module")
def agent(
    kubectl: Kubectl, chaperone_installed: Installed, team: Team, servers: Servers, agent_image: str
) -> Iterator[Pod]:
    """An agent with a target of each protocol, whose answers are masked and kept."""
    webapi.make_api(kubectl, agent_image, chaperone_installed.namespace)
    webapi.make_tools(kubectl, agent_image, chaperone_installed.namespace)
    kubeapi.make_kube_target(kubectl, chaperone_installed.namespace, team.namespace)
    team.identity(evidence={"results": "Full"})
    team.policy(*RULES, targets=TARGETS, masks=MASKS)
    yield team.pod()
    kubeapi.drop_kube_target(kubectl)
    kubectl("delete", "namespace", webapi.SPACE, webapi.TOOLS_SPACE, "--wait=false")


def test_a_gateway_with_every_protocol_in_use_stays_within_its_request(agent: Pod, node: Pod):
    seen = {"idle": resident(node, agent)}
    for name, command in USES.items():
        for _ in range(3):
            done = agent.run(*command) if command else agent.psql("SELECT id FROM orders WHERE id = 1")
            assert ANSWERS[name] in done.out.replace(" ", ""), (name, done)
        seen[f"+ {name}"] = resident(node, agent)
    for name, one in seen.items():
        print(f"{name:12} {one.now:5.1f} MiB, {one.own:5.1f} of its own, {one.of_files:5.1f} of files")
    assert max(one.now for one in seen.values()) <= MOST_MIB
    (status,) = [one for one in agent.seen["status"]["initContainerStatuses"] if one["name"] == "chaperone-gateway"]
    assert (status["ready"], status["restartCount"]) == (True, 0)
