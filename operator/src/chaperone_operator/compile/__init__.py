"""Policy compiler: custom resources in, one snapshot a namespace out. Pure: no I/O, no clock; README.md tells more."""

from __future__ import annotations

from chaperone_operator.compile.problem import Problem
from chaperone_operator.compile.revoke import revoke
from chaperone_operator.compile.selector import LabelSelector
from chaperone_operator.compile.snapshot import Snapshot, compile_namespace

__all__ = ["LabelSelector", "Problem", "Snapshot", "compile_namespace", "revoke"]
