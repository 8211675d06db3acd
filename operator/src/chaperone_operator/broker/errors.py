"""Errors of the broker.

BrokerError
├── Refused(status, title, retry_after_s)  the answer to one call: problem+json, fit for a gateway and its agent
└── CannotStart                            the broker has not what it needs; the process ends with the text
"""

from __future__ import annotations


class BrokerError(Exception):
    """Base of all errors of the broker; its text is for people and holds no secret."""


class Refused(BrokerError):
    """One call is refused; the text says what to do next."""

    def __init__(self, status: int, title: str, detail: str, retry_after_s: int = 0) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.retry_after_s = retry_after_s


class CannotStart(BrokerError):
    """The broker cannot serve at all."""
