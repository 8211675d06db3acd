"""Limits: how much one pod may do at once, whatever policy says, and how much policy lets it do.

The constants here are the gateway's own, so that an agent cannot exhaust it. The limits of policies are judged in this
package alone: `Quota` knows what all sessions of the pod do at one target, `Meter` what one session has done. Protocols
and the driver ask them and obey; what a client hears is made of a `Reached`.
"""

from __future__ import annotations

from typing import Final

MAX_SESSIONS: Final = 200  # PostgreSQL's own default is 100 connections; a pod with more is a leak or an attack
MAX_STARTING: Final = 64  # connections that have not named a session yet, each with a handshake deadline
