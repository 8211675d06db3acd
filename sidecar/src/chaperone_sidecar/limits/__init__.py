"""Limits: how much one pod may do at once, whatever policy says.

Limits of policies are refused at admission ("not supported yet"); these are the gateway's own, so that an agent cannot
exhaust it.
"""

from __future__ import annotations

from typing import Final

MAX_SESSIONS: Final = 200  # PostgreSQL's own default is 100 connections; a pod with more is a leak or an attack
MAX_STARTING: Final = 64  # connections that have not named a session yet, each with a handshake deadline
