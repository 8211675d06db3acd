"""The Kubernetes client and the mirror against a real API server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from fix_apiserver import ApiServer

from chaperone_operator import kubeconfig
from chaperone_operator.kube import CONFIG_MAPS, NAMESPACES, PODS, SECRETS, ApiError, Client, Object
from chaperone_operator.mirror import Key, Mirror

pytestmark = pytest.mark.peer
TIMEOUT_S = 20.0


@pytest.fixture
async def client(api_server: ApiServer) -> AsyncIterator[Client]:
    async with Client(kubeconfig.from_file(api_server.kubeconfig)) as client:
        yield client


@pytest.fixture
async def namespace(client: Client) -> str:
    made = await client.create(NAMESPACES, {"metadata": {"generateName": "kube-client-"}})
    name: str = made["metadata"]["name"]
    return name


def config_map(name: str, value: str = "x", **labels: str) -> Object:
    return {"metadata": {"name": name, "labels": labels}, "data": {"value": value}}


async def test_object_lives_and_dies(client: Client, namespace: str) -> None:
    made = await client.create(CONFIG_MAPS, config_map("one"), namespace)
    assert (await client.get(CONFIG_MAPS, "one", namespace))["data"] == {"value": "x"}
    await client.merge_patch(CONFIG_MAPS, "one", {"data": {"more": "y"}}, namespace)
    made["data"] = {"value": "z"}
    with pytest.raises(ApiError) as refused:
        await client.replace(CONFIG_MAPS, "one", made, namespace)
    assert (refused.value.status, refused.value.reason) == (409, "Conflict")
    with pytest.raises(ApiError) as again:
        await client.create(CONFIG_MAPS, config_map("one"), namespace)
    assert again.value.reason == "AlreadyExists"
    await client.delete(CONFIG_MAPS, "one", namespace)
    await client.delete(CONFIG_MAPS, "one", namespace)
    with pytest.raises(ApiError) as gone:
        await client.get(CONFIG_MAPS, "one", namespace)
    assert (gone.value.status, gone.value.reason) == (404, "NotFound")


async def test_apply_owns_its_fields_and_leaves_others(client: Client, namespace: str) -> None:
    await client.apply(CONFIG_MAPS, "shared", {"data": {"a": "1"}}, manager="one", namespace=namespace)
    await client.apply(CONFIG_MAPS, "shared", {"data": {"b": "2"}}, manager="two", namespace=namespace)
    assert (await client.get(CONFIG_MAPS, "shared", namespace))["data"] == {"a": "1", "b": "2"}
    with pytest.raises(ApiError) as refused:
        await client.apply(CONFIG_MAPS, "shared", {"data": {"a": "3"}}, manager="two", namespace=namespace, force=False)
    assert refused.value.reason == "Conflict"


async def test_list_reads_all_pages_and_selectors(client: Client, namespace: str) -> None:
    for first in range(0, 510, 30):  # more than one page; all at once, the last would wait for its connection too long
        async with asyncio.TaskGroup() as tasks:
            for number in range(first, first + 30):
                made = config_map(f"m-{number}", parity=str(number % 2))
                tasks.create_task(client.create(CONFIG_MAPS, made, namespace))
    assert len((await client.list(CONFIG_MAPS, namespace)).items) == 510
    assert len((await client.list(CONFIG_MAPS, namespace, "parity=1")).items) == 255
    named = await client.list(CONFIG_MAPS, namespace, field_selector="metadata.name=m-7")
    assert [item["metadata"]["name"] for item in named.items] == ["m-7"]


async def test_name_cannot_leave_its_place_in_the_path(client: Client, namespace: str) -> None:
    with pytest.raises(ApiError) as refused:
        await client.get(PODS, f"../../{namespace}/secrets/x", namespace)
    assert refused.value.status == 404


async def test_mirror_follows_and_survives_a_lost_history(client: Client, namespace: str) -> None:
    seen: asyncio.Queue[Key] = asyncio.Queue()
    mirror = Mirror(client, CONFIG_MAPS, namespace, "kept=yes", seen.put_nowait)
    await client.create(CONFIG_MAPS, config_map("before", kept="yes"), namespace)
    task = asyncio.create_task(mirror.run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            assert await seen.get() == (namespace, "before")
            assert mirror.synced.is_set()
            await client.create(CONFIG_MAPS, config_map("ignored"), namespace)
            await client.create(CONFIG_MAPS, config_map("later", kept="yes"), namespace)
            assert await seen.get() == (namespace, "later")
            await client.merge_patch(CONFIG_MAPS, "later", {"data": {"value": "new"}}, namespace)
            assert await seen.get() == (namespace, "later")
            assert mirror.objects[namespace, "later"]["data"]["value"] == "new"
            await client.delete(CONFIG_MAPS, "before", namespace)
            assert await seen.get() == (namespace, "before")
            assert mirror.objects.keys() == {(namespace, "later")}
    finally:
        task.cancel()


async def test_mirror_lists_again_when_its_connection_is_cut(api_server: ApiServer, namespace: str) -> None:
    seen: asyncio.Queue[Key] = asyncio.Queue()
    access = kubeconfig.from_file(api_server.kubeconfig)
    async with Client(access) as watching, Client(access) as writing:
        mirror = Mirror(watching, CONFIG_MAPS, namespace, "kept=yes", seen.put_nowait)
        task = asyncio.create_task(mirror.run())
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await mirror.synced.wait()
                await watching.close()
                await writing.create(CONFIG_MAPS, config_map("meanwhile", kept="yes"), namespace)
                assert await seen.get() == (namespace, "meanwhile")
        finally:
            task.cancel()


@asynccontextmanager
async def scripted(watches: list[bytes | None], silence_s: float) -> AsyncIterator[tuple[Client, list[str]]]:
    """A server whose lists hold one object more each time, and whose watches say one line, or nothing at all."""
    calls: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        if "watch" not in request.query:
            calls.append("list")
            items = [config_map(f"m-{number}") for number in range(calls.count("list"))]
            return web.json_response({"metadata": {"resourceVersion": str(100 * len(items))}, "items": items})
        calls.append(f"watch {request.query['resourceVersion']}")
        response = web.StreamResponse()
        await response.prepare(request)
        line = watches.pop(0) if watches else None
        if line is None:
            await asyncio.Event().wait()
        else:
            await response.write(line + b"\n")
        return response

    app = web.Application()
    app.router.add_get("/api/v1/configmaps", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    access = kubeconfig.Access(f"http://127.0.0.1:{port}", ssl.create_default_context())
    async with Client(access, silence_s=silence_s) as client:
        yield client, calls
    await runner.cleanup()


async def test_mirror_lists_again_when_its_version_is_too_old() -> None:
    gone = b'{"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}'
    async with scripted([gone], silence_s=60.0) as (client, calls):
        seen: asyncio.Queue[Key] = asyncio.Queue()
        task = asyncio.create_task(Mirror(client, CONFIG_MAPS, on_change=seen.put_nowait).run())
        async with asyncio.timeout(TIMEOUT_S):
            assert [await seen.get(), await seen.get()] == [("", "m-0"), ("", "m-1")]
        task.cancel()
    assert calls[:3] == ["list", "watch 100", "list"]


async def test_watch_that_falls_silent_goes_on_from_its_last_version() -> None:
    bookmark = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "150"}}}'
    added = b'{"type": "ADDED", "object": {"metadata": {"name": "late", "resourceVersion": "160"}}}'
    async with scripted([None, bookmark, added], silence_s=3.0) as (client, calls):
        seen: asyncio.Queue[Key] = asyncio.Queue()
        task = asyncio.create_task(Mirror(client, CONFIG_MAPS, on_change=seen.put_nowait).run())
        async with asyncio.timeout(TIMEOUT_S):
            assert [await seen.get(), await seen.get()] == [("", "m-0"), ("", "late")]
        task.cancel()
    assert calls == ["list", "watch 100", "watch 100", "watch 150"]


async def test_user_without_rights_is_refused_by_name(api_server: ApiServer) -> None:
    async with Client(kubeconfig.from_file(api_server.kubeconfig_of("nobody"))) as client:
        with pytest.raises(ApiError) as refused:
            await client.get(SECRETS, "x", "default")
    assert refused.value.status == 403
    assert "nobody" in str(refused.value)


async def test_server_of_another_ca_is_not_spoken_to(api_server: ApiServer, tmp_path: Path) -> None:
    config = yaml.safe_load(api_server.kubeconfig.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    async with Client(kubeconfig.from_file(path)) as client:
        with pytest.raises(ApiError) as refused:
            await client.list(NAMESPACES)
    assert refused.value.status == 0


@pytest.mark.parametrize(
    ("place", "change", "fragment"),
    [
        ("clusters", {"cluster": {"server": "https://x", "insecure-skip-tls-verify": True}}, "not verified by TLS"),
        ("clusters", {"cluster": {"server": "http://x"}}, "not verified by TLS"),
        ("users", {"user": {"exec": {"command": "evil"}}}, "credential plug-in"),
        ("users", {"name": "somebody-else"}, "cannot be used"),
    ],
)
def test_kubeconfig_that_trusts_too_much_is_refused(tmp_path: Path, place: str, change: Object, fragment: str) -> None:
    config: Object = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://x"}}],
        "users": [{"name": "u", "user": {"token": "canary-token"}}],
    }
    config[place][0] |= change
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(kubeconfig.ConfigError) as refused:
        kubeconfig.from_file(path)
    assert fragment in str(refused.value)
    assert "canary" not in str(refused.value)


def test_token_is_not_in_the_repr(tmp_path: Path) -> None:
    config: Object = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://x"}}],
        "users": [{"name": "u", "user": {"token": "canary-token"}}],
    }
    path = tmp_path / "config"
    path.write_text(yaml.safe_dump(config))
    access = kubeconfig.from_file(path)
    assert access.bearer() == "canary-token"
    assert "canary" not in repr(access)
