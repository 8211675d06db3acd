"""Who asks: the user that kube-apiserver names in headers, believed on its own connection only.

The headers are believed when the connection's client certificate was verified against the CA in ConfigMap
`kube-system/extension-apiserver-authentication` *and* its common name is one of those allowed there (an empty list
allows any name of that CA). Anybody in the cluster can open a connection to this server and send the same headers.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

import msgspec
from aiohttp import web
from cryptography import x509

from chaperone_collector.api.kubernetes import Kubernetes
from chaperone_collector.api.status import ApiError
from chaperone_collector.errors import StoreUnusable

log = logging.getLogger(__name__)

RELOAD_PERIOD_S: Final = 30.0
MAX_GROUPS: Final = 1000  # users of large directories have hundreds


class User(msgspec.Struct, frozen=True):
    """The person or program that reads."""

    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class Trust(msgspec.Struct, frozen=True):
    """Whom to believe, and in which headers."""

    ca_pem: str
    names: tuple[str, ...]
    user_headers: tuple[str, ...]
    uid_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]


def read_trust(data: dict[str, str]) -> Trust:
    """Read the ConfigMap.

    Raises:
        StoreUnusable: it names no CA or no headers; without them nobody could be believed.
    """
    ca_pem = data.get("requestheader-client-ca-file", "")
    try:
        x509.load_pem_x509_certificates(ca_pem.encode())  # refuses a text without any
        trust = Trust(
            ca_pem,
            _words(data, "requestheader-allowed-names"),
            _words(data, "requestheader-username-headers"),
            _words(data, "requestheader-uid-headers"),
            _words(data, "requestheader-group-headers"),
            tuple(prefix.lower() for prefix in _words(data, "requestheader-extra-headers-prefix")),
        )
    except ValueError as error:
        raise StoreUnusable(
            "ConfigMap kube-system/extension-apiserver-authentication holds no usable requestheader-client-ca-file: "
            "start kube-apiserver with its --requestheader flags."
        ) from error
    if not trust.user_headers:
        raise StoreUnusable("ConfigMap kube-system/extension-apiserver-authentication names no user header.")
    return trust


class FrontProxy:
    """Authenticates requests; keeps what it trusts up to date."""

    def __init__(self, kubernetes: Kubernetes, trust: Trust) -> None:
        self._kubernetes = kubernetes
        self.trust = trust

    @classmethod
    async def load(cls, kubernetes: Kubernetes) -> FrontProxy:
        """Read the ConfigMap for the first time.

        Raises:
            StoreUnusable: it cannot be read; the collector does not start.
        """
        try:
            return cls(kubernetes, read_trust(await kubernetes.authentication_config()))
        except ApiError as error:
            raise StoreUnusable(
                "ConfigMap kube-system/extension-apiserver-authentication cannot be read; bind the service account to "
                f"role extension-apiserver-authentication-reader in kube-system: {error}"
            ) from error

    async def run(self, changed: Callable[[], None]) -> None:
        """Read the ConfigMap again and again until cancelled; calls `changed` after each change."""
        while True:
            await asyncio.sleep(RELOAD_PERIOD_S)
            try:
                fresh = read_trust(await self._kubernetes.authentication_config())
            except (ApiError, StoreUnusable) as error:
                log.warning("whom to believe cannot be read anew, the last answer stays: %s", error)
                continue
            if fresh != self.trust:
                self.trust = fresh
                log.info("took over a new front-proxy configuration")
                changed()

    def user(self, request: web.Request, is_current: Callable[[ssl.SSLObject | None], bool]) -> User:
        """The user that a trusted proxy names.

        Raises:
            ApiError: 401 for everybody else.
        """
        trust = self.trust
        self._check_proxy(request, is_current)
        name = next((value for header in trust.user_headers if (value := request.headers.get(header))), "")
        if not name:
            raise _unauthorized()
        groups = tuple(value for header in trust.group_headers for value in request.headers.getall(header, []))
        if len(groups) > MAX_GROUPS:
            raise ApiError(401, "Unauthorized", f"More than {MAX_GROUPS} groups are not supported.")
        uid = next((value for header in trust.uid_headers if (value := request.headers.get(header))), "")
        return User(name, uid, groups, self._extra(request))

    def _check_proxy(self, request: web.Request, is_current: Callable[[ssl.SSLObject | None], bool]) -> None:
        connection: ssl.SSLObject | None = request.get_extra_info("ssl_object")
        if connection is None or not is_current(connection):
            raise _unauthorized()
        certificate = connection.getpeercert()  # empty unless it was verified against the CA
        if not certificate:
            raise _unauthorized()
        subject: Any = certificate.get("subject", ())
        names = {value for part in subject for key, value in part if key == "commonName"}
        if self.trust.names and names.isdisjoint(self.trust.names):
            raise _unauthorized()

    def _extra(self, request: web.Request) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: dict[str, list[str]] = {}
        for header, value in request.headers.items():
            for prefix in self.trust.extra_prefixes:
                if header.lower().startswith(prefix):
                    found.setdefault(unquote(header[len(prefix) :].lower()), []).append(value)
        return tuple(sorted((key, tuple(values)) for key, values in found.items()))


def _unauthorized() -> ApiError:
    return ApiError(401, "Unauthorized", "Unauthorized: this server answers the Kubernetes API server; use kubectl.")


def _words(data: dict[str, str], key: str) -> tuple[str, ...]:
    try:
        return tuple(msgspec.json.decode(data.get(key, "[]").encode(), type=list[str]))
    except msgspec.DecodeError as error:
        raise ValueError(f"{key} is not a list") from error
