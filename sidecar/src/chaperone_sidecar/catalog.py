"""What the gateway knows of its databases' relations and types, learnt over connections of its own.

Theory of operation. A `Catalog` is the knowledge of one database, shared by all sessions there. A session that meets
names that are not known calls `learn`; it asks the database in one or two round trips for all of them and for what lies
behind them, and what was learnt stays for `TTL_S`, until DDL is seen (`invalidate`), or until it would become too much.
Each of these forgets everything and changes `generation`, so that what was concluded from it is concluded anew.

The connection is opened when there is something to ask, with the same credential and checks as a session's, and closed
with the last session there, for a database that somebody is connected to cannot be dropped or renamed; or after some
minutes without questions. It is read-only, and one question at a time is on it. Sessions that wait are
independent of it: who goes away takes no answer from others. When the database cannot be asked (no connection, no
credential, no answer in time, an answer that makes no sense), `learn` says so, and for `BACK_OFF_S` it says so at once,
so that a database that is down costs each statement nothing. What that means for a statement is the caller's to say;
it must not be taken for "there is nothing behind this name".
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, Protocol

from chaperone_sidecar.command import Command
from chaperone_sidecar.config import Target
from chaperone_sidecar.effects import Opened, OpenUpstream
from chaperone_sidecar.errors import ChaperoneError
from chaperone_sidecar.link import Link
from chaperone_sidecar.protocols.postgresql import estimate, lookup
from chaperone_sidecar.protocols.postgresql.codec import BackendCodec
from chaperone_sidecar.protocols.postgresql.messages import TERMINATE_FRAME
from chaperone_sidecar.protocols.postgresql.schema import Relation, Schema

logger = logging.getLogger(__name__)

APPLICATION: Final = "chaperone-catalog"
TTL_S: Final = 30.0  # DDL of others is not seen here; a migration is in force for agents after half a minute
BACK_OFF_S: Final = 5.0  # before a database that could not be asked is asked again; statements are refused meanwhile
ASK_TIMEOUT_S: Final = 4.0  # log-in and two questions take some 20 ms; the driver waits 10 s for a session's turn
LEARN_TIMEOUT_S: Final = 6.0  # the same, with the wait for another session's question
IDLE_S: Final = 180.0  # a connection is worth a process of the server's; opening it costs milliseconds
TRIES: Final = 3  # DDL came in while the database was asked; whoever does nothing else gets no answer
MAX_KNOWN: Final = 5000  # relations and types; at 2 KiB each (30 columns) 10 MiB a database
MAX_CATALOGS: Final = 32  # databases at a time; of more, those that were not used for the longest time are forgotten

_PARAMETERS: Final[tuple[tuple[str, str], ...]] = (
    ("application_name", APPLICATION),
    ("client_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("search_path", ""),  # so that names in view definitions are written with their schemas
    ("default_transaction_read_only", "on"),
    ("statement_timeout", "3000"),  # less than ASK_TIMEOUT_S: the server stops first, and the connection stays usable
    ("lock_timeout", "500"),  # a definition that somebody's lock withholds is not worth a wait
)
# Nobody analyses catalogs, so the planner reads pg_class anew for each of a thousand children: 1.3 s in place of 0.3 s.
_ASKING: Final = (*_PARAMETERS, ("jit", "off"), ("enable_seqscan", "off"), ("enable_hashjoin", "off"))

_PLANNING: Final = (*(one for one in _PARAMETERS if one[0] != "search_path"), ("search_path", "public"))
"""As in agents' sessions, so that names mean what they mean there."""


class Backends(Protocol):
    """Opens connections; `PostgresBackends` does."""

    async def open(self, target: Target, wanted: OpenUpstream, link: Link) -> tuple[Opened, bytes, str]:
        """See `connector.Connector`."""
        ...

    def forget(self, opened: Opened) -> None:
        """See `connector.Connector`."""
        ...


class _Refused(ChaperoneError):
    """The database answered a question with an error; the connection is still good."""


class _Connection:
    """One connection, on which one question at a time is asked."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._codec = BackendCodec()
        self._link = Link(lambda _: None)
        self._opened: Opened | None = None
        self._is_closed = False
        self.is_used = False

    @property
    def is_over(self) -> bool:
        return self._is_closed or self._link.is_lost

    async def open(self, target: Target, database: str, parameters: tuple[tuple[str, str], ...] = _ASKING) -> None:
        wanted = OpenUpstream(APPLICATION, database, APPLICATION, parameters)
        self._opened, early, _ = await self._backends.open(target, wanted, self._link)
        self._codec.feed(early)

    async def ask(self, question: str, about: list[tuple[str, str]] | list[int]) -> list[bytes]:
        """The values that answer a question; raises as `exchange` does."""
        return await self.exchange(lookup.request(question, about))

    async def exchange(self, request: bytes) -> list[bytes]:
        """The values that answer a request.

        Raises:
            _Refused, ProtocolError, ConnectionError, ssl.SSLError: no usable answer.
        """
        answer = lookup.Answer(self._codec)
        self._link.write(request)
        while not answer.feed(await self._link.read()):
            pass
        self.is_used = True
        if answer.code:
            raise _Refused(f"the database refused the question (SQLSTATE {answer.code})")
        return answer.values()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._opened is not None:
            self._backends.forget(self._opened)
            self._link.write(TERMINATE_FRAME)
        self._link.close()


class Catalog:
    """What is known of one database.

    Args:
        target, database: where; the target may say the database itself.
        backends: opens the connection.
        now: the clock, monotonic, in seconds.
        idle_s: how long the connection stays without questions.
    """

    def __init__(
        self,
        target: Target,
        database: str,
        backends: Backends,
        now: Callable[[], float] = time.monotonic,
        idle_s: float = IDLE_S,
    ) -> None:
        self._target = target
        self._database = database
        self._backends = backends
        self._now = now
        self._idle_s = idle_s
        self._generation = 0
        self._known_since = 0.0
        self._rest_until = float("-inf")
        self._connection: _Connection | None = None
        self._turn = asyncio.Lock()
        self._planning = asyncio.Lock()  # estimates are rare and each has a connection of its own: one at a time
        self._tasks: set[asyncio.Task[bool]] = set()
        self._idle: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._sessions = 0
        self._is_left = False
        self.schema = Schema()
        """What was learnt; emptied, not replaced, when it is forgotten. What `learn` has just learnt is there."""

    @property
    def generation(self) -> int:
        """Changes whenever something that was known may be outdated."""
        self._expire()
        return self._generation

    def join(self) -> None:
        """A session has begun there."""
        self._sessions += 1
        self._is_left = False

    def leave(self) -> None:
        """A session has ended; with the last one the connection is closed, and what is known stays known."""
        self._sessions -= 1
        self._is_left = self._sessions == 0
        if self._is_left and not self._turn.locked():
            self._drop()

    def invalidate(self) -> None:
        """DDL was seen: nothing that is known need be true any more."""
        self._forget()

    async def learn(self, names: Collection[str]) -> bool:
        """Know the relations of these names (`schema.name`) and all that lies behind them. Suspends.

        Returns:
            Whether they are known now: as present or as absent. False: the database cannot be asked.
        """
        wanted = dict.fromkeys(names)
        return await self._learn(
            lambda: [name for name in wanted if not self.schema.has(name)],
            self._ask_relations,
        )

    async def learn_types(self, oids: Collection[int]) -> bool:
        """Know the types with these OIDs, and the types they are made of. Suspends; returns as `learn` does."""
        wanted = dict.fromkeys(oids)
        return await self._learn(
            lambda: [oid for oid in wanted if not self.schema.has_type(oid)],
            self._ask_types,
        )

    async def marks(self, names: Collection[str]) -> Mapping[str, str] | None:
        """The marks of these relations as they are now, without those that are absent. Suspends; keeps nothing.

        Returns:
            None: the database cannot be asked.
        """
        asked = [parts for name in names if (parts := lookup.split(name)) is not None]
        found: list[dict[str, str]] = [] if asked else [{}]

        async def ask(connection: _Connection, wanted: list[tuple[str, str]]) -> bool:
            found.append(lookup.marks(await connection.ask(lookup.MARKS, wanted)))
            return True

        return found[0] if await self._learn(lambda: [] if found else asked, ask) else None

    async def estimate(self, command: Command) -> int | None:
        """How many rows a command will reach, by the database's planner; None when it does not say. Suspends."""
        connection = _Connection(self._backends)
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S), self._planning:
                await connection.open(self._target, self._database, _PLANNING)
                asked = estimate.request(command.text, command.params, command.param_types)
                return estimate.rows(await connection.exchange(asked))
        except (ChaperoneError, OSError, ssl.SSLError, TimeoutError) as error:
            logger.info("target %s gives no estimate: %s", self._target.name, type(error).__name__)
            return None
        finally:
            connection.close()

    def rest(self) -> None:
        """Forget everything and close the connection; the next question opens another."""
        self._forget()
        self._drop()

    def close(self) -> None:
        """The same for good: what is asked from now on is not answered."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        self.rest()

    # --- what is known ----------------------------------------------------------------------------------------------

    def _expire(self) -> None:
        if len(self.schema) and self._now() - self._known_since >= TTL_S:
            self._forget()

    def _forget(self) -> None:
        self._generation += 1
        self.schema.clear()

    def _make_room(self, count: int) -> None:
        if len(self.schema) + count > MAX_KNOWN:
            self._forget()
        if not len(self.schema):
            self._known_since = self._now()

    # --- asking -----------------------------------------------------------------------------------------------------

    async def _learn[K](
        self, missing: Callable[[], list[K]], ask: Callable[[_Connection, list[K]], Awaitable[bool]]
    ) -> bool:
        self._expire()
        if not missing():
            return True
        if self._may_not_ask() or len(missing()) > lookup.MAX_NAMES:
            return False
        # Not the session's own task: one that ends meanwhile would leave half an answer on the connection.
        task = asyncio.get_running_loop().create_task(self._take_turn(missing, ask))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=LEARN_TIMEOUT_S)
        if task.done() and not task.cancelled():
            task.result()
        return not missing()

    def _may_not_ask(self) -> bool:
        return self._is_closed or self._now() < self._rest_until

    async def _take_turn[K](
        self, missing: Callable[[], list[K]], ask: Callable[[_Connection, list[K]], Awaitable[bool]]
    ) -> bool:
        async with self._turn:
            try:
                return await self._ask_until_current(missing, ask)
            except (ChaperoneError, OSError, ssl.SSLError, TimeoutError) as error:
                self._give_up(error)
                return False
            except asyncio.CancelledError:
                self._drop()
                raise
            finally:
                if self._is_left:
                    self._drop()

    async def _ask_until_current[K](
        self, missing: Callable[[], list[K]], ask: Callable[[_Connection, list[K]], Awaitable[bool]]
    ) -> bool:
        for _ in range(TRIES):
            wanted = missing()
            if not wanted:
                return True
            if self._may_not_ask():
                return False
            async with asyncio.timeout(ASK_TIMEOUT_S):
                if await self._ask_twice(ask, wanted):
                    return True
        return False

    async def _ask_twice[K](self, ask: Callable[[_Connection, list[K]], Awaitable[bool]], wanted: list[K]) -> bool:
        """Ask; a connection that was good before and is cut now is replaced once."""
        connection = await self._connected()
        try:
            return await ask(connection, wanted)
        except OSError:
            if not connection.is_used:
                raise
        self._drop()
        return await ask(await self._connected(), wanted)

    async def _connected(self) -> _Connection:
        if self._connection is None or self._connection.is_over:
            self._drop()
            self._connection = _Connection(self._backends)
            await self._connection.open(self._target, self._database)
        self._wait_for_idleness()
        return self._connection

    def _give_up(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, ChaperoneError) else type(error).__name__
        logger.warning("the catalog of target %s cannot be read for now: %s", self._target.name, reason)
        self._rest_until = self._now() + BACK_OFF_S
        self._drop()

    def _drop(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _wait_for_idleness(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._rest_if_idle)

    def _rest_if_idle(self) -> None:
        if self._turn.locked():
            self._wait_for_idleness()
        else:
            self._drop()

    async def _ask_relations(self, connection: _Connection, names: list[str]) -> bool:
        before = self._generation
        asked = {name: parts for name in names if (parts := lookup.split(name)) is not None}
        found: list[Relation] = []
        if asked:
            found = lookup.relations(await connection.ask(lookup.RELATIONS, list(asked.values())))
            if views := lookup.views(found):
                try:
                    found = lookup.with_definitions(found, await connection.ask(lookup.DEFINITIONS, views))
                except _Refused as error:  # somebody's lock, say: what the views read is known all the same
                    logger.info("definitions of views of target %s are not known: %s", self._target.name, error)
        if before != self._generation:
            return False
        self._make_room(len(found) + len(names))
        # A relation whose own name holds a dot could be taken for another; it is left out, and so never looked behind.
        for one in found:
            if lookup.split(one.name) is not None:
                self.schema.add(one.name, one)
        if len(found) < lookup.MAX_ROWS:  # else the answer is cut, and what is not in it may exist
            for name in names:
                if not self.schema.has(name):
                    self.schema.add(name, None)
        return True

    async def _ask_types(self, connection: _Connection, oids: list[int]) -> bool:
        before = self._generation
        asked = [oid for oid in oids if 0 < oid <= 0xFFFFFFFF]
        found = lookup.types(await connection.ask(lookup.TYPES, asked)) if asked else []
        if before != self._generation:
            return False
        self._make_room(len(found) + len(oids))
        for one in found:
            self.schema.add_type(one.oid, one)
        if len(found) < lookup.MAX_ROWS:
            for oid in oids:
                if not self.schema.has_type(oid):
                    self.schema.add_type(oid, None)
        return True


class Catalogs:
    """The catalogs of one gateway.

    Args:
        backends: opens their connections.
        now: the clock, monotonic, in seconds.
    """

    def __init__(self, backends: Backends, now: Callable[[], float] = time.monotonic) -> None:
        self._backends = backends
        self._now = now
        self._known: OrderedDict[tuple[str, str], tuple[Target, Catalog]] = OrderedDict()

    def of(self, target: Target, database: str) -> Catalog:
        """The catalog of a database; a target that names its database has but one."""
        key = (target.name, target.upstream.database or database)
        if (known := self._known.get(key)) is not None:
            if known[0].is_same_place(target):
                self._known.move_to_end(key)
                return known[1]
            known[1].close()
        catalog = Catalog(target, key[1], self._backends, self._now)
        self._known[key] = (target, catalog)
        while len(self._known) > MAX_CATALOGS:
            _, (_, oldest) = self._known.popitem(last=False)
            oldest.rest()  # a session may hold it still
        return catalog

    def follow(self, targets: Collection[Target]) -> None:
        """These are the targets now: the catalogs of others, and of those that have changed, are closed."""
        current = {target.name: target for target in targets}
        for key, (target, catalog) in tuple(self._known.items()):
            found = current.get(target.name)
            if found is None or not found.is_same_place(target):
                catalog.close()
                del self._known[key]

    def close(self) -> None:
        """Close all connections."""
        self.follow(())
