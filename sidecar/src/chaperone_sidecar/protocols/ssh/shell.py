"""Reads what a client asks a shell to run, as far as every POSIX shell reads it the same way.

The subset: words of plain characters and quotes; `;`, `&&`, `||`, `|` and line ends; redirections to files and between
standard streams. All else that means something to some shell (expansions, substitutions, patterns, here-documents,
groups, background, comments, braces, reserved words) is `Unclear`, with the reason: what it would run is not known
before it runs. Unquoted characters are admitted by a list, so what this module has not heard of is unclear, too.

Spec: POSIX.1-2024, XCU chapter 2 "Shell Command Language"; where bash, dash, ksh, busybox and zsh differ from it or
from each other, the construct is outside the subset.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

MAX_TEXT_CHARACTERS: Final = 32 << 10  # longer command lines hide more than they say; ARG_MAX is 128 KiB for one word
MAX_WORDS: Final = 1024
MAX_COMMANDS: Final = 64

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:,+@%=-~]")
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_STREAM: Final = re.compile(r"([012]?)(<|>>?)")
_COPIED_STREAM: Final = re.compile(r"[012](?=[ \t;\n|&]|$)")
_OWN_HOME: Final = re.compile(r"~(?=[/ \t\n;|<>]|$)")
_NOTHING_IN_BRACES: Final = re.compile(r"\{\}(?=[ \t\n;|]|$)")  # means itself to every shell; find replaces it
# POSIX 2.4, and those that bash, ksh and zsh add. In the place of a command they are not names of programs.
_RESERVED: Final = frozenset(
    re.split(
        r"\s+",
        """! { } [[ ]] case coproc do done elif else end esac fi for foreach function if in nocorrect noglob repeat
        select then time until while -""",
    )
)
_MEANING: Final = {
    "$": "$ expands to what only the shell knows",
    "`": "a command substitution",
    "*": "a pattern of file names; write the names, or quote it",
    "?": "a pattern of file names; write the names, or quote it",
    "[": "a pattern of file names; write the names, or quote it",
    "(": "a subshell or a function",
    ")": "a subshell or a function",
    "{": "a group or a brace expansion; quote it",
    "}": "a group or a brace expansion; quote it",
    "&": "a command in the background",
    "#": "a comment; leave it out, or quote it",
    "!": "! inverts a status or repeats a command; quote it",
    "^": "^ is a pipe to some shells; quote it",
}

type Joint = Literal["", ";", "&&", "||", "|"]
type Direction = Literal["<", ">", ">>"]


class Unclear(Exception):
    """What a shell would do with the text cannot be said; the text of this error says why, for the client."""


class Word(msgspec.Struct, frozen=True, gc=False):
    """A word after the removal of quotes. `home`: it began with an unquoted tilde, which stands for the home."""

    text: str
    home: bool = False
    is_quoted: bool = False  # any of it was: then it is no reserved word


class Redirection(msgspec.Struct, frozen=True, gc=False):
    """A standard stream that is a file."""

    direction: Direction
    path: Word


class Simple(msgspec.Struct, frozen=True):
    """A simple command; `joint` is what stands between it and the one before."""

    joint: Joint
    assignments: tuple[str, ...]
    words: tuple[Word, ...]
    redirections: tuple[Redirection, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        """The words as the program gets them, a tilde as it was written."""
        return tuple(word.text for word in self.words)


def parse(text: str) -> tuple[Simple, ...]:
    """The simple commands of a text, in order; empty for a text of blanks.

    Raises:
        Unclear: the text is outside the subset, or is more than is read.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise Unclear(f"the command has more than {MAX_TEXT_CHARACTERS} characters")
    return _Reader(text).commands()


class _Reader:
    """One pass over the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._words = 0

    def commands(self) -> tuple[Simple, ...]:
        found: list[Simple] = []
        joint: Joint = ""
        while True:
            simple = self._simple(joint)
            if simple is not None:
                found.append(simple)
                if len(found) > MAX_COMMANDS:
                    raise Unclear(f"the text has more than {MAX_COMMANDS} commands")
            following = self._joint()
            if simple is None and (joint in {"&&", "||", "|"} or (following or ";") != ";"):
                raise Unclear("an operator has no command beside it")
            if following is None:
                return tuple(found)
            joint = following

    def _simple(self, joint: Joint) -> Simple | None:
        assignments: list[str] = []
        words: list[Word] = []
        redirections: list[Redirection] = []
        while (part := self._part()) is not None:
            if isinstance(part, Redirection):
                redirections.append(part)
            elif not words and _ASSIGNMENT.match(part.text):
                assignments.append(part.text)
            elif not words and not part.is_quoted and part.text in _RESERVED:
                raise Unclear(f"{part.text} is a word of the shell's own language")
            else:
                words.append(part)
        if not (assignments or words or redirections):
            return None
        return Simple(joint, tuple(assignments), tuple(words), tuple(redirections))

    def _joint(self) -> Joint | None:
        """The operator that stands here; None at the end."""
        text, at = self._text, self._at
        if at >= len(text):
            return None
        for operator in ("&&", "||"):
            if text.startswith(operator, at):
                self._at += 2
                return operator
        self._at += 1
        if text[at] == "|":
            if text.startswith("&", at + 1):
                raise Unclear("|& is not the same to every shell")
            return "|"
        if text.startswith(";", at + 1) and text[at] == ";":
            raise Unclear(";; belongs to a case")
        return ";"

    def _part(self) -> Word | Redirection | None:
        """A word or redirection; None where an operator or the end stands."""
        text = self._text
        self._skip_blanks()
        if self._at >= len(text) or text[self._at] in ";\n|" or text.startswith("&&", self._at):
            return None
        self._words += 1
        if self._words > MAX_WORDS:
            raise Unclear(f"the text has more than {MAX_WORDS} words")
        match = _STREAM.match(text, self._at)
        if match is not None:
            return self._redirection(match) or self._part()
        return self._word()

    def _skip_blanks(self) -> None:
        text = self._text
        while self._at < len(text):
            if text[self._at] in " \t":
                self._at += 1
            elif text.startswith("\\\n", self._at):
                self._at += 2
            else:
                return

    def _redirection(self, match: re.Match[str]) -> Redirection | None:
        """The redirection that stands here; None for one of a stream to another stream."""
        text = self._text
        self._at = match.end()
        following = text[self._at : self._at + 1]
        direction = match[2]
        if following and following in "<>|(":
            raise Unclear(f"{direction}{following} is outside what is read here")
        if following == "&":
            copied = _COPIED_STREAM.match(text, self._at + 1)
            if direction == ">>" or copied is None:
                raise Unclear(f"{direction}& with anything but 0, 1 or 2 is outside what is read here")
            self._at = copied.end()
            return None
        self._skip_blanks()
        if self._at >= len(text) or text[self._at] in ";\n|&<>":
            raise Unclear("a redirection names no file")
        kind: Direction = ">" if direction == ">" else ">>" if direction == ">>" else "<"
        return Redirection(kind, self._word())

    def _word(self) -> Word:
        text, start = self._text, self._at
        out: list[str] = []
        is_quoted = False
        while self._at < len(text):
            character = text[self._at]
            if character in " \t\n;|<>" or text.startswith("&&", self._at):
                break
            if character == "'":
                is_quoted = True
                out.append(self._until_quote())
            elif character == '"':
                is_quoted = True
                out.append(self._double_quoted())
            elif character == "\\":
                is_quoted |= self._escaped(out)
            elif character == "[" and self._is_alone(start):
                out.append(character)
                self._at += 1
            elif character == "{" and self._at == start and _NOTHING_IN_BRACES.match(text, start):
                out.append("{}")
                self._at += 2
            else:
                out.append(self._plain(character, start))
        return Word("".join(out), home=text.startswith("~", start), is_quoted=is_quoted)

    def _plain(self, character: str, start: int) -> str:
        if character not in _PLAIN:
            raise Unclear(_MEANING.get(character, f"the character {character!r} stands outside quotes"))
        if character == "~" and self._at != start:
            raise Unclear("~ inside a word is not the same to every shell; quote it")
        if character == "~" and not _OWN_HOME.match(self._text, self._at):
            raise Unclear("~ before a name is another one's home")
        if character == "=" and self._at == start:
            raise Unclear("= before a word is a path to some shells; quote it")
        if character == "]" and not self._is_alone(start):
            raise Unclear(_MEANING["["])
        self._at += 1
        return character

    def _is_alone(self, start: int) -> bool:
        """Whether the character here is a word of its own: [ and ] of a test."""
        return self._at == start and self._text[start + 1 : start + 2] in ("", " ", "\t", "\n", ";", "|")

    def _escaped(self, out: list[str]) -> bool:
        """Take a backslash outside quotes; false where it only continues the line."""
        following = self._text[self._at + 1 : self._at + 2]
        if not following:
            raise Unclear("the text ends with a backslash")
        self._at += 2
        if following == "\n":
            return False
        if not " " <= following <= "~":
            raise Unclear("a backslash stands before a character that is not plain")
        out.append(following)
        return True

    def _until_quote(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise Unclear("a quote is not closed")
        inner = self._text[self._at + 1 : end]
        self._at = end + 1
        return _printable(inner)

    def _double_quoted(self) -> str:
        text = self._text
        out: list[str] = []
        self._at += 1
        while self._at < len(text):
            character = text[self._at]
            self._at += 1
            if character == '"':
                return _printable("".join(out))
            if character in "$`":
                raise Unclear(_MEANING[character])
            if character == "\\":
                following = text[self._at : self._at + 1]
                if following == "\n":
                    self._at += 1
                    continue
                if following and following in '$`"\\':
                    self._at += 1
                    character = following
            out.append(character)
        raise Unclear("a quote is not closed")


def _printable(text: str) -> str:
    """Quoted text as it is; line ends and tabs are part of it, other control characters are not understood."""
    if any((character < " " and character not in "\n\t") or character == "\x7f" for character in text):
        raise Unclear("a control character stands in quotes")
    return text
