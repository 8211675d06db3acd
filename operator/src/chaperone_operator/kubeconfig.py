"""How to reach the API server: from inside a pod, or by a kubeconfig.

A client certificate or a token, and always a verified server: a kubeconfig that switches verification off or wants a
credential plug-in is refused with the reason, because nothing in the product may depend on either.
"""

from __future__ import annotations

import base64
import binascii
import os
import ssl
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD_S: Final = 60.0  # the kubelet renews a projected token at 80 % of its life, which is at least 8 minutes


class ConfigError(Exception):
    """The API server cannot be reached with this configuration; the text says what to change."""


@dataclass(eq=False)
class Access:
    """Where the API server is and as whom we speak to it."""

    url: str
    context: ssl.SSLContext
    token_path: Path | None = None
    _token: str = field(default="", repr=False)
    _read_at_s: float = field(default=-1.0, repr=False)

    def bearer(self) -> str:
        """The token in force, "" when a client certificate is used; a token file is read again each minute."""
        if self.token_path is not None and (self._read_at_s < 0 or time.monotonic() - self._read_at_s > TOKEN_REREAD_S):
            self._token = self.token_path.read_text(encoding="ascii").strip()
            self._read_at_s = time.monotonic()
        return self._token


def find(kubeconfig: str | None = None, context: str | None = None) -> Access:
    """The pod's own account when there is one and no kubeconfig is named; else the kubeconfig.

    Raises:
        ConfigError: neither is usable.
    """
    if kubeconfig is None and (SERVICE_ACCOUNT / "token").exists():
        return in_cluster()
    path = kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    return from_file(Path(path), context)


def in_cluster() -> Access:
    """Access with the pod's mounted service account.

    Raises:
        ConfigError: the process does not run in a pod with a service account.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError("KUBERNETES_SERVICE_HOST is not set: this process does not run in a pod.")
    address = f"[{host}]" if ":" in host else host
    try:
        server = verifying(cafile=str(SERVICE_ACCOUNT / "ca.crt"))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"The cluster's CA in {SERVICE_ACCOUNT} cannot be read.") from error
    return Access(f"https://{address}:{port}", server, token_path=SERVICE_ACCOUNT / "token")


def from_file(path: Path, context: str | None = None) -> Access:
    """Access by one context (default: the current one) of a kubeconfig.

    Raises:
        ConfigError: the file lacks the context, or asks for something that is refused here.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        wanted = context or config["current-context"]
        chosen = _named(config, "contexts", "context", wanted)
        cluster = _named(config, "clusters", "cluster", chosen["cluster"])
        user = _named(config, "users", "user", chosen["user"])
        url = str(cluster["server"]).rstrip("/")
    except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
        # The text of a parser's error may quote the file, and the file may hold a token.
        raise ConfigError(f"The kubeconfig {path} cannot be used ({type(error).__name__}).") from None
    if not url.startswith("https://") or cluster.get("insecure-skip-tls-verify"):
        raise ConfigError(f"The cluster in {path} is not verified by TLS; give it certificate-authority(-data).")
    if "exec" in user or "auth-provider" in user:
        raise ConfigError(f"The user in {path} needs a credential plug-in; use a token or a client certificate.")
    return _access(path, url, cluster, user)


def verifying(cafile: str | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """A context that verifies chain, time and name of the API server against this CA alone."""
    context = ssl.create_default_context(cafile=cafile, cadata=cadata)
    # Since 3.13 Python also insists on identifiers of keys (RFC 5280, 4.2.1.1) that the CAs of many clusters lack.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _access(path: Path, url: str, cluster: dict[str, Any], user: dict[str, Any]) -> Access:
    base = path.parent
    try:
        if "certificate-authority-data" in cluster:
            authority = base64.b64decode(cluster["certificate-authority-data"], validate=True).decode("ascii")
            server = verifying(cadata=authority)
        elif "certificate-authority" in cluster:
            server = verifying(cafile=str(base / cluster["certificate-authority"]))
        else:
            server = ssl.create_default_context()
        if name := cluster.get("tls-server-name"):
            raise ConfigError(f"tls-server-name {name!r} in {path} is not supported; use the server's own name.")
        _load_client_certificate(server, base, user)
    except (OSError, ssl.SSLError, binascii.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"A certificate or key of {path} cannot be read ({type(error).__name__}).") from None
    if "tokenFile" in user:
        return Access(url, server, token_path=base / user["tokenFile"])
    return Access(url, server, _token=str(user.get("token", "")))


def _load_client_certificate(server: ssl.SSLContext, base: Path, user: dict[str, Any]) -> None:
    if "client-certificate-data" in user:
        # Python's ssl takes a key from a file only; this one has mode 0600 and lives for the call.
        with tempfile.NamedTemporaryFile() as both:
            both.write(base64.b64decode(user["client-certificate-data"], validate=True) + b"\n")
            both.write(base64.b64decode(user["client-key-data"], validate=True))
            both.flush()
            server.load_cert_chain(both.name)
    elif "client-certificate" in user:
        server.load_cert_chain(str(base / user["client-certificate"]), str(base / user["client-key"]))


def _named(config: dict[str, Any], table: str, key: str, name: str) -> dict[str, Any]:
    for row in config[table]:
        if row["name"] == name:
            found: dict[str, Any] = row[key]
            return found
    raise KeyError(name)
