"""`chaperone totals take`: reads the counters by psql, with the credentials of whoever runs it.

The gateway's look-ups are known by the number that the server itself gives to their texts: each is planned once here,
and not run. psql is asked with fixed texts alone, and never for the text of anybody's statement.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec

from chaperone_cli.durable import replace
from chaperone_cli.say import say
from chaperone_cli.totals.snapshot import FORMAT, MAX_BYTES, Counter, Database, Server, Snapshot

TIMEOUT_S: Final = 60.0
SERVICE: Final = "chaperone"  # the section of --database-file
MIN_VERSION: Final = 140000  # pg_stat_statements says since 14 what is at the top level, and when it was reset
_PER_ENTRY: Final = 170000  # since when each counter says when its counting began
_SETTINGS: Final = ("pg_stat_statements.track", "pg_stat_statements.track_utility", "pg_stat_statements.max")
_MAX_COMPLAINT: Final = 500
_OPTIONS: Final = (
    "-c default_transaction_read_only=on -c search_path=pg_catalog -c statement_timeout=30s -c lock_timeout=5s"
)
_ESTIMATE: Final = "EXPLAIN (FORMAT JSON) "


class CannotTake(Exception):
    """There is no snapshot; the text says why."""


def run(output: Path, database_file: Path | None) -> int:
    """Take a snapshot into a file; returns the exit status."""
    try:
        found = take(database_file)
        data = msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"
        replace(output, data)
    except (CannotTake, OSError) as error:
        say(f"totals take: FAILED: {error}", err=True)
        return 1
    say(f"server: {found.server.system_identifier}, version {found.server.version}, started {found.server.started}")
    if found.witness == "pg_stat_statements":
        say(f"counters: {len(found.counters)} of pg_stat_statements, since {found.reset}")
    else:
        say("note: pg_stat_statements is not loaded, or not in this database: only a bound can be compared")
    say(f"snapshot: {output} of {found.began} SHA-256 {hashlib.sha256(data).hexdigest()}")
    return 0


def take(database_file: Path | None) -> Snapshot:
    """Read the counters.

    Raises:
        CannotTake: psql gives no answer, or the server's counters are not for these eyes.
    """
    (about,) = _ask([_ABOUT], database_file)
    if about["version"] < MIN_VERSION:
        raise CannotTake(f"The server is of version {about['version']}; 14 is the first whose counters say enough.")
    is_counting = bool(about["schema"]) and about["settings"].get(_SETTINGS[0]) is not None
    lookups = list(_lookups().values()) if is_counting else []
    asked = [text for one in lookups for text in _number_of(one)] + [_NOW, _ACTIVITY]
    if is_counting:
        asked.append(_counters(about["schema"], about["version"]))
    answers = _ask([*asked, _DATABASES, _NOW], database_file)
    numbers = {_query_id(one) for one in answers[: len(lookups)]}
    began, busy, *counted, databases, ended = answers[len(lookups) :]
    found = counted[0] if counted else {}
    if any(one["query_id"] is None for one in found.get("counters", ())):
        raise CannotTake("The server hides statements of other roles: this needs the role pg_read_all_stats.")
    counters = [msgspec.convert(one, Counter) for one in found.get("counters", ())]
    return Snapshot(
        format=FORMAT, program=importlib.metadata.version("chaperone-cli"), began=began, ended=ended,
        server=msgspec.convert(about["server"], Server), settings=about["settings"],
        witness="pg_stat_statements" if is_counting else "pg_stat_database", reset=found.get("reset", ""),
        evicted=found.get("evicted", 0), busy=busy or {},
        counters=[msgspec.structs.replace(one, own="lookup") if one.query_id in numbers else one for one in counters],
        databases=[msgspec.convert(one, Database) for one in databases],
    )  # fmt: skip


def _lookups() -> dict[str, str]:
    """The statements by which the gateway asks about relations and types."""
    try:
        from chaperone_sidecar.protocols.postgresql import lookup  # noqa: PLC0415 - an extra, as the gateway is
    except ImportError as error:
        raise CannotTake("The gateway's look-ups are not known here; install chaperone-cli[dev].") from error
    return {name: getattr(lookup, name) for name in ("RELATIONS", "MARKS", "DEFINITIONS", "TYPES")}


def _number_of(text: str) -> tuple[str, str, str]:
    return (
        f"PREPARE chaperone_lookup AS {text}", "EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE chaperone_lookup('[]')",
        "DEALLOCATE chaperone_lookup",
    )  # fmt: skip


def _query_id(plan: Any) -> int:  # noqa: ANN401 - JSON of a server
    try:
        return int(plan[0]["Query Identifier"])
    except (LookupError, TypeError, ValueError) as error:
        raise CannotTake("The server does not number statements: compute_query_id is off.") from error


def _ask(statements: list[str], database_file: Path | None) -> list[Any]:
    """The JSON values that statements give, one after another in one session."""
    # Without a password on a command line, which other users of a machine see.
    environment = os.environ | {"PGAPPNAME": "chaperone-totals", "PGOPTIONS": _OPTIONS, "PGCLIENTENCODING": "UTF8"}
    if database_file is not None:
        environment |= {"PGSERVICEFILE": str(database_file), "PGSERVICE": SERVICE}
    command = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-w"]
    for text in statements:
        command += ["-c", text]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise CannotTake("psql is not installed; put it on the PATH.") from error
    except subprocess.TimeoutExpired as error:
        raise CannotTake(f"psql gave no answer in {TIMEOUT_S:.0f} s.") from error
    if done.returncode:
        raise CannotTake(done.stderr[:_MAX_COMPLAINT].decode(errors="replace").strip() or "psql failed.")
    if len(done.stdout) > MAX_BYTES:
        raise CannotTake(f"The server answered more than {MAX_BYTES} bytes.")
    return _values(done.stdout)


def _values(data: bytes) -> list[Any]:
    """One value for each that begins at the beginning of a line: plans take several."""
    found: list[str] = []
    lines: list[str] = []
    for line in data.decode().splitlines():
        if lines and line[:1] not in (" ", "]", "}"):
            found.append("\n".join(lines))
            lines = []
        lines.append(line)
    try:
        return [msgspec.json.decode(text) for text in (*found, "\n".join(lines)) if text]
    except msgspec.DecodeError as error:
        raise CannotTake(f"What the server answers cannot be read: {error}.") from error


def _moment(expression: str) -> str:
    return f"to_char({expression} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"


_SHOWN: Final = ", ".join(f"'{name}', current_setting('{name}', true)" for name in _SETTINGS)
_ABOUT: Final = f"""SELECT json_build_object(
    'version', current_setting('server_version_num')::int,
    'schema', (SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
                WHERE e.extname = 'pg_stat_statements'),
    'settings', json_strip_nulls(json_build_object({_SHOWN})),
    'server', json_build_object('system_identifier', (SELECT system_identifier::text FROM pg_control_system()),
        'version', current_setting('server_version_num')::int,
        'started', {_moment("pg_postmaster_start_time()")}))"""  # noqa: S608 - fixed texts
_NOW: Final = f"SELECT to_json({_moment('clock_timestamp()')})"
# Before the counters are read: who begins later is seen by the time of what they do.
_ACTIVITY: Final = """SELECT coalesce(json_object_agg(usename, count), '{}') FROM (
    SELECT usename, count(*) FROM pg_stat_activity
     WHERE backend_type = 'client backend' AND usename IS NOT NULL AND state <> 'idle' AND pid <> pg_backend_pid()
     GROUP BY usename) busy"""
_DATABASES: Final = f"""SELECT coalesce(json_agg(json_build_object('name', datname,
    'transactions', xact_commit + xact_rollback, 'sessions', sessions,
    'reset', coalesce({_moment("stats_reset")}, ''))), '[]') FROM pg_stat_database WHERE datname IS NOT NULL"""  # noqa: S608


def _counters(schema: str, version: int) -> str:
    since = f", 'since', {_moment('s.stats_since')}" if version >= _PER_ENTRY else ""
    return f"""SELECT json_build_object('reset', {_moment("i.stats_reset")}, 'evicted', i.dealloc, 'counters', (
        SELECT coalesce(json_agg(json_build_object('user_id', s.userid::int8, 'user', coalesce(r.rolname, ''),
            'database_id', s.dbid::int8, 'query_id', s.queryid, 'calls', s.calls, 'own', CASE
                WHEN s.query ~* '^\\s*deallocate\\y' THEN 'nothing'
                WHEN starts_with(s.query, '{_ESTIMATE}') THEN 'estimate' ELSE '' END{since})), '[]')
          FROM {schema}.pg_stat_statements s LEFT JOIN pg_roles r ON r.oid = s.userid WHERE s.toplevel))
      FROM {schema}.pg_stat_statements_info i"""  # noqa: S608 - of fixed texts, and a name that the server quoted
