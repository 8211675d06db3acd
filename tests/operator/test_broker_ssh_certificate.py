"""SSH certificates: signed by a real broker, read by ssh-keygen, accepted and refused by a real sshd."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fix_broker import Broker, Pod, secret
from fix_sshd import Sshd, key_pair, running
from leasing import enrolled, leased, put_target, refused, session

from chaperone_operator.compile.credential import Place
from chaperone_operator.kube import SECRETS, Object

pytestmark = pytest.mark.peer

PLACE = Place("ssh.example", 22, "", "Disable", "")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A server that trusts the CA of this module."""
    folder = tmp_path_factory.mktemp("sshd")
    key_pair(folder / "ca")
    with running(folder, folder / "ca.pub") as server:
        yield server


@pytest.fixture
async def pod(broker: Broker, sshd: Sshd) -> Pod:
    """A pod, and the CA's key in a Secret."""
    await put_ca(broker, (sshd.folder / "ca").read_text())
    return await enrolled(broker)


async def put_ca(broker: Broker, key: str) -> None:
    async with broker.admin() as client:
        made = secret("ssh-ca", "Opaque", **{"ssh-privatekey": key})
        await client.apply(SECRETS, "ssh-ca", made, manager="test", namespace=broker.system)


def credential(*principals: str, **more: object) -> Object:
    return {"sshCertificate": {"caSecretRef": {"name": "ssh-ca"}, "principals": list(principals)} | more}


async def certified(pod: Pod, folder: Path, one: str, **kinds: Object) -> tuple[Path, Object, str]:
    """A key with its certificate, the lease, and what ssh-keygen says of the certificate."""
    key = key_pair(folder / f"key-{time.monotonic_ns()}")
    await put_target(pod.broker, kinds, PLACE)
    public = key.with_suffix(".pub").read_text()
    lease = await leased(pod, lambda found: found["kind"] == "certificate", session=one, public_key=public)
    return key, lease, told_of(Path(f"{key}-cert.pub"), lease["certificate"])


def told_of(path: Path, certificate: str) -> str:
    """What ssh-keygen says of a certificate that is put in a file."""
    path.write_text(certificate)
    done = subprocess.run(["ssh-keygen", "-L", "-f", path], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout


async def test_certificate_says_for_whom_and_what_it_is_and_logs_in(pod: Pod, sshd: Sshd, tmp_path: Path) -> None:
    one = session()
    key, lease, told = await certified(pod, tmp_path, one, **credential(sshd.user))
    assert f'Key ID: "chaperone:{pod.broker.agents}/billing-agent:{one}"' in told
    assert "user certificate" in told
    assert sshd.user in told
    assert "Extensions: (none)" in told
    assert "Critical Options: (none)" in told
    assert 4 * 60 < lease["expires_at_unix"] - time.time() <= 5 * 60
    done = sshd.run(key, "echo in")
    assert (done.returncode, done.stdout) == (0, "in\n"), done.stderr + sshd.log
    assert f"chaperone:{pod.broker.agents}/billing-agent:{one}" in sshd.log  # joins with the records
    assert "BEGIN OPENSSH" not in pod.broker.log.read_text()


async def test_certificate_may_do_what_it_says_and_no_more(pod: Pod, sshd: Sshd, tmp_path: Path) -> None:
    spec = credential(sshd.user, extensions=["permit-pty"], forceCommand="echo forced")
    key, _, told = await certified(pod, tmp_path, session(), **spec)
    assert "permit-pty" in told
    assert "permit-port-forwarding" not in told
    assert sshd.run(key, "echo mine").stdout == "forced\n"


async def test_certificate_of_another_principal_or_of_an_earlier_time_is_refused_by_the_server(
    pod: Pod, sshd: Sshd, tmp_path: Path
) -> None:
    key, _, _ = await certified(pod, tmp_path, session(), **credential("somebody-else"))
    assert sshd.run(key, "echo in").returncode == 255
    key, lease, _ = await certified(pod, tmp_path, session(), **credential(sshd.user, validFor="1s"))
    await asyncio.sleep(max(0.0, lease["expires_at_unix"] - time.time()) + 1)
    assert sshd.run(key, "echo in").returncode == 255


async def test_key_that_no_certificate_is_made_for_is_refused(pod: Pod, tmp_path: Path) -> None:
    await certified(pod, tmp_path, session(), **credential("x"))
    small = key_pair(tmp_path / "small", "-t", "rsa", "-b", "1024").with_suffix(".pub").read_text()
    private = key_pair(tmp_path / "private").read_text()
    for bad in ("", "x", small, private, "ssh-ed25519 AAAA", "é"):
        assert "Send public_key in OpenSSH form" in await refused(pod, 400, public_key=bad)


@pytest.mark.parametrize("key", ["", "canary-no-key", "-----BEGIN OPENSSH PRIVATE KEY-----\ncanary\n"])
async def test_authority_that_cannot_sign_is_said_without_its_key(pod: Pod, tmp_path: Path, key: str) -> None:
    await certified(pod, tmp_path, session(), **credential("x"))
    await put_ca(pod.broker, key)
    public = key_pair(tmp_path / "fine").with_suffix(".pub").read_text()
    told = await refused(pod, 424, public_key=public)
    assert "ssh-privatekey" in told
    assert "canary" not in told + pod.broker.log.read_text()
