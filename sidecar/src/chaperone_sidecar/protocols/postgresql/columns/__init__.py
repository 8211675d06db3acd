"""Where columns come from: the parts of `lineage.trace`. See LINEAGE.md."""
