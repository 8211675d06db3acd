"""The listener's TLS: its certificate from mounted files, read anew when they change; clients of the gateway CA."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from asyncio import sslproto
from pathlib import Path
from typing import Final

from chaperone_operator.broker.errors import CannotStart

RELOAD_PERIOD_S: Final = 5.0  # the kubelet itself needs up to a minute to renew a mounted Secret
BUFFER_BYTES: Final = 16 * 1024  # of each connection: one TLS record; calls are a few kB, and nearly all wait

_log = logging.getLogger(__name__)


class Serving:
    """One TLS context for the listener's whole life; a renewed certificate holds from the next handshake on.

    Args:
        certificate, key: PEM files.
        client_ca: PEM of the CA whose client certificates are accepted; a caller may also show none.

    Raises:
        CannotStart: the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: str) -> None:
        # asyncio keeps 256 KiB for each connection and has no setting for it; a thousand gateways wait here at once.
        sslproto.SSLProtocol.max_size = BUFFER_BYTES
        self._certificate, self._key = certificate, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.load_verify_locations(cadata=client_ca)
        # A resumed session would not show its certificate again.
        self.context.num_tickets = 0
        self.context.options |= ssl.OP_NO_TICKET
        try:
            self._seen = self._digest()
            self.context.load_cert_chain(certificate, key)
        except (OSError, ssl.SSLError) as error:
            raise CannotStart(f"The certificate {certificate} or its key cannot be used: {error}.") from error

    def reload(self) -> None:
        """Take changed files over; a pair that cannot be used leaves the one before in force."""
        try:
            seen = self._digest()
            if seen == self._seen:
                return
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key)  # a rehearsal
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            _log.warning("the new serving certificate cannot be used, the old one stays: %s", error)
            return
        self._seen = seen
        _log.info("took over a new serving certificate")

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_PERIOD_S)
            self.reload()

    def _digest(self) -> bytes:
        return hashlib.sha256(self._certificate.read_bytes() + self._key.read_bytes()).digest()
