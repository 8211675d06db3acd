"""How a session begins: encryption, start-up, the person behind it, and the log-in that the gateway does instead.

Nothing reaches a backend before the client's start-up message was checked, and, where the agent acts on behalf of
persons, before it is known whose token the client shows.
"""

from __future__ import annotations

from chaperone_sidecar.effects import (
    CancelUpstream,
    Close,
    Effects,
    Identify,
    Opened,
    OpenUpstream,
    StartTls,
    ToClient,
)
from chaperone_sidecar.errors import LimitReached, ProtocolError, SpoolFull, UpstreamUnavailable, UserRefused
from chaperone_sidecar.protocols.postgresql import answers, messages, startup
from chaperone_sidecar.protocols.postgresql.codec import Frame, FrontendCodec


class Opening:
    """The client's side until it is logged in.

    Args:
        client: takes the client's bytes apart; here it is told what may come next.
        asks_user: whether the client is asked for the token of the person on whose behalf it acts.
    """

    def __init__(self, client: FrontendCodec, *, asks_user: bool) -> None:
        self._client = client
        self._asks_user = asks_user
        self._asked: startup.Wanted | None = None  # of a client that is asked for a password
        self._may_ask_tls = True
        self._may_ask_gssenc = True
        self.is_over = False
        """Whether the client was sent away."""
        self.database = ""
        """The one that was logged in to."""

    def start_tls(self, alpn: str = "") -> Effects[None]:
        """Begin TLS after SSLRequest, or at the first byte (sslnegotiation=direct), where the server wants ALPN, too.

        Spec: 54.2.10 "SSL Session Encryption".
        """
        self._may_ask_tls = self._may_ask_gssenc = False
        yield StartTls(self._client.take_rest(), alpn)

    def message(self, frame: Frame) -> Effects[Opened | None]:
        """Take a message; returns the backend once the client is logged in, but before it is told so.

        Raises:
            ProtocolError: side=client.
        """
        if self._asked is not None:
            return (yield from self._identify(frame, self._asked))
        message = messages.decode_startup(frame.body)
        match message:
            case messages.SSLRequest() if self._may_ask_tls:
                self._client.expect_nothing()
                yield ToClient(b"S")
                yield from self.start_tls()
            case messages.GSSENCRequest() if self._may_ask_gssenc:
                self._client.expect_nothing()
                self._may_ask_gssenc = False
                yield ToClient(b"N")
            case messages.SSLRequest() | messages.GSSENCRequest():
                raise ProtocolError("The connection is encrypted already, or asks for the same encryption twice.")
            case messages.CancelRequest():
                yield CancelUpstream(message.process_id, message.secret)
                yield from self._end("cancel")
            case messages.StartupMessage():
                return (yield from self._open(message))
        return None

    def _open(self, message: messages.StartupMessage) -> Effects[Opened | None]:
        try:
            wanted = startup.check(message)
        except ProtocolError as error:
            yield from self._end("startup refused", error)
            return None
        if wanted.negotiation:
            yield ToClient(wanted.negotiation)
        if self._asks_user:
            self._asked = wanted
            self._client.expect_password()
            yield ToClient(answers.CLEARTEXT_PASSWORD)
            return None
        return (yield from self._log_in(wanted))

    def _identify(self, frame: Frame, wanted: startup.Wanted) -> Effects[Opened | None]:
        """Take what the client gives as its password for the token of a person.

        Spec: 54.2.1 "Start-up", AuthenticationCleartextPassword.
        """
        if frame.type != messages.PASSWORD:
            yield from self._end("client ended the session")
            return None
        try:
            yield Identify(startup.token(messages.decode_password(frame.body)))
        except UserRefused as error:
            yield from self._end("user refused", error)
            return None
        return (yield from self._log_in(wanted))

    def _log_in(self, wanted: startup.Wanted) -> Effects[Opened | None]:
        try:
            opened: Opened = yield OpenUpstream(
                wanted.user, wanted.database, wanted.application, wanted.parameters, wanted.secret_bytes
            )
        except (UpstreamUnavailable, LimitReached, SpoolFull) as error:
            yield from self._end("upstream unavailable", error)
            return None
        self.database = wanted.database
        return opened

    def _end(self, why: str, error: Exception | None = None) -> Effects[None]:
        self.is_over = True
        if error is not None:
            yield ToClient(answers.fatal(error))
        yield Close(why)
