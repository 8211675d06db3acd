"""A session whose results are cut, fed by hand: however the answer comes in, the client reads whole messages."""

from __future__ import annotations

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from play import Play

from chaperone_sidecar.config import Limit
from chaperone_sidecar.errors import LimitReached
from chaperone_sidecar.limits.reached import Reached
from chaperone_sidecar.protocols.postgresql import messages as m

ROW = m.frame(m.DATA_ROW, b"\0\1\0\0\0\1x")
LONG = m.frame(m.DATA_ROW, bytes(300_000))
HEAD = m.frame(m.ROW_DESCRIPTION, bytes(2))
DONE = m.frame(m.COMMAND_COMPLETE, b"SELECT 9\0")
CANCELLED = m.frame(m.ERROR_RESPONSE, b"SERROR\0C57014\0Mcanceling statement due to user request\0\0")
READY = m.frame(m.READY_FOR_QUERY, b"I")
PARSE = m.encode_parse(b"", b"SELECT 1")
BIND = m.frame(m.BIND, bytes(8))
EXECUTE = m.frame(m.EXECUTE, bytes(5))


@st.composite
def pieces(draw: st.DrawFn, *, most: int = 6) -> tuple[list[bytes], int, list[bytes]]:
    """Rows, how many of them may pass, and the answer in pieces."""
    rows = draw(st.lists(st.sampled_from([ROW, LONG]), min_size=2, max_size=8))
    ending = draw(st.sampled_from([DONE, CANCELLED]))
    answer = HEAD + b"".join(rows) + ending + READY
    cuts = sorted(draw(st.lists(st.integers(0, len(answer)), max_size=most)))
    parts = [answer[start:end] for start, end in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    return rows, draw(st.integers(1, len(rows) - 1)), [part for part in parts if part]


@settings(max_examples=200)
@given(pieces())
def test_a_cut_result_is_whole_messages_and_an_error(given_: tuple[list[bytes], int, list[bytes]]) -> None:
    _, most, parts = given_
    play = Play(rows_per_command=Limit(most, "agents/billing"))
    play.client(m.encode_query(b"SELECT 1"))
    for part in parts:
        play.upstream(part)
    kinds = play.messages()
    assert kinds.rstrip("Z").rstrip("E").lstrip("T").strip("D") == ""
    assert kinds.endswith("EZ")
    assert kinds.count("D") <= most
    assert b"C53400\0" in play.to_client
    assert [(one.status, one.code) for one in play.concluded] == [("error", "limit:rowsPerCommand")]
    assert play.concluded[0].rows == kinds.count("D")
    assert play.cancels <= 1


@settings(max_examples=200)
@given(pieces(), st.data())
def test_time_may_run_out_at_any_byte(given_: tuple[list[bytes], int, list[bytes]], data: st.DataObject) -> None:
    _, _, parts = given_
    play = Play()
    play.client(m.encode_query(b"SELECT 1"))
    moment = data.draw(st.integers(0, len(parts) - 1))
    # An error that came first is the command's end (the test after an error says what happens then).
    assume(CANCELLED not in b"".join(parts[:moment]))
    for number, part in enumerate(parts):
        if number == moment:
            play.expire()
        play.upstream(part)
    kinds = play.messages()
    assert kinds.endswith("EZ")
    assert kinds.rstrip("Z").rstrip("E").lstrip("T").strip("D") == ""
    assert b"C57014\0" in play.to_client
    assert b"cut by Chaperone" in play.to_client
    assert [(one.status, one.code) for one in play.concluded] == [("error", "limit:commandDuration")]
    assert play.cancels == 1


@given(pieces())
def test_what_stays_within_the_limit_passes_byte_for_byte(given_: tuple[list[bytes], int, list[bytes]]) -> None:
    rows, _, parts = given_
    play = Play(rows_per_command=Limit(len(rows), "a"), bytes_per_session=Limit(10**8, "a"))
    play.client(m.encode_query(b"SELECT 1"))
    for part in parts:
        play.upstream(part)
    assert play.to_client == b"".join(parts)
    assert play.cancels == 0


def test_no_cancel_is_sent_for_a_result_that_has_ended() -> None:
    play = Play(rows_per_command=Limit(1, "a"))
    play.client(m.encode_query(b"SELECT 1"))
    play.upstream(HEAD + ROW + ROW + DONE + READY)
    assert (play.messages(), play.cancels) == ("TEZ", 0)
    assert b"had completed the command" in play.to_client


def test_an_execute_that_ended_before_the_cut_with_sync_behind_it_stays_in_step() -> None:
    play = Play(rows_per_command=Limit(1, "a"))
    play.client(PARSE + BIND + EXECUTE + m.SYNC_FRAME)
    play.upstream(m.frame(m.PARSE_COMPLETE, b"") + m.frame(m.BIND_COMPLETE, b"") + ROW + ROW + DONE + READY)
    assert play.messages() == "12EZ"
    assert [(one.status, one.code) for one in play.concluded] == [("error", "limit:rowsPerCommand")]


def test_an_execute_that_ended_before_the_cut_with_nothing_behind_it_is_followed_by_poison() -> None:
    play = Play(rows_per_command=Limit(1, "a"))
    play.client(PARSE + BIND + EXECUTE + m.FLUSH_FRAME)
    play.to_upstream = b""
    play.upstream(m.frame(m.PARSE_COMPLETE, b"") + m.frame(m.BIND_COMPLETE, b"") + ROW + ROW + DONE)
    assert play.messages() == "12"
    assert b"chaperone_refused" in play.to_upstream
    play.to_upstream = b""
    play.client(BIND + EXECUTE)
    assert play.to_upstream == b""
    play.upstream(m.frame(m.ERROR_RESPONSE, b"SERROR\0C42601\0Msyntax error\0\0"))
    play.client(m.SYNC_FRAME)
    play.upstream(READY)
    assert play.messages() == "12EZ"
    assert b"C53400\0" in play.to_client
    assert b"syntax" not in play.to_client
    play.client(m.encode_query(b"SELECT 1"))
    assert play.to_upstream.endswith(m.encode_query(b"SELECT 1"))


def test_an_execute_that_ended_before_the_cut_with_others_behind_it_ends_the_session() -> None:
    play = Play(rows_per_command=Limit(1, "a"))
    play.client(PARSE + BIND + EXECUTE + BIND + EXECUTE + m.SYNC_FRAME)
    with pytest.raises(LimitReached) as ended:
        play.upstream(m.frame(m.PARSE_COMPLETE, b"") + m.frame(m.BIND_COMPLETE, b"") + ROW + ROW + DONE)
    assert play.messages() == "12"
    assert b"C53400\0" in play.session.fatal(ended.value)
    assert [(one.status, one.code) for one in play.concluded] == [("error", "limit:rowsPerCommand")]
    assert len(play.session.abandoned()) == 1


def test_a_copy_that_passes_the_bytes_is_failed_at_the_database() -> None:
    play = Play(bytes_per_session=Limit(100, "a"))
    play.client(m.encode_query(b"COPY t FROM STDIN"))
    play.upstream(m.frame(m.COPY_IN_RESPONSE, bytes(3)))
    play.client(m.frame(m.COPY_DATA, bytes(60)))
    play.to_upstream = b""
    play.client(m.frame(m.COPY_DATA, bytes(60)) + m.frame(m.COPY_DATA, b"1") + m.frame(m.COPY_DONE, b""))
    assert play.to_upstream == m.encode_copy_fail("limit:bytesPerSession")
    play.upstream(m.frame(m.ERROR_RESPONSE, b"SERROR\0C57014\0MCOPY from stdin failed\0\0") + READY)
    assert play.messages() == "GEZ"
    assert b"C53400\0" in play.to_client
    assert [(one.status, one.code) for one in play.concluded] == [("error", "limit:bytesPerSession")]
    assert play.cancels == 0


def test_a_cut_while_the_command_is_prepared_is_told_as_such() -> None:
    play = Play()
    play.client(PARSE + BIND + EXECUTE + m.SYNC_FRAME)
    play.expire()
    play.upstream(m.frame(m.PARSE_COMPLETE, b"") + CANCELLED + READY)
    assert play.messages() == "1EZ"
    assert b"cut by Chaperone" in play.to_client
    assert [one.status for one in play.concluded] == ["aborted"]


def test_time_that_runs_out_behind_a_refused_query_leaves_its_refusal() -> None:
    play = Play()
    play.client(m.encode_query(b"BEGIN"))
    play.client(m.frame(m.FUNCTION_CALL, bytes(10)))
    play.client(m.encode_query(b"SELECT 1"))
    play.upstream(DONE + READY + m.frame(m.ERROR_RESPONSE, b"SERROR\0C42601\0Msyntax error\0\0"))
    play.expire()
    play.upstream(READY + HEAD + ROW + CANCELLED + READY)
    assert play.messages() == "CZEZEZ"
    assert b"C42501\0" in play.to_client
    assert b"C57014\0" in play.to_client


def test_a_cut_behind_an_ending_keeps_the_settings_that_came_with_it() -> None:
    play = Play()
    play.client(m.encode_query(b"SELECT 1"))
    play.upstream(HEAD + ROW + DONE + m.frame(m.PARAMETER_STATUS, b"DateStyle\0SQL, DMY\0"))
    play.expire()
    play.upstream(READY)
    assert play.messages() == "TDSEZ"
    assert b"The database had completed the command by then." in play.to_client


def test_a_copy_that_begins_after_its_cut_is_failed_and_its_data_dropped() -> None:
    play = Play()
    play.client(m.encode_query(b"COPY t FROM STDIN"))
    play.expire()
    play.client(m.frame(m.COPY_DATA, b"1\n") + m.frame(m.COPY_DONE, b""))
    play.to_upstream = b""
    play.upstream(m.frame(m.COPY_IN_RESPONSE, bytes(3)))
    assert play.to_upstream == m.encode_copy_fail("limit:commandDuration")
    play.upstream(m.frame(m.ERROR_RESPONSE, b"SERROR\0C57014\0MCOPY from stdin failed\0\0") + READY)
    assert play.messages() == "EZ"
    play.client(m.encode_query(b"SELECT 1"))
    assert play.to_upstream.endswith(m.encode_query(b"SELECT 1"))


def test_time_that_runs_out_after_an_error_changes_nothing() -> None:
    play = Play()
    play.client(m.encode_query(b"SELECT 1"))
    play.upstream(m.frame(m.ERROR_RESPONSE, b"SERROR\0C22012\0Mdivision by zero\0\0"))
    play.expire()
    play.upstream(READY)
    assert play.messages() == "EZ"
    assert b"C22012\0" in play.to_client
    assert play.cancels == 0


def test_the_last_word_is_not_written_into_a_row() -> None:
    play = Play()
    play.client(m.encode_query(b"SELECT 1"))
    play.upstream(HEAD + LONG[:290_000])
    assert play.session.fatal(LimitReached(Reached("rowsPerCommand", Limit(1, "a")))) == b""
    play.upstream(LONG[290_000:])
    assert play.session.fatal(LimitReached(Reached("rowsPerCommand", Limit(1, "a")))) != b""
