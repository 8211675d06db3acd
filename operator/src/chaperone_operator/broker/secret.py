"""Secrets that the broker makes once and keeps: whichever replica is first, all of them work with the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from chaperone_operator.broker.errors import CannotStart
from chaperone_operator.kube import SECRETS, ApiError, Client, Object


async def read_or_make(client: Client, namespace: str, name: str, make: Callable[[], Object]) -> Object:
    """The Secret of that name. When there is none yet, the object that `make` gives in a thread is stored.

    Raises:
        CannotStart: the Secret cannot be read or written.
    """
    try:
        return await _read_or_make(client, namespace, name, make)
    except ApiError as error:
        raise CannotStart(f"The Secret {namespace}/{name} cannot be read or made: {error}") from error


async def _read_or_make(client: Client, namespace: str, name: str, make: Callable[[], Object]) -> Object:
    try:
        return await client.get(SECRETS, name, namespace)
    except ApiError as error:
        if error.status != 404:
            raise
    made = await asyncio.to_thread(make)
    try:
        return await client.create(SECRETS, made, namespace)
    except ApiError as error:
        if error.reason != "AlreadyExists":
            raise
    return await client.get(SECRETS, name, namespace)  # another replica was faster; its Secret is the one
