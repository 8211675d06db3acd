"""Credentials: leases of what the agent never sees."""
