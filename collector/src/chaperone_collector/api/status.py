"""Kubernetes' `Status`: how an API server says no, so that kubectl can print it."""

from __future__ import annotations

from typing import Any, Final

from chaperone_collector.errors import CollectorError

GROUP: Final = "evidence.chaperone.dev"
VERSION: Final = "v1alpha1"


class ApiError(CollectorError):
    """A refusal of the API.

    Args:
        code: HTTP status.
        reason: word from the list of `metav1.StatusReason`.
        message: what kubectl prints.
        retry_after_s: when to try again; 0 for never.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s

    def status(self) -> dict[str, Any]:
        """The `Status` object."""
        details: dict[str, Any] = {"group": GROUP}
        if self.retry_after_s:
            details["retryAfterSeconds"] = self.retry_after_s
        return {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": str(self),
            "reason": self.reason, "details": details, "code": self.code,
        }  # fmt: skip


def bad_request(message: str) -> ApiError:
    """The caller has to change the request."""
    return ApiError(400, "BadRequest", message)


def not_found(resource: str, name: str) -> ApiError:
    """No such object."""
    return ApiError(404, "NotFound", f'{resource}.{GROUP} "{name}" not found')


def expired(message: str) -> ApiError:
    """The caller has to list anew."""
    return ApiError(410, "Expired", message)


def unavailable(message: str) -> ApiError:
    """It may work in a moment."""
    return ApiError(503, "ServiceUnavailable", message, retry_after_s=1)
