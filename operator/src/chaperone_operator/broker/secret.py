"""Secrets: those that the broker makes once and keeps, and those of targets, read at the moment they are needed.

Whichever replica is first, all of them work with the same made one. Nothing here raises or logs what came out of one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Final

from chaperone_operator.broker.errors import CannotStart
from chaperone_operator.broker.source import Unready
from chaperone_operator.kube import SECRETS, ApiError, Client, Object, read_or_make_secret

BASIC_AUTH: Final = "kubernetes.io/basic-auth"
SSH_AUTH: Final = "kubernetes.io/ssh-auth"


class Secrets:
    """The Secrets that targets name.

    Args:
        client: the API server.
        namespace: where they are.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    async def read(self, name: str, target: str, field: str) -> Object:
        """The Secret that an AccessTarget names in a field of its.

        Raises:
            Unready: there is none. ApiError: the API server does not answer.
        """
        try:
            return await self._client.get(SECRETS, name, self._namespace)
        except ApiError as error:
            if error.status != 404:
                raise
        raise Unready("SecretMissing", f"{self.named(name, target, field)} does not exist. Create it.")

    async def basic_auth(self, name: str, target: str, field: str) -> tuple[str, str]:
        """User name and password.

        Raises:
            Unready: it has not both of them. ApiError: as `read`.
        """
        secret = await self.read(name, target, field)
        named = self.named(name, target, field)
        if secret.get("type") != BASIC_AUTH:
            raise Unready("WrongSecretType", f"{named} must have the type {BASIC_AUTH}, or for SSH {SSH_AUTH}.")
        username, password = value(secret, "username"), value(secret, "password")
        if not username or not password:
            raise Unready("SecretIncomplete", f"{named} needs username and password, both text and not empty.")
        return username, password

    async def ssh_auth(self, name: str, target: str, field: str) -> tuple[str, str] | None:
        """User name and private key; None where the Secret is of another type.

        Raises:
            Unready: it has not both of them. ApiError: as `read`.
        """
        secret = await self.read(name, target, field)
        if secret.get("type") != SSH_AUTH:
            return None
        username, key = value(secret, "username"), value(secret, "ssh-privatekey")
        if not username or not key:
            named = self.named(name, target, field)
            raise Unready("SecretIncomplete", f"{named} needs username and ssh-privatekey, both text and not empty.")
        return username, key

    async def text(self, name: str, key: str, target: str, field: str) -> str:
        """The text under one key.

        Raises:
            Unready: there is none. ApiError: as `read`.
        """
        found = value(await self.read(name, target, field), key)
        if not found:
            named = self.named(name, target, field)
            raise Unready("SecretIncomplete", f"{named} needs a text under {key}, and it must not be empty.")
        return found

    async def authority(self, name: str, target: str, field: str = "spec.tls.caSecretRef") -> str:
        """A CA's certificate in PEM; "" where no Secret is named.

        Raises:
            Unready: there is none in it. ApiError: as `read`.
        """
        if not name:
            return ""
        secret = await self.read(name, target, field)
        found = value(secret, "ca.crt") or value(secret, "tls.crt")
        if "BEGIN CERTIFICATE" not in found:
            named = self.named(name, target, field)
            raise Unready("SecretIncomplete", f"{named} needs a PEM certificate under ca.crt or tls.crt.")
        return found

    def named(self, name: str, target: str, field: str) -> str:
        """How a text names a Secret."""
        return f"The Secret {self._namespace}/{name}, which AccessTarget {target} names in {field},"


def value(secret: Object, key: str) -> str:
    """A text out of a Secret; "" when it is absent or no text. Never raises with the value in it."""
    try:
        text = base64.b64decode((secret.get("data") or {}).get(key, ""), validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError, TypeError):
        return ""
    return "" if "\x00" in text else text


async def read_or_make(client: Client, namespace: str, name: str, make: Callable[[], Object]) -> Object:
    """The Secret of that name. When there is none yet, the object that `make` gives in a thread is stored.

    Raises:
        CannotStart: the Secret cannot be read or written.
    """
    try:
        return await read_or_make_secret(client, namespace, name, make)
    except ApiError as error:
        raise CannotStart(f"The Secret {namespace}/{name} cannot be read or made: {error}") from error
