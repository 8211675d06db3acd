"""Frontends: one module a protocol, each with the sockets of its protocol; see `frontend`."""
