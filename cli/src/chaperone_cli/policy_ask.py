"""The policy engine, asked without a gateway: many questions at once, or one with the trace of its rules.

OPA is run over a snapshot's bundle, as the gateway's OPA has it; questions have the form that gateways ask in.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

import msgspec

from chaperone_cli.policy_world import Unusable
from chaperone_operator.compile import opa, rego
from chaperone_sidecar.policy.decider import Answer

type Question = dict[str, object]

BATCH: Final = 2000  # questions of one run of OPA: some 100 ms to start, then about a millisecond each
MAX_UNPACKED_BYTES: Final = 64 << 20  # a snapshot has at most 900 000 bytes, packed some ten times
TIMEOUT_S: Final = 120.0  # of one run, on a machine that does other things
MAX_SPLITS: Final = 64  # runs to find the questions that break a batch; what is left then has no answer
_MANY: Final = "[decision | some question in input; decision := data.chaperone.decision with input as question]"
_WHY: Final = '{"decision": data.chaperone.decision, "trace": data.chaperone.trace}'


class TracedRule(msgspec.Struct, frozen=True):
    """A rule that speaks of an access; `why` says what keeps it from firing."""

    policy: str
    rule: str
    action: str
    observed: bool
    fires: bool
    why: str


class TracedAccess(msgspec.Struct, frozen=True):
    """An access, and the rules that speak of it, the strictest first."""

    effect: str
    object: str
    through: str
    covered: bool
    rules: tuple[TracedRule, ...]


class OwnDenial(msgspec.Struct, frozen=True, rename={"is_in_force": "inForce"}):
    """What the Rego of a policy denies."""

    policy: str
    message: str
    is_in_force: bool


class Trace(msgspec.Struct, frozen=True):
    """How a decision comes about."""

    accesses: tuple[TracedAccess, ...]
    own: tuple[OwnDenial, ...] = ()


class Engine:
    """OPA with the bundle of one snapshot; a context manager.

    The bundle may be anybody's: what is in it reaches neither the network nor the clock.

    Raises:
        Unusable: it is no bundle of a snapshot.
    """

    def __init__(self, bundle: bytes) -> None:
        self._bundle = bundle
        self._folder: TemporaryDirectory[str] | None = None
        self._grants: dict[str, dict[str, Any]] = _grants(bundle)
        self._splits = 0
        self._depends: dict[tuple[str, str], tuple[bool, bool]] = {}

    def __enter__(self) -> Self:
        self._folder = opa.folder()
        self._path.write_bytes(self._bundle)
        try:
            self._allowed.write_text(rego.capabilities())
        except opa.NoOpa as error:
            raise Unusable(f"OPA cannot be asked: {error}.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._folder is not None:
            self._folder.cleanup()

    def depends(self, identity: str, target: str) -> tuple[bool, bool]:
        """Whether decisions there may depend on the minute; and on WHERE and LIMIT."""
        known = self._depends.get((identity, target))
        grant = self._grants.get(identity, {}).get(target)
        if known is None and grant is not None:
            required = [rule.get("require") or {} for rule in grant["rules"]]
            has_own = bool(grant.get("own"))
            is_measured = any("where" in one or "limit" in one for one in required)
            known = self._depends[identity, target] = (has_own or bool(grant.get("zones")), has_own or is_measured)
        return known or (False, False)

    def depends_on_user(self, identity: str, target: str) -> bool:
        """Whether decisions there may depend on who the user is, beyond whether there is one."""
        grant = self._grants.get(identity, {}).get(target, {})
        return bool(grant.get("own")) or any("groups" in (rule.get("require") or {}) for rule in grant.get("rules", ()))

    def decide(self, questions: Sequence[Question]) -> list[Answer | None]:
        """Answers in the order of the questions; None where OPA fails, which at a gateway denies.

        Raises:
            Unusable: OPA cannot be run.
        """
        found: list[Answer | None] = []
        for first in range(0, len(questions), BATCH):
            found += self._decide(questions[first : first + BATCH])
        return found

    def explain(self, question: Question) -> tuple[Answer, Trace]:
        """The decision, and the rules that it comes from.

        Raises:
            Unusable: OPA cannot be run, or fails.
        """
        found = self._run(question, _WHY)
        if found is None:
            raise Unusable("OPA fails on this question, so a gateway denies it: the Rego of a policy has an error.")
        return msgspec.convert(found["decision"], Answer), msgspec.convert(found["trace"], Trace)

    def _decide(self, questions: Sequence[Question]) -> list[Answer | None]:
        found = self._run(questions, _MANY)
        if found is not None and len(found) == len(questions):
            return msgspec.convert(found, list[Answer | None])
        # The Rego of a policy has an error for some of them, and OPA then answers nothing at all.
        self._splits += 1
        if len(questions) == 1 or self._splits > MAX_SPLITS:
            return [None] * len(questions)
        half = len(questions) // 2
        return [*self._decide(questions[:half]), *self._decide(questions[half:])]

    def _run(self, given: object, query: str) -> Any:  # noqa: ANN401 - JSON
        arguments = ("eval", "--format", "raw", "--strict-builtin-errors", "--bundle", str(self._path), "--stdin-input",
                     "--capabilities", str(self._allowed))  # fmt: skip
        try:
            done = opa.run(*arguments, query, stdin=json.dumps(given), timeout_s=TIMEOUT_S)
        except opa.NoOpa as error:
            raise Unusable(f"OPA cannot be asked: {error}.") from error
        return opa.read(done.stdout) if done.returncode == 0 and done.stdout.strip() else None

    @property
    def _allowed(self) -> Path:
        return self._path.with_name("capabilities.json")

    @property
    def _path(self) -> Path:
        assert self._folder is not None  # noqa: S101 - used inside `with` alone
        return Path(self._folder.name) / "bundle.tar.gz"


def _grants(bundle: bytes) -> dict[str, dict[str, Any]]:
    try:
        unpacked = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(bundle, MAX_UNPACKED_BYTES + 1)
        if len(unpacked) > MAX_UNPACKED_BYTES:
            raise Unusable("The bundle of a revision is far too large.")
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            data = archive.extractfile("chaperone/data.json")
            found: dict[str, dict[str, Any]] = json.load(data)["grants"] if data is not None else {}
            return found
    except (zlib.error, tarfile.TarError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise Unusable(f"The bundle of a revision cannot be read: {error}.") from error
