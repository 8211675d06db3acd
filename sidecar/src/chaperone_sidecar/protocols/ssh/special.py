"""Programs whose words are a language of their own, and those that run another program.

`OWN` gives, for a program's words, effects on paths (a `Word`), on objects by name, or on the program itself ("").
`inside` finds the program that a wrapper runs. Both raise `Unclear` for words that they do not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from chaperone_sidecar.command import Effect
from chaperone_sidecar.protocols.ssh.far import rsync
from chaperone_sidecar.protocols.ssh.options import scan
from chaperone_sidecar.protocols.ssh.programs import (
    FIND_CODE,
    FIND_FILES,
    FIND_VALUES,
    FIND_WORDS,
    SYSTEMCTL,
    SYSTEMCTL_WORDS,
    TABLE,
)
from chaperone_sidecar.protocols.ssh.shell import Unclear, Word

type Found = Iterator[tuple[Effect, Word | str]]

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?[smhd]?")
_JQ_ENVIRONMENT: Final = re.compile(r"(?<![.\w])env\b|\.\.env\b|\$ENV\b")  # `.env` is a field
_JQ_READS: Final = re.compile(r"\b(?:import|include)\b")
# Lines by number, and a single substitution without `e` and `w`: all of sed that runs and writes nothing.
_SED_LINES: Final = re.compile(r"[0-9]+(?:,(?:[0-9]+|\$))?[pdq]|\$[pd]|\$?=|/[A-Za-z0-9_ .:=-]+/[pd]")
_SED_FLAGS: Final = re.compile(r"[gpiI0-9]*")
_TEST_UNARY: Final = frozenset(f"-{letter}" for letter in "abcdefghkLprsStuwxNOG")
_TEST_BINARY: Final = frozenset({"=", "==", "!=", "-eq", "-ne", "-lt", "-le", "-gt", "-ge"})


class Inner(msgspec.Struct, frozen=True):
    """What a wrapper runs; `effect` is that of the wrapper, None where it is nothing of its own."""

    effect: Effect | None
    words: tuple[Word, ...]
    assignments: tuple[str, ...] = ()


def script(words: Sequence[Word]) -> str | None:
    """The text that `sh -c` runs; None where a shell does something else.

    Raises:
        Unclear: an option that a shell reads otherwise.
    """
    for index, word in enumerate(words):
        if not re.fullmatch(r"-[celuxil]+", word.text):
            return None
        if "c" in word.text:
            if len(words) != index + 2:
                raise Unclear("sh -c with arguments of its own")
            return words[index + 1].text
    return None


def inside(name: str, words: Sequence[Word]) -> Inner | None:
    """What a program runs that runs another; None where it is no such program.

    Raises:
        Unclear: options that are not known.
    """
    rest = tuple(words)
    match name:
        case "nohup" | "setsid" | "exec":
            return Inner(None, _plain(name, rest))
        case "command":
            if rest and rest[0].text in ("-v", "-V"):
                return Inner(Effect.READ, ())
            return Inner(None, _plain(name, rest))
        case "busybox" | "toybox":
            return Inner(None, _plain(name, rest)) if rest else Inner(Effect.READ, ())
        case "env":
            assigned = [word.text for word in rest if _ASSIGNMENT.match(word.text)]
            count = next((at for at, word in enumerate(rest) if not _ASSIGNMENT.match(word.text)), len(rest))
            inner = rest[count:]
            if not inner:
                return Inner(Effect.READ_SENSITIVE, ())
            return Inner(None, _plain(name, inner), tuple(assigned[:count]))
        case "nice" | "ionice":
            return Inner(None, _after(name, rest, {"-n", "-c"}))
        case "stdbuf":
            return Inner(None, _after(name, rest, {"-i", "-o", "-e"}))
        case "timeout":
            inner = _after(name, rest, {"-k", "-s"}, frozenset({"--foreground", "--preserve-status", "-v"}))
            if not inner or not _NUMBER.fullmatch(inner[0].text):
                raise Unclear("timeout without a duration")
            return Inner(None, _plain(name, inner[1:]))
        case "sudo" | "doas":
            return Inner(Effect.PRIVILEGE, _plain(name, _after(name, rest, {"-u", "-g"}, frozenset({"-n", "--"}))))
        case _:
            return None


def _plain(name: str, words: tuple[Word, ...]) -> tuple[Word, ...]:
    if words and words[0].text.startswith("-"):
        raise Unclear(f"{name} {words[0].text[:40]} is not one whose effects are known")
    if words and _ASSIGNMENT.match(words[0].text):
        raise Unclear(f"{name} sets a variable")
    return words


def _after(
    name: str, words: tuple[Word, ...], valued: set[str], alone: frozenset[str] = frozenset()
) -> tuple[Word, ...]:
    at = 0
    while at < len(words) and words[at].text.startswith("-"):
        text = words[at].text
        if text in valued:
            at += 2
        elif text in alone or (text[:2] in valued and len(text) > 2):
            at += 1
        else:
            raise Unclear(f"{name} {text[:40]} is not one whose effects are known")
    return words[at:]


def _find(words: Sequence[Word]) -> Found:
    starts: list[Word] = []
    rest = iter(words)
    effects = [Effect.BULK_READ]
    is_expression = False
    for word in rest:
        text = word.text
        if not is_expression and not text.startswith("-") and text not in ("(", "!"):
            starts.append(word)
            continue
        is_expression = is_expression or text not in ("-H", "-L", "-P")
        if text in FIND_CODE:
            yield Effect.EXECUTE_CODE, ""
            break
        if text == "-delete":
            effects.append(Effect.DESTROY)
        elif text in FIND_FILES:
            yield Effect.READ, _next(rest, "find", text)
        elif text in FIND_VALUES:
            _next(rest, "find", text)
        elif text not in FIND_WORDS and text != "!":
            raise Unclear(f"find {text[:40]} is not one whose effects are known")
    for effect in effects:
        yield effect, ""
        for start in starts or [Word(".")]:
            yield effect, start


def _sed(words: Sequence[Word]) -> Found:
    scripts: list[str] = []
    files: list[Word] = []
    is_writing = False
    rest = iter(words)
    for word in rest:
        text = word.text
        if text in ("-n", "-E", "-r", "-s", "-u", "-z"):
            continue
        if text in ("-i", "--in-place"):
            is_writing = True
        elif text == "-e":
            scripts.append(_next(rest, "sed", text).text)
        elif text.startswith("-") and text != "-":
            raise Unclear(f"sed {text[:40]} is not one whose effects are known")
        else:
            files.append(word)
    if not scripts:
        if not files:
            raise Unclear("sed without a script")
        scripts = [files.pop(0).text]
    if not all(_is_tame(script) for script in scripts):
        yield Effect.EXECUTE_CODE, ""
    yield (Effect.MODIFY if is_writing else Effect.READ), ""
    for file in files:
        yield Effect.READ, file
        if is_writing:
            yield Effect.MODIFY, file


def _is_tame(script: str) -> bool:
    if _SED_LINES.fullmatch(script):
        return True
    # Without backslashes and line ends no delimiter hides in a part, so there are exactly three.
    if len(script) < 4 or script[0] != "s" or script[1].isalnum() or script[1] in "\\\n ;{}":
        return False
    parts = script[2:].split(script[1])
    return (
        len(parts) == 3
        and "\\\n" not in script
        and "\\" not in parts[0][-1:]
        and "\\" not in parts[1][-1:]
        and bool(_SED_FLAGS.fullmatch(parts[2]))
    )


def _date(words: Sequence[Word]) -> Found:
    rest = iter(words)
    for word in rest:
        if word.text in ("-d", "--date"):
            _next(rest, "date", word.text)
        elif not re.fullmatch(r"\+.*|-u|-R|-I[a-z]*|--utc|--date=.*|--iso-8601(=[a-z]+)?|-Iseconds", word.text):
            raise Unclear("date with anything but a format may set the clock")
    yield Effect.READ, ""


def _systemctl(words: Sequence[Word]) -> Found:
    operands = [word.text for word in words if not word.text.startswith("-")]
    for word in words:
        if word.text.startswith("-") and word.text[2:].partition("=")[0] not in SYSTEMCTL_WORDS:
            raise Unclear(f"systemctl {word.text[:40]} is not one whose effects are known")
    yield from _service_effects(
        "", SYSTEMCTL.get(operands[0], Effect.PRIVILEGE) if operands else Effect.READ, operands[1:]
    )


def _service(words: Sequence[Word]) -> Found:
    texts = [word.text for word in words]
    if len(texts) != 2 or texts[0].startswith("-"):
        raise Unclear("service with anything but a name and an action")
    yield from _service_effects("", SYSTEMCTL.get(texts[1], Effect.PRIVILEGE), texts[:1])


def _service_effects(program: str, effect: Effect, units: Sequence[str]) -> Found:
    yield effect, program
    for unit in units:
        if not re.fullmatch(r"[A-Za-z0-9@_.:-]{1,255}", unit):
            raise Unclear("a unit's name has characters that such names do not have")
        yield effect, f"service:{unit.removesuffix('.service')}"


def _test(words: Sequence[Word]) -> Found:
    parts = list(words)
    if parts and parts[-1].text == "]":
        parts.pop()
    if parts and parts[0].text == "!":
        parts.pop(0)
    if len(parts) == 2 and parts[0].text in _TEST_UNARY:
        yield Effect.READ, parts[1]
    elif not (len(parts) == 2 and parts[0].text in ("-n", "-z")) and not (
        len(parts) == 3 and parts[1].text in _TEST_BINARY
    ):
        raise Unclear("a test that is not one of the simple ones")
    yield Effect.READ, ""


def _tar(words: Sequence[Word]) -> Found:
    if not words or not re.fullmatch(r"-?[ctxzjJvfpkOm]+", words[0].text):
        raise Unclear("tar with options that are not known; write them as the first word")
    letters, rest = words[0].text.lstrip("-"), iter(words[1:])
    modes = [letter for letter in letters if letter in "ctx"]
    if len(modes) != 1 or letters.count("f") > 1:
        raise Unclear("tar without exactly one of c, t and x")
    mode, members = modes[0], list[Word]()
    archive = _next(rest, "tar", "-f") if "f" in letters else None
    place = Word(".")
    for word in rest:
        if word.text == "-C":
            if members or place.text != ".":
                raise Unclear("tar with more than one place, or one after the members")
            place = _next(rest, "tar", "-C")
        elif word.text.startswith("-"):
            raise Unclear(f"tar {word.text[:40]} is not one whose effects are known")
        else:
            members.append(word)
    yield (Effect.BULK_WRITE if mode == "x" else Effect.BULK_READ), ""
    if archive is not None and archive.text != "-":
        if ":" in archive.text:
            raise Unclear("tar of an archive on another host")
        yield (Effect.MODIFY if mode == "c" else Effect.READ), archive
    if mode == "c":
        for member in members:
            if member.text.startswith("@"):
                raise Unclear("tar with a member that is an archive")
            yield Effect.BULK_READ, _inside(place, member)
    elif mode == "x" and "O" not in letters:
        yield Effect.BULK_WRITE, place
        yield Effect.PRIVILEGE, place  # an archive's links lead anywhere, and its programs may be set-user-id


def _inside(place: Word, member: Word) -> Word:
    if place.text == "." or member.home or member.text.startswith("/"):
        return member
    return Word(f"{place.text}/{member.text}", home=place.home)


def _dd(words: Sequence[Word]) -> Found:
    yield Effect.MODIFY, ""
    for word in words:
        key, _, value = word.text.partition("=")
        if key == "if":
            yield Effect.READ, Word(value)
        elif key == "of":
            yield Effect.MODIFY, Word(value)
        elif key not in {"bs", "ibs", "obs", "count", "skip", "seek", "status", "conv", "iflag", "oflag"}:
            raise Unclear(f"dd {key[:40]} is not one whose effects are known")


def _ip(words: Sequence[Word]) -> Found:
    texts = [word.text for word in words if not re.fullmatch(r"-(?:4|6|br|brief|s|j|json|d|o|c)", word.text)]
    is_reading = (
        bool(texts)
        and texts[0] in {"a", "addr", "address", "l", "link", "r", "route", "neigh", "n"}
        and (len(texts) == 1 or texts[1] in {"show", "list", "get"})
    )
    yield (Effect.READ if is_reading else Effect.PRIVILEGE), ""


def _ps(words: Sequence[Word]) -> Found:
    rest = iter(words)
    for word in rest:
        if word.text in ("-o", "-p", "-u", "-C", "--sort", "-eo"):
            if "env" in _next(rest, "ps", word.text).text.lower():
                raise Unclear("ps may show the environment of programs")
        elif not re.fullmatch(r"[aux]{1,4}w{0,2}f?|-[efFAlHTww]+|--sort=[-+a-z,%]+|--no-headers|--forest", word.text):
            raise Unclear(f"ps {word.text[:40]} may show the environment of programs")
    yield Effect.READ, ""


def _jq(words: Sequence[Word]) -> Found:
    if any(_JQ_READS.search(word.text) for word in words):
        raise Unclear("jq with import or include reads other files")
    if any(_JQ_ENVIRONMENT.search(word.text) for word in words):
        yield Effect.READ_SENSITIVE, ""
    effect, touches = scan("jq", TABLE["jq"], words)
    yield effect, ""
    yield from touches


def _top(words: Sequence[Word]) -> Found:
    texts = [word.text for word in words]
    if "-b" not in texts and "-bn1" not in texts:
        yield Effect.EXECUTE_CODE, ""  # without a batch it takes commands from its terminal
        return
    if not all(re.fullmatch(r"-b|-bn1|-n|-o|-c|-H|[0-9]+|[%A-Z+-]+", text) for text in texts):
        raise Unclear("top with options that are not known")
    yield Effect.READ, ""


def _next(rest: Iterator[Word], name: str, option: str) -> Word:
    found = next(rest, None)
    if found is None:
        raise Unclear(f"{name} {option} has no value")
    return found


OWN: Final[Mapping[str, Callable[[Sequence[Word]], Found]]] = {
    "find": _find, "sed": _sed, "date": _date, "systemctl": _systemctl, "service": _service, "test": _test, "[": _test,
    "tar": _tar, "dd": _dd, "ip": _ip, "ps": _ps, "top": _top, "rsync": rsync, "jq": _jq,
}  # fmt: skip
