"""Generated sessions, straight to PostgreSQL and through the gateway: the same bytes, less what `pg_peers` lists.

CHAPERONE_SESSIONS sets how many sessions are compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import fix_postgres
import pytest
from pg_peers import Peers, side_by_side

pytestmark = pytest.mark.peer

SESSIONS: Final = int(os.environ.get("CHAPERONE_SESSIONS", "300"))


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """A server of its own, since its schemas are made anew for each session."""
    with fix_postgres.running() as postgres, side_by_side(postgres, tmp_path_factory.mktemp("peers")) as both:
        yield both


@pytest.mark.timeout(0 if SESSIONS > 1000 else 600)
def test_a_client_gets_the_bytes_that_it_would_get_without_the_gateway(peers: Peers) -> None:
    peers.compare_generated(SESSIONS)
