"""The way to the API server: one lease for all, another when it grows old, an end with it; against the real server."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from urllib.parse import urlsplit

import pytest
from fix_apiserver import ApiServer

from chaperone_sidecar.config import Target, Tls
from chaperone_sidecar.config import Upstream as Place
from chaperone_sidecar.credentials.broker import Impersonated, Lease
from chaperone_sidecar.credentials.lease import User
from chaperone_sidecar.errors import LeaseRefused, UpstreamUnavailable
from chaperone_sidecar.protocols.kubernetes.upstream import Login, Upstream

REVIEW = b'{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}'
PATH = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
JSON = {"Content-Type": "application/json"}


class Source:
    """Gives leases, and says who has them."""

    def __init__(self, server: ApiServer, token: str, impersonate: Impersonated | None = None) -> None:
        self.lease_now = Lease("", "", server.authority.pem, int(time.time()) + 3600, "", "token", token, impersonate)
        self.given: list[str] = []
        self.users: list[User] = []
        self.refuses = False

    async def lease(self, target: str, session: str = "") -> Lease:
        await asyncio.sleep(0.01)
        if self.refuses:
            raise LeaseRefused("the broker says no.")
        self.given.append(session)
        return self.lease_now

    def forget(self, lease: Lease) -> None:
        """Nothing is kept."""

    def use(self, lease: Lease, user: User) -> None:
        self.users.append(user)

    def let_go(self, user: User) -> None:
        self.users.remove(user)


async def dial(host: str, port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


def upstream(server: ApiServer, source: Source) -> Upstream:
    place = Place("localhost", urlsplit(server.url).port or 0)
    return Upstream(Target("c", "Kubernetes", 443, (), place, Tls("VerifyFull"), leased_per_session=True), dial, source)


async def who(login: Login) -> dict[str, object]:
    async with login.request("POST", PATH, JSON, REVIEW, lambda _: None, is_stream=False) as answer:
        assert answer.status == 201
        found: dict[str, object] = json.loads(await answer.read())["status"]["userInfo"]
        return found


async def test_requests_share_a_lease_that_is_for_one_session(api_server: ApiServer, agent_token: str) -> None:
    source = Source(api_server, agent_token)
    way = upstream(api_server, source)
    logins = await asyncio.gather(*(way.login() for _ in range(5)))
    assert len(set(map(id, logins))) == 1
    assert len(source.given) == 1
    assert len(source.given[0]) == 26  # a ULID
    assert (await who(logins[0]))["username"] == "system:serviceaccount:agents:agent"
    way.close()
    assert source.users == []


async def test_the_holder_of_a_token_acts_as_whom_the_lease_says(api_server: ApiServer, agent_token: str) -> None:
    source = Source(api_server, agent_token, Impersonated("chaperone:agents:billing", ("agents", "readers")))
    way = upstream(api_server, source)
    found = await who(await way.login())
    assert found["username"] == "chaperone:agents:billing"
    assert {"agents", "readers"} <= set(found["groups"])  # type: ignore[call-overload]
    way.close()


async def test_an_old_lease_serves_what_runs_and_a_new_one_what_comes(api_server: ApiServer, agent_token: str) -> None:
    source = Source(api_server, agent_token)
    way = upstream(api_server, source)
    old = await way.login()
    path = "/api/v1/namespaces/agents/configmaps?watch=1"
    async with old.request("GET", path, {}, b"", lambda _: None, is_stream=True) as answer:
        assert answer.status == 200
        old.renew_at = 0  # two thirds of its life are over
        new = await way.login()
        assert new is not old
        assert len(source.given) == 2
        assert source.users == [old, new]
        assert b"ADDED" in await answer.content.readline()
    assert source.users == [new]
    way.close()


async def test_what_runs_ends_with_its_lease(api_server: ApiServer, agent_token: str) -> None:
    source = Source(api_server, agent_token)
    way = upstream(api_server, source)
    login = await way.login()
    ended: list[Exception] = []
    path = "/api/v1/namespaces/agents/configmaps?watch=1"
    async with login.request("GET", path, {}, b"", ended.append, is_stream=True):
        login.fail(LeaseRefused("it has ended."))
        assert [str(one) for one in ended] == ["it has ended."]
    assert source.users == []
    assert await way.login() is not login
    way.close()


async def test_without_a_lease_there_is_no_request(api_server: ApiServer, agent_token: str) -> None:
    source = Source(api_server, agent_token)
    source.refuses = True
    with pytest.raises(UpstreamUnavailable, match="the broker says no"):
        await upstream(api_server, source).login()
    password = Source(api_server, agent_token)
    password.lease_now = Lease("u", "p", "", 2**40)
    with pytest.raises(UpstreamUnavailable, match="no token"):
        await upstream(api_server, password).login()
