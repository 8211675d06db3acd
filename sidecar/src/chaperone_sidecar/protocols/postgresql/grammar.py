"""PostgreSQL's own grammar: statement text in, raw parse tree out.

Owns the only call into libpg_query, the server's parser as a C library. Just its JSON function is used, through our own
declarations: the protobuf one dies on smaller inputs and refuses legitimate SQL.

The library recurses in C without a depth check. A text that nests deep enough overflows the stack and kills the process
with no exception to catch, so length is the guard: the cheapest killer known (`1+1+…`) needs 128 KiB on a stack of
8 MiB. `parse` therefore takes at most `INLINE_BYTES`; `Parser` has one thread with a stack big enough for
`LARGE_BYTES`; what is longer is not parsed. This needs glibc: musl gives threads 128 KiB of stack whatever is asked.
Held by test_deep_statements_never_kill_the_process.

The library's lexer hands comments on as tokens, and that makes it differ from the server's in two places: a string
continued on the line after a `--` comment is one string to the server and two to the library (so that a backslash in
the second part of E'…' means two things), and a comment before UESCAPE hides it. Such texts are not parsed. Elsewhere a
comment between words that are looked at together (NOT IN, WITH ORDINALITY, NULLS FIRST) is a syntax error here alone.

The lexer takes a run of operator characters whole and may give all but the first back, so a run of n costs n² steps:
32 KiB of `+` take more than a second. A text with a run over `RUN_CHARACTERS` is not parsed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import msgspec

INLINE_BYTES: Final = 32 * 1024  # a quarter of the cheapest crash on a stack of 8 MiB
LARGE_BYTES: Final = 1024 * 1024  # parsed apart; a longer text is not parsed at all
LARGE_STACK_BYTES: Final = 256 * 1024 * 1024  # address space, touched only as deep as a text nests
PENDING_TEXTS: Final = 16  # large texts waiting for the one thread; with more, the gateway is being flooded
TREE_BYTES: Final = 8 * 1024 * 1024  # of JSON; takes up to 120 MiB as objects. An INSERT of 1 MiB has 7 MB
COMMAS: Final = 200_000  # `a,a,a,…` grows most in C: 1 MiB of it would take 260 MiB before its tree could be measured
RUN_CHARACTERS: Final = 256  # longer than any ruler in a comment; 11 ms for 32 KiB full of such runs


class ParseError(Exception):
    """The text has no parse tree; the message is one sentence for the refusal."""


class _Error(ctypes.Structure):
    _fields_ = (
        ("message", ctypes.c_char_p),
        ("funcname", ctypes.c_char_p),
        ("filename", ctypes.c_char_p),
        ("lineno", ctypes.c_int),
        ("cursorpos", ctypes.c_int),
        ("context", ctypes.c_char_p),
    )


class _Result(ctypes.Structure):
    _fields_ = (
        ("parse_tree", ctypes.c_void_p),  # not c_char_p: its length is looked at before it is copied
        ("stderr_buffer", ctypes.c_char_p),
        ("error", ctypes.POINTER(_Error)),
    )


def _library() -> ctypes.CDLL:
    # The wheel's Python code is not imported: it would bring protobuf into the gateway.
    spec = importlib.util.find_spec("postgast")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("libpg_query is missing: install the postgast wheel that the lock file names.")
    library = ctypes.CDLL(str(Path(spec.submodule_search_locations[0]) / "libpg_query.so"))
    library.pg_query_parse.argtypes = [ctypes.c_char_p]
    library.pg_query_parse.restype = _Result
    library.pg_query_free_parse_result.argtypes = [_Result]
    library.pg_query_free_parse_result.restype = None
    library.strlen.argtypes = [ctypes.c_void_p]
    library.strlen.restype = ctypes.c_size_t
    return library


_LIBRARY: Final = _library()
_QUOTE: Final = re.compile(r"""\s*(?:["'`]|: )""")
_COMMENT_AFTER_QUOTE: Final = re.compile(rb"'[ \t\f\v]*--")
_LONG_RUN: Final = re.compile(rb"[-~!@#^&|`?+*/%%<>=]{%d}" % (RUN_CHARACTERS + 1))
_decode: Final = msgspec.json.Decoder().decode


def parse(text: bytes) -> list[dict[str, Any]]:
    """Parse a text of at most `INLINE_BYTES` into its statements (`RawStmt`s); a text of blanks has none.

    Raises:
        ParseError: too long, not UTF-8, a NUL, not PostgreSQL's grammar, or nested too deep.
    """
    if len(text) > INLINE_BYTES:
        raise ParseError(f"The statement is longer than {INLINE_BYTES} bytes and must be parsed apart.")
    return _parse(text)


def _parse(text: bytes) -> list[dict[str, Any]]:
    if b"\0" in text:  # C would stop there and the server might not
        raise ParseError("The statement contains a NUL byte; remove it.")
    try:
        text.decode()
    except UnicodeDecodeError:
        raise ParseError("The statement is not valid UTF-8; send it with client_encoding UTF8.") from None
    if len(text) > RUN_CHARACTERS and _LONG_RUN.search(text):
        raise ParseError(f"The statement has over {RUN_CHARACTERS} operator characters in a row; shorten the run.")
    if b"--" in text and _continues_string(text):
        raise ParseError("A string goes on after a comment; write the string in one piece.")
    if b"&" in text and (b"--" in text or b"/*" in text) and b"uescape" in text.lower():
        raise ParseError("The statement has UESCAPE and a comment; leave the comment out.")
    if text.count(b",") > COMMAS:
        raise ParseError("The statement has too many parts; split it.")
    result = _LIBRARY.pg_query_parse(text)
    try:
        if result.error:
            reason = (result.error.contents.message or b"syntax error").decode(errors="replace")
            raise ParseError(f"The statement does not parse as PostgreSQL ({_without_quotes(reason)}); correct it.")
        size_bytes = _LIBRARY.strlen(result.parse_tree)
        if size_bytes > TREE_BYTES:
            raise ParseError("The statement has too many parts; split it.")
        tree = _decode(ctypes.string_at(result.parse_tree, size_bytes))
        statements: list[dict[str, Any]] = tree["stmts"]
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
        raise ParseError("The statement nests too deep to be understood; split it.") from None
    else:
        return statements
    finally:
        _LIBRARY.pg_query_free_parse_result(result)


def _continues_string(text: bytes) -> bool:
    """Whether a quote follows on a line after a quote and a `--` comment, with nothing but blanks and comments between.

    Line by line, for a pattern over the whole text would take quadratic time on hostile ones.
    """
    is_pending = False
    for line in text.splitlines():
        start = line.lstrip()
        if is_pending and start.startswith(b"'"):
            return True
        is_pending = _COMMENT_AFTER_QUOTE.search(line) is not None or (
            is_pending and (not start or start.startswith(b"--"))
        )
    return False


def _without_quotes(reason: str) -> str:
    """The parser's complaint up to where it quotes the statement: what it quotes may be a value."""
    return _QUOTE.split(reason, 1)[0].removesuffix(" at or near")


class Parser:
    """At most one thread, with a stack that bears texts up to `LARGE_BYTES`.

    It runs while texts are waiting and then ends, for a stack once touched stays resident as long as its thread. It is
    a daemon, since a parse in C cannot be interrupted and must not hold up the end of the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_running = False

    def parse_large[T](self, text: bytes, then: Callable[[list[dict[str, Any]]], T]) -> Future[T]:
        """Parse in the thread and apply `then` to the statements there.

        The future ends with what `then` returned, or with `ParseError`: too long, too many texts waiting, or as for
        `parse`.
        """
        future: Future[T] = Future()
        if len(text) > LARGE_BYTES:
            future.set_exception(ParseError(f"The statement is longer than {LARGE_BYTES} bytes; split it."))
            return future

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                outcome = then(_parse(text))
            except Exception as error:  # whoever waits decides; the next text must still be parsed
                future.set_exception(error)
            else:
                future.set_result(outcome)

        with self._lock:
            if len(self._waiting) >= PENDING_TEXTS:
                future.set_exception(ParseError("Too many large statements are waiting; send it again later."))
                return future
            self._waiting.append(work)
            if not self._is_running:
                try:
                    self._start()
                except RuntimeError:  # no memory or no thread left in the container
                    self._waiting.pop()
                    future.set_exception(ParseError("The gateway has no room for a large statement; split it."))
                else:
                    self._is_running = True
        return future

    def _start(self) -> None:
        usual = threading.stack_size(LARGE_STACK_BYTES)  # applies to threads started from now on
        try:
            threading.Thread(target=self._run, name="postgresql-grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                work = self._waiting.popleft()
            work()
            del work  # holds the text
