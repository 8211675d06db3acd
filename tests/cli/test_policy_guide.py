"""The examples of docs/guides/policies.md: each command is run, and says the lines that stand below it, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from evidence_directory import write_stream
from gateway_stream import Pod, Stream
from manifests import rule
from pki import Authority
from revised import Decided, operator, revised, sealed
from sealed_bundle import pack

from chaperone_cli.main import main
from chaperone_evidence import record

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"^    \$ chaperone (.+)\n((?:    .+\n)+)", (ROOT / "docs/guides/policies.md").read_text(), re.MULTILINE
)


def write_evidence(folder: Path) -> None:
    """A command that the example's policy allows no more, and one that it never did."""
    stream = Stream(Pod(Authority("gateway CA")))
    session = stream.open_session()
    for text, name, decision, policy, named in (
        ("SELECT * FROM items", "public.items", "Allow", "agents/billing", "read-orders"),
        ("SELECT * FROM invoices", "public.invoices", "Deny", "", "uncovered"),
    ):
        add_intent(stream, session, text, name, decision, policy, named)
    stream.close()
    write_stream(folder, stream)


def write_bundles(folder: Path) -> None:
    """Two sessions as `export` gives them: one with a decision that policy does not make, one that was refused."""
    decided = revised([rule("read-orders", "Allow", ["read"], ["public.orders"])])
    modify = (record.AccessEntry("modify", "public.orders"),)
    other = {"accesses": modify, "decision": "Deny", "policy": "", "rule": "uncovered"}
    for name, text, changed in (
        ("decided", "SELECT id FROM orders", {"rule": "another-rule"}),
        ("other", "UPDATE orders SET paid = true", other),
    ):
        ca = Authority("gateway CA")
        made = Decided(ca)
        made.intend(decided.revision)
        made.intend(decided.revision, text, **changed)
        (folder / name).mkdir()
        found = sealed(folder / name, ca, made, [decided], operator())
        (folder / f"{name}.tar").write_bytes(pack(found.bundles["it"]))
        if name == "decided":
            (folder / "ca.pem").write_text(ca.pem)
            (folder / "log.policy").write_text(found.policy)
    (folder / "operator.vkey").write_text(operator().vkey)


def add_intent(stream: Stream, session: str, text: str, name: str, decision: str, policy: str, rule: str) -> None:
    add = stream.add

    def replaced(unset: record.Record) -> int:
        return add(msgspec.structs.replace(unset, accesses=(record.AccessEntry("read", name),), policy=policy))

    stream.add = replaced  # type: ignore[method-assign]
    stream.intend(session, text, decision=decision, rule=rule)
    stream.add = add  # type: ignore[method-assign]


def test_there_is_an_example_of_each_command() -> None:
    assert {shlex.split(command)[0] for command, _ in EXAMPLES} == {
        "explain", "replay-policy", "suggest", "reperform", "diff",
    }  # fmt: skip


@pytest.mark.parametrize(("command", "told"), EXAMPLES, ids=lambda text: text.splitlines()[0][:40])
def test_an_example_says_what_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_evidence(tmp_path / "evidence")
    if shlex.split(command)[0] in ("reperform", "diff"):
        write_bundles(tmp_path)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(command))
    position = 0
    for line in told.splitlines():
        found = done.output.find(line.removeprefix("    "), position)
        assert found >= 0, f"{line}\n{done.output}"
        position = found
