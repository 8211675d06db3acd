"""PostgreSQL's own grammar: statement text in, raw parse tree out.

Owns the only call into libpg_query, the server's parser as a C library. Just its JSON function is used, through our own
declarations: the protobuf one dies on smaller inputs and refuses legitimate SQL.

The library recurses in C without a depth check. A text that nests deep enough overflows the stack and kills the process
with no exception to catch, so length is the guard: the cheapest killer known (`1+1+…`) needs 128 KiB on a stack of
8 MiB. `parse` therefore takes at most `INLINE_BYTES`; `Parser` owns one thread with a stack big enough for
`LARGE_BYTES`; what is longer is not parsed. This needs glibc: musl gives threads 128 KiB of stack whatever is asked.
Held by test_deep_statements_never_kill_the_process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

import msgspec

INLINE_BYTES: Final = 32 * 1024  # a quarter of the cheapest crash on a stack of 8 MiB
LARGE_BYTES: Final = 1024 * 1024  # parsed apart; a longer text is not parsed at all
LARGE_STACK_BYTES: Final = 256 * 1024 * 1024  # address space, touched only as deep as a text nests
PENDING_TEXTS: Final = 16  # large texts waiting for the one thread; with more, the gateway is being flooded
NAME_BYTES: Final = 63  # the server cuts identifiers to NAMEDATALEN - 1 bytes (Appendix K, "Limits")


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
        ("parse_tree", ctypes.c_char_p),
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
    return library


_LIBRARY: Final = _library()
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
    result = _LIBRARY.pg_query_parse(text)
    try:
        if result.error:
            reason = (result.error.contents.message or b"syntax error").decode(errors="replace")
            raise ParseError(f"The statement does not parse as PostgreSQL ({_without_quotes(reason)}); correct it.")
        tree = _decode(result.parse_tree or b"")
        statements: list[dict[str, Any]] = tree["stmts"]
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError):
        raise ParseError("The statement nests too deep to be understood; split it.") from None
    else:
        return statements
    finally:
        _LIBRARY.pg_query_free_parse_result(result)


def _without_quotes(reason: str) -> str:
    """The parser's complaint without the piece of the statement that it quotes: that may be a value."""
    return reason.partition(' at or near "')[0]


class Parser:
    """The one thread whose stack bears texts up to `LARGE_BYTES`.

    Started at first use and kept; a daemon, since a parse in C cannot be interrupted and must not hold up the end of
    the process.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Future[Any], Callable[[list[dict[str, Any]]], Any], bytes]] = queue.Queue(
            PENDING_TEXTS
        )
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def parse_large[T](self, text: bytes, then: Callable[[list[dict[str, Any]]], T]) -> Future[T]:
        """Parse in the thread and apply `then` to the statements there.

        The future ends with what `then` returned, or with `ParseError`: too long, too many texts waiting, or as for
        `parse`.
        """
        future: Future[T] = Future()
        if len(text) > LARGE_BYTES:
            future.set_exception(ParseError(f"The statement is longer than {LARGE_BYTES} bytes; split it."))
            return future
        self._start()
        try:
            self._waiting.put_nowait((future, then, text))
        except queue.Full:
            future.set_exception(ParseError("Too many large statements are waiting to be parsed; send it again later."))
        return future

    def _start(self) -> None:
        with self._starting:
            if self._thread is not None:
                return
            usual = threading.stack_size(LARGE_STACK_BYTES)  # applies to threads started from now on
            try:
                self._thread = threading.Thread(target=self._run, name="postgresql-grammar", daemon=True)
                self._thread.start()
            finally:
                threading.stack_size(usual)

    def _run(self) -> None:
        while True:
            future, then, text = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                outcome = then(_parse(text))
            except Exception as error:  # whoever waits decides; the thread must outlive any text
                future.set_exception(error)
            else:
                future.set_result(outcome)
            del future, then, text  # the last text is not kept until the next one comes
