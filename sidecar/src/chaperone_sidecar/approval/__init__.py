"""Approval: where a command waits for a human."""
