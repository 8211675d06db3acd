"""PostgreSQL, protocol 3."""
