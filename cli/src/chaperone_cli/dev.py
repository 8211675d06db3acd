"""`chaperone dev`: the gateway on loopback, with manifests from a directory and no cluster.

The same compiler, policy engine, session core and evidence as in a pod. What a cluster provides is played here:
credentials (and the key of masks that hash) come from Secret manifests, and a CA made for this run certifies the
stream's key; its certificate is added to trust.pem beside the evidence.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import ipaddress
import secrets
import signal
import socket
import sys
import tempfile
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from chaperone_cli.desk import FileDesk, Settings
from chaperone_cli.policy_world import Object, Objects, Unusable, from_directory, opa_program, set_local_aside
from chaperone_cli.say import say
from chaperone_evidence import record
from chaperone_evidence.certificate import STREAM_KEY_SCHEME, subject_uri
from chaperone_operator.compile import Snapshot
from chaperone_operator.compile.credential import HttpHeader, SecretRef
from chaperone_sidecar import config as gateway_config
from chaperone_sidecar.config import GatewayConfig, IPAddress, Target
from chaperone_sidecar.credentials.broker import Header, Lease
from chaperone_sidecar.credentials.lease import User
from chaperone_sidecar.errors import ChaperoneError, LeaseRefused
from chaperone_sidecar.gateway import Gateway
from chaperone_sidecar.listener import Acceptor
from chaperone_sidecar.policy.decider import Decider
from chaperone_sidecar.recording.ids import Ids
from chaperone_sidecar.recording.stream import begin_stream, make_signer
from chaperone_sidecar.tls import PodCa

SPOOL_BYTES: Final = 4 << 30  # nothing is shipped and freed here, so the bound is that of a long benchmark
OPA_TIMEOUT_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1  # prctl(2)
CLUSTER: Final = "dev"
TOKEN_SECRET: Final = "kubernetes.io/service-account-token"  # noqa: S105 - a type
KNOWN_HOSTS: Final = "ssh_known_hosts"  # beside the evidence: what an agent's pod finds in /etc/ssh
MASK_KEY_SECRET: Final = "chaperone-mask-key"  # noqa: S105 - a name
MIN_MASK_KEY_BYTES: Final = 16  # what masks ask for


def run(manifests: Path, identity: str, evidence: Path, listen: tuple[str, ...]) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    try:
        world = from_directory(manifests, identity)
        local = set_local_aside(world.objects["AccessTarget"])
        objects, snapshot = world.objects, world.snapshot(world.namespace_of(identity))
        places = dict(_place(text) for text in listen)
        uvloop.run(_serve(objects, snapshot, _config(snapshot, identity, local), evidence, places))
    except (Unusable, ChaperoneError) as error:
        click.echo(f"chaperone dev: {error}", err=True)
        return 2
    return 0


def _place(text: str) -> tuple[str, tuple[str, int]]:
    target, _, address = text.partition("=")
    host, _, port = address.rpartition(":")
    if not target or not host or not port.isdigit():
        raise Unusable(f"--listen {text}: write TARGET=HOST:PORT.")
    return target, (host.strip("[]"), int(port))


async def _serve(
    objects: Objects,
    snapshot: Snapshot,
    config: GatewayConfig,
    evidence: Path,
    places: dict[str, tuple[str, int]],
) -> None:
    targets = {target.name: target for target in config.targets}
    for name in places:
        if name not in targets:
            raise Unusable(f'The identity has no target "{name}"; it has: {", ".join(sorted(targets)) or "none"}.')
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        opa = await stack.enter_async_context(_opa(snapshot.bundle))
        decider = Decider(config.identity.name, opa)
        await decider.start()
        stack.push_async_callback(decider.stop)
        if not await decider.wait_for_revision(snapshot.revision, OPA_TIMEOUT_S):
            raise Unusable("OPA did not load the policies in time.")
        gateway = _gateway(objects, snapshot, config, evidence, decider)
        if any(target.protocol == "SSH" for target in config.targets):
            (evidence / KNOWN_HOSTS).write_text(gateway.ssh_host_key.known_hosts(config.targets))
        for name, (host, listen_port) in places.items():
            server = listen(gateway, targets[name], host, listen_port)
            stack.push_async_callback(_close, server)
        heads = asyncio.create_task(gateway.keep_heads())
        click.echo("ready")
        sys.stdout.flush()
        await stop.wait()
        heads.cancel()
        gateway.close("the gateway was stopped")


def _config(snapshot: Snapshot, identity: str, local: dict[str, str]) -> GatewayConfig:
    configs = msgspec.json.decode(snapshot.gateway, type=dict[str, msgspec.Raw])
    config = gateway_config.decode(bytes(configs[identity]))
    if config.delegation is not None:
        raise Unusable(
            f"AgentIdentity {identity} has spec.delegation, and only in a cluster is a broker that checks tokens; "
            "leave it out here."
        )
    if config.identity.durability == "Witnessed":
        raise Unusable(
            f"AgentIdentity {identity} has spec.evidence.durability Witnessed, and only in a cluster is a collector "
            "whose log signs records; write Synced or Written here."
        )
    replace = msgspec.structs.replace
    targets = tuple(
        replace(target, upstream=replace(target.upstream, host=local[target.name])) if target.name in local else target
        for target in config.targets
    )
    return replace(config, targets=targets)


def _gateway(objects: Objects, snapshot: Snapshot, config: GatewayConfig, evidence: Path, decider: Decider) -> Gateway:
    mask_key = _mask_key(objects["Secret"])
    # One directory plays one pod: a stream may only be followed by one of the same pod.
    pod_uid = str(uuid.uuid5(uuid.NAMESPACE_URL, evidence.resolve().as_uri()))
    signer = make_signer(CLUSTER, pod_uid)
    pod = socket.gethostname().split(".")[0] or "localhost"
    uri = subject_uri(CLUSTER, config.identity.namespace, pod, pod_uid, config.identity.name)
    evidence.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate = _certify(evidence / "trust.pem", uri, signer.verifier.vkey)
    opened = record.StreamOpen(
        seq=0, wall_us=0, mono_us=0, stream="", cluster=CLUSTER, namespace=config.identity.namespace, pod=pod,
        pod_uid=pod_uid, identity=config.identity.name, identity_uid=config.identity.uid, vkey="",
        owner=config.identity.owner.name, certificate=base64.b64encode(certificate).decode(),
        durability=config.identity.durability, revision=config.revision,
    )  # fmt: skip
    recorder, _ = begin_stream(evidence, SPOOL_BYTES, signer, opened, Ids())
    leases = _Leases(objects["Secret"], snapshot, config.identity.name)
    settings = msgspec.json.decode(snapshot.approvals, type=dict[str, Settings])
    desk = FileDesk(evidence.with_name(f"{evidence.name}-approvals"), settings, lambda line: say(line, err=True))
    return Gateway(config, recorder, decider, _dial, _resolve, leases, PodCa(pod), mask_key, desk)


def _mask_key(manifests: list[Object]) -> bytes:
    """The key for masks with method Hash: of a Secret, so that hashes outlive the run, else one for this run."""
    for secret in manifests:
        if secret["metadata"]["name"] == MASK_KEY_SECRET:
            text, encoded = (secret.get("stringData") or {}).get("key"), (secret.get("data") or {}).get("key", "")
            try:
                key = str(text).encode() if text is not None else base64.b64decode(encoded, validate=True)
            except (TypeError, ValueError):
                key = b""
            if len(key) < MIN_MASK_KEY_BYTES:
                raise Unusable(
                    f'Secret "{MASK_KEY_SECRET}" needs a key named key of {MIN_MASK_KEY_BYTES} bytes or more.'
                )
            return key
    return secrets.token_bytes(32)


def _certify(trust: Path, uri: str, vkey: str) -> bytes:
    """Make a CA for this run, add its certificate to the trusted ones, and certify the stream's key with it."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "chaperone dev")])
    now = datetime.now(UTC)

    def build(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=365))
        )

    ca = (
        build(name, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.UniformResourceIdentifier(text) for text in (uri, STREAM_KEY_SCHEME + vkey)]
    certificate = (
        build(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    with trust.open("ab") as file:
        file.write(ca.public_bytes(serialization.Encoding.PEM))
    return certificate.public_bytes(serialization.Encoding.DER)


class _Leases:
    """Plays the broker: credentials from Secret manifests."""

    def __init__(self, secrets: list[Object], snapshot: Snapshot, identity: str) -> None:
        self._secrets = {secret["metadata"]["name"]: secret for secret in secrets}
        self._granted = msgspec.json.decode(snapshot.leases, type=dict[str, dict[str, dict[str, Any]]]).get(
            identity, {}
        )

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        """The credential of a target, or LeaseRefused."""
        names = self._granted.get(target)
        if names is None:
            raise LeaseRefused("no policy of this identity grants anything at this target.")
        ca = self._read(names["ca_secret"]) if names.get("ca_secret") else {}
        asked = names.get("credential") or {}
        if "kubernetesToken" in asked:
            account = asked["kubernetesToken"]
            token = self._token(account["serviceAccount"], account["namespace"])
            return Lease("", "", ca.get("ca.crt", ""), 2**53 - 1, session, "token", token)
        if "httpHeader" in asked:
            return Lease(
                "", "", ca.get("ca.crt", ""), 2**53 - 1, kind="header", header=self._header(asked["httpHeader"])
            )
        if session or "secret" not in names:
            raise LeaseRefused(
                "without a cluster only credentials of kinds secretRef, kubernetesToken and httpHeader can be leased."
            )
        credential = self._read(names["secret"])
        try:
            if "ssh-privatekey" in credential:
                return Lease(
                    credential["username"], private_key=credential["ssh-privatekey"], expires_at_unix=2**53 - 1
                )
            return Lease(credential["username"], credential["password"], ca.get("ca.crt", ""), 2**53 - 1)
        except KeyError as error:
            raise LeaseRefused(f'Secret "{names["secret"]}" has no key {error}.') from None

    def forget(self, lease: Lease) -> None:
        """Nothing is kept: each session reads the manifests' Secret."""

    def use(self, lease: Lease, user: User) -> None:
        """Nothing ends here."""

    def let_go(self, user: User) -> None:
        """Nothing is kept."""

    def _token(self, account: str, namespace: str) -> str:
        """The token of a service account, from the Secret made for it; impersonation is the broker's."""
        for secret in self._secrets.values():
            metadata = secret["metadata"]
            named = (metadata.get("annotations") or {}).get("kubernetes.io/service-account.name")
            if (secret.get("type"), named, metadata.get("namespace")) == (TOKEN_SECRET, account, namespace):
                return self._read(metadata["name"]).get("token", "")
        raise LeaseRefused(
            f"the manifests have no Secret of type {TOKEN_SECRET} for the service account {namespace}/{account}."
        )

    def _header(self, asked: dict[str, Any]) -> Header:
        """A header out of a Secret, and where it may be sent to."""
        value = asked.get("prefix", "") + self._read(asked["secretRef"]["name"]).get("token", "").rstrip("\r\n")
        spec = HttpHeader(SecretRef(""), asked["host"])
        place = (asked.get("scheme", spec.scheme), asked["host"], asked.get("port", spec.port))
        return Header(asked.get("header", spec.header), value, *place, asked.get("path", spec.path))

    def _read(self, name: str) -> dict[str, str]:
        secret = self._secrets.get(name)
        if secret is None:
            raise LeaseRefused(f'Secret "{name}" does not exist in the manifests.')
        decoded = {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}
        return decoded | {key: str(value) for key, value in (secret.get("stringData") or {}).items()}


async def _resolve(host: str) -> tuple[IPAddress, ...]:
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(ipaddress.ip_address(address[0]) for *_, address in found)


async def _dial(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    last: OSError = OSError("the name has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await loop.sock_connect(connection, address)
        except OSError as error:
            connection.close()
            last = error
        else:
            return connection
    raise last


def listen(gateway: Gateway, target: Target, host: str, port: int) -> Acceptor:
    """Serve a target at an address.

    Raises:
        Unusable: it cannot be listened at.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = socket.create_server((host, port), family=family)
    except OSError as error:
        raise Unusable(f"Cannot listen on {host}:{port}: {error.strerror}.") from error
    acceptor = Acceptor(lambda connection: gateway.take(connection, target))
    acceptor.start(server)
    return acceptor


async def _close(acceptor: Acceptor) -> None:
    acceptor.close()
    await asyncio.sleep(0)  # last words that were written leave with this turn of the loop


@contextlib.asynccontextmanager
async def _opa(bundle: bytes) -> Any:  # noqa: ANN401 - an async iterator of the socket's path
    program = opa_program()
    with tempfile.TemporaryDirectory(prefix="chaperone-dev-") as directory:
        path, listening = Path(directory) / "bundle.tar.gz", Path(directory) / "opa.sock"
        path.write_bytes(bundle)
        process = await asyncio.create_subprocess_exec(
            program, "run", "--server", f"--addr=unix://{listening}", "--log-level=error", "--skip-version-check",
            "--bundle", str(path), stdin=asyncio.subprocess.DEVNULL, preexec_fn=_end_with_parent,
        )  # fmt: skip
        try:
            yield listening
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _end_with_parent() -> None:
    """In the child: the kernel ends it when this process goes, killed or not."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
