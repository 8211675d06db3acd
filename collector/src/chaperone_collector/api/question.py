"""A request for objects, read from the URL, and the page that answers it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from chaperone_collector.api import selector, token
from chaperone_collector.api.status import ApiError, bad_request, expired

MAX_PAGE: Final = 1000  # objects in one answer; clients that name no limit follow `continue` from here
MAX_PAGE_BYTES: Final = 8 << 20  # statements are long at times; a page stays what kube-apiserver passes on
MAX_WATCH_S: Final = 3600
DEFAULT_WATCH_S: Final = 1800  # as kube-apiserver's --min-request-timeout


class Question(msgspec.Struct, frozen=True):
    """What is wanted."""

    resource: str
    namespace: str  # empty: all
    labels: tuple[selector.Requirement, ...]
    fields: tuple[selector.Term, ...]
    labels_text: str
    fields_text: str

    def hash(self) -> str:
        """What a `continue` token is bound to."""
        return token.question(self.resource, self.namespace, self.labels_text, self.fields_text)

    def terms(self, field: str) -> list[selector.Term]:
        """The terms about one field."""
        return [term for term in self.fields if term.field == field]

    def holds(self, fields: Mapping[str, str]) -> bool:
        """Whether an object without labels fits; `fields` are all that its resource can be asked for."""
        return all(term.holds(fields[term.field]) for term in self.fields) and all(
            requirement.holds({}) for requirement in self.labels
        )


class Range(msgspec.Struct, frozen=True):
    """Which part of a list: entries below `size`, objects after `after`, at most `limit`."""

    size: int
    after: int
    limit: int


class Found(msgspec.Struct, frozen=True):
    """One object: its place in the log, when it last changed, and what to show."""

    idx: int
    changed: int
    value: dict[str, Any]
    cells: list[Any]


class Page(msgspec.Struct, frozen=True):
    """Objects, and the last index looked at when there may be more."""

    found: list[Found]
    more_after: int | None


def paged(
    shown: Iterable[Found],
    limit: int,
    *,
    fits: Callable[[Found], bool] = lambda _: True,
    most: int | None = None,
    bytes_of: Callable[[Found], int] = lambda _: 0,
) -> Page:
    """The first `limit` objects that fit, in the order in which they come; fewer where they pass `MAX_PAGE_BYTES`.

    At most `most` are looked at, where that is given.
    """
    found: list[Found] = []
    size = 0
    for scanned, one in enumerate(shown, 1):
        if fits(one):
            if len(found) >= limit or size > MAX_PAGE_BYTES:
                return Page(found, found[-1].idx)
            found.append(one)
            size += bytes_of(one)
        if scanned == most:
            return Page(found, one.idx)
    return Page(found, None)


def read_question(resource: str, namespace: str, name: str, query: Mapping[str, str]) -> Question:
    """Read the selectors.

    Raises:
        ApiError: 400.
    """
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    terms = selector.parse_fields(fields, resource)
    if name:
        terms = (*terms, selector.Term("metadata.name", True, name))
    return Question(resource, namespace, selector.parse_labels(labels), terms, labels, fields)


def read_range(question: Question, query: Mapping[str, str], size: int, key: bytes) -> Range:
    """Read limit, continue and resourceVersion against a log of `size` entries.

    Raises:
        ApiError: 400; 410 for a past state of sessions, which is not kept; 504 for a version that is not there yet.
    """
    limit = _number(query, "limit", 0, MAX_PAGE)
    limit = min(limit or MAX_PAGE, MAX_PAGE)
    version, match = query.get("resourceVersion", ""), query.get("resourceVersionMatch", "")
    if text := query.get("continue", ""):
        if match or version not in ("", "0"):
            raise bad_request("resourceVersion cannot be given together with continue")
        place = token.unseal(key, text, question.hash())
        return Range(min(place.size, size), place.after, limit)
    if match not in ("", "Exact", "NotOlderThan") or (match and not version):
        raise bad_request("resourceVersionMatch is Exact or NotOlderThan, and needs a resourceVersion")
    at = read_version(version, size)
    if match != "Exact":
        return Range(size, -1, limit)
    if at == 0:
        raise bad_request('resourceVersionMatch "Exact" is forbidden for resourceVersion "0"')
    if question.resource in ("sessions", "coverages") and at != size:
        raise expired(
            f"The state of {question.resource} at an older resourceVersion is not kept; list the newest state."
        )
    return Range(at, -1, limit)


def read_version(text: str, size: int) -> int:
    """A resourceVersion that a caller names; empty is 0.

    Raises:
        ApiError: 400, or 504 as kube-apiserver answers for one of the future.
    """
    if not text:
        return 0
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise bad_request(f'resourceVersion "{text[:40]}" is not one of this server')
    if int(text) > size:
        raise ApiError(504, "Timeout", f"Too large resource version: {text}, current: {size}", retry_after_s=1)
    return int(text)


def read_timeout(query: Mapping[str, str]) -> float:
    """How long a watch lasts, seconds."""
    return float(_number(query, "timeoutSeconds", 0, MAX_WATCH_S) or DEFAULT_WATCH_S)


def read_flag(query: Mapping[str, str], name: str) -> bool:
    """A boolean as Kubernetes' clients write it."""
    return query.get(name, "").lower() in ("1", "true", "t")


def _number(query: Mapping[str, str], name: str, default: int, cap: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise bad_request(f"{name} is a number that is not negative")
    return min(int(text), cap) if name != "limit" else int(text)
