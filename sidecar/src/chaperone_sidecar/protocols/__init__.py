"""One package a protocol; all have the same shape (docs/architecture.md §3)."""
