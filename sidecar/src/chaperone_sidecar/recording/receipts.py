"""Receipts: the collector's log says, signed, that it has this pod's records (durability `Witnessed`).

Group-wise: one request is under way at a time, for the newest record that the collector has acknowledged; records are
chained, so its receipt speaks for every record before it. Whoever waits meanwhile belongs to the next group.

What is checked: that the record with our own bytes is in the tree that the checkpoint signs; that the checkpoint bears
the signatures that the log's policy names; that the log did not shrink. The policy is pinned: it is taken from the
collector once, over mTLS, and kept beside the spool for the life of the pod. The newest receipt is kept, too
(`receipts/<stream>.tlog-proof`): with it, a log that is found later without the record is proof against the collector.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from chaperone_evidence import policyfile
from chaperone_evidence.errors import EvidenceError
from chaperone_evidence.merkle import leaf_hash
from chaperone_evidence.policy import Policy
from chaperone_evidence.proof import parse_proof
from chaperone_sidecar.errors import Unwitnessed
from chaperone_sidecar.recording.shipper import Shipped, Shipper

logger = logging.getLogger(__name__)

LIMIT_S: Final = 10.0  # a command waits so long at most
REQUEST_TIMEOUT_S: Final = 8.0  # the collector answers within 4 s, signed or not
RETRY_S: Final = 0.5
MAX_ANSWER_BYTES: Final = 1 << 20
MAX_KEPT: Final = 16  # receipts of streams; a pod whose gateway starts again and again makes many
POLICY_FILE: Final = "log-policy"
FOLDER: Final = "receipts"


class _Failed(Exception):
    """No receipt now; the text says why."""


class _Problem(msgspec.Struct):
    detail: str = ""


class Receipts:
    """Waits for the log.

    Args:
        root: of the spool.
        stream: the living stream.
        cluster: whose log it must be.
        url: the collector, `https://host:port`.
        session: gives the HTTP session in force.
        shipper: knows what the collector has acknowledged.
    """

    def __init__(
        self,
        root: Path,
        stream: str,
        cluster: str,
        url: str,
        session: Callable[[], aiohttp.ClientSession],
        shipper: Shipper,
    ) -> None:
        self._root = root
        self._stream = stream
        self._origin = f"chaperone.dev/log/{cluster}"
        self._url = url
        self._session = session
        self._shipper = shipper
        self._policy: Policy | None = None
        self._size = 0
        self._waiting: list[int] = []
        self._asked = asyncio.Event()
        self._came = asyncio.Event()
        self._problem = ""
        self.witnessed_seq = -1

    async def reach(self, seq: int) -> None:
        """Return once a checkpoint covers that record.

        Raises:
            Unwitnessed: none does in time; the text says what was missing.
        """
        if self.witnessed_seq >= seq:
            return
        if not self._waiting:
            self._problem = ""
        self._waiting.append(seq)
        self._asked.set()
        try:
            async with asyncio.timeout(LIMIT_S):
                while self.witnessed_seq < seq:
                    await self._came.wait()
        except TimeoutError:
            why = self._problem or "the collector has not taken it; is it reachable?"
            raise Unwitnessed(
                f"no receipt of the evidence log for the command's record in {LIMIT_S:.0f} s: {why}"
            ) from None
        finally:
            self._waiting.remove(seq)

    async def run(self) -> None:
        """Get receipts while somebody waits, until cancelled."""
        while True:
            if not self._waiting:
                self._asked.clear()
                await self._asked.wait()
            self._shipper.hurry()
            last = await self._shipper.beyond(min(self._waiting, default=0) - 1)
            if last.seq <= self.witnessed_seq:
                await asyncio.sleep(0)  # who waited for it has not run yet
                continue
            try:
                await self._get(last)
            except _Failed as error:
                self._problem = str(error)
                logger.warning("no receipt for record %d: %s", last.seq, error)
                await asyncio.sleep(RETRY_S)
                continue
            self.witnessed_seq = last.seq
            self._came.set()
            self._came = asyncio.Event()

    async def _get(self, last: Shipped) -> None:
        """Get and check one receipt.

        Raises:
            _Failed: there is none, or it does not hold.
        """
        policy = self._policy or await self._pin()
        data = await self._ask(f"/v1/streams/{self._stream}/receipt?seq={last.seq}")
        try:
            found = parse_proof(data).verify(leaf_hash(last.entry), policy).checkpoint
        except EvidenceError as error:
            logger.error("the collector's receipt for record %d does not hold: %s", last.seq, error)
            raise _Failed(f"the collector's receipt does not hold: {error}") from error
        if found.size < self._size:
            raise _Failed(f"the log has shrunk from {self._size} entries to {found.size}.")
        self._size = found.size
        folder = self._root / FOLDER
        folder.mkdir(exist_ok=True, mode=0o700)
        _write(folder / f"{self._stream}.tlog-proof", data)
        for old in sorted(folder.glob("*.tlog-proof"))[:-MAX_KEPT]:
            old.unlink(missing_ok=True)

    async def _pin(self) -> Policy:
        """The log's policy: that which this pod saw first, which the collector must still have.

        Raises:
            _Failed: it cannot be had, is of another log, or is another one now.
        """
        told = await self._ask("/v1/log/policy")
        path = self._root / POLICY_FILE
        try:
            if path.exists() and path.read_bytes() != told:
                logger.error("the log has another policy now than the one in %s", path)
                raise _Failed("the log's keys or witnesses are not those that this pod saw first; the pod has to be "
                              "replaced if they were changed on purpose.")  # fmt: skip
            policy = policyfile.parse(told.decode())
        except (EvidenceError, UnicodeDecodeError) as error:
            raise _Failed("the log's policy cannot be read.") from error
        if policy.origin != self._origin:
            raise _Failed(f"the collector's log is {policy.origin}, not {self._origin}.")
        _write(path, told)
        self._policy = policy
        return policy

    async def _ask(self, path: str) -> bytes:
        try:
            async with self._session().get(
                self._url + path, timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
            ) as response:
                answer = await response.content.read(MAX_ANSWER_BYTES)
                while more := await response.content.read(MAX_ANSWER_BYTES - len(answer)):
                    answer += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _Failed(f"the collector is not reached ({type(error).__name__}).") from error
        if response.status != 200:
            raise _Failed(_detail(answer) or f"the collector answers {response.status}.")
        return answer


def _detail(answer: bytes) -> str:
    try:
        return msgspec.json.decode(answer, type=_Problem).detail
    except msgspec.DecodeError:
        return ""


def _write(path: Path, data: bytes) -> None:
    """Replace a file as a whole."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)
