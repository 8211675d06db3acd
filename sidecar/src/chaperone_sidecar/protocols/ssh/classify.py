"""What a command line, a shell or a file operation would do: `Facts`, in the words of policy.

Each program that would run is an object, `command:<name>`, and so is each path it would touch, `path:<path>`: policy
has to allow both. What is not read (shell.py) is `unknown`; a program that is not in the table is `unknown` on its
object, so that a rule can name it. Names are as written (`Resolution.SYNTACTIC`): links are the host's own business for
commands, while SFTP's paths are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from chaperone_sidecar.command import Access, Effect, Facts, Resolution, unknown
from chaperone_sidecar.protocols.ssh import special
from chaperone_sidecar.protocols.ssh.options import scan
from chaperone_sidecar.protocols.ssh.paths import HOME, PREFIX, accesses, normal, of_word
from chaperone_sidecar.protocols.ssh.programs import BARE, INSTALLS, SHELLS, TABLE
from chaperone_sidecar.protocols.ssh.shell import Redirection, Simple, Unclear, Word, parse

MAX_DEPTH: Final = 3  # of `sh -c` inside `sh -c`; people who need more write a script
MAX_ACCESSES: Final = 256
SHELL: Final = "shell"

_TRUSTED: Final = re.compile(r"(?:/usr(?:/local)?)?/s?bin/([^/]+)")
_NAME: Final = re.compile(r"[A-Za-z0-9_.+:\[-]{1,64}")
# Variables that change no more than how something looks.
_HARMLESS: Final = re.compile(
    r"(?:LANG|LANGUAGE|LC_[A-Z]+|TERM|COLUMNS|LINES|NO_COLOR|DEBIAN_FRONTEND)=[A-Za-z0-9_.:@-]*"
)


_MOVES: Final = frozenset({"cd", "chdir", "pushd", "popd"})  # `cd` itself, where it is plain, is read before


class Reading(msgspec.Struct):
    """What was found so far in one text, and where its next command runs."""

    found: list[Access]
    reasons: list[str]
    home: str = HOME
    cwd: str | None = HOME
    depth: int = 0

    def add(self, *some: Access) -> None:
        """Take accesses, each once."""
        for one in some:
            if one not in self.found:
                self.found.append(one)
        if len(self.found) > MAX_ACCESSES:
            raise Unclear(f"the command touches more than {MAX_ACCESSES} things")

    def touch(self, effect: Effect, word: Word) -> None:
        """Take a path."""
        self.add(*accesses(effect, of_word(word, self.cwd, self.home)))

    def ran(self, effect: Effect, name: str) -> None:
        """Take a program."""
        self.add(Access(effect, command_object(name)))


def command_object(name: str) -> str:
    """How policy calls a program."""
    return f"command:{name}"


def shell() -> Facts:
    """An interactive shell: whatever is typed later."""
    return Facts((Access(Effect.EXECUTE_CODE, SHELL),), Resolution.SYNTACTIC)


def forward(kind: str, to: str) -> Facts:
    """A door through the connection, which is never opened."""
    return Facts((Access(Effect.TUNNEL, f"forward:{kind}.{to}" if to else f"forward:{kind}"),), Resolution.SYNTACTIC)


def touched(*some: tuple[Effect, str], resolution: Resolution = Resolution.CATALOG) -> Facts:
    """An operation on files that are known by their whole paths.

    Raises:
        Unclear: a path that is none.
    """
    reading = Reading([], [])
    for effect, path in some:
        reading.add(*accesses(effect, normal(path)))
    return Facts(tuple(reading.found) or (Access(Effect.READ),), resolution)


def needs_home(facts: Facts) -> bool:
    """Whether a path in them is only known from the home on."""
    return any(one.object.startswith(f"{PREFIX}{HOME}") for one in facts.accesses)


def classify(text: str, home: str = HOME) -> Facts:
    """What a shell would do with a text, started in that home."""
    reading = Reading([], [], home, home)
    try:
        _read(text, reading)
    except Unclear as error:
        return unknown(f"The command cannot be read: {error}.")
    if not reading.found and not text.strip():
        return unknown("The command is empty.")
    why = f"The command cannot be judged: {'; '.join(reading.reasons)}." if reading.reasons else ""
    return Facts(tuple(reading.found) or (Access(Effect.READ),), Resolution.SYNTACTIC, why)


def _read(text: str, reading: Reading) -> None:
    if reading.depth > MAX_DEPTH:
        raise Unclear(f"shells are called inside shells more than {MAX_DEPTH} deep")
    commands = parse(text)
    is_sure = True  # whether the last cd has worked, where a command runs at all
    for index, simple in enumerate(commands):
        if simple.joint in (";", "||") and not is_sure:
            reading.cwd = None
        in_pipe = simple.joint == "|" or (commands[index + 1 : index + 2] and commands[index + 1].joint == "|")
        if _changes_directory(simple):
            if in_pipe:
                raise Unclear("cd in a pipe")
            _change_directory(simple, reading)
            is_sure = False
        else:
            _command(simple.words, simple.assignments, simple.redirections, reading)


def _changes_directory(simple: Simple) -> bool:
    return bool(simple.words) and simple.words[0].text == "cd"


def _change_directory(simple: Simple, reading: Reading) -> None:
    if simple.assignments or simple.redirections or len(simple.words) > 2 or simple.joint == "||":
        raise Unclear("cd with more than one directory")
    if len(simple.words) == 1:
        reading.cwd = reading.home
    elif simple.words[1].text.startswith("-"):
        raise Unclear("cd with an option")
    else:
        reading.cwd = of_word(simple.words[1], reading.cwd, reading.home)


def _command(
    words: Sequence[Word], assignments: Iterable[str], redirections: Iterable[Redirection], reading: Reading
) -> None:
    for assignment in assignments:
        if not _HARMLESS.fullmatch(assignment):
            raise Unclear(f"the variable {assignment.partition('=')[0][:64]} may change what programs do")
    for redirection in redirections:
        reading.touch(Effect.READ if redirection.direction == "<" else Effect.MODIFY, redirection.path)
    if not words:
        return
    name = _program(words[0], reading)
    if name is None:
        return
    arguments = words[1:]
    if (inner := special.inside(name, arguments)) is not None:
        if inner.effect is not None:
            reading.ran(inner.effect, name)
        if inner.words:
            _command(inner.words, inner.assignments, (), reading)
        return
    if name in SHELLS and (text := special.script(arguments)) is not None:
        reading.depth += 1
        cwd = reading.cwd
        _read(text, reading)
        reading.cwd = cwd
        reading.depth -= 1
        return
    _known(name, arguments, reading)


def _known(name: str, arguments: Sequence[Word], reading: Reading) -> None:
    if name in _MOVES:
        raise Unclear(f"{name} here changes the directory of what follows")
    if (own := special.OWN.get(name)) is not None:
        for effect, what in own(arguments):
            if isinstance(what, Word):
                reading.touch(effect, what)
            else:
                reading.add(Access(effect, what or command_object(name)))
    elif (use := TABLE.get(name)) is not None:
        effect, touches = scan(name, use, arguments)
        reading.ran(effect, name)
        for kind, word in touches:
            reading.touch(kind, word)
    elif (bare := BARE.get(name)) is not None:
        reading.ran(bare, name)
        if name in INSTALLS:
            reading.ran(Effect.EXECUTE_CODE, name)
            reading.ran(Effect.EXTERNAL_IO, name)
        if bare is Effect.TUNNEL:
            reading.ran(Effect.EXTERNAL_IO, name)
    else:
        reading.ran(Effect.UNKNOWN, name)
        reading.reasons.append(f"the program {name} is not one whose effects are known")


def _program(word: Word, reading: Reading) -> str | None:
    """The name of a well-known program; None for a file that was taken as code to run."""
    text = word.text
    match = _TRUSTED.fullmatch(text)
    name = match[1] if match is not None and not word.home else text
    if "/" in name:
        reading.touch(Effect.EXECUTE_CODE, word)
        return None
    if not _NAME.fullmatch(name):
        raise Unclear("the name of a program has characters that such names do not have")
    if name.startswith("mkfs."):
        return "mkfs"
    return re.sub(r"^(python|perl|ruby|php|lua|tclsh|pip)[0-9.]+$", r"\1", name)
