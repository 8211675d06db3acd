"""Dialogues that no driver holds: messages sent by hand, in the orders an attacker or a hasty client would choose."""

from __future__ import annotations

import struct

import pytest
from fix_dev import Gateway
from raw_client import Client, bind, client, execute

from chaperone_sidecar.protocols.postgresql import messages as m

pytestmark = pytest.mark.peer


def close_statement(name: bytes) -> bytes:
    return m.frame(m.CLOSE, b"S" + name + b"\0")


ALLOWED = b"SELECT id FROM orders WHERE id = 1"
DENIED = b"SELECT value FROM secrets"


def test_messages_after_an_error_that_was_already_answered_are_skipped_up_to_sync(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT nothing FROM orders"), m.FLUSH_FRAME)
        assert one.message()[0] == "E"
        one.send(m.encode_parse(b"", ALLOWED), bind(), execute(), m.SYNC_FRAME)
        assert one.kinds() == "Z"
        one.send(m.encode_parse(b"", ALLOWED), bind(), execute(), m.SYNC_FRAME)
        assert one.kinds() == "12DCZ"


def test_a_statement_that_the_server_skipped_does_not_stand_under_its_name(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"s", ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "1Z"
        skipped = b"SELECT id FROM invoices WHERE id = 1"
        one.send(
            m.encode_parse(b"", b"SELECT nothing FROM orders"), close_statement(b"s"), m.encode_parse(b"s", skipped),
            m.SYNC_FRAME, bind(statement=b"s"), execute(), m.SYNC_FRAME,
        )  # fmt: skip
        assert one.kinds() == "EZ"
        assert one.kinds() == "2DCZ"
    dev_gateway_texts = [path.read_bytes() for path in (dev_gateway.evidence / "bodies").glob("*/*.seg")]
    assert any(ALLOWED in text for text in dev_gateway_texts)


def test_a_denied_parse_never_reaches_the_server_under_any_name(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"d", DENIED), bind(statement=b"d"), execute(), m.SYNC_FRAME)
        found = one.until("Z")
        assert [kind for kind, _ in found] == ["E", "Z"]
        assert b"42501" in found[0][1]
        one.send(bind(statement=b"d"), execute(), m.SYNC_FRAME)
        found = one.until("Z")
        assert [kind for kind, _ in found] == ["E", "Z"]
        assert b"26000" in found[0][1]


def test_names_made_by_sql_cannot_be_executed_through_the_protocol(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"x", ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "1Z"
        one.send(m.encode_query(b"DEALLOCATE x; PREPARE x AS SELECT id FROM invoices WHERE id = 1"))
        one.until("Z")
        one.send(bind(statement=b"x"), execute(), m.SYNC_FRAME)
        assert b"26000" in one.until("Z")[0][1]


def test_a_simple_query_inside_an_extended_one_ends_the_session(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", ALLOWED), m.encode_query(DENIED))
        assert b"08P01" in one.until("")[-2][1]


def test_a_function_call_is_refused_and_the_session_goes_on(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.frame(m.FUNCTION_CALL, struct.pack(">IHHH", 1598, 0, 0, 0)))
        found = one.until("Z")
        assert b"42501" in found[0][1]
        one.send(m.encode_query(ALLOWED))
        assert one.kinds() == "TDCZ"


def test_copy_data_without_a_copy_is_ignored(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.frame(m.COPY_DATA, b"1\n"), m.frame(m.COPY_DONE, b""), m.encode_query(ALLOWED))
        assert one.kinds() == "TDCZ"


def test_twenty_thousand_messages_without_sync_do_not_stop_the_session(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", ALLOWED))
        for _ in range(200):
            one.send(*([bind(), execute()] * 50))
        one.send(m.SYNC_FRAME)
        kinds = one.kinds()
        assert kinds == "1" + "2DC" * 10_000 + "Z"


def test_a_startup_that_is_not_postgresql_is_refused(dev_gateway: Gateway) -> None:
    one = Client(dev_gateway.port)
    one.send(b"GET / HTTP/1.1\r\n\r\n")
    assert b"08P01" in one.message()[1]
    one.close()


def test_an_unfinished_startup_holds_nothing_up(dev_gateway: Gateway) -> None:
    idle = Client(dev_gateway.port)
    idle.send(b"\0\0")
    with client(dev_gateway) as one:
        one.send(m.encode_query(ALLOWED))
        assert one.kinds() == "TDCZ"
    idle.close()


def test_flush_after_sync_opens_nothing_so_a_simple_query_may_follow(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", ALLOWED), bind(), execute(), m.SYNC_FRAME, m.FLUSH_FRAME, m.encode_query(ALLOWED))
        assert one.kinds() == "12DCZ"
        assert one.kinds() == "TDCZ"
