"""Programs that agents use, as they are, through the real `chaperone dev`: nothing but the CA is set up for them."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from fix_http import NAME, Api, Backend, running_backend
from http_backend import ORDERS
from manifests import REPOSITORIES
from programs import NODE, NPM, ran
from recordings import every_byte

from chaperone_evidence import record

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture(scope="module")
def shop(api_with: Callable[..., Api]) -> Api:
    """The API, under a name that every client resolves."""
    return api_with()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """A host of repositories and packages."""
    folder = tmp_path_factory.mktemp("registry")
    with running_backend(folder, str(folder / "served"), program=SUPPORT / "registry_backend.py") as found:
        yield found


@pytest.fixture(scope="module")
def packages(api_with: Callable[..., Api], registry: Backend) -> Api:
    """The way to it: no masks, and a credential for another path alone."""
    return api_with(registry, rules=REPOSITORIES, credential={"path": "/private"})


def commit(folder: Path, text: str) -> None:
    as_somebody = ("-c", "user.name=agent", "-c", "user.email=agent@example.org")
    ran("git", *as_somebody, "commit", "--quiet", "--allow-empty", f"--message={text}", folder=folder)


def objects(api: Api) -> set[str]:
    """What was decided about so far."""
    found = [one for one in api.gateway.records() if isinstance(one, record.CommandIntent)]
    return {f"{one.effect} {one.object}" for intent in found for one in intent.accesses}


def test_nodes_fetch(shop: Api) -> None:
    program = """
const url = process.argv[1], said = [];
for (let turn = 0; turn < 2; turn++) said.push(await (await fetch(url + "/v1/orders")).json());
const body = new Blob(["x".repeat(2000000)]).stream();
const sent = await fetch(url + "/echo", {method: "POST", body, duplex: "half"});
said.push((await sent.json()).size);
const refused = await fetch(url + "/v1/orders/7", {method: "DELETE"});
said.push(refused.status, refused.headers.get("content-type"), (await refused.json()).rule);
console.log(JSON.stringify(said));
"""
    found = ran(
        NODE, "--input-type=module", "--eval", program, shop.url, NODE_EXTRA_CA_CERTS=shop.ca,
        NODE_NO_WARNINGS="1",
    )  # fmt: skip
    assert json.loads(found) == [ORDERS, ORDERS, 2_000_000, 403, "application/problem+json", "never"]


JAVA = """
import java.io.InputStream;
import java.net.URI;
import java.net.http.*;
import java.nio.file.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

class Ask {
    public static void main(String[] words) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        store.load(null, null);
        try (InputStream ca = Files.newInputStream(Path.of(words[0]))) {
            store.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(ca));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        HttpClient client = HttpClient.newBuilder().sslContext(context).build();
        for (int at = 1; at < words.length; at += 2) {
            HttpRequest asked = HttpRequest.newBuilder(URI.create(words[at + 1]))
                .method(words[at], HttpRequest.BodyPublishers.noBody()).build();
            HttpResponse<String> answer = client.send(asked, HttpResponse.BodyHandlers.ofString());
            System.out.println(answer.statusCode() + " " + answer.body());
        }
    }
}
"""


def test_javas_client_over_tls_and_in_the_clear(
    shop: Api, api_with: Callable[..., Api], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    with running_backend(tmp_path_factory.mktemp("plain"), is_tls=False) as plain:
        clear = api_with(plain)
        (tmp_path / "Ask.java").write_text(JAVA)
        there = f"http://{NAME}:{clear.gateway.port}/v1/orders"
        said = ran(
            "java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", tmp_path / "Ask.java", shop.ca,
            "GET", shop.url + "/v1/orders", "GET", shop.url + "/v1/orders", "DELETE", shop.url + "/v1/orders/7",
            "GET", there, "GET", there,
        ).splitlines()  # fmt: skip
    got = [(int(line[:3]), json.loads(line[4:])) for line in said]
    assert [got[at] for at in (0, 1, 3, 4)] == [(200, ORDERS)] * 4
    assert (got[2][0], got[2][1]["rule"]) == (403, "never")


class Here(aiohttp.abc.AbstractResolver):
    """Every name is this machine."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[aiohttp.abc.ResolveResult]:
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    async def close(self) -> None:
        """Nothing is open."""


async def test_aiohttps_client(shop: Api) -> None:
    context = ssl.create_default_context(cafile=str(shop.ca))

    async def pieces() -> object:
        for _ in range(30):
            yield b"x" * 100_000

    connector = aiohttp.TCPConnector(ssl=context, resolver=Here())
    async with aiohttp.ClientSession(shop.url, connector=connector) as client:
        for _ in range(2):
            async with client.get("/v1/orders") as answer:
                assert await answer.json() == ORDERS
        async with client.post("/v1/count", data=pieces()) as answer:
            assert await answer.json() == {"size": 3_000_000}
        async with client.delete("/v1/orders/7") as answer:
            assert answer.status == 403
            assert (await answer.json())["rule"] == "never"


def test_git_clones_fetches_and_pushes(packages: Api, tmp_path: Path) -> None:
    git = ("git", "-c", f"http.sslCAInfo={packages.ca}")
    ran(*git, "clone", "--quiet", packages.url + "/git/app.git", tmp_path / "app")
    assert ran("git", "log", "--format=%s", "-1", folder=tmp_path / "app") == "of main\n"
    commit(tmp_path / "app", "of the agent")
    ran(*git, "push", "--quiet", folder=tmp_path / "app")
    ran(*git, "clone", "--quiet", packages.url + "/git/app.git", tmp_path / "again")
    assert ran("git", "log", "--format=%s", "-1", folder=tmp_path / "again") == "of the agent\n"
    said = ran(*git, "clone", packages.url + "/git/other.git", tmp_path / "other", status=128)
    assert "403" in said
    assert {"create path:/git/app.git/git-upload-pack", "create path:/git/app.git/git-receive-pack"} <= objects(
        packages
    )
    assert (
        b"content-encoding: gzip" in every_byte(packages.gateway.evidence).lower()
    )  # git did compress what it asked for


def test_pip_resumes_a_download_that_broke_off(packages: Api, tmp_path: Path) -> None:
    ran(
        sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--cert", packages.ca,
        "--index-url", packages.url + "/simple/", "--no-cache-dir", "--resume-retries", "3", "--target", tmp_path,
        "shopkit",
    )  # fmt: skip
    assert (tmp_path / "shopkit.py").read_text().startswith("FILL = ")
    ranges = [line.split(" ")[2] for line in packages.backend.heard() if "/wheels/" in line]
    assert ranges[0] == "-"
    assert any(one.startswith("bytes=") and one != "bytes=0-" for one in ranges[1:])


def test_npm_installs_what_has_a_scope(packages: Api, tmp_path: Path) -> None:
    words = (
        NODE, NPM, "install", "--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=0",
        "--replace-registry-host=always", f"--registry={packages.url}/", f"--cafile={packages.ca}",
        f"--cache={tmp_path / 'cache'}", f"--prefix={tmp_path}",
    )  # fmt: skip
    ran(*words, "@shop/cart", folder=tmp_path)
    assert json.loads((tmp_path / "node_modules/@shop/cart/package.json").read_text())["version"] == "1.0.0"
    assert {"read path:/@shop%2Fcart", "read path:/@shop/cart"} <= objects(packages)
    before = packages.backend.heard()
    said = ran(*words, "@shop/secret", status=1, folder=tmp_path)  # a rule that names it with a slash forbids it
    assert "403" in said
    assert packages.backend.heard() == before
