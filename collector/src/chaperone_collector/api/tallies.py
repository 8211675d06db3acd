"""Counters of rules and identities, for the operator, which shows them in statuses.

They say how often, never what: no statement, no session, no text. So a read of them is not recorded as reads of
evidence are, and may be repeated every few seconds. `changedSince` asks for what changed since an answer's
`resourceVersion`; each counter comes as it stands, so that hearing of one twice does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from chaperone_collector.api.names import micros
from chaperone_collector.api.question import read_version
from chaperone_collector.api.status import GROUP, VERSION, ApiError, expired
from chaperone_collector.database import Connection
from chaperone_collector.tally import Counter, What, changes

RESOURCE: Final = "tallies"
PAGE: Final = 1000  # counters in one answer: some 200 KiB
_WHAT: Final = {What.RULE: "Rule", What.WOULD: "Would", What.IDENTITY: "Identity"}


def read_since(query: Mapping[str, str], size: int) -> int:
    """Where the answer begins: `continue` of a page before it, or `changedSince`.

    Raises:
        ApiError: 400; or 410 when it is larger than the log, which is then another one than the caller knows.
    """
    try:
        return read_version(query.get("continue") or query.get("changedSince", ""), size)
    except ApiError as error:
        if error.code == 504:
            raise expired("The log is shorter than that: it is another one. Ask from the beginning.") from error
        raise


def page(connection: Connection, since: int) -> dict[str, Any]:
    """One page of the list."""
    found, size = changes(connection, since, PAGE)
    more = str(found[-1].changed) if len(found) == PAGE else ""
    return {
        "kind": "TallyList", "apiVersion": f"{GROUP}/{VERSION}",
        "metadata": {"resourceVersion": str(size), **({"continue": more} if more else {})},
        "items": [_shown(one) for one in found],
    }  # fmt: skip


def _shown(one: Counter) -> dict[str, Any]:
    return {
        "what": _WHAT[one.what], "namespace": one.namespace, "name": one.name, "rule": one.rule,
        "action": one.action, "count": one.count, "last": micros(one.last_us),
    }  # fmt: skip
