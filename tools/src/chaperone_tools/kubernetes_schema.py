"""Write down how objects of the Kubernetes API look in protobuf, from the Go types that the API server is built of.

    python -m chaperone_tools.kubernetes_schema     makes …/protocols/kubernetes/schema.json anew

The types' struct tags say of each field its number, its form on the wire and its name in JSON; a type that is embedded
has its fields in JSON among those of the outer one. Read are the stable versions of k8s.io/api, of the module version
that `tools/kubernetes/go.mod` pins and go.sum checks; of these, what an object that a client sends can hold.

The file: `modules` with their checksums; `kinds`, by API version and kind the message; `messages`, a list of fields
each: number, name in JSON, type, label. Types are `string`, `bytes`, `bool`, `int32`, `int64`, a message, or one of
`SPECIAL`. Labels are "" for what is there or not, `omit` where an absent value and the empty one are the same, `list`,
`map` (by strings) and `inline`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chaperone_tools.cache import binary, checkout
from chaperone_tools.errors import ToolsError
from chaperone_tools.run import run

FILE: Final = "sidecar/src/chaperone_sidecar/protocols/kubernetes/schema.json"  # in the checkout
MODULES: Final = ("k8s.io/api", "k8s.io/apimachinery")
FETCH_LIMIT_S: Final = 300.0  # 3 MB
META: Final = "meta/v1"
SPECIAL: Final = {
    "meta/v1.Time": "Time",
    "meta/v1.MicroTime": "MicroTime",
    "meta/v1.FieldsV1": "Raw",
    "runtime.RawExtension": "Raw",
    "resource.Quantity": "Quantity",
    "intstr.IntOrString": "IntOrString",
}
"""Types whose JSON is written by hand in Go; `Raw` is JSON in bytes."""
_OF_MACHINERY: Final = {
    META: ("k8s.io/apimachinery", "pkg/apis/meta/v1"),
    "types": ("k8s.io/apimachinery", "pkg/types"),
}
_NOT_SERVED: Final = frozenset({"admission", "apidiscovery"})  # no client sends these to an API server
_SCALARS: Final = {
    "string": "string", "bool": "bool", "int32": "int32", "int64": "int64", "int": "int64", "[]byte": "bytes",
}  # fmt: skip
_STRUCT: Final = re.compile(r"^type (\w+) struct \{\n(.*?)^\}", re.M | re.S)
_NAMED: Final = re.compile(r"^type (\w+) ([\w.\[\]]+)$", re.M)
_FIELD: Final = re.compile(r"^\t(?:(\w+) +)?([\w.*\[\]]+) +`([^`]*)`", re.M)
_TAG: Final = re.compile(r'(\w+):"([^"]*)"')
_IMPORT: Final = re.compile(r'^\t(?:(\w+) )?"([^"]+)"$', re.M)
_GROUP: Final = re.compile(r'^const GroupName = "([^"]*)"', re.M)
_VERSION: Final = re.compile(r"v[0-9]+")
_MAP: Final = re.compile(r"map\[([\w.]+)\]([\w.*\[\]]+)")

type Field = tuple[int, str, str, str]


@dataclass
class Package:
    """The types of one Go package."""

    name: str
    imports: dict[str, str] = field(default_factory=dict)  # by name in the source
    structs: dict[str, str] = field(default_factory=dict)  # bodies
    named: dict[str, str] = field(default_factory=dict)


class Reader:
    """Reads Go packages.

    Args:
        folders: of the modules' sources, by module.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._packages: dict[str, Package] = {}
        self.messages: dict[str, list[Field]] = {}

    def read(self, kinds: Mapping[str, Mapping[str, str]]) -> None:
        """All messages that objects of these kinds hold."""
        waiting = [message for versions in kinds.values() for message in versions.values()]
        while waiting:
            message = waiting.pop()
            if message not in self.messages:
                self.messages[message] = fields = sorted(self._fields(message))
                waiting += [kind for _, _, kind, _ in fields if "." in kind]

    def kinds(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Stable API versions with what a client may send in them: what has the metadata of an object."""
        for register in sorted(self._folders["k8s.io/api"].glob("*/v*/register.go")):
            group, version = register.parts[-3:-1]
            if not _VERSION.fullmatch(version) or group in _NOT_SERVED:
                continue
            named = _GROUP.search(register.read_text())
            if named is None:
                raise ToolsError(f"{register} names no group")
            package = self._package(f"{group}/{version}")
            found = {kind: f"{package.name}.{kind}" for kind in package.structs if self._is_object(package, kind)}
            yield f"{named[1]}/{version}".removeprefix("/"), found

    def _is_object(self, package: Package, kind: str) -> bool:
        types = {self._qualified(package, found) for _, found, _ in _FIELD.findall(package.structs[kind])}
        return {f"{META}.TypeMeta", f"{META}.ObjectMeta"} <= types

    def _package(self, name: str) -> Package:
        if name not in self._packages:
            module, part = _OF_MACHINERY.get(name, ("k8s.io/api", name))
            folder = self._folders[module] / part
            found = self._packages[name] = Package(name)
            for file in sorted(folder.glob("*.go")):
                if not file.name.endswith("_test.go") and not file.name.startswith(("generated.", "zz_generated.")):
                    _add(found, file.read_text())
        return self._packages[name]

    def _fields(self, message: str) -> Iterator[Field]:
        package = self._package(message.rpartition(".")[0])
        body = package.structs.get(message.rpartition(".")[2])
        if body is None:
            raise ToolsError(f"{message} is no struct")
        for line in body.splitlines():
            if "`" not in line or line.lstrip().startswith("//"):
                continue
            found = _FIELD.match(line)
            if found is None:
                raise ToolsError(f"a field of {message} is not understood: {line}")
            tags = dict(_TAG.findall(found[3]))
            if "protobuf" in tags:
                yield self._field(package, found[2], tags)

    def _field(self, package: Package, go: str, tags: Mapping[str, str]) -> Field:
        # The form on the wire follows from the type; what the tag says of it is wrong in places.
        number = int(tags["protobuf"].split(",")[1])
        name, *options = tags["json"].split(",")
        label = "omit" if {"omitempty", "omitzero"} & {*options} and not go.startswith("*") else ""
        home, kind = self._resolved(package, go.removeprefix("*"))
        if "inline" in options:
            label = "inline"
        elif kind.startswith("[]"):
            (_, kind), label = self._resolved(home, kind[2:]), "list"
        elif entry := _MAP.fullmatch(kind):
            if self._resolved(home, entry[1])[1] != "string":
                raise ToolsError(f"{package.name}: a map by something else than strings: {go}")
            (_, kind), label = self._resolved(home, entry[2]), "map"
        return number, name, kind, label

    def _resolved(self, package: Package, go: str) -> tuple[Package, str]:
        """A type's name in the file; a list's and a map's as Go has it, with the package in which to read that."""
        if go in _SCALARS:
            return package, _SCALARS[go]
        if go.startswith(("[]", "map[")):
            return package, go
        qualified = self._qualified(package, go)
        if qualified in SPECIAL:
            return package, SPECIAL[qualified]
        home, name = self._package(qualified.rpartition(".")[0]), qualified.rpartition(".")[2]
        if name in home.structs:
            return home, qualified
        found = home.named.get(name)
        if found is None:
            raise ToolsError(f"{package.name}: nobody says what {go} is")
        # A named list is a message of its own on the wire, and a list in JSON.
        return (home, "Strings") if found == "[]string" else self._resolved(home, found)

    def _qualified(self, package: Package, go: str) -> str:
        alias, dot, name = go.rpartition(".")
        if not dot:
            return f"{package.name}.{name}"
        return f"{_short(package.imports.get(alias, alias))}.{name}"


def _short(path: str) -> str:
    """A package's name in the file: the last two parts where there is a version."""
    parts = path.split("/")
    return "/".join(parts[-2:]) if _VERSION.fullmatch(parts[-1]) else parts[-1]


def _add(package: Package, source: str) -> None:
    head = source.partition("\ntype ")[0]
    for alias, path in _IMPORT.findall(head):
        if package.imports.setdefault(alias or path.rpartition("/")[2], path) != path:
            raise ToolsError(f"{package.name}: {alias} is two packages")
    package.structs |= dict(_STRUCT.findall(source))
    package.named |= dict(_NAMED.findall(source))


def modules() -> dict[str, dict[str, str]]:
    """The pinned modules, fetched if need be and checked by go.sum: their `Dir`, `Version` and `Sum`.

    Raises:
        ToolsError: they are out of reach.
    """
    where = checkout() / "tools" / "kubernetes"
    told = run(binary("go"), "mod", "download", "-json", *MODULES, limit_s=FETCH_LIMIT_S, cwd=where)
    decoder, found, at = json.JSONDecoder(), {}, 0
    while at < len(told.rstrip()):
        one, at = decoder.raw_decode(told, at)
        found[one["Path"]] = one
        at += 1
    return found


def schema(found: Mapping[str, Mapping[str, str]]) -> str:
    """The file's content, a message a line.

    Args:
        found: what `modules` gives.

    Raises:
        ToolsError: a type is not understood.
    """
    reader = Reader({path: Path(one["Dir"]) for path, one in found.items()})
    kinds = dict(reader.kinds()) | {META: {"DeleteOptions": f"{META}.DeleteOptions"}}
    reader.read(kinds)
    parts: dict[str, Mapping[str, object]] = {
        "modules": {path: f"{one['Version']} {one['Sum']}" for path, one in found.items()},
        "kinds": kinds,
        "messages": reader.messages,
    }
    return "{\n" + ",\n".join(f'"{name}": {{\n{_lines(part)}\n}}' for name, part in parts.items()) + "\n}\n"


def _lines(part: Mapping[str, object]) -> str:
    return ",\n".join(f"{json.dumps(key)}: {json.dumps(part[key])}" for key in sorted(part))


def main() -> None:
    """Write the file."""
    (checkout() / FILE).write_text(schema(modules()))


if __name__ == "__main__":
    main()
