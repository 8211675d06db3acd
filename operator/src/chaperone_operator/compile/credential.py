"""Credentials of targets: the kinds there are, what is wrong with one, and what the broker is told of it.

Every kind names Secrets and never holds one. `Reference` is what the snapshot's `leases.json` says of a target: enough
for the broker to lease its credential, and to take one back after the AccessTarget is gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

_DURATION: Final = re.compile(r"([1-9][0-9]{0,4})(s|m|h)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}
DAY_S: Final = 24 * 3600  # the longest life of a credential that is made for one session
PROTOCOLS: Final = {
    "secretRef": frozenset({"PostgreSQL", "MySQL", "SSH"}),
    "postgresqlRole": frozenset({"PostgreSQL"}),
    "sshCertificate": frozenset({"SSH"}),
    "kubernetesToken": frozenset({"Kubernetes"}),
    "httpHeader": frozenset({"HTTP", "MCP"}),
    "vaultKv": frozenset({"PostgreSQL", "MySQL", "SSH"}),
    "vaultDatabase": frozenset({"PostgreSQL", "MySQL"}),
}
"""Kinds of credentials, and the protocols in which each can be shown."""
MADE_PER_SESSION: Final = frozenset({"postgresqlRole", "sshCertificate", "kubernetesToken", "vaultDatabase"})
"""Kinds of which each session gets one of its own."""


class Part(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything inside `spec.credential`."""


class SecretRef(Part, frozen=True):
    """A Secret of the system namespace, by name."""

    name: str


class PostgresqlRole(Part, frozen=True):
    """A role of the database, made for one session and dropped after it.

    Attributes:
        admin_secret_ref: basic-auth Secret of a role that may create roles and grant those of `grants`.
        grants: roles whose rights the session gets; the first owns what the session leaves behind.
    """

    admin_secret_ref: SecretRef
    grants: tuple[str, ...]
    connection_limit: int = 1
    valid_for: str = "15m"


class SshCertificate(Part, frozen=True):
    """A certificate for the gateway's key of one session.

    Attributes:
        ca_secret_ref: Secret with the CA's private key in OpenSSH or PEM form under `ssh-privatekey`.
        principals: names that may log in with it.
        extensions: what sshd lets it do, such as `permit-pty`; none unless named.
    """

    ca_secret_ref: SecretRef
    principals: tuple[str, ...]
    valid_for: str = "5m"
    extensions: tuple[str, ...] = ()
    force_command: str = ""


class KubernetesToken(Part, frozen=True):
    """A token of a service account, by TokenRequest; it dies with the Secret it is bound to."""

    service_account: str
    namespace: str
    audiences: tuple[str, ...] = ()
    valid_for: str = "10m"


class Impersonate(Part, frozen=True):
    """As whom the token's holder acts; without a user as `chaperone:<namespace>:<identity>`."""

    user: str = ""
    groups: tuple[str, ...] = ()


class HttpHeader(Part, frozen=True):
    """A header for requests to one place.

    Attributes:
        secret_ref: Secret with the value under `token`.
        prefix: stands before the value, as in `Bearer `.
        path: requests below it get the header.
    """

    secret_ref: SecretRef
    host: str
    header: str = "Authorization"
    prefix: str = ""
    scheme: str = "https"
    port: int = 443
    path: str = "/"


class VaultLogin(Part, frozen=True):
    """How the broker shows itself to Vault or OpenBao: by a token in a Secret, or as a role of Kubernetes auth."""

    token_secret_ref: SecretRef | None = None
    kubernetes_role: str = ""
    kubernetes_mount: str = "kubernetes"


class VaultKv(Part, frozen=True):
    """`username` and `password` of a secret in a KV version 2 engine."""

    address: str
    login: VaultLogin
    path: str
    mount: str = "secret"
    namespace: str = ""
    ca_secret_ref: SecretRef | None = None


class VaultDatabase(Part, frozen=True):
    """Credentials that a database engine makes for one session."""

    address: str
    login: VaultLogin
    role: str
    mount: str = "database"
    namespace: str = ""
    ca_secret_ref: SecretRef | None = None


class Credential(Part, frozen=True):
    """`AccessTarget.spec.credential`: exactly one kind."""

    secret_ref: SecretRef | None = None
    postgresql_role: PostgresqlRole | None = None
    ssh_certificate: SshCertificate | None = None
    kubernetes_token: KubernetesToken | None = None
    impersonate: Impersonate | None = None
    http_header: HttpHeader | None = None
    vault_kv: VaultKv | None = None
    vault_database: VaultDatabase | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are named; one, where nothing is wrong."""
        return tuple(kind for kind in PROTOCOLS if getattr(self, _attribute(kind)) is not None)


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a target is, for the broker: the gateway's configuration says the same."""

    host: str
    port: int
    database: str
    tls_mode: str
    server_name: str


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `leases.json` says of one target; Secrets by name. `secret` is the kind `secretRef`."""

    secret: str = ""
    ca_secret: str = ""
    credential: Credential | None = None
    place: Place | None = None

    @property
    def kind(self) -> str:
        """The kind of the credential."""
        return self.credential.kinds[0] if self.credential is not None else "secretRef"


def reference(credential: Credential, ca_secret: str, place: Place) -> dict[str, Any]:
    """The `Reference` of a target, as JSON has it."""
    if credential.secret_ref is not None:
        return {"secret": credential.secret_ref.name, "ca_secret": ca_secret}
    found: dict[str, Any] = msgspec.to_builtins(Reference("", ca_secret, credential, place))
    return found


def secret_names(credential: Credential) -> Iterator[tuple[str, str]]:
    """Each Secret that a credential names, with its field."""
    for kind in credential.kinds:
        yield from _named(getattr(credential, _attribute(kind)), f"spec.credential.{kind}")


def duration_s(text: str) -> int | None:
    """Seconds of a duration such as 15m; None when it is none."""
    found = _DURATION.fullmatch(text)
    return int(found[1]) * _SECONDS[found[2]] if found is not None else None


def problems(credential: Credential, protocol: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a credential: a reason, and a message that begins with the field."""
    kinds = credential.kinds
    if len(kinds) != 1:
        yield (
            "CredentialKind",
            f"spec.credential: names {len(kinds)} kinds; name exactly one of {', '.join(PROTOCOLS)}.",
        )
        return
    kind = kinds[0]
    if protocol not in PROTOCOLS[kind]:
        fit = ", ".join(name for name, protocols in PROTOCOLS.items() if protocol in protocols)
        yield "CredentialKind", f"spec.credential.{kind}: does not fit protocol {protocol}; use one of {fit}."
    if credential.impersonate is not None:
        yield from _impersonate_problems(credential.impersonate, kind)
    made = getattr(credential, _attribute(kind))
    if isinstance(made, PostgresqlRole | SshCertificate | KubernetesToken):
        shortest_s = 600 if isinstance(made, KubernetesToken) else 60  # the API server grants no less than ten minutes
        valid_s = duration_s(made.valid_for)
        if valid_s is None or not shortest_s <= valid_s <= DAY_S:
            yield (
                "BadValidFor",
                f"spec.credential.{kind}.validFor: {made.valid_for!r} is no duration from {shortest_s // 60}m to 24h.",
            )
    if isinstance(made, PostgresqlRole) and not made.grants:
        yield "NoGrants", f"spec.credential.{kind}.grants: empty, so the session may do nothing; name a role."
    if isinstance(made, SshCertificate) and not made.principals:
        # A certificate without principals is valid for every user of the host.
        yield "NoPrincipals", f"spec.credential.{kind}.principals: empty; name who may log in."
    if isinstance(made, VaultKv | VaultDatabase):
        yield from _vault_problems(made, kind)


def _impersonate_problems(impersonate: Impersonate, kind: str) -> Iterator[tuple[str, str]]:
    if kind != "kubernetesToken":
        yield "CredentialKind", "spec.credential.impersonate: needs kubernetesToken, whose holder impersonates."
    for name in (impersonate.user, *impersonate.groups):
        if name.startswith("system:"):
            yield "BadImpersonation", f"spec.credential.impersonate: {name} belongs to the cluster itself; use others."


def _vault_problems(made: VaultKv | VaultDatabase, kind: str) -> Iterator[tuple[str, str]]:
    if not made.address.startswith("https://"):
        yield "BadVault", f"spec.credential.{kind}.address: must begin with https://."
    if (made.login.token_secret_ref is None) == (not made.login.kubernetes_role):
        yield "BadVault", f"spec.credential.{kind}.login: name either tokenSecretRef or kubernetesRole."


def _named(value: object, at: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, SecretRef):
        yield f"{at}.name", value.name
    elif isinstance(value, Part):
        for field in msgspec.structs.fields(value):
            yield from _named(getattr(value, field.name), f"{at}.{field.encode_name}")


def _attribute(kind: str) -> str:
    return re.sub(r"(?=[A-Z])", "_", kind).lower()
