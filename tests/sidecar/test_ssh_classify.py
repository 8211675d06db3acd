"""What command lines count as: the corpus, the shells themselves, and texts that nobody thought of."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.ssh.classify import classify, needs_home, touched
from chaperone_sidecar.protocols.ssh.paths import normal
from chaperone_sidecar.protocols.ssh.programs import BARE, TABLE
from chaperone_sidecar.protocols.ssh.shell import Unclear, parse

CORPUS = Path(__file__).parents[1] / "corpora" / "ssh_commands.jsonl"
CASES = [json.loads(line) for line in CORPUS.read_text().splitlines()]
SHELLS = [name for name in ("dash", "bash") if shutil.which(name)]

# Pieces that mean something to one shell or another, around a program that says which words it was given.
PIECES = st.sampled_from(
    [
        *"pqx '\"\\;|&<>(){}[]*?~#!=$`%^,:@+-.\t\n0129",
        "p ",
        "&&",
        "||",
        ">>",
        "2>",
        "/dev/null",
        "\\\n",
        "''",
        '""',
        "ü",
    ]
)


@pytest.mark.parametrize("case", CASES, ids=[str(number) for number in range(len(CASES))])
def test_a_command_line_counts_as_the_corpus_says(case: dict[str, object]) -> None:
    facts = classify(str(case["text"]))
    found = [f"{access.effect.value} {access.object}".strip() for access in facts.accesses]
    assert found == case["accesses"], case["text"]
    assert facts.why_unknown == case.get("why", "")


def test_paths_from_the_home_are_whole_where_it_is_known() -> None:
    for text in ("cat private/x", "cat ~/private/x", "cd private && cat x", "cd && cat private/x", "cat < private/x"):
        assert needs_home(classify(text))
        assert "path:/home/app/private/x" in {access.object for access in classify(text, "/home/app").accesses}, text


@given(st.text(max_size=200) | st.lists(PIECES, max_size=30).map("".join))
def test_any_text_has_facts(text: str) -> None:
    facts = classify(text)
    assert facts.accesses
    if any(access.effect is Effect.UNKNOWN for access in facts.accesses):
        assert facts.why_unknown


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the program `p`, which writes its words, each with a NUL after it, and a line end."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "p").write_text("#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\nprintf '\\n\\n'\n")
    (folder / "p").chmod(0o755)
    return folder


@pytest.mark.parametrize("shell", SHELLS)
@settings(max_examples=120, deadline=None)
@given(pieces=st.lists(PIECES, max_size=14))
def test_words_are_those_that_shells_give_to_programs(shell: str, telling: Path, pieces: list[str]) -> None:
    text = "p " + "".join(pieces)
    try:
        commands = parse(text)
    except Unclear:
        return
    if any(one.joint not in ("", ";") or one.redirections or one.assignments for one in commands):
        return
    if any(not one.words or one.words[0].text != "p" or any(word.home for word in one.words) for one in commands):
        return
    found = subprocess.run(
        [shutil.which(shell) or shell, "-c", text],
        env={"PATH": str(telling), "LC_ALL": "C.UTF-8"},
        capture_output=True,
        timeout=20,
        check=False,
    )
    if found.returncode != 0 and not found.stdout:  # the shell refuses the text as a whole, so nothing runs
        return
    expected = b"".join(b"".join(word.text.encode() + b"\0" for word in one.words[1:]) + b"\n\n" for one in commands)
    assert found.stdout == expected, text


def test_no_program_is_in_two_tables() -> None:
    assert not TABLE.keys() & BARE.keys()


@pytest.mark.parametrize(
    "path", ["/srv/../etc/shadow", "a/../../x", "/proc/1/root/etc", "/proc/self/fd/3", "", "/a\nb"]
)
def test_a_path_that_names_another_file_later_is_none(path: str) -> None:
    with pytest.raises(Unclear):
        normal(path)


@given(st.text(max_size=60))
def test_any_path_is_whole_or_none(path: str) -> None:
    try:
        found = normal(path)
    except Unclear:
        return
    assert found.startswith(("/", "~/")) or found == "~"
    assert "//" not in found and "/./" not in found and "/../" not in f"{found}/"


def test_keys_are_sensitive_and_what_others_run_is_power() -> None:
    facts = touched((Effect.READ, "/home/a/.ssh/id_ed25519"), (Effect.MODIFY, "/home/a/.ssh/authorized_keys"))
    assert [access.effect for access in facts.accesses] == [Effect.READ_SENSITIVE, Effect.PRIVILEGE]
