"""Who is at the other end of an ingest connection: the pod in the gateway's certificate."""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from aiohttp import web
from cryptography import x509

from chaperone_collector.errors import Refused
from chaperone_evidence.certificate import Subject, check_issued
from chaperone_evidence.errors import EvidenceError

MAX_KNOWN_CERTIFICATES: Final = 8192  # one per gateway and hour; a check costs 0.2 ms
RECHECK_S: Final = 10.0  # a certificate that runs out on an open connection is noticed after this long


class GatewayCa:
    """The CA that issues gateways' certificates, read from its file anew when that changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""
        self._authorities: list[x509.Certificate] = []

    def read(self) -> str:
        """The PEM text."""
        return self._path.read_text()

    def authorities(self) -> list[x509.Certificate]:
        """The certificates; those read last when the file is gone or broken."""
        try:
            text = self.read()
            if text != self._text:
                self._authorities = x509.load_pem_x509_certificates(text.encode())
                self._text = text
        except (OSError, ValueError):
            return self._authorities
        return self._authorities


class Peers:
    """Reads and remembers who shows which certificate."""

    def __init__(self, ca: GatewayCa, is_current: Callable[[ssl.SSLObject | None], bool]) -> None:
        self._ca = ca
        self._is_current = is_current
        self._known: OrderedDict[bytes, tuple[float, Subject]] = OrderedDict()

    def subject(self, request: web.Request) -> Subject:
        """The pod at the other end.

        Raises:
            Refused: no certificate, one of another CA, one that ran out, or not a gateway's.
        """
        connection: ssl.SSLObject | None = request.get_extra_info("ssl_object")
        if connection is None or not self._is_current(connection):
            raise Refused(
                401, "Unknown client", "Connect again: the connection's certificate is not checked against today's CA."
            )
        der = connection.getpeercert(True)
        if der is None:
            raise Refused(401, "Unknown client", "Show the certificate that the broker issued for this pod.")
        now = time.monotonic()
        known = self._known.get(der)
        if known is not None and now < known[0]:
            return known[1]
        try:
            subject = check_issued(der, self._ca.authorities(), time.time_ns() // 1000)
        except EvidenceError as error:
            raise Refused(401, "Unknown client", f"Ask the broker for a new certificate: {error}") from error
        self._known[der] = (now + RECHECK_S, subject)
        self._known.move_to_end(der)
        if len(self._known) > MAX_KNOWN_CERTIFICATES:
            self._known.popitem(last=False)
        return subject
