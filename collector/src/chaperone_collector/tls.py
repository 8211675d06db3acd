"""Server TLS from mounted files that may change at any time.

A listener holds one outer context for its whole life; at each handshake it hands over to the newest inner one, so a
renewed certificate or a replaced client CA holds for the next connection without a restart. A connection remembers the
client CA it was made under: `is_current` is false for those made under a CA that was taken away since.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

from chaperone_collector.errors import StoreUnusable

log = logging.getLogger(__name__)

RELOAD_PERIOD_S: Final = 5.0  # kubelet itself needs up to a minute to renew a mounted Secret


class ServerContext(ssl.SSLContext):
    """A context that knows which client CA it trusts."""

    authority: str = ""


class ServerTls:
    """The TLS side of one listener.

    Args:
        certificate, key: PEM files of the server.
        read_authority: gives the PEM of the CAs that client certificates must come from.
        client: whether a client must show a certificate, or may.
        minimum: the lowest version spoken.

    Raises:
        StoreUnusable: the files cannot be used at start.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        read_authority: Callable[[], str],
        client: ssl.VerifyMode,
        minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    ) -> None:
        self._files = (certificate, key)
        self._read_authority = read_authority
        self._client = client
        self._minimum = minimum
        try:
            self._seen = self._fingerprint()
            self._current = self._load()
            self.outer = self._load()
        except (OSError, ssl.SSLError, ValueError) as error:
            raise StoreUnusable(
                f"The server certificate {certificate} or the client CA cannot be used: {error}."
            ) from error
        self.outer.sni_callback = self._hand_over

    def is_current(self, connection: ssl.SSLObject | None) -> bool:
        """Whether the connection was made under the client CA that is trusted now."""
        context = None if connection is None else connection.context
        return isinstance(context, ServerContext) and context.authority == self._current.authority

    def reload(self) -> None:
        """Take changed files over; files that cannot be used leave what was there before."""
        try:
            seen = self._fingerprint()
            if seen == self._seen:
                return
            self._current = self._load()
        except (OSError, ssl.SSLError, ValueError) as error:
            log.warning("the new certificate or client CA cannot be used, the old one stays: %s", error)
            return
        self._seen = seen
        log.info("took over a new server certificate or client CA")

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(RELOAD_PERIOD_S)
            self.reload()

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._current

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self._read_authority().encode())
        for path in self._files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _load(self) -> ServerContext:
        context = ServerContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self._minimum
        context.load_cert_chain(*self._files)
        authority = self._read_authority()
        context.load_verify_locations(cadata=authority)
        context.verify_mode = self._client
        # A resumed session would not show its certificate again, and so outlive the CA.
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
        context.authority = hashlib.sha256(authority.encode()).hexdigest()
        return context
