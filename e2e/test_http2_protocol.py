"""HTTP/2 and gRPC in a real pod: what httpx and grpcio see, what people decide, what an auditor finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from callapi import CALLS, PLAIN, SERVICE, SPACE, Calls, make_calls
from stage import Kubectl, Object, Pod, Ran, Team, chaperone, until
from voting import LEADS, Held, may_vote, pending, person

from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster


def calls(*methods: str) -> Object:
    """What a rule of calls matches."""
    objects = [f"grpc:{SERVICE}.{method}" for method in methods] + [f"path:/{SERVICE}/{method}" for method in methods]
    return {"effects": ["create", "execute_code"], "objects": objects}


RULES: tuple[Object, ...] = (
    {"name": "look", "action": "Allow", "match": {"effects": ["read"], "objects": ["path:/v1/*"]}},
    {"name": "calls", "action": "Allow", "match": calls("Get", "Talk")},
    {"name": "pay", "action": "RequireApproval", "match": calls("Pay"),
     "approval": {"groups": [LEADS], "wait": "60s", "validFor": "2m"}},
)  # fmt: skip
_CALL = """
import grpc
with grpc.secure_channel("%s:443", grpc.ssl_channel_credentials()) as channel:
    try:
        %s
    except grpc.RpcError as error:
        print(error.code().name, error.details())
"""


@pytest.fixture(scope="module")
def service(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Calls]:
    """The service; the agents' image has all that it needs."""
    yield make_calls(kubectl, agent_image, chaperone_installed.namespace)
    kubectl("delete", "namespace", SPACE, "--wait=false")


@pytest.fixture(scope="module")
def agent(team: Team, service: Calls) -> Pod:
    """An agent that may call, and has to ask before it pays."""
    team.identity(evidence={"results": "Full"})
    team.policy(*RULES, targets=("calls-e2e-calls", "plain-e2e-calls"))
    may_vote(team)
    return team.pod()


def call(agent: Pod, method: str, request: str) -> Ran:
    """A call of one message each way: its answer, or its status."""
    return agent.python(
        _CALL % (CALLS, f'print(channel.unary_unary("/{SERVICE}/{method}")(b"{request}", timeout=90).decode())')
    )


def test_httpx_speaks_http_2_to_the_gateway(agent: Pod, service: Calls):
    program = (
        "import httpx; client = httpx.Client(http2=True)\n"
        f"for path in ('/v1/orders', '/v2'): found = client.get('https://{PLAIN}' + path);"
        " print(found.http_version, found.status_code, found.json().get('known'), found.json().get('rule'))"
    )
    done = agent.python(program)
    assert done.out == "HTTP/2 200 True None\nHTTP/2 403 None uncovered\n", done
    assert service.token not in done.out


def test_grpcio_calls_with_a_credential_that_it_never_sees(agent: Pod):
    done = call(agent, "Get", "")
    assert done.out == '{"known": true, "paid": []}\n', done
    talk = f'print(*channel.stream_stream("/{SERVICE}/Talk")(iter([b"a", b"b"]), timeout=30))'
    assert agent.python(_CALL % (CALLS, talk)).out == "b're a' b're b'\n"
    assert call(agent, "Drop", "").out.startswith("PERMISSION_DENIED refused by Chaperone")


def test_what_a_lead_approves_is_called_once(kubectl: Kubectl, team: Team, agent: Pod, tmp_path: Path):
    lead = person(kubectl, tmp_path, "lead-1", LEADS)
    for decide, told in (("deny", "PERMISSION_DENIED"), ("approve", "paid")):
        held = Held(lambda: call(agent, "Pay", "cents=4900"))
        name = pending(kubectl, team)
        voted = chaperone(lead, decide, name, "-n", team.namespace, "--yes", "--reason", "the test says so")
        assert voted.status == 0, voted.err
        assert held.end().out.startswith(told)
    assert '"paid": ["cents=4900"]' in call(agent, "Get", "").out


def test_the_auditor_finds_the_call(agent: Pod, team: Team):
    assert call(agent, "Get", "").status == 0

    def called() -> list[Object]:
        return [one for one in team.commands(rule="calls") if f"/{SERVICE}/Get" in one["spec"].get("command", "")]

    until("the call is listed", lambda: bool(called()))
