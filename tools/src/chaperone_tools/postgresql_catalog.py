"""Write down what fresh PostgreSQL servers hold in their own schemas, and which of their functions are harmless.

    python tests/support/write_catalog.py     makes …/protocols/postgresql/catalog.json anew from servers 14 to 18

A function is safe when, in every version that has it, every overload of its name is immutable or stable, may be
executed by everybody, cannot be a handler or a trigger, and is in none of the lists below. Volatile functions are safe
only when listed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

QUERY: Final = """
SELECT json_build_object(
  'server', current_setting('server_version_num')::int / 10000,
  'relations', (SELECT json_agg(relname ORDER BY relname) FROM pg_class
                WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')),
  'operators', (SELECT json_agg(DISTINCT oprname) FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace),
  'functions', (SELECT json_object_agg(name, is_plain) FROM (
     SELECT n.nspname || '.' || p.proname AS name,
            bool_and(p.provolatile IN ('i', 's') AND p.prokind IN ('f', 'a', 'w') AND p.proacl IS NULL
                     AND NOT p.prosecdef AND p.prorettype::regtype::text !~ '(^internal|trigger|_handler)$'
                     AND NOT ('internal'::regtype = ANY (p.proargtypes::regtype[])
                              OR 'cstring'::regtype = ANY (p.proargtypes::regtype[]))) AS is_plain
     FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname IN ('pg_catalog', 'information_schema') AND p.oid < 16384 GROUP BY 1) AS functions))
""".strip()


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Volatile, but they only compute, or read what the session or the catalog may show anyway.
_HARMLESS: Final = _words(
    """clock_timestamp current_query currval gen_random_uuid lastval pg_blocking_pids pg_collation_actual_version
    pg_current_wal_flush_lsn pg_current_wal_insert_lsn pg_current_wal_lsn pg_database_size
    pg_get_wal_replay_pause_state pg_indexes_size pg_is_in_recovery pg_is_wal_replay_paused pg_jit_available
    pg_last_wal_receive_lsn pg_last_wal_replay_lsn pg_last_xact_replay_timestamp pg_notification_queue_usage
    pg_partition_ancestors pg_partition_tree pg_relation_size pg_safe_snapshot_blocking_pids
    pg_sequence_last_value pg_table_size pg_tablespace_size pg_total_relation_size
    pg_xact_status random setseed timeofday txid_status array_sample array_shuffle pg_get_wait_events pg_is_in_backup
    random_normal timezone uuidv4 uuidv7"""
)
# Stable or immutable by declaration, and yet: they run a query over any table, show other sessions' statements or the
# server's paths, spend a transaction id, or are meant for event triggers and validators alone.
_NOT_SAFE: Final = _words(
    """database_to_xml database_to_xml_and_xmlschema database_to_xmlschema schema_to_xml schema_to_xml_and_xmlschema
    schema_to_xmlschema table_to_xml table_to_xml_and_xmlschema table_to_xmlschema fmgr_c_validator
    fmgr_internal_validator fmgr_sql_validator pg_relation_filepath pg_tablespace_location pg_stat_get_activity
    pg_stat_get_backend_activity pg_stat_get_backend_activity_start pg_stat_get_backend_client_addr
    pg_stat_get_backend_client_port pg_stat_get_backend_subxact pg_stat_get_backend_userid
    pg_stat_get_wal_receiver pg_stat_get_wal_senders
    pg_current_xact_id txid_current
    pg_event_trigger_ddl_commands pg_event_trigger_dropped_objects pg_event_trigger_table_rewrite_oid
    pg_event_trigger_table_rewrite_reason pg_get_shmem_allocations pg_get_backend_memory_contexts"""
)


def catalog(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of catalog.json, from the answers of one server a version to `QUERY`."""
    safe: set[str] = set()
    other: set[str] = set()
    information: set[str] = set()
    unsafe_information: set[str] = set()
    relations: set[str] = set()
    operators: set[str] = set()
    servers: dict[str, str] = {}
    for answer in answers:
        servers[str(answer["server"])] = fingerprint(answer)
        relations.update(answer["relations"])
        operators.update(answer["operators"])
        for qualified, is_plain in answer["functions"].items():
            schema, _, name = qualified.partition(".")
            if schema == "information_schema":
                (information if is_plain else unsafe_information).add(name)
            elif name not in _NOT_SAFE and (is_plain or name in _HARMLESS):
                safe.add(name)
            else:
                other.add(name)
    return {
        "servers": dict(sorted(servers.items())),
        "relations": sorted(relations),
        "safe_functions": sorted(safe - other),
        "other_functions": sorted(other),
        "safe_information_schema": sorted(information - unsafe_information),
        "operators": sorted(operators),
    }


def fingerprint(answer: Mapping[str, Any]) -> str:
    """What tells one server's answer from another's, so that a test can say whether the file is made from it."""
    parts = {**answer, "operators": sorted(answer["operators"])}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
