"""Lists of the cluster, page by page, by kubectl and with the person's own rights; one page is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from chaperone_cli.kubectl import EVIDENCE_PATH, CannotAsk, Cluster, ask
from chaperone_cli.say import progress

CONTROL_PATH: Final = "/apis/chaperone.dev/v1alpha1"
LIMIT: Final = 1000  # objects in one answer

type Object = dict[str, Any]


class _Metadata(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _Metadata
    items: list[Object]


class Asking:
    """Asks for all objects of a resource.

    Args:
        cluster: how it is reached.
        namespace: empty for all.
    """

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.namespace = namespace
        self.versions: dict[str, str] = {}  # at which each resource was listed
        self._cluster = cluster

    def evidence(self, resource: str, exactly: int = 0, fields: str = "") -> Iterator[Object]:
        """Objects of the evidence API, as of a size of the log or the newest; all, or those that fit a field selector.

        Raises:
            CannotAsk: the cluster does not give them.
        """
        at = {"resourceVersion": str(exactly), "resourceVersionMatch": "Exact"} if exactly else {}
        chosen = {"fieldSelector": fields} if fields else {}
        return self._objects(EVIDENCE_PATH, resource, at, self.namespace, chosen)

    def control(self, resource: str, *, is_clustered: bool = False) -> Iterator[Object]:
        """Objects of `chaperone.dev`, the newest.

        Raises:
            CannotAsk: the cluster does not give them.
        """
        return self._objects(CONTROL_PATH, resource, {}, "" if is_clustered else self.namespace)

    def _objects(
        self, base: str, resource: str, at: dict[str, str], namespace: str, chosen: dict[str, str] | None = None
    ) -> Iterator[Object]:
        place = f"{base}/namespaces/{namespace}/{resource}" if namespace else f"{base}/{resource}"
        query, count = at, 0
        while True:
            progress(f"{resource}: {count}")
            text = ask(
                self._cluster, "get", "--raw", f"{place}?{urlencode({'limit': str(LIMIT)} | query | (chosen or {}))}"
            )
            try:
                page = msgspec.json.decode(text, type=_List)
            except msgspec.DecodeError as error:
                raise CannotAsk(f"What the cluster answers for {resource} is no list: {error}") from error
            self.versions.setdefault(resource, page.metadata.resource_version)
            yield from page.items
            count += len(page.items)
            if not page.metadata.continue_:
                progress("")
                return
            query = {"continue": page.metadata.continue_}
