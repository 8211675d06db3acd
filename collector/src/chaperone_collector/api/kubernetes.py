"""The two questions that the collector asks the Kubernetes API: whom to believe, and who may read."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from chaperone_collector.api.status import unavailable

CALL_TIMEOUT_S: Final = 5.0  # both are answered from the API server's memory
MAX_ANSWER_BYTES: Final = 4 << 20
_CONFIG_MAP: Final = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"
_REVIEW: Final = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class Kubernetes:
    """Calls the API server as the collector's service account.

    Args:
        server: base URL.
        ca: PEM file of the API server's CA.
        token: file of the service account's token; read at each call, because kubelet renews it.
    """

    def __init__(self, server: str, ca: Path, token: Path) -> None:
        self._server = server.rstrip("/")
        self._token = token
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=_client_tls(ca), limit=32),
            timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
        )

    async def authentication_config(self) -> dict[str, str]:
        """The data of ConfigMap kube-system/extension-apiserver-authentication.

        Raises:
            ApiError: it cannot be read.
        """
        found = await self._call("GET", _CONFIG_MAP, None)
        data = found.get("data")
        return {str(key): str(value) for key, value in data.items()} if isinstance(data, dict) else {}

    async def review(self, spec: dict[str, Any]) -> tuple[bool, str]:
        """Whether a SubjectAccessReview is allowed, and why not.

        Raises:
            ApiError: nobody could say.
        """
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        status = (await self._call("POST", _REVIEW, review)).get("status")
        if not isinstance(status, dict):
            raise unavailable("The API server's answer about your rights cannot be read; try again.")
        allowed = status.get("allowed") is True and status.get("denied") is not True
        return allowed, str(status.get("reason") or "")

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def _call(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            token = (await asyncio.to_thread(self._token.read_text)).strip()
            headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
            data = None
            if body is not None:
                headers["Content-Type"] = "application/json"
                data = msgspec.json.encode(body)
            async with self._session.request(method, self._server + path, headers=headers, data=data) as answer:
                raw = await _read(answer)
                if answer.status not in (200, 201):
                    raise unavailable(f"The API server answered {answer.status} to {method} {path}.")
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            raise unavailable(f"The API server cannot be asked ({type(error).__name__}); try again.") from error
        try:
            return msgspec.json.decode(raw, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise unavailable("The API server's answer cannot be read; try again.") from error


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    raw = bytearray()
    async for chunk in answer.content.iter_any():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise unavailable("The API server's answer is too long.")
    return bytes(raw)


def _client_tls(ca: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(ca))
    # Many clusters' CAs lack the key identifiers that Python's strict mode asks for since 3.13.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
