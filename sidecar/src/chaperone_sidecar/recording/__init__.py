"""Recording: the stream of records, its spool, and its way to the collector."""
