"""Facts of PostgreSQL statements: the corpus, and what must hold for any text."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.command import Access, Effect, Resolution
from chaperone_sidecar.protocols.postgresql import grammar
from chaperone_sidecar.protocols.postgresql.classify import ClassifyCache, Statement, classify, classify_apart
from chaperone_sidecar.protocols.postgresql.walk import MAX_NAMES

CORPUS = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "corpora" / "postgresql_effects.jsonl").read_text().splitlines()
]
ROWS = re.compile(r"\(*(SELECT|VALUES|TABLE|WITH)\b", re.IGNORECASE)


def accesses(sql: str) -> set[Access]:
    return set(classify(sql.encode()).facts.accesses)


def spelled(sql: str) -> list[str]:
    return [
        f"{a.effect.value} {a.object}" if a.object else a.effect.value for a in classify(sql.encode()).facts.accesses
    ]


@pytest.mark.parametrize("line", CORPUS, ids=lambda line: f"{line['group']}: {line['sql'][:60]}")
def test_corpus(line: dict[str, Any]) -> None:
    assert sorted(spelled(line["sql"])) == sorted(line["accesses"])


def test_corpus_covers_every_effect_a_statement_can_have() -> None:
    met = {access.split(" ")[0] for line in CORPUS for access in line["accesses"]}
    assert met == {effect.value for effect in Effect} - {"tunnel"}  # tunnels are no SQL
    assert len(CORPUS) >= 250


@pytest.mark.parametrize(
    "line", [line for line in CORPUS if "unknown" in line["accesses"]], ids=lambda x: x["sql"][:60]
)
def test_unknown_says_why_and_what_to_do(line: dict[str, Any]) -> None:
    facts = classify(line["sql"].encode()).facts
    assert facts.resolution is Resolution.UNRESOLVED
    assert len(facts.why_unknown) > 20
    assert facts.why_unknown.endswith(".")


def test_refusal_never_quotes_the_statement() -> None:
    for sql in (
        "SELECT 'canary-secret' 'x' oops)",
        "SELECT canary_secret canary_secret canary_secret",
        "SELECT 'canary",
    ):
        assert "canary" not in classify(sql.encode()).facts.why_unknown


def test_resolution_says_whether_an_object_was_named() -> None:
    assert classify(b"SELECT 1").facts.resolution is Resolution.NONE
    assert classify(b"BEGIN").facts.resolution is Resolution.NONE
    assert classify(b"SELECT * FROM t").facts.resolution is Resolution.SYNTACTIC


# --- what no statement is parsed for --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"SELECT 1\0; DROP TABLE t", b"SELECT '\xff'", b"SELECT \xed\xa0\x80", b"\xfe\xff"])
def test_bytes_the_parser_would_see_otherwise_than_the_server_are_unknown(text: bytes) -> None:
    assert classify(text).facts.accesses == (Access(Effect.UNKNOWN),)


def test_text_over_the_inline_limit_is_not_parsed_inline() -> None:
    text = b"SELECT '" + b"x" * grammar.INLINE_BYTES + b"'"
    assert classify(text).facts.accesses == (Access(Effect.UNKNOWN),)
    assert classify_apart(text).result(30).facts.accesses == (Access(Effect.READ),)


def test_text_over_the_large_limit_is_unknown() -> None:
    text = b"SELECT '" + b"x" * grammar.LARGE_BYTES + b"'"
    assert classify_apart(text).result(30).facts.why_unknown.endswith("split it.")


def test_flood_of_large_texts_is_unknown_and_not_queued() -> None:
    text = b"SELECT 1" + b" + 1" * 10_000
    answers = [classify_apart(text) for _ in range(4 * grammar.PENDING_TEXTS)]
    reasons = {answer.result(60).facts.why_unknown for answer in answers}
    assert any("Too many large statements" in reason for reason in reasons)
    assert classify_apart(b"SELECT 1").result(60).facts.accesses == (Access(Effect.READ),)


def test_more_with_queries_than_the_cap_are_unknown() -> None:
    few = ", ".join(f"x{i} AS (SELECT 1)" for i in range(MAX_NAMES))
    assert spelled(f"WITH {few} SELECT 1") == ["read"]
    assert "unknown" in spelled(f"WITH {few}, y AS (SELECT 1) SELECT 1")


def test_name_that_the_server_may_cut_elsewhere_is_unknown() -> None:
    assert spelled(f"SELECT * FROM {'x' * 70}") == [f"read public.{'x' * 63}"]
    assert spelled(f'SELECT * FROM "{"ö" * 31}"') == ["unknown"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT E'a' -- x\n'b\\''; DROP TABLE t; --'",
        "DO 'a' -- x\n 'b'",
        "SELECT 'a'--\n'b'",
        "SELECT 'a' --x\r\n\n -- y\n\t'b'",
        "SELECT 'a', 'b' -- 'c' -- d\n--\n'e'",
    ],
)
def test_string_that_goes_on_after_a_comment_is_not_parsed(sql: str) -> None:
    assert "in one piece" in classify(sql.encode()).facts.why_unknown


@pytest.mark.parametrize(
    "sql",
    ["SELECT 'a', -- x\n'b'", "SELECT 'a' -- x\n, 'b'", "SELECT -- x\n'a'", "SELECT 'a'\n'b'", "SELECT 'a' -- 'b'\n"],
)
def test_comments_between_whole_strings_are_understood(sql: str) -> None:
    assert spelled(sql) == ["read"]


@pytest.mark.parametrize("sql", ["SELECT * FROM U&\"!0074\" /**/ UESCAPE '!'", "SELECT U&'!0074' --\nuEscape '!'"])
def test_escape_character_behind_a_comment_is_not_parsed(sql: str) -> None:
    assert "UESCAPE" in classify(sql.encode()).facts.why_unknown


def test_comment_between_words_that_belong_together_is_unknown_at_worst() -> None:
    for sql in ("SELECT a NOT /**/ IN (1) FROM t", "SELECT a FROM t ORDER BY a NULLS -- x\n FIRST"):
        assert spelled(sql) == ["unknown"]


# --- what the session is told ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "statements"),
    [
        ("", ()),
        ("SELECT 1; ; BEGIN", (Statement("other"), Statement("begin"))),
        ("COPY t FROM STDIN", (Statement("copy_in"),)),
        ("COPY t TO STDOUT; SELECT 1", (Statement("copy_out"), Statement("other"))),
        ("COPY t TO '/x'", (Statement("other"),)),
        ("SAVEPOINT a; ROLLBACK TO a", (Statement("savepoint", "a"), Statement("rollback_to", "a"))),
        ("PREPARE q AS SELECT 1; EXECUTE q", (Statement("prepare", "q"), Statement("execute", "q"))),
        ("DEALLOCATE ALL; DEALLOCATE q", (Statement("deallocate"), Statement("deallocate", "q"))),
        ("DECLARE c CURSOR FOR SELECT 1", (Statement("declare", "c"),)),
        ("FETCH c; CLOSE c; CLOSE ALL", (Statement("fetch", "c"), Statement("close", "c"), Statement("close"))),
        ("DISCARD ALL; COMMIT", (Statement("discard", "all"), Statement("commit"))),
    ],
)
def test_session_is_told_each_statement(sql: str, statements: tuple[Statement, ...]) -> None:
    assert classify(sql.encode()).statements == statements


@pytest.mark.parametrize(
    "sql",
    [
        "SET search_path TO s",
        "SELECT set_config('search_path', 's', false)",
        "SET ROLE x",
        "SET standard_conforming_strings = off",
        "SET client_encoding = 'SJIS'",
        "UPDATE pg_settings SET setting = 's' WHERE name = 'search_path'",
        "CREATE TEMP TABLE t (a int)",
        "SELECT 1 AS a INTO TEMP t",
    ],
)
def test_change_of_what_texts_mean_is_told(sql: str) -> None:
    assert classify(sql.encode()).changes_reading


@pytest.mark.parametrize("sql", ["SET search_path TO public", "SET TIME ZONE 'UTC'", "RESET ALL", "SELECT * FROM t"])
def test_harmless_setting_does_not_change_what_texts_mean(sql: str) -> None:
    assert not classify(sql.encode()).changes_reading


def test_change_of_names_is_told() -> None:
    assert classify(b"DEALLOCATE q").changes_names
    assert classify(b"DISCARD ALL").changes_names
    assert not classify(b"DISCARD PLANS").changes_names
    assert classify(b"ROLLBACK").changes_portals
    assert classify(b"DECLARE c CURSOR FOR SELECT 1").changes_portals
    assert not classify(b"SELECT 1").changes_portals


# --- what must hold for any text ------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_arbitrary_bytes_have_facts_and_never_raise(text: bytes) -> None:
    assert classify(text).facts.accesses


VOCABULARY = """
    SELECT FROM WHERE t u x ( ) , ; * 1 'a' AS WITH RECURSIVE INSERT INTO VALUES UPDATE SET = DELETE USING
    RETURNING UNION ALL JOIN ON LATERAL f MERGE WHEN MATCHED THEN DO NOTHING COPY TO STDOUT STDIN EXPLAIN ANALYZE CREATE
    TABLE VIEW TEMP DROP CASCADE GRANT TO FOR OF . :: int $1 $$ E' -- /* */ NOT NULL CASE END SHOW RESET ROLE CURSOR
    DECLARE FETCH CLOSE PREPARE EXECUTE ALTER ADD COLUMN DEFAULT nextval('q') OPERATOR(s.+) ORDER BY LIMIT"""
WORDS = st.sampled_from(VOCABULARY.split())


@given(st.lists(WORDS, max_size=25))
@settings(max_examples=500)
def test_arbitrary_words_have_facts_and_never_raise(parts: list[str]) -> None:
    classified = classify(" ".join(parts).encode())
    assert classified.facts.accesses
    is_unknown = any(access.effect is Effect.UNKNOWN for access in classified.facts.accesses)
    assert is_unknown == bool(classified.facts.why_unknown)


READABLE = [line["sql"] for line in CORPUS if "unknown" not in line["accesses"] and line["sql"]]
LOOKED_AT_TOGETHER = re.compile(
    r"NOT (BETWEEN|IN|I?LIKE|SIMILAR)|NULLS (FIRST|LAST)|WITH (TIME|ORDINALITY)|WITHOUT TIME"
)
SPACE = st.sampled_from([" ", "\n", "\t", "\f", "/**/", "/* ; DROP TABLE x; /* */ */", "-- ; DROP TABLE x\n", "\r\n"])


@given(st.data(), st.sampled_from([sql for sql in READABLE if not re.search(r"['\"$]|--", sql)]))
@settings(max_examples=300)
def test_blanks_and_comments_change_nothing(data: st.DataObject, sql: str) -> None:
    # A comment inside a pair of words that the lexer looks at together is a syntax error in the library alone.
    whole = LOOKED_AT_TOGETHER.sub(lambda pair: pair.group().replace(" ", "\v"), sql)
    spaced = "".join(data.draw(SPACE) if letter == " " else letter for letter in whole)
    assert accesses(spaced) == accesses(sql)


@given(st.sampled_from([sql for sql in READABLE if not re.search(r"['\"$]|--|Öl", sql)]))
def test_case_of_unquoted_words_changes_nothing(sql: str) -> None:
    folded = sql.replace("x:", "X:")
    assert accesses(folded.upper()) == accesses(folded.lower())


WITH_STATEMENTS = [sql for sql in READABLE if classify(sql.encode()).statements]


@given(st.sampled_from(WITH_STATEMENTS), st.sampled_from(WITH_STATEMENTS))
@settings(max_examples=300)
def test_statements_in_one_text_are_united(first: str, second: str) -> None:
    together = accesses(f"{first}\n;\n{second}\n")
    assert together == accesses(first) | accesses(second)


QUERIES = [sql for sql in READABLE if ROWS.match(sql) and ";" not in sql and " INTO " not in sql and "--" not in sql]
MODIFYING = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b")
WRAPPERS = [
    "SELECT * FROM ({}) wrapped",
    "SELECT ({})",
    "SELECT 1 WHERE EXISTS ({})",
    "SELECT ARRAY({})",
    "WITH wrapped AS ({}) SELECT * FROM wrapped",
    "WITH RECURSIVE wrapped AS MATERIALIZED ({}) SELECT 1",
    "({})",
    "({}) UNION ALL SELECT 1",
    "SELECT 1 LIMIT ({})",
    "VALUES (1, ({}))",
    "SELECT sum(1) FILTER (WHERE 1 IN ({}))",
    "SELECT sum(1) OVER (ORDER BY ({}))",
    "SELECT CASE WHEN EXISTS ({}) THEN 1 END",
    "SELECT * FROM unnest(ARRAY({})) wrapped",
    "SELECT lower(({})::text)",
    "SELECT * FROM a_table a JOIN LATERAL ({}) wrapped ON true",
    "INSERT INTO a_table {}",
    "UPDATE a_table SET x = ({})",
    "DELETE FROM a_table WHERE x IN ({})",
    "MERGE INTO a_table USING ({}) wrapped ON true WHEN MATCHED THEN DO NOTHING",
    "CREATE VIEW a_view AS {}",
    "CREATE TABLE a_copy AS {}",
    "EXPLAIN ANALYZE {}",
    "COPY ({}) TO STDOUT",
    "PREPARE a_name AS {}",
    "DECLARE a_cursor CURSOR FOR {}",
    "INSERT INTO a_table VALUES (1) ON CONFLICT (x) DO UPDATE SET x = ({})",
    "INSERT INTO a_table VALUES (1) RETURNING ({})",
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapping_a_query_never_loses_an_access(wrapper: str) -> None:
    for sql in QUERIES:
        wrapped = accesses(wrapper.format(sql))
        if Access(Effect.UNKNOWN) in wrapped:  # the grammar has no such place for it, e.g. TABLE after a bare WITH
            continue
        lost = accesses(sql) - wrapped - {Access(Effect.READ)}
        assert not lost, wrapper.format(sql)


@given(st.lists(st.sampled_from(WRAPPERS[:16]), min_size=1, max_size=6), st.sampled_from(QUERIES))
@settings(max_examples=300)
def test_nesting_wrappers_never_loses_an_access(wrappers: list[str], sql: str) -> None:
    text = sql
    for wrapper in wrappers:
        text = wrapper.format(text)
    wrapped = accesses(text)
    assert Access(Effect.UNKNOWN) in wrapped or not accesses(sql) - wrapped - {Access(Effect.READ)}, text


def test_wrapped_queries_are_mostly_understood() -> None:
    """The tests above would hold for a classifier that knows nothing."""
    texts = [wrapper.format(sql) for wrapper in WRAPPERS for sql in QUERIES]
    unknown = sum(Access(Effect.UNKNOWN) in accesses(text) for text in texts)
    assert unknown < len(texts) // 50


# --- the cache ------------------------------------------------------------------------------------------------------


def test_cache_returns_what_was_kept_for_the_exact_text_alone() -> None:
    cache = ClassifyCache()
    classified = classify(b"SELECT * FROM t")
    cache.keep(b"SELECT * FROM t", classified)
    assert cache.find(b"SELECT * FROM t") is classified
    assert cache.find(b"SELECT * FROM T") is None


def test_cache_stays_within_its_bytes_and_forgets_the_oldest() -> None:
    cache = ClassifyCache(max_bytes=20_000)
    texts = [f"SELECT {number}.5 FROM t".encode() for number in range(1000)]
    for text in texts:
        cache.keep(text, classify(text))
        assert cache.find(texts[0]) is not None  # in use, so it stays
    assert cache.size_bytes <= 20_000
    assert cache.find(texts[1]) is None
    assert cache.find(texts[-1]) is not None


def test_cache_does_not_keep_a_text_that_would_push_out_all_others() -> None:
    cache = ClassifyCache(max_bytes=20_000)
    text = b"SELECT '" + b"x" * 10_000 + b"'"
    cache.keep(text, classify(text))
    assert cache.find(text) is None


NUMBERS = st.integers(0, 2) | st.integers(0, 999_999_999)  # 0 and 1 are off and on


@given(
    st.sampled_from(CORPUS),
    st.lists(NUMBERS, min_size=1, max_size=12),
    st.lists(NUMBERS, min_size=1, max_size=12),
)
def test_texts_that_share_an_entry_mean_the_same(
    line: dict[str, Any], first: list[int], second: list[int]
) -> None:  # fmt: skip
    """The cache takes texts for one that differ in integers alone: classifying each by itself must agree."""

    def with_numbers(numbers: list[int]) -> bytes:
        going = itertools.cycle(numbers)
        return re.sub(r"(?<![\w.$])\d+(?![\w.])", lambda _: str(next(going)), line["sql"]).encode()

    one, other = with_numbers(first), with_numbers(second)
    cache = ClassifyCache()
    cache.keep(one, classify(one))
    found = cache.find(other)
    if found is not None and found.facts.resolution is not Resolution.UNRESOLVED:
        alone = classify(other)
        # What the server would refuse (float(99)) may be let through: it refuses it then.
        assert alone.facts.resolution is Resolution.UNRESOLVED or alone == found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SELECT t1 FROM t", "SELECT t2 FROM t"),
        ("SELECT 1 FROM t1", "SELECT 1 FROM t2"),
        ("SELECT '1' FROM t", "SELECT '2' FROM t"),
        ('SELECT 1 AS "1"', 'SELECT 1 AS "2"'),
        ("SELECT 1 -- 1", "SELECT 1 -- 2"),
        ("SELECT 1 /* 1 */", "SELECT 1 /* 2 */"),
        ("SELECT $1", "SELECT $2"),
        ("SELECT 1.5", "SELECT 1.6"),
        ("SELECT a.b1", "SELECT a.b2"),
        ("SELECT 1e5", "SELECT 1e6"),
    ],
)
def test_texts_that_differ_in_more_than_an_integer_share_none(one: str, other: str) -> None:
    cache = ClassifyCache()
    cache.keep(one.encode(), classify(one.encode()))
    assert cache.find(one.encode()) is not None
    assert cache.find(other.encode()) is None


def test_texts_that_differ_in_an_integer_share_an_entry() -> None:
    cache = ClassifyCache()
    cache.keep(b"SELECT a FROM t WHERE id = 17;", classify(b"SELECT a FROM t WHERE id = 17;"))
    assert cache.find(b"SELECT a FROM t WHERE id = 4;") is cache.find(b"SELECT a FROM t WHERE id = 17;")
    assert cache.find(b"SELECT a FROM t WHERE id = -4;") is None
    assert cache.find(b"SELECT a FROM t WHERE id = 12345678901;") is None


@pytest.mark.parametrize("name", ["standard_conforming_strings", "row_security", "check_function_bodies"])
def test_switching_a_pinned_setting_on_by_a_number_is_no_entry_for_switching_it_off(name: str) -> None:
    cache = ClassifyCache()
    cache.keep(f"SET {name} = 1".encode(), classify(f"SET {name} = 1".encode()))
    found = cache.find(f"SET {name} = 0".encode())
    assert found is None or Access(Effect.PRIVILEGE, f"setting:{name}") in found.facts.accesses
