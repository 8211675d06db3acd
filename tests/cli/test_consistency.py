"""Two checkpoints that an auditor keeps: one log continues the other, or it was rewritten."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tampered_scene import ORIGIN, Scene
from tampering_log import leaves, node_reader

from chaperone_cli.main import main
from chaperone_evidence import merkle
from chaperone_evidence.checkpoint import Checkpoint
from chaperone_evidence.cosignature import sign_checkpoint
from chaperone_evidence.proof import encode_hashes

TIME_S = 1_790_000_000


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = Scene(tmp_path_factory.mktemp("consistency"))
    (scene.folder / "log.policy").write_text(scene.sealed.policy)
    return scene


def _compare(scene: Scene, old: bytes, new: bytes, proof: bytes | None) -> Result:
    paths = []
    for name, data in (("old", old), ("new", new), ("proof", proof)):
        path: Path = scene.folder / name
        path.write_bytes(data or b"")
        paths.append(str(path))
    more = ["--proof", paths[2]] if proof is not None else ["--kubeconfig", str(scene.folder / "absent")]
    return CliRunner().invoke(
        main, ["consistency", paths[0], paths[1], "--log-policy", str(scene.folder / "log.policy"), *more]
    )


def _proof(tree: list[bytes], old: int) -> bytes:
    return encode_hashes(merkle.consistency_proof(old, len(tree), node_reader(tree))).encode()


def _signed(scene: Scene, tree: list[bytes]) -> bytes:
    return sign_checkpoint(Checkpoint(ORIGIN, len(tree), merkle.root(tree)), scene.keys, TIME_S)


def test_every_checkpoint_of_a_log_continues_those_before_it(scene: Scene) -> None:
    tree, notes = leaves(scene), scene.sealed.checkpoints
    for old in notes:
        for new in notes:
            first, second = (int(note.split(b"\n")[1]) for note in (old, new))
            done = _compare(scene, old, new, _proof(tree[:second], first) if first <= second else b"")
            assert done.exit_code == (0 if first <= second else 2), done.output
    first = next(data for name, data in scene.restarted.items() if name.startswith("log/"))
    done = _compare(scene, notes[0], first, _proof(tree, int(notes[0].split(b"\n")[1])))
    assert (done.exit_code, done.output.split(":")[1]) == (0, " OK"), done.output


def test_a_log_that_was_rewritten_does_not_continue_what_it_said(scene: Scene) -> None:
    tree, old = leaves(scene), scene.sealed.checkpoints[0]
    size = int(old.split(b"\n")[1])
    rewritten = [merkle.leaf_hash(b"another entry"), *tree[1:]]
    for proof in (_proof(rewritten, size), _proof(tree, size), _proof(tree, size)[45:], b""):
        assert _compare(scene, old, _signed(scene, rewritten), proof).exit_code == 1
    done = _compare(scene, _signed(scene, tree), _signed(scene, rewritten), None)
    assert (done.exit_code, "two roots" in done.output) == (1, True), done.output


def test_what_is_not_signed_by_the_log_or_no_checkpoint_is_not_compared(scene: Scene) -> None:
    good = scene.sealed.checkpoints[0]
    assert _compare(scene, good, good.replace(b"\n10\n", b"\n11\n"), b"").exit_code == 1
    for bad in (b"", b"not a checkpoint", b"c2sp.org/tlog-proof@v1\n"):
        assert _compare(scene, good, bad, b"").exit_code == 2
    assert _compare(scene, good, scene.sealed.checkpoints[1], b"not a hash\n").exit_code == 2
    done = _compare(scene, good, scene.sealed.checkpoints[1], None)  # the cluster cannot be asked
    assert (done.exit_code, "CANNOT VERIFY" in done.output) == (2, True), done.output
