"""The aggregated API as people meet it: real kubectl, real kube-apiserver, a real collector behind it."""

from __future__ import annotations

import asyncio
import io
import json
import ssl
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fix_collector import Collector, Sender
from fix_evidence_api import EvidenceApi
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_evidence import entry, record, verify

pytestmark = pytest.mark.peer

APPROVAL = "apr-aaaaaaaaaaaaaaaaaaaa"
_BASE = "/apis/evidence.chaperone.dev/v1alpha1"


PERSON = record.Delegated("https://login.example.com", "user-7", "user-7@example.com")


class Scene:
    """An identity of its own with two sessions: three commands on orders-db, one refused; one open on ledger-db."""

    def __init__(self, ca: Authority, identity: str, namespace: str = "agents") -> None:
        self.identity = identity
        self.pod = Pod(ca, namespace=namespace, identity=identity, pod=f"{identity}-0", pod_uid=f"uid-{identity}")
        self.stream = Stream(self.pod)
        self.stream.head()
        self.closed = self.stream.open_session(delegated=PERSON)
        self.stream.conclude(
            self.closed, self.stream.intend(self.closed, "SELECT *\n\tFROM orders", subject="user-7"), rows=7
        )
        self.stream.intend(self.closed, "DROP TABLE orders", decision="Deny", rule="never")
        self.stream.conclude(self.closed, self.stream.intend(self.closed, "SELECT 2", approval=APPROVAL), "error", 0)
        self.stream.close_session(self.closed, 3, 1)
        self.open = self.stream.open_session("ledger-db", "MySQL")
        self.stream.intend(self.open, "SELECT 3")
        self.stream.head()

    async def ship(self, api: EvidenceApi) -> Scene:
        """Send everything."""
        async with Sender(api.collector, self.pod) as sender:
            await sender.ship(self.stream)
        return self


async def _kubectl(api: EvidenceApi, *arguments: str, **more: Any) -> str:
    return await asyncio.to_thread(api.kubectl, *arguments, **more)


async def _names(api: EvidenceApi, *arguments: str) -> list[str]:
    text = await _kubectl(api, "get", *arguments, "-o", "name")
    return [line.split("/")[1] for line in text.split()]


async def test_sessions_are_listed_as_a_table(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "table-agent").ship(evidence_api)
    text = await _kubectl(evidence_api, "get", "sessions", "-n", "agents", "-l", "chaperone.dev/identity=table-agent")
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
    text = await _kubectl(evidence_api, "get", "sessions", *selector)
    assert "OWNER" in text
    assert "billing@example.com" in text
    assert "wide-agent-0" in text
    assert [line.split()[-3] for line in text.splitlines()] == ["USER", "user-7", "<none>"]
    text = await _kubectl(evidence_api, "get", "commands", *selector)
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
    session = json.loads(await _kubectl(evidence_api, "get", "session", "-n", "agents", scene.closed, "-o", "json"))
    assert (
        session["spec"] | {"identity": "yaml-agent", "owner": "billing@example.com", "user": "app"} == session["spec"]
    )
    assert session["spec"]["delegated"] == {"issuer": PERSON.issuer, "subject": "user-7", "email": PERSON.email}
    assert session["status"] | {"state": "Closed", "commands": 3, "denied": 1, "bytesOut": 2000} == session["status"]
    text = await _kubectl(
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
        await _kubectl(evidence_api, "get", "command", "-n", "agents", first["metadata"]["name"], "-o", "json")
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
    text = await _kubectl(evidence_api, "get", "session", "-n", "agents", scene.open, "-o", "jsonpath={.status}")
    assert json.loads(text) | {"findings": 1, "chainBreaks": 1} == json.loads(text)


async def test_describe_works(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "describe-agent").ship(evidence_api)
    text = await _kubectl(evidence_api, "describe", "session", "-n", "agents", scene.closed)
    assert "describe-agent" in text
    assert "Reason:      client closed" in text


async def test_explain_knows_the_fields(evidence_api: EvidenceApi) -> None:
    async with asyncio.timeout(90):  # kube-apiserver merges the documents in its own time
        while True:
            done = await asyncio.to_thread(evidence_api.run, "explain", "sessions.spec")
            if done.returncode == 0:
                break
            await asyncio.sleep(0.5)
    assert "The human who answers for it." in done.stdout


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
        assert await _names(evidence_api, "sessions", "-A", "-l", f"{mine},{more}") == wanted, more


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
        found = await _names(
            evidence_api, "sessions", "-A", "--field-selector", f"spec.identity=field-agent,{selector}"
        )
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
        found = await _names(
            evidence_api, "commands", "-A", "--field-selector", f"spec.identity=field-agent,{selector}"
        )
        assert len(found) == count, selector


async def test_an_unknown_field_selector_is_refused_by_name(evidence_api: EvidenceApi) -> None:
    done = await asyncio.to_thread(evidence_api.run, "get", "sessions", "-A", "--field-selector", "spec.color=red")
    assert done.returncode == 1
    assert '"spec.color" is not a known field selector' in done.stderr


async def test_pages_are_one_consistent_list(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "page-agent").ship(evidence_api)
    mine = ("-A", "--field-selector", "spec.identity=page-agent")
    whole = await _names(evidence_api, "commands", *mine)
    assert len(whole) == 4
    assert await _names(evidence_api, "commands", *mine, "--chunk-size=2") == whole
    query = f"{_BASE}/commands?fieldSelector=spec.identity%3Dpage-agent&limit=2"
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
        f"{_BASE}/commands?fieldSelector=spec.identity%3Dpage-agent&resourceVersion={at}&resourceVersionMatch=Exact",
    )
    assert [item["metadata"]["name"] for item in exact["items"]] == whole


async def test_a_continue_token_of_another_question_or_of_no_one_is_refused(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    await Scene(gateway_ca, "token-agent").ship(evidence_api)
    first = await asyncio.to_thread(evidence_api.get, f"{_BASE}/commands?limit=1")
    token = first["metadata"]["continue"]
    for query in (
        f"{_BASE}/namespaces/agents/commands?limit=1&continue={token}",
        f"{_BASE}/commands?limit=1&labelSelector=a%3Db&continue={token}",
        f"{_BASE}/sessions?limit=1&continue={token}",
        f"{_BASE}/commands?limit=1&continue={token[:-2]}AA",
        f"{_BASE}/commands?limit=1&continue=x",
    ):
        done = await asyncio.to_thread(evidence_api.run, "get", "--raw", query)
        assert done.returncode == 1, query
        assert "list from the beginning" in done.stderr


async def test_a_version_of_the_future_is_not_answered(evidence_api: EvidenceApi) -> None:
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", f"{_BASE}/commands?resourceVersion=999999999999")
    assert "Too large resource version" in done.stderr


async def test_metadata_alone_can_be_asked_for(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    """What garbage collectors and generic controllers ask for."""
    await Scene(gateway_ca, "metadata-agent").ship(evidence_api)
    async with evidence_api.proxy() as url:
        accept = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"}
        async with aiohttp.ClientSession() as http, http.get(f"{url}{_BASE}/sessions", headers=accept) as answer:
            found = await answer.json()
        assert found["kind"] == "PartialObjectMetadataList"
        assert set(found["items"][0]) == {"kind", "apiVersion", "metadata"}
        async with aiohttp.ClientSession() as http:
            async with http.get(f"{url}{_BASE}/sessions", headers={"Accept": "text/html"}) as answer:
                assert answer.status == 406
            async with http.delete(f"{url}{_BASE}/namespaces/agents/sessions/x") as answer:
                assert answer.status == 405


async def _watching(api: EvidenceApi, *arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*api.command(), "get", *arguments, stdout=subprocess.PIPE)


async def _line(process: asyncio.subprocess.Process) -> list[str]:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode().split()


async def test_a_watch_shows_what_happens(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "watch-agent").ship(evidence_api)
    watching = await _watching(
        evidence_api, "sessions", "-n", "agents", "-l", "chaperone.dev/identity=watch-agent", "--watch"
    )
    try:
        assert (await _line(watching))[0] == "NAME"
        assert {(await _line(watching))[0] for _ in range(2)} == {scene.closed, scene.open}
        scene.stream.intend(scene.open, "DROP TABLE x", decision="Deny", rule="never")
        await scene.ship(evidence_api)
        changed = await _line(watching)
        assert (changed[0], changed[6:]) == (scene.open, ["2", "1", "Open"])
        scene.stream.close_session(scene.open, 2, 1)
        await scene.ship(evidence_api)
        changed = await _line(watching)
        assert (changed[0], changed[8]) == (scene.open, "Closed")
    finally:
        watching.terminate()
        await watching.wait()


async def test_a_watch_of_open_sessions_tells_when_one_no_longer_fits(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = await Scene(gateway_ca, "gone-agent").ship(evidence_api)
    watching = await _watching(
        evidence_api, "sessions", "-n", "agents", "--watch", "--output-watch-events", "-o", "json",
        "--field-selector", "spec.identity=gone-agent,status.state=Open",
    )  # fmt: skip
    decoder, text = json.JSONDecoder(), ""

    async def event() -> tuple[str, str]:
        nonlocal text
        assert watching.stdout is not None
        async with asyncio.timeout(30):
            while True:
                try:
                    found, end = decoder.raw_decode(text.lstrip())
                except json.JSONDecodeError:
                    text += (await watching.stdout.read(65536)).decode()
                    continue
                text = text.lstrip()[end:]
                return found["type"], found["object"]["metadata"]["name"]

    try:
        assert await event() == ("ADDED", scene.open)
        scene.stream.close_session(scene.open, 1, 0)
        other = scene.stream.open_session()
        await scene.ship(evidence_api)
        assert [await event(), await event()] == [("DELETED", scene.open), ("ADDED", other)]
    finally:
        watching.terminate()
        await watching.wait()


async def test_a_watch_resumes_at_any_version_without_loss(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = Scene(gateway_ca, "resume-agent")
    for number in range(40):
        scene.stream.conclude(scene.open, scene.stream.intend(scene.open, f"SELECT {number}"))
    await scene.ship(evidence_api)
    question = "watch=true&timeoutSeconds=1&fieldSelector=spec.identity%3Dresume-agent"

    async def watch(since: int) -> list[tuple[str, str, int]]:
        text = await _kubectl(evidence_api, "get", "--raw", f"{_BASE}/commands?{question}&resourceVersion={since}")
        events = [json.loads(line) for line in text.splitlines()]
        return [
            (event["type"], event["object"]["metadata"]["name"], int(event["object"]["metadata"]["resourceVersion"]))
            for event in events
        ]

    whole = await watch(0)
    versions = [version for _, _, version in whole]
    assert versions == sorted(versions)
    assert len({name for _, name, _ in whole}) == 44
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        rest = await watch(versions[cut])
        assert {name for _, name, _ in whole[cut + 1 :]} <= {name for _, name, _ in rest}


async def test_a_watch_list_ends_its_initial_events_with_a_bookmark(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    await Scene(gateway_ca, "initial-agent").ship(evidence_api)
    query = (
        "watch=true&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
        "&timeoutSeconds=1&labelSelector=chaperone.dev%2Fidentity%3Dinitial-agent"
    )
    text = await _kubectl(evidence_api, "get", "--raw", f"{_BASE}/sessions?{query}")
    events = [json.loads(line) for line in text.splitlines()]
    assert [event["type"] for event in events[:3]] == ["ADDED", "ADDED", "BOOKMARK"]
    assert events[2]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    done = await asyncio.to_thread(
        evidence_api.run, "get", "--raw", f"{_BASE}/sessions?watch=true&sendInitialEvents=true"
    )
    assert "allowWatchBookmarks" in done.stderr


async def test_who_may_not_read_is_refused_by_name(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    await Scene(gateway_ca, "refused-agent").ship(evidence_api)
    done = await asyncio.to_thread(evidence_api.run, "get", "sessions", "-n", "agents", user="nobody")
    assert done.returncode == 1
    assert 'User "nobody" cannot list resource "sessions"' in done.stderr
    allowed = await _kubectl(evidence_api, "get", "sessions", "-n", "agents", user="auditor", groups=("auditors",))
    assert "refused-agent" in allowed
    for elsewhere in (("-n", "elsewhere"), ("-A",)):
        done = await asyncio.to_thread(
            evidence_api.run, "get", "sessions", *elsewhere, user="auditor", groups=("auditors",)
        )
        assert "Forbidden" in done.stderr


async def test_namespaces_do_not_see_each_other(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "elsewhere-agent", "elsewhere").ship(evidence_api)
    assert scene.closed not in await _names(evidence_api, "sessions", "-n", "agents")
    done = await asyncio.to_thread(evidence_api.run, "get", "session", "-n", "agents", scene.closed)
    assert f'sessions.evidence.chaperone.dev "{scene.closed}" not found' in done.stderr
    assert scene.closed in await _names(evidence_api, "sessions", "-n", "elsewhere")


async def test_every_read_is_recorded_before_it_is_answered(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    await Scene(gateway_ca, "read-agent").ship(evidence_api)
    await _kubectl(
        evidence_api, "get", "commands", "-n", "agents", "-l", "chaperone.dev/identity=read-agent", user="auditor",
        groups=("auditors",),
    )  # fmt: skip
    listed = json.loads(await _kubectl(evidence_api, "get", "reads", "-n", "agents", "-o", "json"))
    (found,) = [
        one["spec"] for one in listed["items"]
        if one["spec"]["user"] == "auditor" and "read-agent" in one["spec"].get("query", "")
    ]  # fmt: skip
    assert (found["verb"], found["resource"], found["given"]) == ("list", "commands", 4)
    assert found["groups"] == ["auditors", "system:authenticated"]


async def test_a_proof_verifies_offline(evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path) -> None:
    scene = await Scene(gateway_ca, "proof-agent").ship(evidence_api)
    scene.stream.intend(scene.open, "SELECT 'after the last head'")
    await scene.ship(evidence_api)
    files = await _proof(evidence_api, scene.closed)
    verdict, checked = _verdict(files, gateway_ca)
    assert verdict.problems == []
    assert [report.end for report in verdict.streams] == ["open"]
    assert verdict.streams[0].entries == scene.stream.chain.count - 1  # up to the last signed head
    assert checked == 3  # of the session asked for, not of its neighbour
    assert "trust.pem" not in files
    (tmp_path / "trust.pem").write_text(gateway_ca.pem)
    (tmp_path / "bundle.tar").write_bytes(await _bundle(evidence_api, scene.closed))
    arguments = ("verify", "bundle.tar", "--trust", "trust.pem")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "chaperone_cli.main", *arguments], cwd=tmp_path, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verify: OK" in done.stdout
    (tmp_path / "verify.py").write_bytes(files["verify.py"])
    policy = await _kubectl(evidence_api, "get", "--raw", f"{_BASE}/checkpoints/log/policy")
    (tmp_path / "log.policy").write_text(policy)
    own = ("verify.py", *arguments[1:], "--log-policy", "log.policy")
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, *own], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "verify: OK"), done.stdout + done.stderr


async def test_what_the_log_said_earlier_is_what_it_continues(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    for number in (1, 2):
        scene = await Scene(gateway_ca, f"earlier-agent-{number}").ship(evidence_api)
        files = await _proof(evidence_api, scene.closed)
        (tmp_path / f"{number}.tlog-proof").write_bytes(files[f"log/{scene.stream.id}.tlog-proof"])
    policy = await _kubectl(evidence_api, "get", "--raw", f"{_BASE}/checkpoints/log/policy")
    (tmp_path / "log.policy").write_text(policy)
    arguments = ("consistency", "1.tlog-proof", "2.tlog-proof", "--log-policy", "log.policy")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "chaperone_cli.main", *arguments, "--kubeconfig", str(evidence_api.server.kubeconfig)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout[:16]) == (0, "consistency: OK:"), done.stdout + done.stderr


async def test_a_session_has_a_proof_once_a_head_has_signed_its_end(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = await Scene(gateway_ca, "unsigned-agent").ship(evidence_api)
    scene.stream.close_session(scene.open, commands=1)
    await scene.ship(evidence_api)
    path = f"{_BASE}/namespaces/agents/sessions/{scene.open}/proof"
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", path)
    assert "(ServiceUnavailable)" in done.stderr
    assert "not signed yet" in done.stderr
    scene.stream.head()
    await scene.ship(evidence_api)
    verdict, _ = _verdict(await _proof(evidence_api, scene.open), gateway_ca)
    assert verdict.problems == []


async def test_a_proof_of_a_stream_that_was_succeeded_ends_with_its_successor(
    evidence_api: EvidenceApi, gateway_ca: Authority
) -> None:
    scene = Scene(gateway_ca, "succeeded-agent")
    scene.stream.intend(scene.open, "SELECT 'the last before the crash'")
    await scene.ship(evidence_api)
    following = Stream(scene.pod, previous=scene.stream)
    following.head()
    following.open_session()
    async with Sender(evidence_api.collector, scene.pod) as sender:
        await sender.ship(following)
    verdict, _ = _verdict(await _proof(evidence_api, scene.open), gateway_ca)
    assert verdict.problems == []
    ends = {report.stream: report.end for report in verdict.streams}
    assert ends == {scene.stream.id: "continued", following.id: "open"}
    text = await _kubectl(evidence_api, "get", "session", "-n", "agents", scene.open)
    assert "Lost" in text


async def test_a_proof_needs_its_own_right_and_a_session(evidence_api: EvidenceApi, gateway_ca: Authority) -> None:
    scene = await Scene(gateway_ca, "right-agent").ship(evidence_api)
    path = f"{_BASE}/namespaces/agents/sessions/{scene.closed}/proof"
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", path, user="nobody")
    assert "sessions/proof" in done.stderr
    done = await asyncio.to_thread(evidence_api.run, "get", "--raw", path.replace(scene.closed, "x"))
    assert "not found" in done.stderr


async def test_sigterm_ends_open_watches_and_the_process_in_order(
    evidence_api: EvidenceApi, gateway_ca: Authority, tmp_path: Path
) -> None:
    server, token = evidence_api.server, evidence_api.collector.folder / "token"
    (tmp_path / "ca.crt").write_text(server.authority.pem)
    own = Collector(
        tmp_path, gateway_ca, "--api-port", "0", "--kubernetes", server.url,
        "--kubernetes-ca", str(tmp_path / "ca.crt"), "--kubernetes-token", str(token),
    )  # fmt: skip
    own.start()
    context = ssl.create_default_context(cadata=own.service_ca.pem)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_cert_chain(server.folder / "front-proxy.crt", server.folder / "front-proxy.key")
    url = f"https://127.0.0.1:{own.api_port}{_BASE}/sessions?watch=true"
    headers = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.get(url, headers=headers) as answer,
    ):
        assert answer.status == 200
        stopping = asyncio.create_task(asyncio.to_thread(own.stop))
        async with asyncio.timeout(9):  # less than the time that unfinished requests are given
            assert await answer.content.read() == b""
            assert await stopping == 0


async def _bundle(api: EvidenceApi, session: str) -> bytes:
    path = f"{_BASE}/namespaces/agents/sessions/{session}/proof"
    raw = await asyncio.to_thread(
        subprocess.run, [*api.command(), "get", "--raw", path], capture_output=True, check=True, timeout=60
    )
    return raw.stdout


async def _proof(api: EvidenceApi, session: str) -> dict[str, bytes]:
    """The files of the proof, once the log has signed over it: at most one checkpoint comes in five seconds."""
    async with asyncio.timeout(60):
        while True:
            try:
                bundle = await _bundle(api, session)
                break
            except subprocess.CalledProcessError as error:
                assert b"not signed yet" in error.stderr
            await asyncio.sleep(0.5)
    with tarfile.open(fileobj=io.BytesIO(bundle)) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def _verdict(files: dict[str, bytes], ca: Authority) -> tuple[verify.Verdict, int]:
    reports = []
    checked = 0
    for stream in sorted({name.split("/")[1] for name in files if name.startswith("streams/")}):
        names = sorted(name for name in files if name.startswith(f"streams/{stream}/"))
        frames = [data for name in names for data in entry.frames(files[name])]
        report = verify.verify_stream(stream, frames, [ca.certificate])
        bodies = verify.BodyVerifier(report)
        for name in sorted(name for name in files if name.startswith(f"bodies/{stream}/")):
            for body in entry.body_frames(files[name]):
                bodies.add(body)
        checked += bodies.checked
        reports.append(report)
    return verify.join(reports), checked
