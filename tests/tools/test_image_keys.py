"""Images are built again exactly when something that decides their content changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chaperone_tools.errors import ToolsError
from chaperone_tools.images import archive
from chaperone_tools.images.archive import KEPT, Image, newest, publish
from chaperone_tools.images.dockerfile import stages
from chaperone_tools.images.key import key_of, tree
from chaperone_tools.images.target import TARGETS, target_of


def test_a_key_does_not_depend_on_the_order_of_inputs():
    assert key_of([("a", b"1"), ("b", b"2")]) == key_of([("b", b"2"), ("a", b"1")])


@pytest.mark.parametrize(
    "other",
    [
        [("a", b"1")],
        [("a", b"1"), ("b", b"3")],
        [("a", b"2"), ("b", b"1")],
        [("ab", b"12")],
        [("a", b"1b"), ("", b"2")],
    ],
)
def test_every_change_of_an_input_changes_the_key(other: list[tuple[str, bytes]]):
    assert key_of(other) != key_of([("a", b"1"), ("b", b"2")])


def test_byte_code_does_not_decide_an_image_but_modes_do(tmp_path: Path):
    (tmp_path / "main.py").write_text("print()")
    before = list(tree(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "main.pyc").write_bytes(b"x")
    assert list(tree(tmp_path)) == before
    (tmp_path / "main.py").chmod(0o755)
    assert list(tree(tmp_path)) != before


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAPERONE_CACHE", str(tmp_path))
    return tmp_path


def _built(key: str, age: int) -> Image:
    image = Image("opa", key)
    archive.folder("opa").mkdir(parents=True, exist_ok=True)
    image.archive.write_bytes(b"")
    os.utime(image.archive, (age, age))
    return image


def test_the_newest_image_is_the_one_published_last(cached: Path):
    first, second = _built("1" * 16, 1), _built("2" * 16, 2)
    publish(second)
    publish(first)
    assert newest("opa") == first
    assert first.reference == "chaperone.local/opa:1111111111111111"


def test_old_archives_go_and_the_published_one_stays(cached: Path):
    images = [_built(str(number) * 16, number) for number in range(1, KEPT + 3)]
    publish(images[0])
    assert newest("opa") == images[0]
    assert len(list(archive.folder("opa").glob("*.tar"))) == KEPT


def test_an_image_that_was_never_built_is_refused_with_the_command(cached: Path):
    with pytest.raises(ToolsError, match="chaperone-images build --target gateway"):
        newest("gateway")


def test_an_unknown_target_is_refused():
    with pytest.raises(ToolsError, match="there is no image 'windows'"):
        target_of("windows")


def test_every_target_is_a_stage_of_the_dockerfile():
    dockerfile = (Path(__file__).parents[2] / "images" / "Dockerfile").read_text()
    for name in TARGETS:
        assert f" AS {name}\n" in stages(dockerfile, name)


def test_an_edit_of_another_stage_does_not_decide_an_image_but_one_below_it_does():
    dockerfile = "ARG X=1\nFROM ${X} AS below\nRUN a\nFROM below AS one\nRUN b\nFROM scratch AS two\nRUN c\n"
    one = stages(dockerfile, "one")
    assert stages(dockerfile.replace("RUN c", "RUN d"), "one") == one
    assert stages(dockerfile.replace("RUN a", "RUN d"), "one") != one
    assert stages(dockerfile.replace("X=1", "X=2"), "one") != one


def test_the_gateways_image_carries_neither_operator_nor_collector():
    assert set(TARGETS["gateway"].members) == {"sidecar", "evidence"}
