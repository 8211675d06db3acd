"""Write down what a fresh PostgreSQL server holds in its own schemas, and which of its functions are harmless.

    python -m chaperone_tools.postgresql_catalog < answer.json > …/protocols/postgresql/catalog.json

where answer.json is what a fresh server answers to the query that `--query` prints (`psql -XAtc "$(…)"`).

A function is safe when every overload of its name is immutable or stable, may be executed by everybody, cannot be a
handler or a trigger, and is in none of the lists below. Volatile functions are safe only when listed here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
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
    pg_xact_status random setseed timeofday txid_status"""
)
# Stable or immutable by declaration, and yet: they run a query over any table, show other sessions' statements or the
# server's paths, spend a transaction id, or are meant for event triggers and validators alone.
_NOT_SAFE: Final = _words(
    """database_to_xml database_to_xml_and_xmlschema database_to_xmlschema schema_to_xml schema_to_xml_and_xmlschema
    schema_to_xmlschema table_to_xml table_to_xml_and_xmlschema table_to_xmlschema fmgr_c_validator
    fmgr_internal_validator fmgr_sql_validator pg_relation_filepath pg_tablespace_location pg_stat_get_activity
    pg_stat_get_backend_activity pg_stat_get_backend_activity_start pg_stat_get_backend_client_addr
    pg_stat_get_backend_client_port pg_stat_get_backend_userid pg_stat_get_wal_receiver pg_stat_get_wal_senders
    pg_current_xact_id txid_current
    pg_event_trigger_ddl_commands pg_event_trigger_dropped_objects pg_event_trigger_table_rewrite_oid
    pg_event_trigger_table_rewrite_reason pg_get_shmem_allocations pg_get_backend_memory_contexts"""
)
# Harmless functions of servers newer than the one this was run on, read in the release notes of 16, 17 and 18.
_NEWER_SAFE: Final = _words(
    """any_value array_reverse array_sample array_shuffle array_sort casefold crc32 crc32c date_add date_subtract erf
    erfc gamma has_largeobject_privilege json_strip_nulls lgamma pg_basetype pg_get_acl pg_input_error_info
    pg_input_is_valid pg_get_wait_events random_normal system_user to_bin to_oct to_regtypemod unicode_assigned
    unicode_version icu_unicode_version uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7 xmltext"""
)
_NEWER_OTHER: Final = _words(
    """pg_ls_logicalmapdir pg_ls_logicalsnapdir pg_ls_summariesdir pg_restore_attribute_stats
    pg_restore_relation_stats pg_clear_attribute_stats pg_clear_relation_stats pg_log_standby_snapshot
    pg_sync_replication_slots pg_split_walfile_name pg_stat_get_backend_subxact pg_stat_reset_backend_stats
    pg_current_xact_id_if_assigned pg_maintain pg_wal_summary_contents pg_available_wal_summaries
    pg_get_wal_summarizer_state pg_get_loaded_modules pg_numa_available pg_get_aios pg_ls_waldir"""
)
_NEWER_RELATIONS: Final = _words("""pg_aios pg_shmem_allocations_numa pg_stat_checkpointer pg_stat_io pg_wait_events""")


def catalog(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The content of catalog.json, from a server's answer to `QUERY`."""
    safe: set[str] = set(_NEWER_SAFE)
    other: set[str] = set(_NEWER_OTHER)
    information: set[str] = set()
    for qualified, is_plain in answer["functions"].items():
        schema, _, name = qualified.partition(".")
        if schema == "information_schema":
            if is_plain:
                information.add(name)
        elif name not in _NOT_SAFE and (is_plain or name in _HARMLESS):
            safe.add(name)
        else:
            other.add(name)
    return {
        "server": str(answer["server"]),
        "relations": sorted(_NEWER_RELATIONS.union(answer["relations"])),
        "safe_functions": sorted(safe - _NOT_SAFE),
        "other_functions": sorted(other - safe),
        "safe_information_schema": sorted(information),
        "operators": sorted(answer["operators"]),
    }


def main() -> None:
    """Print the query, or turn its answer on standard input into the data file."""
    if sys.argv[1:] == ["--query"]:
        sys.stdout.write(QUERY + "\n")
        return
    json.dump(catalog(json.load(sys.stdin)), sys.stdout, indent=0)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
