"""The examples of docs/guides/policies.md: each command is run, and says the lines that stand below it, in order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from evidence_directory import write_stream
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_cli.main import main

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(
    r"^    \$ chaperone (.+)\n((?:    .+\n)+)", (ROOT / "docs/guides/policies.md").read_text(), re.MULTILINE
)


def write_evidence(folder: Path) -> None:
    """A command that the example's policy allows no more, and one that it never did."""
    stream = Stream(Pod(Authority("gateway CA")))
    session = stream.open_session()
    for text, name, decision, policy, rule in (
        ("SELECT * FROM items", "public.items", "Allow", "agents/billing", "read-orders"),
        ("SELECT * FROM invoices", "public.invoices", "Deny", "", "uncovered"),
    ):
        add_intent(stream, session, text, name, decision, policy, rule)
    stream.close()
    write_stream(folder, stream)


def add_intent(stream: Stream, session: str, text: str, name: str, decision: str, policy: str, rule: str) -> None:
    import msgspec

    from chaperone_evidence import record

    add = stream.add

    def replaced(unset: record.Record) -> int:
        return add(msgspec.structs.replace(unset, accesses=(record.AccessEntry("read", name),), policy=policy))

    stream.add = replaced  # type: ignore[method-assign]
    stream.intend(session, text, decision=decision, rule=rule)
    stream.add = add  # type: ignore[method-assign]


def test_there_is_an_example_of_each_command() -> None:
    assert {shlex.split(command)[0] for command, _ in EXAMPLES} == {"explain", "replay-policy", "suggest"}


@pytest.mark.parametrize(("command", "told"), EXAMPLES, ids=lambda text: text.splitlines()[0][:40])
def test_an_example_says_what_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, told: str
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    write_evidence(tmp_path / "evidence")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(command))
    position = 0
    for line in told.splitlines():
        found = done.output.find(line.removeprefix("    "), position)
        assert found >= 0, f"{line}\n{done.output}"
        position = found
