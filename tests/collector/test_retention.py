"""Retention: what is due goes, really, and with a certificate; everything else stays."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from covered_scene import Spoken, speaker
from gateway_stream import Pod, Stream
from pki import Authority
from sealed_bundle import VERIFIER, pack, unpack

from chaperone_cli.main import main
from chaperone_collector import datakeys, retention
from chaperone_collector.api import commands, proof
from chaperone_collector.api.flow import Flows
from chaperone_collector.api.question import Question, Range
from chaperone_collector.erasing import erase_what_is_due, keep_retention
from chaperone_collector.metrics import Metrics
from chaperone_collector.population import Given
from chaperone_collector.schema import open_writer
from chaperone_collector.store import Store
from chaperone_collector.stream import Stored, extend, unknown
from chaperone_evidence import entry, record, statement
from chaperone_evidence.population import Population, Retention, note_hash

DAY = retention.DAY_US
MINIMUM = 30


class Shelf:
    """A store whose clock is told, with an operator that speaks for its namespace."""

    def __init__(self, store: Store, ca: Authority, clock: list[int], operator: Spoken) -> None:
        self.store, self.ca, self.clock, self.operator = store, ca, clock, operator
        self.stored: dict[str, Stored] = {}

    async def ask(self, *asked: Retention, operator_us: int = 0) -> None:
        """The operator says the next population."""
        speaks = self.operator
        speaks.epoch += 1
        said = Population(
            cluster=speaks.signer.verifier.name.removesuffix("/operator"), namespace=speaks.namespace,
            epoch=speaks.epoch, previous=speaks.previous, wall_us=operator_us or self.clock[0], retention=asked,
        )  # fmt: skip
        note = speaks.signer.sign(said.body)
        speaks.previous = note_hash(note)
        given = Given(said, note, speaks.signer.verifier.vkey, os.urandom(entry.SALT_BYTES))
        await self.store.write(lambda tx: tx.populate(given))

    async def ship(self, *streams: Stream) -> None:
        """What gateways send."""
        for stream in streams:
            _, data = stream.take()
            before = self.stored.get(stream.id, unknown(stream.id))
            found = extend(before, entry.frames(data), stream.pod.subject(), [self.ca.certificate])
            bodies, stream.bodies = stream.bodies, {}
            await self.store.write(lambda tx, put=bodies, uid=stream.pod.pod_uid: tx.put_bodies(put, uid))
            self.stored[stream.id] = await self.store.write(lambda tx, put=found: tx.append(put))

    async def pass_days(self, days: int) -> None:
        """Time goes by, and the operator says so."""
        self.clock[0] += days * DAY

    async def erase(self, minimum_days: int = MINIMUM) -> int:
        """Erase what is due."""
        return await erase_what_is_due(self.store, minimum_days)

    async def texts(self) -> int:
        """Texts that are there, those of populations not counted."""
        count = "SELECT (SELECT count(*) FROM body WHERE bytes <> x'') - (SELECT count(*) FROM population)"
        return int(await self.store.read(lambda db: db.execute(count).fetchone()[0]))

    async def certificates(self) -> list[statement.BodiesErased]:
        """What the log says of erasures."""
        rows = await self.store.read(lambda db: db.execute("SELECT bytes FROM entry WHERE class = 9").fetchall())
        found = [statement.decode(entry.decode(bytes(raw))) for (raw,) in rows]
        return [one for one in found if isinstance(one, statement.BodiesErased)]


@asynccontextmanager
async def shelf(folder: Path, ca: Authority) -> AsyncIterator[Shelf]:
    pod = Pod(ca)
    clock = [Stream(pod).now_us]
    store = Store(folder, Metrics(), lambda: clock[0])
    try:
        yield Shelf(store, ca, clock, speaker())
    finally:
        await store.close()


def spoken(ca: Authority, text: str, identity: str = "billing-agent", commands: int = 1) -> Stream:
    """A stream with one session of commands with such texts."""
    pod = Pod(ca, identity=identity, pod_uid=f"uid-{identity}-{os.urandom(4).hex()}")
    stream = Stream(pod)
    session = stream.open_session()
    for number in range(commands):
        stream.conclude(session, stream.intend(session, f"SELECT '{text}-{number}'"))
    stream.close_session(session, commands)
    stream.close()
    return stream


KEPT = Retention("billing-agent", 40, is_held=False)


async def test_what_is_older_than_both_goes_and_is_certified(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        old = spoken(gateway_ca, "old", commands=3)
        commits = list(old.bodies)
        await here.ship(old, spoken(gateway_ca, "other", "crm-agent"))
        await here.ask(KEPT, Retention("crm-agent", 0, is_held=False))
        await here.pass_days(20)
        young = spoken(gateway_ca, "young")
        await here.ship(young)
        await here.pass_days(19)
        await here.ask(KEPT)
        assert await here.erase() == 0
        await here.pass_days(2)
        await here.ask(KEPT)
        assert await here.erase() == 3
        assert await here.erase() == 0
        assert await here.texts() == 2  # the young one, and of whom nothing was said but "for ever"
        (said,) = await here.certificates()
        assert (said.namespace, said.identity, said.count, said.retention_days, said.minimum_days, said.epoch) == (
            "agents", "billing-agent", 3, 40, MINIMUM, 3,
        )  # fmt: skip
        assert said.until_us == here.clock[0] - 40 * DAY
        assert base64.b64decode(said.hash) == statement.erased_hash(commits)
        await here.pass_days(400)
        await here.ask(KEPT)
        assert await here.erase() == 1
        assert await here.texts() == 1


async def test_the_minimum_wins_over_a_shorter_word(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(spoken(gateway_ca, "old"))
        await here.pass_days(300)
        await here.ask(Retention("billing-agent", 1, is_held=False))
        assert await here.erase(365) == 0
        await here.pass_days(66)
        await here.ask(Retention("billing-agent", 1, is_held=False))
        assert await here.erase(365) == 1


async def test_without_a_word_everything_stays(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(spoken(gateway_ca, "old"))
        await here.ask()
        await here.pass_days(10_000)
        await here.ask()
        assert await here.erase() == 0
        assert await here.texts() == 1


async def test_the_newest_word_decides_and_a_hold_stops_it(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(spoken(gateway_ca, "old"))
        await here.ask(KEPT)
        await here.ask(Retention("billing-agent", 400, is_held=False))  # longer, before it went
        await here.pass_days(100)
        await here.ask(Retention("billing-agent", 400, is_held=False))
        assert await here.erase() == 0
        await here.ask(Retention("billing-agent", 40, is_held=True))
        assert await here.erase() == 0
        await here.ask()  # the identity is gone: what was said of it last is in force
        assert await here.erase() == 0
        await here.ask(KEPT)
        assert await here.erase() == 1


async def test_one_clock_that_jumps_ahead_erases_nothing(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(spoken(gateway_ca, "old"))
        await here.ask(KEPT)
        now_us = here.clock[0]
        await here.pass_days(4000)
        assert await here.erase() == 0
        here.clock[0] = now_us + DAY
        await here.ask(KEPT, operator_us=now_us + 4000 * DAY)
        assert await here.erase() == 0
        assert await here.texts() == 1


async def test_a_text_that_a_young_command_names_stays(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        stream = Stream(Pod(gateway_ca))
        session = stream.open_session()
        stream.intend(session)
        (commit,) = stream.bodies
        await here.ship(stream)
        await here.ask(KEPT)
        await here.pass_days(30)
        stream.intend(session, with_body=False)
        named = record.Commitment(base64.b64encode(commit).decode(), 8)
        stream.add(
            record.CommandIntent(
                seq=0, wall_us=0, mono_us=0, session=session, command=session, target="orders-db", kind="query",
                decision="Allow", sha256="", size_bytes=8, body=named,
            )
        )  # fmt: skip
        await here.ship(stream)
        await here.pass_days(30)
        await here.ask(KEPT)
        assert await here.erase() == 0  # its first command is sixty days old, its last one thirty
        await here.pass_days(11)
        await here.ask(KEPT)
        assert await here.erase() == 1


async def test_many_texts_go_in_small_transactions(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(*(spoken(gateway_ca, f"s{number}", commands=300) for number in range(4)))
        await here.ask(KEPT)
        await here.pass_days(41)
        await here.ask(KEPT)
        assert await here.erase() == 1200
        said = await here.certificates()
        assert sum(one.count for one in said) == 1200
        assert max(one.count for one in said) <= retention.MAX_COMMANDS
        assert len({one.hash for one in said}) == len(said)


async def test_what_no_record_names_goes_with_its_pod(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        stream = spoken(gateway_ca, "old")
        await here.ship(stream)
        body = b"s" * entry.SALT_BYTES + b"never named"
        await here.store.write(lambda tx: tx.put_bodies({entry.body_commit(body): body}, stream.pod.pod_uid))
        await here.ask(KEPT)
        await here.pass_days(39)
        await here.ask(KEPT)
        assert await here.erase() == 0
        await here.pass_days(2)
        await here.ask(KEPT)
        assert await here.erase() == 2
        assert await here.texts() == 0


@pytest.mark.parametrize("size", [20, 900, 9000])
async def test_what_is_erased_is_nowhere_in_the_files(tmp_path: Path, gateway_ca: Authority, size: int) -> None:
    """Small texts lie in a page with others, large ones in pages of their own; every third is of the other identity."""
    async with shelf(tmp_path, gateway_ca) as here:
        for number in range(90):
            identity = "crm-agent" if number % 3 == 0 else "billing-agent"
            marked = f"canary-{identity}-" + "x" * size
            await here.ship(spoken(gateway_ca, marked, identity))
        await here.ask(KEPT)
        await here.pass_days(41)
        await here.ask(KEPT, Retention("crm-agent", 0, is_held=False))
        assert b"canary-billing-agent" in _files(tmp_path)
        assert await here.erase() == 60
        left = _files(tmp_path)
        assert left.count(b"canary-billing-agent") == 0
        assert left.count(b"canary-crm-agent") >= 30
        await here.pass_days(400)  # the others later: nothing of them was left behind by what went before
        await here.ask(KEPT, Retention("crm-agent", 40, is_held=False))
        assert await here.erase() == 30
        assert b"canary" not in _files(tmp_path)


def _files(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file())


async def test_a_reader_makes_it_wait_and_gateways_not(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(spoken(gateway_ca, "canary"))
        await here.ask(KEPT)
        await here.pass_days(41)
        await here.ask(KEPT)
        reader = open_writer(tmp_path / "evidence.db")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM body").fetchone()
        await here.store.write(lambda tx: tx.erase(MINIMUM))
        assert await here.store.forget() is False
        await here.ship(spoken(gateway_ca, "another"))
        reader.execute("COMMIT")
        reader.close()
        assert await here.store.forget() is True
        assert b"canary" not in _files(tmp_path)


async def test_the_archives_keys_go_with_the_texts_of_their_days(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:

        async def keys() -> list[tuple[str, int]]:
            """Whose keys there are, and of which day, counted from the first."""
            query = "SELECT identity, day FROM datakey WHERE key IS NOT NULL ORDER BY day, identity"
            found = await here.store.read(lambda db: db.execute(query).fetchall())
            return [(identity, day - first_day) for identity, day in found]

        async def make_key(identity: str) -> None:
            day = datakeys.day_of(here.clock[0])
            await here.store.write(lambda tx: datakeys.key_for(tx._db, "agents", identity, day))

        first_day = datakeys.day_of(here.clock[0])
        await here.ship(spoken(gateway_ca, "old"), spoken(gateway_ca, "other", "crm-agent"))
        await make_key("billing-agent")
        await make_key("crm-agent")
        await here.pass_days(5)
        lasting = Stream(Pod(gateway_ca, pod_uid="uid-lasting"))
        session = lasting.open_session()
        lasting.conclude(session, lasting.intend(session, "SELECT 'lasting'"))
        await here.ship(lasting)
        await make_key("billing-agent")
        await here.pass_days(30)
        lasting.conclude(session, lasting.intend(session, "SELECT 'still there'"))
        await here.ship(lasting)
        await here.ask(KEPT)
        assert await here.erase() == 0
        assert await keys() == [("billing-agent", 0), ("crm-agent", 0), ("billing-agent", 5)]
        await here.pass_days(8)  # the first day is over for more than 40 days
        await here.ask(KEPT)
        assert await here.erase() == 1
        assert await keys() == [("crm-agent", 0), ("billing-agent", 5)]
        await here.pass_days(7)  # so is the sixth day, but a session that went on later has texts of then
        await here.ask(KEPT)
        assert await here.erase() == 0
        assert await keys() == [("crm-agent", 0), ("billing-agent", 5)]
        await here.pass_days(60)
        await here.ask(KEPT)
        assert await here.erase() == 2
        assert await keys() == [("crm-agent", 0)]
        assert [one.count for one in await here.certificates()] == [1, 2]


async def test_a_key_that_outlived_its_texts_goes_with_a_certificate_of_its_own(
    tmp_path: Path, gateway_ca: Authority
) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        day = datakeys.day_of(here.clock[0])
        await here.store.write(lambda tx: datakeys.key_for(tx._db, "agents", "billing-agent", day))
        await here.ask(KEPT)
        await here.pass_days(42)
        await here.ask(KEPT)
        assert await here.erase() == 0
        left = await here.store.read(lambda db: db.execute("SELECT key, destroyed_idx FROM datakey").fetchall())
        (said,) = await here.certificates()
        assert (said.count, said.hash) == (0, base64.b64encode(statement.erased_hash([])).decode())
        assert left == [(None, here.store.size - 1)]
        assert await here.erase() == 0
        assert len(await here.certificates()) == 1


async def test_it_is_looked_again_and_again(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        keeping = asyncio.create_task(keep_retention(here.store, MINIMUM, 0.01))
        for _ in range(2):
            await here.ship(spoken(gateway_ca, "old"))
            await here.pass_days(41)
            await here.ask(KEPT)
            async with asyncio.timeout(30):
                while await here.texts():  # noqa: ASYNC110 it is what the database says
                    await asyncio.sleep(0.01)
        keeping.cancel()
        assert len(await here.certificates()) == 2


async def test_commands_say_that_their_text_was_erased(tmp_path: Path, gateway_ca: Authority) -> None:
    async with shelf(tmp_path, gateway_ca) as here:
        await here.ship(spoken(gateway_ca, "old"))
        await here.ask(KEPT)
        await here.pass_days(41)
        await here.ask(KEPT)
        await here.erase()
        bare = spoken(gateway_ca, "bare")
        bare.bodies = {}
        await here.ship(bare, spoken(gateway_ca, "young"))
        shown = commands.Commands(Flows(), lambda: here.clock[0])
        question = Question("commands", "agents", (), (), "", "")
        size = here.store.size
        page = await here.store.read(lambda db: shown.page(db, question, Range(size, -1, 10)))
    at = [one["name"] for one in commands.COLUMNS].index("Command")
    assert [one.cells[at] for one in page.found] == ["<erased>", "<not kept>", "SELECT 'young-0'"]
    assert [one.value["status"].get("erased") for one in page.found] == [True, None, None]
    assert "command" not in page.found[0].value["spec"]
    assert len(page.found[0].value["spec"]["sha256"]) == 64  # what was said is gone, that it was is not


async def bundle_of(here: Shelf, session: str) -> dict[str, bytes]:
    await here.store.write(lambda tx: tx.sign(here.store._keys))
    made = await proof.bundle(here.store, "agents", session, here.clock[0])
    assert made is not None
    return unpack(b"".join([piece async for piece in made]))


async def test_a_bundle_of_what_was_erased_verifies_and_names_the_certificate(
    tmp_path: Path, gateway_ca: Authority
) -> None:
    async with shelf(tmp_path / "store", gateway_ca) as here:
        stream = spoken(gateway_ca, "old", commands=2)
        await here.ship(stream)
        (name,) = await here.store.read(lambda db: db.execute("SELECT name FROM session").fetchone())
        await here.ask(KEPT)
        before = await bundle_of(here, name)
        await here.pass_days(41)
        await here.ask(KEPT)
        assert await here.erase() == 2
        after = await bundle_of(here, name)
        policy = (await here.store.read(here.store.policy)).decode()
        (idx,) = await here.store.read(lambda db: db.execute("SELECT idx FROM entry WHERE class = 9").fetchone())
    assert not any(one.startswith(("certificates/",)) for one in before)
    assert not any(one.startswith("bodies/") for one in after)
    told = await asyncio.to_thread(verified, tmp_path, gateway_ca, policy, after)
    for status, text in told:
        assert status == 0, text
        assert "verify: OK" in text
        assert "not here (record" not in text
    assert (
        f"2 texts that records name are not here: older ones were erased after 40 days, says entry {idx} of"
        in told[0][1]
    )
    assert "2 texts are not here: older ones were erased" in told[1][1]
    certificate = f"certificates/{idx:016d}"
    without = {one: data for one, data in after.items() if not one.startswith("certificates/")}
    for status, text in await asyncio.to_thread(verified, tmp_path, gateway_ca, policy, without):
        assert status == 0
        assert "2 texts that records name are not here (record" in text
    forged = after[f"{certificate}.entry"].replace(b'"count":2', b'"count":3')
    for status, text in await asyncio.to_thread(
        verified, tmp_path, gateway_ca, policy, after | {f"{certificate}.entry": forged}
    ):
        assert status == 1, text
        assert "gives no reason for it" in text.splitlines()[-1]
    whose = after[f"{certificate}.entry"].replace(b"billing-agent", b"billing-agenx")
    for status, text in await asyncio.to_thread(
        verified, tmp_path, gateway_ca, "", after | {f"{certificate}.entry": whose}
    ):
        assert "2 texts that records name are not here (record" in text, (status, text)


def verified(folder: Path, ca: Authority, policy: str, files: dict[str, bytes]) -> list[tuple[int, str]]:
    """What both verifiers say of a bundle."""
    bundle, trust, keys = folder / "bundle.tar", folder / "ca.pem", folder / "log.policy"
    bundle.write_bytes(pack(files))
    trust.write_text(ca.pem)
    keys.write_text(policy)
    arguments = [str(bundle), "--trust", str(trust), *(["--log-policy", str(keys)] if policy else [])]
    done = CliRunner().invoke(main, ["verify", *arguments])
    again = subprocess.run(
        [sys.executable, VERIFIER, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return [(done.exit_code, done.output), (again.returncode, again.stdout)]
