"""Rego of a policy's own: it may add reasons to deny, and nothing else.

A module reads the question (`input`) and nothing beside it, so it can neither see nor disturb the engine or another
policy; it has no builtin that reaches the world, a clock or chance. Both are checked here by the OPA whose version the
gateways run, before any gateway sees the module: a bundle that does not compile would keep every later one from being
loaded. OPA is a program that is run over a text; the same text always gets the same answer.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from chaperone_operator.compile import opa

MAX_BYTES: Final = 64 << 10
_PACKAGE: Final = "chaperone.own"
_STATED_PACKAGE: Final = re.compile(r"^\s*package\b", re.MULTILINE)
# Beside what OPA itself calls nondeterministic: what reads policy as text, and what makes much out of little.
_REFUSED: Final = frozenset({"rego.parse_module", "rego.metadata.chain", "rego.metadata.rule", "trace", "print"})
_REFUSED_PREFIXES: Final = ("numbers.range", "net.", "http.", "internal.print", "opa.", "rand.", "uuid.", "graph.")


class BadRego(Exception):
    """A module that is refused; the text says why."""


def check(text: str) -> None:
    """Refuse what is no module of a policy.

    Raises:
        BadRego: with a line of the text where there is one.
    """
    if len(text.encode()) > MAX_BYTES:
        raise BadRego(f"more than {MAX_BYTES >> 10} KiB")
    if _STATED_PACKAGE.search(text):
        raise BadRego("it names a package; leave that line out, each policy has a package of its own")
    try:
        reason = _refusal(text)
    except opa.NoOpa as error:
        raise BadRego(str(error)) from error
    if reason:
        raise BadRego(reason)


def name(policy: str) -> str:
    """The last part of a policy's package."""
    return "p" + hashlib.sha256(policy.encode()).hexdigest()[:16]


def module(policy: str, text: str) -> str:
    """The module as it goes into the bundle, in the policy's package. `is_loaded` tells the engine that it is there."""
    return f"package {_PACKAGE}.{name(policy)}\n{text}\n\nis_loaded := true\n"


@functools.lru_cache(maxsize=256)
def _refusal(text: str) -> str:
    with opa.folder() as folder:
        own, allowed = Path(folder) / "own.rego", Path(folder) / "capabilities.json"
        own.write_text(module("", text))
        allowed.write_text(capabilities())
        answer = opa.run("check", "--format", "json", "--capabilities", str(allowed), str(own))
        if answer.returncode != 0:
            return _told(answer.stderr or answer.stdout)
        tree = opa.read(opa.run("parse", "--format", "json", str(own)).stdout)
    return next(_faults(tree), "")


def _faults(tree: dict[str, Any]) -> Iterator[str]:
    if any(_mentions_data([tree.get("imports"), tree["rules"]])):
        yield "it reads data; a module reads input alone"
    named = [(head.get("name") or head["ref"][0]["value"], rule) for rule in tree["rules"] for head in (rule["head"],)]
    names = [name for name, _ in named]
    if names.count("is_loaded") > 1:
        yield "it has a rule is_loaded, which is the engine's; choose another name"
    if "require_approval" in names:
        yield "require_approval is not supported yet; use deny"
    if "deny" not in names:
        yield 'it has no rule deny; write: deny contains "why" if { … }'
    for name, rule in named:
        if name == "deny" and ("key" not in rule["head"] or "value" in rule["head"] or rule.get("default")):
            yield 'deny is no set of messages; write: deny contains "why" if { … }'


def _mentions_data(value: Any) -> Iterator[bool]:  # noqa: ANN401 - JSON
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            if one.get("type") == "var" and one.get("value") == "data":
                yield True
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)


def _told(errors: str) -> str:
    """The first error of `opa check`, with the line of the text."""
    first = opa.read(errors)["errors"][0]
    row = first.get("location", {}).get("row", 1) - 1  # the package's line is ours
    return f"line {row}: {first['message']}"


@functools.cache
def capabilities() -> str:
    """What OPA may do, as its capabilities file: nothing that reaches the world, a clock or chance.

    Raises:
        NoOpa: it cannot be asked.
    """
    found: dict[str, Any] = opa.read(opa.run("capabilities", "--current").stdout)
    found["builtins"] = [
        one
        for one in found["builtins"]
        if not one.get("nondeterministic")
        and one["name"] not in _REFUSED
        and not one["name"].startswith(_REFUSED_PREFIXES)
    ]
    return json.dumps(found | {"allow_net": []})
