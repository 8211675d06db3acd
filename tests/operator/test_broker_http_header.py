"""Headers for HTTP: leased with the one place that they may be sent to."""

from __future__ import annotations

import json

import pytest
from fix_broker import CANARY, Broker, Pod, secret
from leasing import TARGET, enrolled, leased, put_target, refused

from chaperone_operator.compile.credential import Place
from chaperone_operator.kube import ACCESS_TARGETS, SECRETS, Object

pytestmark = pytest.mark.peer

PLACE = Place("api.example", 443, "", "VerifyFull", "api.example")


async def put_token(broker: Broker, token: str) -> None:
    async with broker.admin() as client:
        made = secret("api-token", "Opaque", token=token)
        await client.apply(SECRETS, "api-token", made, manager="test", namespace=broker.system)


async def header_of(pod: Pod, **spec: object) -> Object:
    credential = {"httpHeader": {"secretRef": {"name": "api-token"}, "host": "api.example"} | spec}
    await put_target(pod.broker, credential, PLACE)
    path = spec.get("path", "/")
    lease = await leased(pod, lambda found: found["kind"] == "header" and found["header"]["path"] == path)
    found: Object = lease["header"]
    return found


async def test_header_comes_with_the_place_it_is_bound_to(broker: Broker) -> None:
    pod = await enrolled(broker)
    await put_token(broker, CANARY + "\n")
    assert await header_of(pod, prefix="Bearer ", path="/v1/") == {
        "name": "Authorization", "value": f"Bearer {CANARY}", "scheme": "https", "host": "api.example", "port": 443,
        "path": "/v1/",
    }  # fmt: skip
    found = await header_of(pod, header="X-Api-Key", scheme="http", port=8080)
    assert (found["name"], found["value"]) == ("X-Api-Key", CANARY)
    assert (found["scheme"], found["port"], found["path"]) == ("http", 8080, "/")


@pytest.mark.parametrize("value", ["", "\n", f"{CANARY}\r\nX: y", f"{CANARY}\x01", f"{CANARY} é"])
async def test_value_that_is_no_header_is_said_without_it(broker: Broker, value: str) -> None:
    pod = await enrolled(broker)
    await put_token(broker, CANARY)
    await header_of(pod)
    await put_token(broker, value)
    told = await refused(pod, 424)
    assert "token" in told
    async with broker.admin() as client:
        status = json.dumps((await client.get(ACCESS_TARGETS, TARGET))["status"])
    assert CANARY not in told + status + broker.log.read_text()
