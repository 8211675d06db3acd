"""Three programs speak of a request's state: each defines it for itself, and all say the same."""

from __future__ import annotations

import yaml
from fix_crds import CRDS

from chaperone_cli import approvals as cli
from chaperone_operator import approval as operator
from chaperone_sidecar.approval import desk as sidecar


def test_states_have_one_name_everywhere() -> None:
    assert {one.name: one.value for one in operator.State} == {one.name: one.value for one in sidecar.State}
    version = yaml.safe_load((CRDS / "approvalrequests.yaml").read_text())["spec"]["versions"][0]
    status = version["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert set(status["properties"]["state"]["enum"]) == {one.value for one in operator.State}


def test_the_same_states_are_open_everywhere() -> None:
    assert set(cli.OPEN) == set(operator.OPEN)
