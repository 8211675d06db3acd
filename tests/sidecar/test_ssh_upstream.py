"""The gateway's own log-in at a real sshd: which host is believed, and with what it shows itself."""

from __future__ import annotations

import asyncio
import getpass
import socket
import subprocess
from pathlib import Path

import fix_sshd
import pytest
from fix_ssh import Host
from fix_sshd import key_pair

from chaperone_sidecar.config import Ssh, Target, Tls
from chaperone_sidecar.config import Upstream as Place
from chaperone_sidecar.credentials.broker import Lease
from chaperone_sidecar.credentials.lease import User
from chaperone_sidecar.errors import LeaseRefused, UpstreamUnavailable
from chaperone_sidecar.protocols.ssh.upstream import Upstream

pytestmark = pytest.mark.peer


class Services:
    """The way out, and a broker that signs with a CA where a key is shown."""

    def __init__(self, lease: Lease | None = None, authority: Path | None = None, names: str = "") -> None:
        self.leases = self
        self._lease = lease
        self._authority = authority
        self._names = names
        self.used: list[Lease] = []

    async def dial(self, host: str, port: int) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (host, port))
        except OSError:
            connection.close()
            raise
        return connection

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        if self._authority is not None:
            key = self._authority.parent / "session.pub"
            key.write_text(public_key)
            await asyncio.to_thread(
                subprocess.run,
                ["ssh-keygen", "-q", "-s", str(self._authority), "-I", session, "-n", self._names, str(key)],
                check=True,
            )
            certificate = (self._authority.parent / "session-cert.pub").read_text()
            return Lease(certificate=certificate, kind="certificate", expires_at_unix=2**40)
        if self._lease is None:
            raise LeaseRefused("policy grants nothing here.")
        return self._lease

    def forget(self, lease: Lease) -> None:
        pass

    def use(self, lease: Lease, user: User) -> None:
        self.used.append(lease)

    def let_go(self, user: User) -> None:
        pass


def upstream(
    services: Services, port: int, *keys: str, authorities: tuple[str, ...] = (), made: bool = False
) -> Upstream:
    target = Target(
        "build-host", "SSH", port, (), Place("127.0.0.1", port), Tls("VerifyFull"),
        ssh=Ssh(tuple(keys), authorities), leased_per_session=made,
    )  # fmt: skip
    return Upstream(services, target, "01SESSION")  # type: ignore[arg-type] - all of them that it asks


def lease(host: Host, key: str = "client_key") -> Lease:
    return Lease(getpass.getuser(), private_key=(host.folder / key).read_text(), expires_at_unix=2**40)


async def said(one: Upstream) -> str:
    with pytest.raises(UpstreamUnavailable) as refused:
        await one.open()
    return str(refused.value)


async def test_a_leased_key_logs_in_at_the_host_whose_key_is_pinned(ssh_host: Host) -> None:
    services = Services(lease(ssh_host))
    one = upstream(services, ssh_host.port, ssh_host.host_key)
    connection = await one.open()
    found = await connection.run("echo here", check=True)
    assert found.stdout == "here\n"
    assert services.used and one.address.endswith(f":{ssh_host.port}")
    one.close()


async def test_another_host_gets_nothing(ssh_host: Host, tmp_path: Path) -> None:
    other = key_pair(tmp_path / "other").with_suffix(".pub").read_text().strip()
    assert "its host key is none of those" in await said(upstream(Services(lease(ssh_host)), ssh_host.port, other))
    assert "names no host key" in await said(upstream(Services(lease(ssh_host)), ssh_host.port))
    assert "cannot be read" in await said(upstream(Services(lease(ssh_host)), ssh_host.port, "ssh-ed25519 AAAA"))


async def test_what_fails_is_said(ssh_host: Host, tmp_path: Path) -> None:
    key_pair(ssh_host.folder / "stranger")
    stranger = upstream(Services(lease(ssh_host, "stranger")), ssh_host.port, ssh_host.host_key)
    assert "refuses the gateway's credential" in await said(stranger)
    assert "policy grants nothing here" in await said(upstream(Services(), ssh_host.port, ssh_host.host_key))
    with socket.create_server(("127.0.0.1", 0)) as made:
        port = made.getsockname()[1]
    assert "cannot be reached" in await said(upstream(Services(lease(ssh_host)), port, ssh_host.host_key))
    broken = Lease("user", private_key="-----BEGIN OPENSSH PRIVATE KEY-----\nx", expires_at_unix=2**40)
    told = await said(upstream(Services(broken), ssh_host.port, ssh_host.host_key))
    assert told == "The target's credential is no key or certificate that can be read."


async def test_a_certificate_for_the_session_is_shown_once(tmp_path: Path) -> None:
    authority = key_pair(tmp_path / "ca")
    with fix_sshd.running(tmp_path, authority.with_suffix(".pub")) as sshd:
        host_key = (tmp_path / "host_key.pub").read_text().strip()
        services = Services(authority=authority, names=sshd.user)
        one = upstream(services, sshd.port, host_key, made=True)
        connection = await one.open()
        assert (await connection.run("echo here", check=True)).stdout == "here\n"
        assert one.user == sshd.user and not services.used
        one.close()
        assert "01SESSION" in sshd.log
