"""How a client of PostgreSQL shows on whose behalf it acts: its password is the token, and nothing else may come."""

from __future__ import annotations

import pytest
from play import Nothing, Play

from chaperone_sidecar.effects import Close, Identify, OpenUpstream, SessionEffect
from chaperone_sidecar.errors import ProtocolError, UserRefused
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.codec import MAX_SMALL_BYTES
from chaperone_sidecar.protocols.postgresql.reading import Reader
from chaperone_sidecar.protocols.postgresql.session import Session

HELLO = m.encode_startup((("user", "agent"),))
ASKED = bytes.fromhex("52 00000008 00000003")  # AuthenticationCleartextPassword
TOKEN = b"e30.e30." + b"x" * 4000


class Asked(Play):
    """A session that asks who is behind it."""

    def __init__(self) -> None:
        self.session = Session(lambda _: Reader(Nothing()), Meter(Quota()), asks_user=True)
        self.to_client = self.to_upstream = b""
        self.shown: list[bytes] = []
        self.done: list[str] = []

    def _do(self, effect: SessionEffect) -> object:
        if isinstance(effect, Identify):
            assert not self.done, "the backend is opened before anybody knows for whom"
            self.shown.append(effect.token)
            assert effect.token not in repr(effect).encode() or not effect.token
            return None
        if isinstance(effect, OpenUpstream | Close):
            self.done.append(type(effect).__name__)
        return super()._do(effect)

    def otherwise(self, effect: SessionEffect) -> object:
        assert isinstance(effect, Close)
        return None


def password(text: bytes) -> bytes:
    return m.frame(m.PASSWORD, text + b"\0")


@pytest.mark.parametrize("size", [1, 3, 10_000])
def test_the_token_is_taken_however_the_bytes_are_cut(size: int) -> None:
    play = Asked()
    data = HELLO + password(TOKEN)
    for start in range(0, len(data), size):
        play.client(data[start : start + size])
    assert play.shown == [TOKEN]
    assert play.done == ["OpenUpstream"]
    assert play.to_client.startswith(ASKED)
    assert play.messages() == "RRKZ"


def test_nothing_is_opened_before_the_token_has_come() -> None:
    play = Asked()
    play.client(HELLO)
    assert play.to_client == ASKED
    assert not play.done


@pytest.mark.parametrize(("given", "token"), [(b"", b""), (b"none", b""), (b"None", b"None")])
def test_a_client_without_a_user_says_none(given: bytes, token: bytes) -> None:
    play = Asked()
    play.client(HELLO + password(given))
    assert play.shown == [token]


@pytest.mark.parametrize(
    "data",
    [m.encode_query(b"SELECT 1"), m.SYNC_FRAME, HELLO, m.frame(m.PASSWORD, b"x"), m.frame(m.PASSWORD, b"a\0b\0"),
     m.frame(m.PASSWORD, b""), m.frame(m.PASSWORD, b"x" * MAX_SMALL_BYTES + b"\0")],
)  # fmt: skip
def test_what_is_no_password_is_refused(data: bytes) -> None:
    play = Asked()
    with pytest.raises(ProtocolError):
        play.client(HELLO + data)
    assert not play.shown
    assert not play.done


def test_a_client_may_go_instead() -> None:
    play = Asked()
    play.client(HELLO + m.TERMINATE_FRAME)
    assert (play.shown, play.done) == ([], ["Close"])


def test_a_password_after_the_start_is_refused() -> None:
    play = Asked()
    play.client(HELLO + password(TOKEN))
    with pytest.raises(ProtocolError):
        play.client(password(TOKEN))


def test_a_refusal_is_native_and_opens_nothing() -> None:
    play = Asked()
    generator = play.session.from_client(HELLO + password(TOKEN))
    sent, closed = b"", ""
    try:
        while True:
            effect = next(generator)
            if isinstance(effect, Identify):
                effect = generator.throw(UserRefused("nobody is known"))
            assert not isinstance(effect, OpenUpstream)
            sent += bytes(getattr(effect, "data", b""))
            closed = effect.reason if isinstance(effect, Close) else closed
    except StopIteration:
        pass
    assert b"C28000\0" in sent
    assert b"nobody is known" in sent
    assert b"SFATAL\0" in sent
    assert closed == "user refused"
