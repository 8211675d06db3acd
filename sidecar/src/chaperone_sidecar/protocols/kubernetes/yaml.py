"""Bodies in YAML as the object that they stand for, where there is one way to read them.

Theory of operation. The API server reads YAML 1.1 as Go's `yaml.v2` does, people write what they know of 1.2, and every
reader takes plain texts differently: `no`, `010`, `1_000`, `1:30`, `<<`. So PyYAML gives the structure alone, and what
a plain text stands for is decided here: a JSON number without an exponent, `true`, `false`, `null`, or a text that no
reader takes for something else. Refused are anchors, aliases, tags, directives, a second document, keys that are no
texts, that are there twice or, between braces, without a value. PyYAML is slow, so a body is bounded: longer ones have
to be JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from chaperone_sidecar.protocols.kubernetes import body
from chaperone_sidecar.protocols.kubernetes.body import Unread

MAX_CHARACTERS: Final = 64 << 10  # a long manifest of one object has 10,000
MAX_EVENTS: Final = 5_000  # of PyYAML, which takes up to 0.1 ms for one; such a manifest has 1,000
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL: Final = re.compile(r"-?(0|[1-9][0-9]{0,18})\.[0-9]{1,18}")
_WORDS: Final = re.compile(
    r"y|n|yes|no|on|off|=|<<"  # YAML 1.1: truth values, the default value, the merge key
    r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([t\s].*)?",  # timestamps
    re.IGNORECASE | re.DOTALL,
)
_NUMBERS: Final = re.compile(
    r"[-+]?(0b[01]*|0o?[0-7]*|0x[0-9a-f]*)"
    r"|[-+]?\.?[0-9]+(\.[0-9]*)?(e[-+]?[0-9]*)?|[-+]?\.?(inf|infinity|nan)"
    r"|[-+]?[0-9]+(:[0-9]+)+(\.[0-9]*)?",  # base 60
    re.IGNORECASE,
)
"""Plain texts, without the `_` that some leave out of numbers, that are a number for some readers of YAML."""
_INT64: Final = 1 << 63


def to_object(text: str) -> Any:  # noqa: ANN401 - any JSON
    """What a body in YAML stands for.

    Raises:
        Unread: it is none, or can be read in two ways; the text says what.
    """
    if len(text) > MAX_CHARACTERS:
        raise Unread(f"the body has more than {MAX_CHARACTERS >> 10} KiB of YAML; as JSON it may be longer.")
    try:
        return _document(_counted(yaml.parse(text, yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two for escapes that are no characters
        raise Unread("the body is no YAML.") from error


def _counted(events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    for count, event in enumerate(events):
        if count == MAX_EVENTS:
            raise Unread("the body has too many values for YAML; as JSON it may have more.")
        yield event


def _document(events: Iterator[yaml.Event]) -> Any:  # noqa: ANN401 - any JSON
    """What the only document is."""
    next(events)
    start = next(events)
    if not isinstance(start, yaml.DocumentStartEvent) or start.version or start.tags:
        raise Unread("the body has no document, or directives.")
    found = _value(next(events), events, 1)
    next(events)
    if not isinstance(next(events), yaml.StreamEndEvent):
        raise Unread("the body has more than one document.")
    return found


def _value(event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:  # noqa: ANN401 - any JSON
    if not isinstance(event, yaml.NodeEvent) or event.anchor or getattr(event, "tag", None):
        raise Unread("the body has anchors, aliases or tags; write values out.")
    if depth > body.MAX_DEPTH:
        raise Unread("the body is nested too deeply.")
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event) if event.style is None else _text(event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_value(event, events, depth + 1))
        return items
    found: dict[str, Any] = {}
    is_flow = isinstance(event, yaml.MappingStartEvent) and event.flow_style
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(event, events, depth + 1)
        if not isinstance(key, str):
            raise Unread("a key in the body is no text; quote it.")
        if key in found:
            raise Unread("a key is there twice in the body.")
        event = next(events)
        if is_flow and isinstance(event, yaml.ScalarEvent) and event.style is None and not event.value:
            raise Unread("between braces a key in the body has no value; write null.")  # `{a:,}` has the key `a:` in Go
        found[key] = _value(event, events, depth + 1)
    return found


def _scalar(event: yaml.ScalarEvent) -> Any:  # noqa: ANN401 - any JSON
    """What a plain text stands for."""
    plain: str = event.value
    if plain in _NULLS:
        return None
    if plain in _BOOLEANS:
        return _BOOLEANS[plain]
    if _INTEGER.fullmatch(plain) and -_INT64 <= (number := int(plain)) < _INT64:
        return number
    if _DECIMAL.fullmatch(plain):
        return float(plain)
    if _WORDS.fullmatch(plain) or _NUMBERS.fullmatch(plain.replace("_", "")):
        where = f"line {event.start_mark.line + 1}" if event.start_mark else "a line"
        raise Unread(f"a text in {where} of the body can be read in two ways; quote it.")  # it may be a Secret's value
    return _text(plain)


def _text(text: str) -> str:
    if any("\ud800" <= one <= "\udfff" for one in text):
        raise Unread("a text in the body has half of a character.")
    return text
