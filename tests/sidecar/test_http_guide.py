"""The examples of docs/guides/http.md compile, and their rules do what the guide says."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
import yaml
from manifests import identity

from chaperone_operator.compile import compile_namespace

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "http.md"
EXAMPLES = re.findall(r"^```yaml\n(.+?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("example", EXAMPLES, ids=["http", "grpc", "mcp"])
def test_examples_of_the_guide_compile(example: str) -> None:
    place, rules = yaml.safe_load_all(example)
    found = compile_namespace("agents", [identity()], [place], [rules], [], namespace_labels={})
    assert found.is_usable
    assert [problem.message for problem in found.problems] == []
    config = msgspec.json.decode(found.gateway)["billing-agent"]
    assert [one["protocol"] for one in config["targets"]] == [place["spec"]["protocol"]]
