"""The forms in which objects are given: themselves, a Table for kubectl, or metadata alone."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from chaperone_collector.api.question import Found
from chaperone_collector.api.status import GROUP, VERSION, ApiError

META: Final = "meta.k8s.io/v1"
KINDS: Final = {
    "sessions": "Session", "commands": "Command", "reads": "Read", "checkpoints": "Checkpoint",
    "populations": "Population", "coverages": "Coverage", "evidencereports": "EvidenceReport",
    "policyrevisions": "PolicyRevision",
}  # fmt: skip


class Form(msgspec.Struct, frozen=True):
    """How the caller wants to see objects."""

    kind: Literal["object", "table", "metadata"]
    include: Literal["None", "Metadata", "Object"] = "Metadata"  # what a table's rows carry


def negotiate(accept: str, include: str) -> Form:
    """The first form in the Accept header that this server has.

    Raises:
        ApiError: 406 for none; 400 for an unknown includeObject.
    """
    if include not in ("", "None", "Metadata", "Object"):
        raise ApiError(400, "BadRequest", 'includeObject must be "None", "Metadata" or "Object"')
    for item in accept.split(",") if accept.strip() else ["*/*"]:
        media, *parameters = (part.strip() for part in item.split(";"))
        if media not in ("application/json", "application/*", "*/*"):
            continue
        named = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        wanted = named.get("as")
        if wanted is None:
            return Form("object")
        if named.get("g") != "meta.k8s.io" or named.get("v") != "v1":
            continue
        if wanted == "Table":
            return Form("table", include or "Metadata")  # type: ignore[arg-type]
        if wanted in ("PartialObjectMetadata", "PartialObjectMetadataList"):
            return Form("metadata")
    raise ApiError(
        406, "NotAcceptable", "only application/json is served, also as Table or PartialObjectMetadata of v1"
    )


def render_list(
    form: Form, resource: str, columns: list[dict[str, Any]], found: list[Found], *, version: int, more: str
) -> dict[str, Any]:
    """A page."""
    metadata = {"resourceVersion": str(version)} | ({"continue": more} if more else {})
    if form.kind == "table":
        return _table(form, columns, found, metadata)
    if form.kind == "metadata":
        return {
            "kind": "PartialObjectMetadataList", "apiVersion": META, "metadata": metadata,
            "items": [_partial(one) for one in found],
        }  # fmt: skip
    return {
        "kind": KINDS[resource] + "List", "apiVersion": f"{GROUP}/{VERSION}", "metadata": metadata,
        "items": [one.value for one in found],
    }  # fmt: skip


def render_one(form: Form, columns: list[dict[str, Any]], found: Found) -> dict[str, Any]:
    """One object, alone or in a watch."""
    if form.kind == "table":
        return _table(form, columns, [found], {"resourceVersion": found.value["metadata"]["resourceVersion"]})
    return _partial(found) if form.kind == "metadata" else found.value


def render_bookmark(form: Form, resource: str, version: int, *, ends_initial: bool) -> dict[str, Any]:
    """What a bookmark carries: a version, and no object."""
    metadata: dict[str, Any] = {"resourceVersion": str(version)}
    if ends_initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    if form.kind == "table":
        return _table(form, [], [], metadata)
    if form.kind == "metadata":
        return {"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": metadata}
    return {"kind": KINDS[resource], "apiVersion": f"{GROUP}/{VERSION}", "metadata": metadata}


def _table(form: Form, columns: list[dict[str, Any]], found: list[Found], metadata: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for one in found:
        row: dict[str, Any] = {"cells": one.cells}
        if form.include != "None":
            row["object"] = one.value if form.include == "Object" else _partial(one)
        rows.append(row)
    return {"kind": "Table", "apiVersion": META, "metadata": metadata, "columnDefinitions": columns, "rows": rows}


def _partial(found: Found) -> dict[str, Any]:
    return {"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": found.value["metadata"]}
