"""The command lines: what is asked for reaches the right provider, and nonsense is refused with the next step."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaperone_tools.cluster import main as cluster
from chaperone_tools.cluster.current import Current
from chaperone_tools.cluster.kind import Kind
from chaperone_tools.cluster.local import Local
from chaperone_tools.cluster.plan import plan_of
from chaperone_tools.errors import ToolsError
from chaperone_tools.images import main as images
from chaperone_tools.images.archive import Image


def test_each_provider_is_reached_by_its_name(tmp_path: Path):
    kinds = {kind: type(cluster.provider(kind, "dev", tmp_path)) for kind in cluster.PROVIDERS}
    assert kinds == {"kind": Kind, "local": Local, "current": Current}


def test_a_local_cluster_that_is_here_is_meant_without_asking(tmp_path: Path):
    (tmp_path / "dev").mkdir()
    assert isinstance(cluster.provider(None, "dev", tmp_path), Local)


@pytest.mark.parametrize("name", ["", "../etc", "Dev", "a" * 33, "-a", "a/b"])
def test_a_name_that_would_leave_the_state_folder_is_refused(name: str):
    with pytest.raises(ToolsError, match="no cluster name"):
        plan_of(name)


@pytest.mark.parametrize("words", [["up", "--provider", "swarm"], ["sideways"], []])
def test_an_unknown_word_is_refused(words: list[str]):
    with pytest.raises(SystemExit) as refused:
        cluster.parser().parse_args(words)
    assert refused.value.code == 2


def test_an_unknown_image_is_refused():
    with pytest.raises(SystemExit):
        images.parser().parse_args(["build", "--target", "windows"])


def test_a_missing_cluster_ends_with_one_and_the_next_step(capsys: pytest.CaptureFixture[str]):
    assert cluster.main(["kubeconfig", "--provider", "local", "--name", "never-made"]) == 1
    assert "`chaperone-cluster up`" in capsys.readouterr().err


def test_a_foreign_cluster_is_told_to_use_a_registry():
    image = Image("gateway", "0123456789abcdef")
    with pytest.raises(ToolsError, match="registry"):
        Current().load_image(image.reference, image.archive)


def test_a_foreign_cluster_is_never_taken_down():
    with pytest.raises(ToolsError, match="not made here"):
        Current().down()


def test_loading_into_a_cluster_that_does_not_run_is_refused(tmp_path: Path):
    local = Local("dev", dict, tmp_path)
    with pytest.raises(ToolsError, match="does not run"):
        local.load_image("chaperone.local/opa:x", tmp_path / "opa.tar")


def test_taking_down_what_is_not_there_is_no_error(tmp_path: Path):
    Local("dev", dict, tmp_path).down()
    assert list(tmp_path.iterdir()) == []
