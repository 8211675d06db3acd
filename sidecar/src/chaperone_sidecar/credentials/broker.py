"""The gateway's side of the broker: certificate, configuration, bundle, leases, the key of masks.

The pod-bound token is read from its file at each exchange and never kept. The TLS key is made here and stays in
memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import random
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from chaperone_sidecar.errors import BrokerUnavailable, LeaseRefused
from chaperone_sidecar.tls import load_key_pair
from chaperone_sidecar.user import Identified, User

REQUEST_TIMEOUT_S: Final = 10.0  # the broker answers in ms; past this it is unreachable
LONG_POLL_S: Final = 30  # the longest wait the broker grants for a new configuration
MAX_ANSWER_BYTES: Final = 4 << 20  # a bundle is the largest answer; the operator refuses bigger ones
MASK_KEY_BYTES: Final = 32
POLICY_NOTE: Final = "Chaperone-Policy-Note"  # header of a configuration: base64 of what the operator signed
LEASE_TRIES: Final = 3  # when the broker asks to be asked again; a client waits meanwhile
LONGEST_PAUSE_S: Final = 2.0  # whatever pause it asks for


KINDS: Final = frozenset({"password", "key", "token", "header"})
"""Kinds of credentials that a protocol of this gateway can show."""

_CUT: Final = (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)
CALL_AGAIN: Final = frozenset({409, 429, 503})  # answers of a broker that will say something else a little later
_FINAL: Final = frozenset({403, 404})  # to a lease: policy grants it no more, or it was taken back


class Header(msgspec.Struct, frozen=True):
    """A field of HTTP, and the only place that it may be sent to. Its repr shows nothing of its value."""

    name: str
    value: str
    scheme: str
    host: str
    port: int
    path: str

    def __repr__(self) -> str:
        return f"Header(name={self.name!r}, host={self.host!r})"


class Impersonated(msgspec.Struct, frozen=True):
    """As whom the holder of a token acts."""

    user: str
    groups: tuple[str, ...] = ()


class Lease(msgspec.Struct, frozen=True):
    """A credential for one target, in memory only; what it has, depends on its kind. Its repr shows nothing of it."""

    username: str = ""
    password: str = ""
    ca_pem: str = ""
    expires_at_unix: int = 0
    id: str = ""
    kind: str = "password"
    token: str = ""
    impersonate: Impersonated | None = None
    certificate: str = ""  # of SSH, for the public key that was sent
    private_key: str = ""  # of SSH
    header: Header | None = None

    def is_same_credential(self, other: Lease) -> bool:
        """Whether the other says the same of everything but its time."""
        replace = msgspec.structs.replace
        return self == replace(other, expires_at_unix=self.expires_at_unix, id=self.id)

    def __repr__(self) -> str:
        return f"Lease(expires_at_unix={self.expires_at_unix})"


class Given(msgspec.Struct, frozen=True):
    """A configuration as the broker gave it, and the operator's note on it, b"" without one; nothing is checked."""

    config: bytes
    note: bytes


class _Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    note: str


class _Renewed(msgspec.Struct):
    expires_at_unix: int


class _Issued(msgspec.Struct):
    certificate: str
    ca: str
    expires_at_unix: int


class _MaskKey(msgspec.Struct):
    key: str


class _User(msgspec.Struct):
    subject: str
    issuer: str
    email: str
    groups: tuple[str, ...]
    expires_at_unix: int


class _Problem(msgspec.Struct):
    title: str = ""
    detail: str = ""


class Broker:
    """Client of the broker for the life of one gateway.

    Args:
        url: `https://host:port`.
        ca_pem: certificate of the service CA.
        token_path: projected token with the broker's audience.
        connector: makes a connector for a TLS context; inside a pod its sockets carry the mark.
    """

    def __init__(
        self,
        url: str,
        ca_pem: str,
        token_path: Path,
        connector: Callable[[ssl.SSLContext], aiohttp.TCPConnector],
    ) -> None:
        self._url = url
        self._ca_pem = ca_pem
        self._token_path = token_path
        self._connector = connector
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._session: aiohttp.ClientSession | None = None
        self.certificate_der = b""
        self.expires_at_unix = 0
        self.context = self._context(None)

    async def enroll(self, stream_key: str) -> None:
        """Exchange the pod's token (or, later, the current certificate) for a certificate that binds `stream_key`.

        Raises:
            BrokerUnavailable: no certificate; the text says why.
        """
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self._key, hashes.SHA256())
        body = {
            "csr": request.public_bytes(serialization.Encoding.PEM).decode("ascii"),
            "stream_key": stream_key,
        }
        headers = {}
        if not self.certificate_der:
            token = await asyncio.to_thread(self._token_path.read_text)
            headers["Authorization"] = f"Bearer {token.strip()}"
        status, answer = await self.call("POST", "/v1/certificates", json=body, headers=headers)
        if status != 200:
            raise BrokerUnavailable(f"The broker gives this pod no certificate: {problem(answer)}")
        try:
            issued = msgspec.json.decode(answer, type=_Issued)
            certificate = x509.load_pem_x509_certificate(issued.certificate.encode())
        except (msgspec.DecodeError, ValueError) as error:
            raise BrokerUnavailable("The broker's certificate cannot be read.") from error
        self.certificate_der = certificate.public_bytes(serialization.Encoding.DER)
        self.expires_at_unix = issued.expires_at_unix
        self.context = self._context(issued.certificate)
        await self.stop()

    async def config(self, revision: str, in_force: str, wait_s: int) -> Given | None:
        """The configuration, or None when it still is `revision` after `wait_s` seconds.

        Args:
            revision: the newest that was had.
            in_force: the one that commands are judged by, for the broker to tell people.
            wait_s: how long the broker may wait for another one.

        Raises:
            BrokerUnavailable: no answer.
        """
        answer = await self._asked(
            "GET",
            "/v1/config",
            params={"revision": revision, "in_force": in_force, "wait": str(wait_s)},
            timeout_s=wait_s + REQUEST_TIMEOUT_S,
        )
        if answer.status == 304:
            return None
        if answer.status != 200:
            raise BrokerUnavailable(f"The broker gives no configuration: {problem(answer.body)}")
        try:
            return Given(answer.body, base64.b64decode(answer.note, validate=True))
        except (binascii.Error, ValueError):
            return Given(answer.body, b"")

    async def bundle(self, revision: str) -> bytes:
        """The OPA bundle of the pod's namespace, as of that revision.

        Raises:
            BrokerUnavailable: no answer, or the broker has another revision.
        """
        status, answer = await self.call("GET", "/v1/bundle", headers={"If-Match": f'"{revision}"'})
        if status != 200:
            raise BrokerUnavailable(f"The broker gives no policy bundle: {problem(answer)}")
        return answer

    async def lease(self, target: str, session: str = "", public_key: str = "") -> Lease:
        """A credential for a target; with a ULID, one for that session alone, perhaps a certificate for a key.

        Raises:
            LeaseRefused: the broker says no, or cannot be reached; the text is fit for the client.
        """
        asked = {"target": target} | ({"session": session} if session else {})
        asked |= {"public_key": public_key} if public_key else {}
        answer = await self._patiently("/v1/leases", asked)
        try:
            lease = msgspec.json.decode(answer, type=Lease)
        except msgspec.DecodeError:
            # The cause is dropped on purpose: msgspec quotes what it read, and that may be the password.
            raise LeaseRefused("The broker's lease cannot be read; do gateway and broker have one version?") from None
        if lease.kind not in KINDS and not (lease.kind == "certificate" and public_key):
            raise LeaseRefused(f"The broker leases a {lease.kind}, with which this gateway cannot log in.")
        return lease

    async def renew_lease(self, lease_id: str) -> int:
        """Another life for a session's lease; until when, in seconds since 1970.

        Raises:
            LeaseRefused: as `lease`.
        """
        answer = await self._patiently("/v1/leases/renew", {"id": lease_id})
        try:
            return msgspec.json.decode(answer, type=_Renewed).expires_at_unix
        except msgspec.DecodeError:
            raise LeaseRefused("The broker's answer cannot be read; do gateway and broker have one version?") from None

    async def release_lease(self, lease_id: str) -> None:
        """A session's lease is not needed any more; where the broker cannot be told, it ends by itself."""
        with contextlib.suppress(LeaseRefused):
            await self._patiently("/v1/leases/release", {"id": lease_id})

    async def _patiently(self, path: str, body: dict[str, str]) -> bytes:
        """Post; a broker that asks to be asked again is, some times."""
        for left in reversed(range(LEASE_TRIES)):
            try:
                status, answer = await self.call("POST", path, json=body)
            except BrokerUnavailable as error:
                if left and isinstance(error.__cause__, _CUT):
                    continue  # a replica that is gone had the connection; the next one is another's
                raise LeaseRefused(str(error), is_unanswered=True) from error
            if status not in CALL_AGAIN or not left:
                break
            await asyncio.sleep(random.uniform(0.5, 1.0) * LONGEST_PAUSE_S)  # noqa: S311 - spreads many gateways
        if status >= 300:
            is_unanswered = status in CALL_AGAIN or status >= 500
            raise LeaseRefused(problem(answer), is_final=status in _FINAL, is_unanswered=is_unanswered)
        return answer

    async def identify(self, token: str) -> Identified:
        """The person whose token this is.

        Raises:
            LeaseRefused: as `lease`.
        """
        answer = await self._patiently("/v1/users", {"token": token})
        try:
            found = msgspec.json.decode(answer, type=_User)
        except msgspec.DecodeError:
            raise LeaseRefused("The broker's answer cannot be read; do gateway and broker have one version?") from None
        return Identified(User(found.subject, found.issuer, found.email, found.groups), found.expires_at_unix)

    async def mask_key(self) -> bytes:
        """The key of this pod's namespace for masks with method Hash; never logged, never shown.

        Raises:
            BrokerUnavailable: no key; the text says why.
        """
        status, answer = await self.call("GET", "/v1/mask-key")
        if status != 200:
            raise BrokerUnavailable(f"The broker gives no key for masks: {problem(answer)}")
        try:
            key = base64.b64decode(msgspec.json.decode(answer, type=_MaskKey).key, validate=True)
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError, binascii.Error):
            key = b""
        if len(key) != MASK_KEY_BYTES:
            # The cause is dropped on purpose: it may quote what was read.
            raise BrokerUnavailable(
                "The broker's key for masks cannot be read; do gateway and broker have one version?"
            )
        return key

    async def stop(self) -> None:
        """Close the connections; the next call opens new ones with the newest certificate."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def call(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        **arguments: Any,  # noqa: ANN401
    ) -> tuple[int, bytes]:
        """Status and body of the broker's answer.

        Raises:
            BrokerUnavailable: no answer, or one that is too large.
        """
        answer = await self._asked(method, path, timeout_s=timeout_s, **arguments)
        return answer.status, answer.body

    async def _asked(
        self,
        method: str,
        path: str,
        *,
        timeout_s: float = REQUEST_TIMEOUT_S,
        **arguments: Any,  # noqa: ANN401
    ) -> _Answer:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=self._connector(self.context))
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(method, self._url + path, timeout=timeout, **arguments) as response:
                answer = await response.content.read(MAX_ANSWER_BYTES + 1)
                while len(answer) <= MAX_ANSWER_BYTES and (more := await response.content.read(MAX_ANSWER_BYTES)):
                    answer += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = type(error).__name__
            raise BrokerUnavailable(f"The broker at {self._url} cannot be reached ({reason}).") from error
        if len(answer) > MAX_ANSWER_BYTES:
            raise BrokerUnavailable("The broker's answer is too large.")
        return _Answer(response.status, answer, response.headers.get(POLICY_NOTE, ""))

    def _context(self, certificate_pem: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self._ca_pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if certificate_pem is not None:
            load_key_pair(context, certificate_pem.encode(), self._key)
        return context


def problem(answer: bytes) -> str:
    """What an answer that is a refusal says, for people."""
    try:
        problem = msgspec.json.decode(answer, type=_Problem)
    except msgspec.DecodeError:
        return "it gives no reason."
    return problem.detail or problem.title or "it gives no reason."
