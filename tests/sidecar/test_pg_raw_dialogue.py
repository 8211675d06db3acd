"""Dialogues that no driver holds: messages sent by hand, in the orders an attacker or a hasty client would choose."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from fix_dev import Gateway
from fix_postgres import Postgres
from raw_client import Client, bind, client, execute

from chaperone_sidecar.protocols.postgresql import messages as m

pytestmark = pytest.mark.peer


def close_statement(name: bytes) -> bytes:
    return m.frame(m.CLOSE, b"S" + name + b"\0")


def copy(*rows: bytes) -> bytes:
    return b"".join(m.frame(m.COPY_DATA, row) for row in rows) + m.frame(m.COPY_DONE, b"")


def command_tags(found: list[tuple[str, bytes]]) -> list[bytes]:
    return [body for kind, body in found if kind == "C"]


ALLOWED = b"SELECT id FROM orders WHERE id = 1"
DENIED = b"SELECT value FROM secrets"
COPY_IN = b"COPY invoices (id) FROM STDIN"
DELETE_COPIED = b"DELETE FROM invoices WHERE id >= 70000"


def test_messages_after_an_error_that_was_already_answered_are_skipped_up_to_sync(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT nothing FROM orders"), m.FLUSH_FRAME)
        assert one.message()[0] == "E"
        one.send(m.encode_parse(b"", ALLOWED), bind(), execute(), m.SYNC_FRAME)
        assert one.kinds() == "Z"
        one.send(m.encode_parse(b"", ALLOWED), bind(), execute(), m.SYNC_FRAME)
        assert one.kinds() == "12DCZ"


def test_a_copy_after_an_answered_error_is_skipped_up_to_sync(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT nothing FROM orders"), m.FLUSH_FRAME)
        assert one.message()[0] == "E"
        one.send(m.encode_parse(b"", COPY_IN), bind(), execute(), copy(b"70000\n"), m.SYNC_FRAME)
        assert one.kinds() == "Z"


def test_twenty_thousand_messages_after_an_answered_error_do_not_stop_the_session(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT nothing FROM orders"), m.FLUSH_FRAME)
        assert one.message()[0] == "E"
        one.send(*([bind(), execute()] * 10_000), m.SYNC_FRAME, m.encode_query(ALLOWED))
        assert one.kinds() == "Z"
        assert one.kinds() == "TDCZ"


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


def test_a_simple_query_without_sync_ends_what_extended_messages_began(dev_gateway: Gateway) -> None:
    insert = m.encode_parse(b"", b"INSERT INTO invoices VALUES (71000)"), bind(), execute()
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"x", ALLOWED), m.FLUSH_FRAME)
        assert one.message()[0] == "1"
        one.send(m.encode_query(ALLOWED))
        assert one.kinds() == "TDCZ"
        one.send(bind(statement=b"x"), execute(), m.encode_query(ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "2DCTDCZ"
        assert one.kinds() == "Z"
        one.send(m.encode_parse(b"", b"SELECT nothing FROM orders"), m.encode_query(ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "EZ"  # the server skips the query too
        one.send(*insert, m.encode_query(b"DELETE FROM invoices WHERE id = 71000"))
        assert command_tags(one.until("Z")) == [b"INSERT 0 1\0", b"DELETE 1\0"]


def test_a_refused_simple_query_without_sync_undoes_what_extended_messages_did(dev_gateway: Gateway) -> None:
    insert = m.encode_parse(b"", b"INSERT INTO invoices VALUES (71001)"), bind(), execute()
    with client(dev_gateway) as one:
        for flush in (b"", m.FLUSH_FRAME):
            one.send(*insert, flush)
            if flush:
                assert "".join(one.message()[0] for _ in range(3)) == "12C"
            one.send(m.encode_query(DENIED), m.SYNC_FRAME)
            assert one.kinds() == ("EZ" if flush else "12CEZ")
            assert one.kinds() == "Z"
            one.send(m.encode_query(b"SELECT id FROM invoices WHERE id = 71001"))
            assert one.kinds() == "TCZ"


def test_an_error_is_told_before_any_sync_as_the_server_does(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT 1 / (id - 1) FROM orders WHERE id = 1"), bind(), execute())
        assert "".join(one.message()[0] for _ in range(3)) == "12E"
        one.send(m.SYNC_FRAME)
        assert one.kinds() == "Z"


def test_a_long_result_begins_before_any_sync_as_the_servers_does(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", b"SELECT * FROM orders"), bind(), execute(), m.encode_parse(b"", ALLOWED))
        assert "".join(one.message()[0] for _ in range(3)) == "12D"
        one.send(m.SYNC_FRAME)
        assert one.kinds().endswith("DC1Z")


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


def test_copy_data_may_be_sent_before_the_server_asks_for_it(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_query(COPY_IN), copy(b"70000\n", b"70001\n"), m.encode_query(DELETE_COPIED))
        assert command_tags(one.until("Z")) == [b"COPY 2\0"]
        assert command_tags(one.until("Z")) == [b"DELETE 2\0"]


def test_two_copies_of_one_text_get_their_data_in_order(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        both = COPY_IN + b"; " + COPY_IN
        one.send(m.encode_query(both), copy(b"70000\n"), copy(b"70001\n", b"70002\n"), m.encode_query(DELETE_COPIED))
        assert command_tags(one.until("Z")) == [b"COPY 1\0", b"COPY 2\0"]
        assert command_tags(one.until("Z")) == [b"DELETE 3\0"]


def test_sync_inside_copy_is_ignored_as_libpq_expects(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", COPY_IN), bind(), execute(), m.SYNC_FRAME)
        assert [one.message()[0] for _ in range(3)] == ["1", "2", "G"]
        one.send(copy(b"70000\n"), m.SYNC_FRAME)
        assert one.kinds() == "CZ"
        one.send(m.encode_query(DELETE_COPIED))
        assert command_tags(one.until("Z")) == [b"DELETE 1\0"]


def test_sync_sent_ahead_answers_a_copy_that_fails(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        frozen = COPY_IN + b" (FREEZE)"
        one.send(m.encode_parse(b"", frozen), bind(), execute(), m.SYNC_FRAME)
        assert one.kinds() == "12GEZ"
        one.send(m.encode_query(ALLOWED))
        assert one.kinds() == "TDCZ"


def test_sync_before_data_that_fails_is_ignored_however_soon_the_error_comes(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", COPY_IN), bind(), execute(), m.SYNC_FRAME, m.frame(m.COPY_DATA, b"wrong\n"))
        assert [one.message()[0] for _ in range(4)] == ["1", "2", "G", "E"]
        one.send(copy(), m.SYNC_FRAME, m.encode_query(ALLOWED))
        assert one.kinds() == "Z"
        assert one.kinds() == "TDCZ"


def test_a_query_inside_copy_never_reaches_the_server(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_query(COPY_IN), m.encode_query(ALLOWED))
        assert one.message()[0] == "G"
        kind, body = one.message()
        assert kind == "E"
        assert b"08P01" in body
        assert one.message()[0] == ""


def test_what_was_asked_before_terminate_is_answered(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_query(ALLOWED), m.encode_query(ALLOWED), m.TERMINATE_FRAME)
        assert one.kinds() == "TDCZ"
        assert one.kinds() == "TDCZ"
        assert one.message() == ("", b"")


def test_notices_and_settings_keep_their_place_behind_an_ending(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_query(b"SET datestyle TO 'SQL, DMY'"))
        assert one.kinds() == "CSZ"
        one.send(m.encode_query(b"SELECT 1; ROLLBACK; SELECT 1"))  # warns that there is no transaction
        assert one.kinds() == "TDCNCTDCZ"
        one.send(m.encode_query(b"LISTEN news; NOTIFY news"))
        assert one.kinds() == "CCAZ"


def test_the_servers_last_word_is_the_last_word(dev_gateway: Gateway, postgres: Postgres) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'doomed'"
    for question in (b"", m.encode_query(b"SELECT pg_sleep(60)"),
                     m.encode_parse(b"", b"SELECT pg_sleep(60)") + bind() + execute() + m.SYNC_FRAME):  # fmt: skip
        one = Client(dev_gateway.port)
        one.send(m.encode_startup((("user", "agent"), ("application_name", "doomed"))))
        one.until("Z")
        one.send(question)
        with postgres.admin() as admin:
            while (
                question
                and not admin.execute(
                    "SELECT FROM pg_stat_activity WHERE application_name = 'doomed' AND wait_event = 'PgSleep'"
                ).fetchall()
            ):
                pass
            admin.execute(end)
        errors = [body for kind, body in one.until("") if kind == "E"]
        assert len(errors) == 1, errors
        assert b"57P01" in errors[0]
        one.close()


def test_an_unknown_name_leaves_the_unnamed_statement_alone(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"", ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "1Z"
        one.send(bind(statement=b"never"), m.SYNC_FRAME, execute(b"never"), m.SYNC_FRAME)
        assert b"26000" in one.until("Z")[0][1]
        assert b"34000" in one.until("Z")[0][1]
        one.send(bind(), execute(), m.SYNC_FRAME)
        assert one.kinds() == "2DCZ"


def test_deallocate_of_one_statement_keeps_the_others(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_parse(b"a", ALLOWED), m.encode_parse(b"b", ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "11Z"
        one.send(m.encode_query(b"DEALLOCATE a"))
        assert one.kinds() == "CZ"
        one.send(bind(statement=b"b"), execute(), m.SYNC_FRAME, bind(statement=b"a"), m.SYNC_FRAME)
        assert one.kinds() == "2DCZ"
        assert b"26000" in one.until("Z")[0][1]


def test_a_text_that_was_not_parsed_may_have_changed_every_name(gateway_with: Callable[..., Gateway]) -> None:
    everything = {"name": "everything", "action": "Allow", "match": {"effects": ["*", "unknown"]}}
    unread = b"DEALLOCATE a; PREPARE a AS SELECT 2 WHERE 1 NOT /* */ IN (2)"
    with client(gateway_with(rules=[everything])) as one:
        one.send(m.encode_parse(b"a", ALLOWED), m.encode_parse(b"b", ALLOWED), m.SYNC_FRAME)
        assert one.kinds() == "11Z"
        one.send(m.encode_query(b"SELEC 1"), bind(statement=b"a"), execute(), m.SYNC_FRAME)
        assert one.kinds() == "EZ"
        assert one.kinds() == "2DCZ"  # the server did not run it, so nothing has changed
        one.send(m.encode_query(unread), bind(statement=b"a"), execute(), m.SYNC_FRAME)
        assert one.kinds() == "CCZ"
        assert b"26000" in one.until("Z")[0][1]


def test_declare_keeps_the_portals_of_the_protocol(dev_gateway: Gateway) -> None:
    with client(dev_gateway) as one:
        one.send(m.encode_query(b"BEGIN"), m.encode_parse(b"", ALLOWED), bind(b"p"), m.SYNC_FRAME)
        assert one.kinds() == "CZ"
        assert one.kinds() == "12Z"
        one.send(m.encode_query(b"DECLARE c CURSOR FOR SELECT id FROM orders; CLOSE c"), execute(b"p"), m.SYNC_FRAME)
        assert one.kinds() == "CCZ"
        assert one.kinds() == "DCZ"


def test_names_that_are_one_to_the_server_are_one_to_the_gateway(dev_gateway: Gateway) -> None:
    first, second = b"n" * 63 + b"1", b"n" * 63 + b"2"
    with client(dev_gateway) as one:
        one.send(m.encode_parse(first, ALLOWED), m.SYNC_FRAME, close_statement(second), m.SYNC_FRAME)
        assert one.kinds() == "1Z"
        assert one.kinds() == "3Z"
        one.send(bind(statement=first), execute(), m.SYNC_FRAME)
        found = one.until("Z")
        assert b"Chaperone knows only" in found[0][1]  # it is known here, too, that the server has closed it
