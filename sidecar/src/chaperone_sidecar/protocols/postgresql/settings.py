"""What setting a parameter of the server counts as.

A listed parameter that only tunes, formats or times the session's own statements is `session`. Every other one is
`privilege`: it may change who the session is, what names and strings mean, what row-level policies see (`app.user`), or
it is not known here. Setting a parameter to the very value the gateway pins at start-up is `session` as well, since
drivers do that.

Spec: PostgreSQL 18, chapter 19 "Server Configuration".
"""

from __future__ import annotations

from typing import Final

from chaperone_sidecar.command import Access, Effect
from chaperone_sidecar.protocols.postgresql.relations import words

_OWN: Final = words(
    """application_name statement_timeout lock_timeout idle_in_transaction_session_timeout idle_session_timeout
    transaction_timeout datestyle intervalstyle timezone extra_float_digits bytea_output client_min_messages xmlbinary
    xmloption array_nulls cursor_tuple_fraction constraint_exclusion default_statistics_target
    default_text_search_config default_transaction_isolation default_transaction_read_only
    default_transaction_deferrable effective_cache_size effective_io_concurrency enable_async_append enable_bitmapscan
    enable_distinct_reordering enable_gathermerge enable_group_by_reordering enable_hashagg enable_hashjoin
    enable_incremental_sort enable_indexonlyscan enable_indexscan enable_material enable_memoize enable_mergejoin
    enable_nestloop enable_parallel_append enable_parallel_hash enable_partition_pruning enable_partitionwise_aggregate
    enable_partitionwise_join enable_presorted_aggregate enable_seqscan enable_self_join_elimination enable_sort
    enable_tidscan from_collapse_limit join_collapse_limit geqo geqo_effort geqo_generations geqo_pool_size
    geqo_seed geqo_selection_bias geqo_threshold gin_fuzzy_search_limit hash_mem_multiplier jit jit_above_cost
    jit_inline_above_cost jit_optimize_above_cost lc_monetary lc_numeric lc_time maintenance_work_mem
    max_parallel_maintenance_workers max_parallel_workers max_parallel_workers_per_gather min_parallel_index_scan_size
    min_parallel_table_scan_size parallel_leader_participation parallel_setup_cost parallel_tuple_cost plan_cache_mode
    random_page_cost recursive_worktable_factor seed seq_page_cost cpu_index_tuple_cost cpu_operator_cost
    cpu_tuple_cost synchronize_seqscans synchronous_commit tcp_keepalives_count tcp_keepalives_idle
    tcp_keepalives_interval tcp_user_timeout client_connection_check_interval temp_buffers escape_string_warning
    work_mem logical_decoding_work_mem quote_all_identifiers vacuum_cost_delay vacuum_cost_limit"""
)
_TRANSACTION: Final = frozenset({"transaction_isolation", "transaction_read_only", "transaction_deferrable"})
_PINNED: Final = {
    "client_encoding": frozenset({"utf8", "utf-8", "unicode"}),
    "standard_conforming_strings": frozenset({"on", "true", "yes", "1"}),
    "search_path": frozenset({"public"}),
    "backslash_quote": frozenset({"safe_encoding"}),
    "row_security": frozenset({"on", "true", "yes", "1"}),
    "check_function_bodies": frozenset({"on", "true", "yes", "1"}),
}
_IDENTITY: Final = frozenset({"role", "session_authorization"})  # their reset is a change of rights, too


def set_value(name: str, value: str | None) -> Access:
    """What `SET name TO value` does; `value` is None when it is no single literal."""
    folded = name.lower()
    if folded in _TRANSACTION:
        return Access(Effect.TRANSACTION, f"setting:{folded}")
    if folded in _OWN or (value is not None and value.lower() in _PINNED.get(folded, ())):
        return Access(Effect.SESSION, f"setting:{folded}")
    return Access(Effect.PRIVILEGE, f"setting:{folded}")


def reset(name: str) -> Access:
    """What `RESET name` does: the value of the session's start comes back, and that is the gateway's choice."""
    folded = name.lower()
    if folded in _IDENTITY or "." in folded:
        return Access(Effect.PRIVILEGE, f"setting:{folded}")
    return Access(Effect.SESSION, f"setting:{folded}")
