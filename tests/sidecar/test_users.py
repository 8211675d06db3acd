"""What a gateway keeps of the broker's word about users, and for how long."""

from __future__ import annotations

import pytest

from chaperone_sidecar.config import Claims, Delegation
from chaperone_sidecar.credentials.users import MAX_KEPT, Users
from chaperone_sidecar.errors import LeaseRefused, UserRefused
from chaperone_sidecar.user import Identified, User


class Told:
    """A broker that knows everybody until 1600, or says nothing."""

    def __init__(self, *, required: bool = True) -> None:
        self.asked: list[str] = []
        self.now = 1000.0
        self.is_away = False
        delegation = Delegation("https://i", "a", required, "", "", Claims("sub", "email", "groups"))
        self.users = Users("billing-agent", delegation, self._check, lambda: self.now)

    async def _check(self, token: str) -> Identified:
        self.asked.append(token)
        if self.is_away:
            raise LeaseRefused("The broker cannot be reached.", is_unanswered=True)
        return Identified(User(f"user of {token}", "https://i"), 1600)


async def test_one_token_is_asked_about_once_until_it_ends() -> None:
    told = Told()
    for _ in range(3):
        found = await told.users.identify(b"t1")
        assert found is not None
        assert found.user.subject == "user of t1"
    told.now = 1600.0
    await told.users.identify(b"t1")
    assert told.asked == ["t1", "t1"]
    assert b"t1" not in repr(vars(told.users)["_kept"]).encode().replace(b"user of t1", b"")


async def test_a_broker_that_is_away_admits_those_that_are_known_and_nobody_else() -> None:
    told = Told(required=False)
    await told.users.identify(b"t1")
    told.is_away = True
    assert await told.users.identify(b"t1")
    for _ in range(2):  # a refusal is not kept
        with pytest.raises(UserRefused, match=r"on behalf of a person\. The broker cannot be reached"):
            await told.users.identify(b"t2")
    assert told.asked == ["t1", "t2", "t2"]


async def test_no_token_is_refused_where_one_is_required_and_nobody_is_asked() -> None:
    assert await Told(required=False).users.identify(b"") is None
    for token in (b"", b"\xff\xfe"):
        told = Told()
        with pytest.raises(UserRefused, match='AgentIdentity "billing-agent"'):
            await told.users.identify(token)
        assert not told.asked


async def test_no_more_is_kept_than_there_is_room_for() -> None:
    told = Told()
    for number in range(MAX_KEPT + 1):
        await told.users.identify(f"t{number}".encode())
    await told.users.identify(f"t{MAX_KEPT}".encode())
    await told.users.identify(b"t0")
    assert told.asked[MAX_KEPT:] == [f"t{MAX_KEPT}", "t0"]
