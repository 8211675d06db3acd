"""The broker as the desk: requests for approval are custom resources that it alone makes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from chaperone_sidecar.approval.desk import Request, Ticket
from chaperone_sidecar.credentials.broker import CALL_AGAIN, REQUEST_TIMEOUT_S, Broker, problem
from chaperone_sidecar.errors import ApprovalUnavailable, BrokerUnavailable

PATH: Final = "/v1/approvals"


class BrokerDesk:
    """See `desk.Desk`.

    Args:
        broker: must be enrolled.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def ask(self, request: Request) -> Ticket:
        """See `desk.Desk`."""
        body = msgspec.to_builtins(request)
        del body["protocol"]  # the broker knows its targets
        if request.estimated_rows is None:
            del body["estimated_rows"]
        del body["user"]
        if request.user is not None:
            body["user"] = {"subject": request.user.subject, "issuer": request.user.issuer, "email": request.user.email}
        return await self._call("POST", PATH, json=body)

    async def follow(self, name: str, wait_s: int) -> Ticket:
        """See `desk.Desk`."""
        return await self._call(
            "GET", f"{PATH}/{name}", params={"wait": str(wait_s)}, timeout_s=wait_s + REQUEST_TIMEOUT_S
        )

    async def use(self, name: str, request: Request) -> Ticket:
        """See `desk.Desk`."""
        body = {"binding": request.binding, "revision": request.revision}
        return await self._call("POST", f"{PATH}/{name}/use", json=body)

    async def withdraw(self, name: str) -> Ticket:
        """See `desk.Desk`."""
        return await self._call("DELETE", f"{PATH}/{name}")

    async def _call(self, method: str, path: str, **arguments: Any) -> Ticket:  # noqa: ANN401
        try:
            status, answer = await self._broker.call(method, path, **arguments)
        except BrokerUnavailable as error:
            raise ApprovalUnavailable(f"no approval can be asked for: {error}", is_unanswered=True) from error
        if status not in (200, 201):
            raise ApprovalUnavailable(
                f"it needs an approval, and the broker refuses: {problem(answer)}",
                is_unanswered=status in CALL_AGAIN or status >= 500,
            )
        try:
            return msgspec.json.decode(answer, type=Ticket)
        except msgspec.DecodeError as error:
            raise ApprovalUnavailable(
                "the broker's answer about the approval cannot be read; do gateway and broker have one version?"
            ) from error
