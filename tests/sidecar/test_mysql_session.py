"""One session without sockets: the same however bytes are cut, and no server makes it fail otherwise than told."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaperone_sidecar.config import Limits
from chaperone_sidecar.decision import Action, Decision
from chaperone_sidecar.effects import (
    Admit,
    Ask,
    Conclude,
    Intend,
    Intent,
    Offload,
    Opened,
    OpenUpstream,
    Receipt,
    ToClient,
    ToUpstream,
    Wait,
)
from chaperone_sidecar.errors import ChaperoneError, ProtocolError
from chaperone_sidecar.limits.meter import Meter
from chaperone_sidecar.limits.quota import Quota
from chaperone_sidecar.masking.rule import Masks
from chaperone_sidecar.protocols.mysql import messages as m
from chaperone_sidecar.protocols.mysql.kills import Kills
from chaperone_sidecar.protocols.mysql.reading import Reader
from chaperone_sidecar.protocols.mysql.session import Session

DENIED = b"drop"


class Played:
    """A session whose effects are answered at once; a text that holds `drop` is denied."""

    def __init__(self) -> None:
        self.session = Session(
            Reader(Masks(), None), Meter(Quota(Limits())), 7, b"n" * 20, self._no_version, lambda number: number == 7,
            self._no_version, Kills(),
        )  # fmt: skip
        self.to_client = bytearray()
        self.to_upstream = bytearray()
        self.log: list[str] = []
        self.is_waiting = False
        self.allows, self.revision = Action.ALLOW, ""
        self.play(self.session.greet())

    async def _no_version(self, *_: object) -> Any:
        raise AssertionError("nothing is awaited here")

    def play(self, generator: Generator[Any, Any, None]) -> None:
        answer: object = None
        while True:
            try:
                effect = generator.send(answer)
            except StopIteration:
                return
            answer = self._do(effect)
            if self.is_waiting:
                return

    def _do(self, effect: object) -> object:
        match effect:
            case Ask():
                action = Action.DENY if DENIED in effect.command.text else self.allows
                return Decision(action, "", "rule", "", self.revision)
            case Admit():
                return effect.decision
            case Intend():
                self.log.append(f"intent {effect.decision.action}")
                return Intent("id", Receipt(len(self.log)), 0)
            case Conclude():
                self.log.append(f"outcome {effect.status}")
                return Receipt(len(self.log))
            case ToUpstream():
                assert effect.receipt.seq <= len(self.log)
                self.to_upstream += effect.data
            case ToClient():
                self.to_client += effect.data
            case OpenUpstream():
                told = (("sql_mode", ""), ("database", "orders"), ("folds_tables", "0"))
                return Opened(Receipt(0), told, 7, b"")
            case Offload():
                return b""
            case Wait():
                self.is_waiting = not effect.is_over()
        return None


def _client_says(*commands: bytes) -> bytes:
    response = m.HandshakeResponse(m.CLIENT_PROTOCOL_41 | m.CLIENT_SECURE_CONNECTION, 45, b"agent").encode()
    return m.packet(1, response) + b"".join(m.packet(0, one) for one in commands)


def _opened(*commands: bytes) -> Played:
    played = Played()
    played.play(played.session.from_client(_client_says(*commands)))
    return played


def test_encryption_begins_once() -> None:
    request = m.HandshakeResponse(m.CLIENT_PROTOCOL_41 | m.CLIENT_SSL, 45, is_tls_request=True).encode()
    played = Played()
    played.play(played.session.from_client(m.packet(1, request)))
    with pytest.raises(ProtocolError, match="encrypted already"):
        played.play(played.session.from_client(m.packet(2, request)))


COMMANDS = (b"\x03drop table t", b"\x12binlog", b"\x03drop table u", b"\x03select 1")


def test_a_denied_text_never_goes_upstream_and_what_follows_does() -> None:
    played = _opened(*COMMANDS)
    assert bytes(played.to_upstream) == m.packet(0, b"\x03select 1")
    assert played.log == ["intent Deny", "intent Deny", "intent Deny", "intent Allow"]


@given(st.lists(st.integers(0, 200), max_size=12))
@settings(deadline=None, max_examples=60)
def test_the_same_goes_both_ways_however_bytes_are_cut(cuts: list[int]) -> None:
    whole, data = _opened(*COMMANDS), _client_says(*COMMANDS)
    played, place = Played(), 0
    for cut in [*sorted(cuts), len(data)]:
        played.play(played.session.from_client(data[place:cut]))
        place = max(place, min(cut, len(data)))
    assert (played.to_client, played.to_upstream, played.log) == (whole.to_client, whole.to_upstream, whole.log)


def test_an_outcome_is_recorded_before_the_end_of_an_answer() -> None:
    played = _opened(b"\x03select a from t")
    column = m.encode_column(m.Column("orders", "t", "t", "a", "a", 45, 253, 0))
    answer = [b"\x01", column, m.Eof().encode(), m.encode_text(b"value"), m.Eof().encode()]
    before = len(played.to_client)
    for number, payload in enumerate(answer, 1):
        assert played.log == ["intent Allow"]
        played.play(played.session.from_upstream(m.packet(number, payload)))
    assert played.log == ["intent Allow", "outcome ok"]
    assert bytes(played.to_client[before:]) == b"".join(m.packet(i, one) for i, one in enumerate(answer, 1))


@pytest.mark.parametrize("revision", ["1", "2"])
def test_people_are_not_asked_for_more_rows_by_the_policy_that_allowed_them_and_are_by_another(revision: str) -> None:
    played = _opened()
    played.revision = "1"

    def says(command: bytes, *answer: bytes) -> None:
        played.play(played.session.from_client(m.packet(0, command)))
        for number, payload in enumerate(answer, 1):
            played.play(played.session.from_upstream(m.packet(number, payload)))

    column = m.encode_column(m.Column("orders", "t", "t", "a", "a", 45, 253, 0))
    number, end = (1).to_bytes(4, "little"), m.Eof(status=m.SERVER_STATUS_AUTOCOMMIT | 0x40).encode()
    says(b"\x16select a from t", b"\x00" + number + b"\x01\0\0\0\0\0\0", column, m.Eof().encode())
    says(b"\x17" + number + b"\x01\x01\0\0\0", b"\x01", column, end)
    played.allows, played.revision = Action.REQUIRE_APPROVAL, revision
    before, told = len(played.to_upstream), len(played.to_client)
    says(fetch := b"\x1c" + number + b"\x02\0\0\0")
    went = bytes(played.to_upstream[before:])
    if revision == "1":
        assert went == m.packet(0, fetch)
    else:
        assert went == b""
        assert b"policy has changed since the cursor was opened" in played.to_client[told:]
        assert played.log[-1] == "intent Deny"


NUMBER = (1).to_bytes(4, "little")


def _prepared() -> Played:
    """A session with a statement of one parameter that was executed once, with a text."""
    played = _opened(b"\x16select ?")
    column = m.encode_column(m.Column("", "", "", "?", "", 45, 253, 0))
    answer = [b"\x00" + NUMBER + b"\0\0\1\0\0\0\0", column, m.Eof().encode()]
    for number, payload in enumerate(answer, 1):
        played.play(played.session.from_upstream(m.packet(number, payload)))
    _execute(played, b"\0\1\xfd\0" + b"\x01a")
    played.play(played.session.from_upstream(m.packet(1, m.Err(1153, "08S01", "too long").encode())))
    return played


def _execute(played: Played, bound: bytes, *, flags: int = 0, iterations: int = 1) -> bytes:
    """What goes upstream of an execution."""
    before = len(played.to_upstream)
    head = b"\x17" + NUMBER + bytes((flags,)) + iterations.to_bytes(4, "little")
    played.play(played.session.from_client(m.packet(0, head + bound)))
    return bytes(played.to_upstream[before:])


def test_an_execution_goes_upstream_with_its_types_also_where_the_client_names_none() -> None:
    """A server that failed before it read the last ones would take older ones, and run another value than was shown."""
    sent = _execute(_prepared(), b"\0\0" + b"\x01b", flags=0xF8, iterations=9)
    assert sent == m.packet(0, b"\x17" + NUMBER + b"\0\1\0\0\0" + b"\0\1\xfd\0" + b"\x01b")


def test_data_that_is_sent_ahead_is_bounded_for_a_session_and_not_only_for_a_statement() -> None:
    played = _prepared()
    other = (2).to_bytes(4, "little")
    played.play(played.session.from_client(m.packet(0, b"\x16select ?")))
    column = m.encode_column(m.Column("", "", "", "?", "", 45, 253, 0))
    for number, payload in enumerate([b"\x00" + other + b"\0\0\1\0\0\0\0", column, m.Eof().encode()], 1):
        played.play(played.session.from_upstream(m.packet(number, payload)))
    for statement in (NUMBER, other):
        played.play(played.session.from_client(m.packet(0, b"\x18" + statement + b"\0\0" + bytes(9 << 20))))
    told = len(played.to_client)
    played.play(played.session.from_client(m.packet(0, b"\x17" + other + b"\0\1\0\0\0" + b"\0\1\xfc\0")))
    assert b"more long data was sent" in played.to_client[told:]
    assert len(_execute(played, b"\0\1\xfc\0")) > 9 << 20


def test_a_parameter_of_type_null_is_null_for_every_server() -> None:
    assert _execute(_prepared(), b"\0\1\x06\0").endswith(b"\1\1\x06\0")


@pytest.mark.parametrize(
    "bound",
    [b"\0\2\x0f\0" + b"\x0d" + b"9" * 13, b"\0\1\x0d\0" + b"\x01b", b"\0\1\x09\0" + b"\x03bcd", b"\0\1\xff\0\x01b",
     b"\0\1\x10\0\x01b", b"\0\1\x0a\0" + b"\x05" + bytes(5), b"\0\1\x0b\0" + b"\xfc\x08\0" + bytes(8)],
    ids=["types or none", "YEAR", "INT24", "GEOMETRY", "BIT", "a day of 5 bytes", "a time with a long length"],
)  # fmt: skip
def test_a_parameter_that_servers_read_in_two_ways_ends_the_session(bound: bytes) -> None:
    played = _prepared()
    with pytest.raises(ProtocolError) as caught:
        _execute(played, bound)
    assert caught.value.side == "client"


@pytest.mark.parametrize(
    "command", [b"\x03select a from t", b"\x16select ?", b"\x0e", b"\x02orders", b"\x1f"], ids=bytes.hex
)
@given(payloads=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=6))
@example(payloads=[b"\xfb/etc/passwd"])
@example(payloads=[b"\xff\x00"])
@example(payloads=[b"\x01", b"\xfe\x00\x00\x02\x00"])
@settings(deadline=None, max_examples=60)
def test_a_hostile_server_ends_in_an_answer_or_an_error_that_is_told(command: bytes, payloads: list[bytes]) -> None:
    played = _opened(command)
    try:
        for number, payload in enumerate(payloads, 1):
            played.play(played.session.from_upstream(m.packet(number, payload)))
    except ChaperoneError as error:
        assert played.session.fatal(error)[4] == m.ERR
    assert b"/etc/passwd" not in played.to_client


@given(st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_any_commands_of_a_client_are_answered_or_end_the_session(commands: list[bytes]) -> None:
    played = Played()
    try:
        played.play(played.session.from_client(_client_says(*commands)))
    except ProtocolError as error:
        assert error.side == "client"
        assert played.session.fatal(error)[4] == m.ERR
