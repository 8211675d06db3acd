"""The compiled policy of every namespace, as the operator stored it, and who waits for the next one."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import logging
import tarfile
from collections.abc import Callable
from typing import Final

import msgspec

from chaperone_operator.approval import Settings
from chaperone_operator.broker.errors import Refused
from chaperone_operator.compile.credential import Reference
from chaperone_operator.kube import CONFIG_MAPS, ApiError, Client, Object
from chaperone_operator.mirror import Key, Mirror
from chaperone_operator.signing import NOTES

LABEL: Final = "chaperone.dev/snapshot=true"
PREFIX: Final = "snapshot-"
MAX_WAIT_S: Final = 30  # the longest a gateway may wait for a change; load balancers cut idle connections at 60
MAX_WAITERS: Final = 8192  # calls that wait at once; one a gateway
MAX_MANIFEST_BYTES: Final = 4096
NOTHING: Final = base64.b64encode(b"{}").decode()

_log = logging.getLogger(__name__)


class Target(msgspec.Struct):
    """A target of a gateway's configuration."""

    name: str
    protocol: str


class Owner(msgspec.Struct):
    """The accountable human of an identity."""

    name: str
    email: str = ""


class Identity(msgspec.Struct):
    """The identity of a gateway's configuration."""

    owner: Owner


class Suspension(msgspec.Struct):
    """That every access is taken away, and since when."""

    at: str


class Claims(msgspec.Struct):
    """Names of the claims that say who a user is."""

    user: str
    email: str
    groups: str


class Delegation(msgspec.Struct):
    """Whose tokens say on behalf of whom the identity acts."""

    issuer: str
    audience: str
    jwks_url: str
    ca_secret: str
    claims: Claims


class Described(msgspec.Struct):
    """A GatewayConfig, as far as the broker reads it."""

    identity: Identity
    targets: tuple[Target, ...]
    suspension: Suspension | None = None
    delegation: Delegation | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """One namespace's policy under one revision.

    Attributes:
        configs: GatewayConfig of each identity, as JSON.
        leases: identity → target → where the credential lies.
        approvals: `policy/rule` → the approval that the rule asks for.
        notes: by which gateways know that the operator made what they get; by identity. Passed on unread.
    """

    revision: str
    bundle: bytes
    configs: dict[str, msgspec.Raw]
    leases: dict[str, dict[str, Reference]]
    approvals: dict[str, Settings] = {}
    notes: dict[str, str] = {}

    def config(self, identity: str) -> bytes:
        """The configuration of an identity's gateways.

        Raises:
            Refused: 404.
        """
        found = self.configs.get(identity)
        if found is None:
            raise Refused(
                404,
                "No such identity",
                f"AgentIdentity {identity} is not in force yet; see its status and its policies'.",
            )
        return bytes(found)

    def note(self, identity: str) -> str:
        """What the operator signed for an identity's gateways; "" where an earlier version stored the snapshot."""
        return self.notes.get(identity, "")

    def names_target(self, identity: str, target: str) -> bool:
        """Whether the identity's configuration lists the target."""
        return any(one.name == target for one in self.described(identity).targets)

    def described(self, identity: str) -> Described:
        """Of the configuration of an identity, what the broker itself looks at.

        Raises:
            Refused: 404.
        """
        return msgspec.json.decode(self.config(identity), type=Described)


class Snapshots:
    """All snapshots, kept current by `run`; a snapshot that cannot be read leaves the one before in force."""

    def __init__(self, client: Client, system_namespace: str) -> None:
        self._mirror = Mirror(client, CONFIG_MAPS, system_namespace, LABEL, self._changed)
        self._snapshots: dict[str, Snapshot] = {}
        self._changes: dict[str, asyncio.Event] = {}
        self.on_change: Callable[[], None] = lambda: None  # a snapshot came, changed or went
        self.waiters = 0

    @property
    def synced(self) -> asyncio.Event:
        """Set when the first whole list has come."""
        return self._mirror.synced

    @property
    def count(self) -> int:
        """Namespaces with a snapshot."""
        return len(self._snapshots)

    def granted(self, namespace: str, identity: str, target: str) -> Reference | None:
        """Where the credential of a target lies that policy grants to an identity, as far as is known here."""
        found = self._snapshots.get(namespace)
        return found.leases.get(identity, {}).get(target) if found is not None else None

    def references(self) -> dict[str, Reference]:
        """Each target that is granted to anybody."""
        every = (granted for one in self._snapshots.values() for granted in one.leases.values())
        return {target: reference for granted in every for target, reference in granted.items()}

    async def run(self) -> None:
        """Follow the ConfigMaps for ever."""
        await self._mirror.run()

    def of(self, namespace: str) -> Snapshot:
        """The snapshot in force.

        Raises:
            Refused: 404 when the namespace has none, 503 before the first list.
        """
        if not self.synced.is_set():
            raise Refused(503, "Starting", "The broker has not read the policies yet; call again.", retry_after_s=1)
        found = self._snapshots.get(namespace)
        if found is None:
            raise Refused(
                404,
                "No policy",
                f"Namespace {namespace} has no compiled policy yet; see the status of its policies and identities.",
            )
        return found

    async def wait(self, namespace: str, revision: str, wait_s: float) -> Snapshot | None:
        """The snapshot as soon as it is another than `revision`; None when it still is after `wait_s`.

        Raises:
            Refused: as `of`; 503 when too many wait already.
        """
        current = self.of(namespace)
        if current.revision != revision:
            return current
        if self.waiters >= MAX_WAITERS:
            raise Refused(503, "Too many waiters", "Call again.", retry_after_s=5)
        self.waiters += 1
        try:
            async with asyncio.timeout(min(wait_s, MAX_WAIT_S)):
                while current.revision == revision:
                    await self._changes.setdefault(namespace, asyncio.Event()).wait()
                    current = self.of(namespace)
        except TimeoutError:
            return None
        finally:
            self.waiters -= 1
        return current

    def revision(self, namespace: str) -> str:
        """The revision that this replica knows, "" when it knows none."""
        found = self._snapshots.get(namespace)
        return found.revision if found is not None else ""

    async def stored_revision(self, namespace: str) -> str:
        """The revision that the API server has now, which this replica may not have seen yet; "" when there is none.

        Raises:
            ApiError: the API server does not answer.
            ValueError: what is stored cannot be read.
        """
        try:
            found = await self._mirror.client.get(CONFIG_MAPS, PREFIX + namespace, self._mirror.namespace)
        except ApiError as error:
            if error.status != 404:
                raise
            return ""
        return parse(found).revision

    def _changed(self, key: Key) -> None:
        name = key[1]
        if not name.startswith(PREFIX):
            return
        namespace = name.removeprefix(PREFIX)
        item = self._mirror.objects.get(key)
        if item is None:
            self._snapshots.pop(namespace, None)
        else:
            try:
                self._snapshots[namespace] = parse(item)
            except ValueError as error:
                _log.error("the ConfigMap %s cannot be used, the one before stays: %s", name, error)
                return
        if waiting := self._changes.pop(namespace, None):
            waiting.set()
        self.on_change()


class _Manifest(msgspec.Struct):
    revision: str


def parse(config_map: Object) -> Snapshot:
    """A snapshot out of its ConfigMap.

    Raises:
        ValueError: a part is missing or has another shape.
    """
    data = config_map.get("binaryData") or {}
    try:
        bundle, gateway, leases = (
            base64.b64decode(data[name], validate=True) for name in ("bundle.tar.gz", "gateway.json", "leases.json")
        )
        # Absent where no rule asks for an approval, and where an operator of an earlier version wrote it.
        approvals, notes = (
            base64.b64decode(data.get(name, NOTHING), validate=True) for name in ("approvals.json", NOTES)
        )
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"binaryData lacks a part or is no base64 ({error})") from error
    try:
        return Snapshot(
            _revision(bundle),
            bundle,
            msgspec.json.decode(gateway, type=dict[str, msgspec.Raw]),
            msgspec.json.decode(leases, type=dict[str, dict[str, Reference]]),
            msgspec.json.decode(approvals, type=dict[str, Settings]),
            msgspec.json.decode(notes, type=dict[str, str]),
        )
    except (msgspec.DecodeError, tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(str(error)) from error


def _revision(bundle: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(bundle), mode="r:gz") as archive:
        member = archive.next()
        content = archive.extractfile(member) if member is not None and member.name == ".manifest" else None
        if content is None:
            raise ValueError("the bundle does not begin with its manifest")
        return msgspec.json.decode(content.read(MAX_MANIFEST_BYTES), type=_Manifest).revision
