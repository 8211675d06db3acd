"""Masking of the server's texts: errors, notices, notifications, changed settings.

Detectors look at every text. Where columns are classified that is not enough: a message may quote a value that no
detector knows, in any language, with or without signs of quotation, and as a name: `name::regclass` is answered with
`relation "Jane" does not exist`. So a message is shown only where it cannot speak of a value, and that is proven by
what no function of the database can forge:

- The server's parser says it, of a position in the client's own text and without a context: nothing has run yet. A
  literal's input is not part of that: its type may be made of domains, whose constraints are expressions that run.
- The C function that the server names as its origin says the same words each time, or, outside any function, names
  what the catalog or the client's own command names.

In any other the message becomes the name of its SQLSTATE, and what else quotes or names goes (detail, hint, context,
internal query, names of objects, positions). That the words quoted stand in the client's text too would prove nothing:
with a list of guesses in a comment, what is shown would tell which one is true.

A SQLSTATE that no server documents is one that a function made up, so it goes as well.
"""

from __future__ import annotations

import re
from typing import Final

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.masking.mask import Masker
from chaperone_sidecar.masking.rule import Unmaskable
from chaperone_sidecar.protocols.postgresql import messages as m
from chaperone_sidecar.protocols.postgresql.sqlstate import CONDITIONS

MAX_TEXT_BYTES: Final = 64 << 10  # of one field; masking is not for the event loop past that, and nobody reads it

HIDDEN: Final = b"[masked]"
MADE_UP: Final = b"P0001"
"""What stands for a SQLSTATE that a function made up: raise_exception."""

# Fields that the server's C code writes, and no value can get into: severity, SQLSTATE, position, file, line, routine.
_KEPT: Final = frozenset(b"SVCPpFLR")
_ALWAYS: Final = frozenset(b"SVCMFR")  # of a message that is not shown; lines and positions tell where a value failed
_SHOWN: Final = frozenset(b"SVCMHPFLRcdnst")  # of one that is; detail, context and internal query may quote rows
_INSIDE: Final = frozenset(b"Wpq")  # told of what ran inside a function, or of a value that was being read
# Routines of languages and of connections to other servers: the text is what an author there liked.
_AUTHORS: Final = (
    b"exec_stmt_raise", b"exec_stmt_assert", b"PLy", b"plperl", b"pltcl", b"throw_tcl", b"plv8", b"dblink", b"pgfdw",
)  # fmt: skip

# Routines that say the same each time, up to numbers of the server's own.
_CONSTANT: Final = frozenset(
    b"""exec_simple_query exec_parse_message exec_execute_message exec_describe_statement_message
    exec_describe_portal_message ProcessInterrupts DeadLockReport UserAbortTransactionBlock EndTransactionBlock
    BeginTransactionBlock CheckTransactionBlock PreventInTransactionBlock PreventCommandIfReadOnly
    PreventCommandIfParallelMode PreCommit_CheckForSerializationFailure OnConflict_CheckForSerializationFailure
    CheckForSerializableConflictOut ExecUpdate ExecDelete ExecLockRows ExecMergeMatched ExecSetParamPlan""".split()
)
# Routines whose messages name things of the catalog, or of the client's own command; inside a function that command
# may have been put together from values.
_NAMING: Final = frozenset(
    b"""aclcheck_error aclcheck_error_col aclcheck_error_type
    _bt_check_unique ExecConstraints ReportNotNullViolationError ExecPartitionCheckEmitError ExecFindPartition
    ExecWithCheckOptions ri_ReportViolation check_exclusion_or_unique_constraint domain_check_input
    ExecEvalConstraintNotNull ExecEvalConstraintCheck
    FetchPreparedStatement StorePreparedStatement PerformPortalFetch PerformPortalClose PerformCursorOpen
    RollbackToSavepoint ReleaseSavepoint
    DropErrorMsgNonExistent DropErrorMsgWrongType does_not_exist_skipping reportDependentObjects
    heap_create_with_catalog index_create NamespaceCreate check_for_column_name_collision ATExecDropColumn
    transformCreateStmt ExecuteTruncateGuts heap_truncate_check_FKs createdb DropRole""".split()
)

# The parser's files: nothing that an expression can call, but for types by name (parse_type.c), which is missing here.
_PARSER: Final = frozenset(
    b"""analyze.c gram.y parse_agg.c parse_clause.c parse_coerce.c parse_collate.c parse_cte.c parse_enr.c parse_expr.c
    parse_func.c parse_jsontable.c parse_merge.c parse_node.c parse_oper.c parse_param.c parse_relation.c parse_target.c
    parse_utilcmd.c parser.c scan.l""".split()
)

# Settings that the server reports, less those of any text (application_name, search_path).
_SETTINGS: Final = frozenset(
    b"""server_version server_encoding client_encoding is_superuser session_authorization DateStyle IntervalStyle
    integer_datetimes standard_conforming_strings default_transaction_read_only in_hot_standby
    scram_iterations""".split()
)
# A zone may be any text of the form `name5`; without an offset it is the name of a file that the server has.
_ZONE: Final = re.compile(rb"[A-Za-z_]+(?:/[A-Za-z_]+(?:-[A-Za-z_]+)*){0,2}|(?:Etc/)?GMT[+-]?[0-9]{1,2}")


def mask_error(raw: bytes, masker: Masker) -> bytes:
    """An ErrorResponse or NoticeResponse, with masked texts.

    Raises:
        ProtocolError: side=upstream; a frame that is not well formed.
    """
    if masker.is_idle:
        return raw
    fields = _fields(raw)
    if masker.has_columns:
        fields = _without_values(fields)
    body = b"".join(
        [bytes((key,)) + (text if key in _KEPT else _masked(text, masker)) + b"\x00" for key, text in fields]
    )
    return m.frame(raw[0], body + b"\x00")


def mask_notification(raw: bytes, masker: Masker, unmaskable: Unmaskable) -> bytes:
    """A NotificationResponse, with its channel and payload masked.

    Where columns are classified a payload goes as a whole, unless policy shows what it cannot trace (`unmaskable`
    Allow): whoever sends it is another session, and may be a trigger. A client hears only of channels that it named.

    Raises:
        ProtocolError: side=upstream; a frame that is not well formed.
    """
    if masker.is_idle:
        return raw
    channel, payload = _strings(raw, 9, 2)
    hides = masker.has_columns and unmaskable != "Allow" and bool(payload)
    shown = HIDDEN if hides else _masked(payload, masker)
    return m.frame(raw[0], raw[5:9] + _masked(channel, masker) + b"\x00" + shown + b"\x00")


def mask_parameter_status(raw: bytes, masker: Masker) -> bytes:
    """A ParameterStatus, with its value masked.

    Raises:
        ProtocolError: side=upstream; a frame that is not well formed.
    """
    if masker.is_idle:
        return raw
    name, value = _strings(raw, 5, 2)
    is_checked = name in _SETTINGS or (name == b"TimeZone" and _ZONE.fullmatch(value) is not None)
    value = HIDDEN if masker.has_columns and not is_checked and value else _masked(value, masker)
    return m.frame(raw[0], name + b"\x00" + value + b"\x00")


def _without_values(fields: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    is_shown = _is_shown(fields)
    kept = _SHOWN if is_shown else _ALWAYS
    said = dict(fields)
    code = said.get(ord("C"), b"")
    new = {ord("C"): code if code in CONDITIONS else MADE_UP}
    if not is_shown:
        new[ord("M")] = _stand_in(new[ord("C")], said.get(ord("R"), b""))
    return [(key, new.get(key, text)) for key, text in fields if key in kept]


def _is_shown(fields: list[tuple[int, bytes]]) -> bool:
    """Whether a message cannot speak of a value."""
    said = dict(fields)
    routine = said.get(ord("R"), b"")
    if len(said) != len(fields) or said.get(ord("C")) not in CONDITIONS or routine.startswith(_AUTHORS):
        return False
    if routine in _CONSTANT:
        return True
    is_parsing = ord("P") in said and said.get(ord("F")) in _PARSER
    return not _INSIDE & said.keys() and (is_parsing or routine in _NAMING)


def _stand_in(code: bytes, routine: bytes) -> bytes:
    """What is said in place of a message."""
    who = b"a function of the database raised this; its text" if routine.startswith(_AUTHORS) else b"the text"
    return CONDITIONS[code] + b": " + who + b" is masked, because columns of this target are"


def _masked(text: bytes, masker: Masker) -> bytes:
    """A text without NUL, whatever stood in it; as a whole where detectors cannot read it."""
    if len(text) > MAX_TEXT_BYTES:
        return HIDDEN
    try:
        text.decode()
    except UnicodeDecodeError:
        return HIDDEN
    return masker.mask_text(text).replace(b"\x00", b"")


def _fields(raw: bytes) -> list[tuple[int, bytes]]:
    if len(raw) < 6 or raw[-1] != 0:
        raise _malformed()
    out: list[tuple[int, bytes]] = []
    place, end = 5, len(raw) - 1
    while place < end:
        stop = raw.index(b"\x00", place)
        if stop == place or stop >= end:
            raise _malformed()
        out.append((raw[place], raw[place + 1 : stop]))
        place = stop + 1
    return out


def _strings(raw: bytes, start: int, count: int) -> list[bytes]:
    parts = raw[start:].split(b"\x00")
    if len(raw) < start or len(parts) != count + 1 or parts[-1]:
        raise _malformed()
    return parts[:count]


def _malformed() -> ProtocolError:
    return ProtocolError("The database sent a message that is not well formed.", side="upstream")
