"""The aggregated API as people meet it: real kubectl, real kube-apiserver, a real collector behind it."""

from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest
from evidence_scene import APPROVAL, BASE, PERSON, Scene, kubectl, names
from fix_collector import Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod
from pki import Authority

pytestmark = pytest.mark.peer


async def test_sessions_are_listed_as_a_table(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "table-agent").ship(evidence_api)
    text = await kubectl(evidence_api, "get", "sessions", "-n", "agents", "-l", "chaperone.dev/identity=table-agent")
    head, *rows = text.splitlines()
    assert head.split() == [
        "NAME", "AGENT", "TARGET", "PROTOCOL", "STARTED", "DURATION", "COMMANDS", "DENIED", "STATE",
    ]  # fmt: skip
    cells = [row.split() for row in rows]
    assert [cell[0] for cell in cells] == [scene.closed, scene.open]
    assert cells[0][1:4] == ["table-agent", "orders-db", "PostgreSQL"]
    assert cells[0][6:] == ["3", "1", "Closed"]
    assert cells[1][6:] == ["1", "0", "Open"]


async def test_wide_tables_show_owner_pod_text_rows_and_hash(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    await Scene(gateway_ca, "wide-agent").ship(evidence_api)
    selector = ("-n", "agents", "-l", "chaperone.dev/identity=wide-agent", "-o", "wide")
    text = await kubectl(evidence_api, "get", "sessions", *selector)
    assert "OWNER" in text
    assert "billing@example.com" in text
    assert "wide-agent-0" in text
    assert [line.split()[-3] for line in text.splitlines()] == ["USER", "user-7", "<none>"]
    text = await kubectl(evidence_api, "get", "commands", *selector)
    assert text.splitlines()[0].split() == [
        "NAME", "AGENT", "TARGET", "KIND", "EFFECTS", "DECISION", "RULE", "AGE", "COMMAND", "ROWS", "HASH",
        "APPROVAL", "USER",
    ]  # fmt: skip
    assert "SELECT * FROM orders" in text  # one line, whatever the statement holds
    assert " 7 " in text
    assert [line.split()[-2] for line in text.splitlines()[1:]] == ["<none>", "<none>", APPROVAL, "<none>"]
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["user-7", "<none>", "<none>", "<none>"]


async def test_objects_say_who_what_and_how_it_ended(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "yaml-agent").ship(evidence_api)
    session = json.loads(await kubectl(evidence_api, "get", "session", "-n", "agents", scene.closed, "-o", "json"))
    assert (
        session["spec"] | {"identity": "yaml-agent", "owner": "billing@example.com", "user": "app"} == session["spec"]
    )
    assert session["spec"]["delegated"] == {"issuer": PERSON.issuer, "subject": "user-7", "email": PERSON.email}
    assert session["status"] | {"state": "Closed", "commands": 3, "denied": 1, "bytesOut": 2000} == session["status"]
    text = await kubectl(
        evidence_api,
        "get",
        "commands",
        "-n",
        "agents",
        "--field-selector",
        f"spec.session={scene.closed}",
        "-o",
        "json",
    )
    first, refused, failed = json.loads(text)["items"]
    assert first["spec"]["command"] == "SELECT *\n\tFROM orders"
    assert first["status"] | {"status": "Ok", "rows": 7, "durationMicroseconds": 1500} == first["status"]
    assert (refused["spec"]["decision"], refused["spec"]["rule"]) == ("Deny", "never")
    assert refused["status"]["status"] == "Refused"
    assert failed["status"]["status"] == "Error"
    assert [one["spec"].get("approval") for one in (first, refused, failed)] == [None, None, APPROVAL]
    one = json.loads(
        await kubectl(evidence_api, "get", "command", "-n", "agents", first["metadata"]["name"], "-o", "json")
    )
    assert one == first


async def test_what_is_wrong_with_a_stream_is_shown(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = Scene(gateway_ca, "wrong-agent")
    scene.stream.conclude(scene.open, (0, "no command"))
    await scene.ship(evidence_api)
    scene.stream.head(signer=Pod(gateway_ca).signer)
    async with Sender(evidence_api.collector, scene.pod) as sender:
        status, _ = await sender.post(scene.stream.id, *scene.stream.take())
        assert status == 409
    text = await kubectl(evidence_api, "get", "session", "-n", "agents", scene.open, "-o", "jsonpath={.status}")
    assert json.loads(text) | {"findings": 1, "chainBreaks": 1} == json.loads(text)


async def test_describe_works(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "describe-agent").ship(evidence_api)
    text = await kubectl(evidence_api, "describe", "session", "-n", "agents", scene.closed)
    assert "describe-agent" in text
    assert "Reason:      client closed" in text


async def test_explain_knows_the_fields(evidence_api: EvidenceApi) -> None:
    told = await asyncio.to_thread(evidence_api.eventually, "explain", "sessions.spec")
    assert "The human who answers for it." in told


async def test_label_selectors(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "label-agent").ship(evidence_api)
    mine = "chaperone.dev/identity=label-agent"
    for more, wanted in (
        ("chaperone.dev/target in (ledger-db, nothing)", [scene.open]),
        ("chaperone.dev/target notin (ledger-db)", [scene.closed]),
        ("chaperone.dev/protocol!=MySQL", [scene.closed]),
        ("chaperone.dev/protocol", [scene.closed, scene.open]),
        ("!chaperone.dev/protocol", []),
        ("other", []),
        ("!other", [scene.closed, scene.open]),
    ):
        assert await names(evidence_api, "sessions", "-A", "-l", f"{mine},{more}") == wanted, more


async def test_field_selectors(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "field-agent").ship(evidence_api)
    for selector, wanted in (
        ("spec.target=orders-db", [scene.closed]),
        ("spec.protocol!=PostgreSQL", [scene.open]),
        ("spec.owner=billing@example.com", [scene.closed, scene.open]),
        ("spec.owner!=billing@example.com", []),
        ("spec.delegated.subject=user-7", [scene.closed]),
        ("spec.delegated.subject!=user-7", [scene.open]),
        ("status.state=Open", [scene.open]),
        ("status.denied!=0", [scene.closed]),
        ("status.denied=0", [scene.open]),
        (f"metadata.name={scene.open}", [scene.open]),
        (f"metadata.name!={scene.open}", [scene.closed]),
        ("metadata.namespace=elsewhere", []),
    ):
        found = await names(evidence_api, "sessions", "-A", "--field-selector", f"spec.identity=field-agent,{selector}")
        assert found == wanted, selector
    for selector, count in (
        ("spec.decision=Deny", 1),
        ("spec.decision!=Deny", 3),
        ("spec.decision!=Allow", 1),
        ("spec.decision=Allow", 3),
        ("spec.rule=never", 1),
        ("spec.rule=unheard", 0),
        ("spec.target=ledger-db", 1),
        (f"spec.session={scene.closed}", 3),
        (f"spec.session!={scene.closed}", 1),
        (f"spec.session={scene.closed},spec.decision=Deny", 1),
    ):
        found = await names(evidence_api, "commands", "-A", "--field-selector", f"spec.identity=field-agent,{selector}")
        assert len(found) == count, selector


async def test_an_unknown_field_selector_is_refused_by_name(evidence_api: EvidenceApi) -> None:
    done = await asyncio.to_thread(evidence_api.run, "get", "sessions", "-A", "--field-selector", "spec.color=red")
    assert done.returncode == 1
    assert '"spec.color" is not a known field selector' in done.stderr


async def test_pages_are_one_consistent_list(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "page-agent").ship(evidence_api)
    mine = ("-A", "--field-selector", "spec.identity=page-agent")
    whole = await names(evidence_api, "commands", *mine)
    assert len(whole) == 4
    assert await names(evidence_api, "commands", *mine, "--chunk-size=2") == whole
    query = f"{BASE}/commands?fieldSelector=spec.identity%3Dpage-agent&limit=2"
    first = await asyncio.to_thread(evidence_api.get, query)
    for _ in range(5):  # what comes now is not part of the list that page one began
        scene.stream.intend(scene.open, "SELECT 'later'")
    await scene.ship(evidence_api)
    second = await asyncio.to_thread(evidence_api.get, f"{query}&continue={first['metadata']['continue']}")
    assert [item["metadata"]["name"] for item in first["items"] + second["items"]] == whole
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
    assert "continue" not in second["metadata"]
    at = first["metadata"]["resourceVersion"]
    exact = await asyncio.to_thread(
        evidence_api.get,
        f"{BASE}/commands?fieldSelector=spec.identity%3Dpage-agent&resourceVersion={at}&resourceVersionMatch=Exact",
    )
    assert [item["metadata"]["name"] for item in exact["items"]] == whole


async def test_a_continue_token_of_another_question_or_of_no_one_is_refused(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    await Scene(gateway_ca, "token-agent").ship(evidence_api)
    first = await asyncio.to_thread(evidence_api.get, f"{BASE}/commands?limit=1")
    token = first["metadata"]["continue"]
    for query in (
        f"{BASE}/namespaces/agents/commands?limit=1&continue={token}",
        f"{BASE}/commands?limit=1&labelSelector=a%3Db&continue={token}",
        f"{BASE}/sessions?limit=1&continue={token}",
        f"{BASE}/commands?limit=1&continue={token[:-2]}AA",
        f"{BASE}/commands?limit=1&continue=x",
    ):
        done = await asyncio.to_thread(evidence_api.run, "get", "--raw", query)
        assert done.returncode == 1, query
        assert "list from the beginning" in done.stderr


async def test_a_version_of_the_future_is_not_answered(evidence_api: EvidenceApi) -> None:
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", f"{BASE}/commands?resourceVersion=999999999999")
    assert "Too large resource version" in done.stderr


async def test_metadata_alone_can_be_asked_for(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    """What garbage collectors and generic controllers ask for."""
    await Scene(gateway_ca, "metadata-agent").ship(evidence_api)
    async with evidence_api.proxy() as url:
        accept = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"}
        async with aiohttp.ClientSession() as http, http.get(f"{url}{BASE}/sessions", headers=accept) as answer:
            found = await answer.json()
        assert found["kind"] == "PartialObjectMetadataList"
        assert set(found["items"][0]) == {"kind", "apiVersion", "metadata"}
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}{BASE}/sessions", headers={"Accept": "text/html"}) as answer:
                assert answer.status == 406
            async with http.delete(f"{url}{BASE}/namespaces/agents/sessions/x") as answer:
                assert answer.status == 405


async def test_who_may_not_read_is_refused_by_name(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    await Scene(gateway_ca, "refused-agent").ship(evidence_api)
    done = await asyncio.to_thread(evidence_api.run, "get", "sessions", "-n", "agents", user="nobody")
    assert done.returncode == 1
    assert 'User "nobody" cannot list resource "sessions"' in done.stderr
    allowed = await kubectl(evidence_api, "get", "sessions", "-n", "agents", user="auditor", groups=("auditors",))
    assert "refused-agent" in allowed
    for elsewhere in (("-n", "elsewhere"), ("-A",)):
        done = await asyncio.to_thread(
            evidence_api.run, "get", "sessions", *elsewhere, user="auditor", groups=("auditors",)
        )
        assert "Forbidden" in done.stderr


async def test_namespaces_do_not_see_each_other(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "elsewhere-agent", "elsewhere").ship(evidence_api)
    assert scene.closed not in await names(evidence_api, "sessions", "-n", "agents")
    done = await asyncio.to_thread(evidence_api.run, "get", "session", "-n", "agents", scene.closed)
    assert f'sessions.evidence.chaperone.dev "{scene.closed}" not found' in done.stderr
    assert scene.closed in await names(evidence_api, "sessions", "-n", "elsewhere")


async def test_every_read_is_recorded_before_it_is_answered(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    await Scene(gateway_ca, "read-agent").ship(evidence_api)
    await kubectl(
        evidence_api, "get", "commands", "-n", "agents", "-l", "chaperone.dev/identity=read-agent", user="auditor",
        groups=("auditors",),
    )  # fmt: skip
    listed = json.loads(await kubectl(evidence_api, "get", "reads", "-n", "agents", "-o", "json"))
    (found,) = [
        one["spec"] for one in listed["items"]
        if one["spec"]["user"] == "auditor" and "read-agent" in one["spec"].get("query", "")
    ]  # fmt: skip
    assert (found["verb"], found["resource"], found["given"]) == ("list", "commands", 4)
    assert found["groups"] == ["auditors", "system:authenticated"]
