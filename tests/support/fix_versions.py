"""`versioned`: a real server of each version we support, alone and behind a gateway that allows everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import fix_postgres
import pytest
from pg_peers import Peers, side_by_side

from chaperone_tools import postgresql_servers

MAJORS: Final = tuple(postgresql_servers.PINS)


@pytest.fixture(scope="module", params=MAJORS, ids="postgresql-{}".format)
def versioned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    """The server has TLS and SCRAM on; it is fetched if need be, and a test fails where it cannot be."""
    server = postgresql_servers.server(request.param)
    with fix_postgres.running(server) as postgres, side_by_side(postgres, tmp_path_factory.mktemp("peers")) as both:
        assert both.major == request.param
        yield both
