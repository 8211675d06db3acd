"""PostgreSQL's own regression tests: what is called a read there writes nothing.

psql runs the files as PostgreSQL's own test driver does, through a relay. Each text that psql sends is classified, and
the server is asked before and after it whether a transaction number was spent: whatever writes a row, a definition or
a sequence needs one. So each statement runs in the state that its file made, as its author meant it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fix_postgres
import pytest
from fix_postgres import PASSWORD, Postgres
from statement_relay import Relay, Session

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.postgresql.classify import classify
from chaperone_tools.postgresql_source import regression_tests

pytestmark = [pytest.mark.peer, pytest.mark.slow, pytest.mark.timeout(900)]

IS_FULL = os.environ.get("CHAPERONE_FULL_CORPUS") == "1"  # all files take 70 s on an idle machine, half of them 35 s
FILE_LIMIT_S = 120
# Files whose tables and functions the others need.
FOUNDATION = {
    "test_setup", "copy", "create_aggregate", "create_function_sql", "create_index", "create_misc", "create_operator",
    "create_procedure", "create_table", "create_type", "create_view", "insert", "inherit",
}  # fmt: skip
READS = {Effect.READ, Effect.READ_SENSITIVE, Effect.BULK_READ}
OWN = READS | {Effect.SESSION, Effect.TRANSACTION}
ASK = """SELECT {number}, current_user, session_user, current_setting('search_path'),
 current_setting('standard_conforming_strings'), current_setting('client_encoding'),
 (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')"""
# The next transaction number: nothing but the text asked about spends one.
NEXT = ASK.format(number="pg_snapshot_xmax(pg_current_snapshot())")
# Inside a transaction: how many numbers it holds, for each savepoint that wrote has one of its own.
HELD = ASK.format(number="(SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'transactionid')")
# Texts that spend a number, each for a reason that CLASSIFY.md names.
EXPLAINED = {
    r"(?i)\b(txid_current|pg_current_xact_id)\(": "`transaction`: it spends the number and changes nothing else",
    r"(?i)^\s*NOTIFY|pg_notify\(": "`session`: a notification is ordered by a transaction number",
    r"(?i)^DISCARD (ALL|TEMP)": "temporary tables, which could not have been made",
    r"(?i)^select \* from (temptest|temptest1|temptest2|temp_\w+)\b": "ON COMMIT DELETE ROWS of temporary tables",
    r"(?i)^select \* from whereami": "a temporary table",
    r"(?i)^FETCH (1 FROM )?c1": "rows are locked by the cursor's query, which was a `modify` when it was declared",
    r"(?i)^select \* from my_locks": "a view that calls txid_current(): it is its owner's code",
}
# Texts that only this grammar refuses: it is PostgreSQL 18's, and reads backslashes as the gateway pins them.
OTHER_GRAMMAR = r"\\|U&|(?i:\\u)"


@dataclass
class Watch:
    """Asks the server before and after each text that is called a read, and keeps what wrote all the same."""

    file: str = ""
    texts: int = 0
    checked: int = 0
    writes: list[str] = field(default_factory=list)
    refused_here_alone: list[str] = field(default_factory=list)

    def before(self, session: Session, text: bytes) -> tuple[bool, str, Any]:
        """What is known before the text runs: whether it is a read, how to ask afterwards, and what was said."""
        self.texts += 1
        effects = {access.effect for access in classify(text).facts.accesses}
        is_read = effects <= READS
        if session.status == "I" and effects <= OWN:
            return is_read, NEXT, session.ask(NEXT)
        if session.status == "T" and is_read:
            session.ask("SAVEPOINT chaperone_probe")
            return is_read, HELD, session.ask(HELD)
        return is_read, "", None

    def after(self, session: Session, text: bytes, token: Any) -> None:
        """Compare; inside a transaction the savepoint of `before` is given back."""
        is_read, question, known = token
        why = classify(text).facts.why_unknown
        if "does not parse" in why and not session.failed:
            self.refused_here_alone.append(text.decode())
        if not question or session.status == "E" or (question == NEXT and session.status == "T"):
            return  # nothing was asked, or it can no longer be
        now = session.ask(question)
        if question == HELD:
            session.ask("RELEASE SAVEPOINT chaperone_probe")
        assert now is not None
        self.checked += 1
        # A statement of the session may change who it is or what it locks, but no row.
        if now != known if is_read else now[0] != known[0]:
            self.writes.append(text.decode(errors="replace"))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server of this module's own: the files make roles, tablespaces and settings, and nothing else may write."""
    directory = Path(tempfile.mkdtemp(prefix="chaperone-regress-"))
    directory.chmod(0o755)
    postgres, process = fix_postgres.start(directory, settings="autovacuum = off\nlog_statement = none\n")
    with postgres.admin("postgres") as admin:
        admin.execute("CREATE DATABASE regression TEMPLATE template0 LOCALE 'C'")
    yield postgres
    process.terminate()
    process.wait(60)
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def watched(server: Postgres) -> Watch:
    """The files of the suite, run in its order."""
    source = regression_tests()
    work = server.directory / "regress"
    shutil.copytree(source, work)
    (work / "results").mkdir()
    if os.geteuid() == 0:
        for path in [work, *work.rglob("*")]:
            shutil.chown(path, "postgres")
    watch = Watch()
    relay = Relay(("127.0.0.1", server.port), watch.before, watch.after)
    env = os.environ | {
        "PGHOST": "127.0.0.1", "PGPORT": str(relay.port), "PGUSER": "postgres", "PGPASSWORD": PASSWORD,
        "PGDATABASE": "regression", "PGSSLMODE": "disable", "PGTZ": "PST8PDT", "PGDATESTYLE": "Postgres, MDY",
        "PGOPTIONS": "-c intervalstyle=postgres_verbose -c statement_timeout=20s",
        "PG_ABS_SRCDIR": str(work), "PG_ABS_BUILDDIR": str(work), "PG_LIBDIR": str(work), "PG_DLSUFFIX": ".so",
    }  # fmt: skip
    for name in chosen((work / "parallel_schedule").read_text()):
        watch.file = name
        subprocess.run(
            ["psql", "-X", "-q", "-f", work / "sql" / f"{name}.sql"], env=env, cwd=work, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=FILE_LIMIT_S,
        )  # fmt: skip
    relay.close()
    print(f"{watch.texts} texts, {watch.checked} of them called reads or the session's own and checked")
    return watch


def chosen(schedule: str) -> list[str]:
    """The names of the files to run, in order: all, or the foundation and every second other one."""
    names = " ".join(re.findall(r"^test: (.*)", schedule, re.MULTILINE)).split()
    return [name for name in names if IS_FULL or name in FOUNDATION or zlib.crc32(name.encode()) % 2]


def test_no_statement_that_is_called_a_read_writes(watched: Watch) -> None:
    assert [text for text in watched.writes if not any(re.search(known, text) for known in EXPLAINED)] == []
    assert watched.checked > (20_000 if IS_FULL else 9_000)


def test_what_does_not_parse_here_does_not_parse_there(watched: Watch) -> None:
    assert [text for text in watched.refused_here_alone if not re.search(OTHER_GRAMMAR, text)] == []
