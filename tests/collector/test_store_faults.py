"""A disk that fails under the store: at any write and sync, once or for a while, full or broken.

Whatever call fails, what was acknowledged is there afterwards, in a log that holds what it has signed.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from fix_faults import Faults
from gateway_stream import Pod, Stream
from pki import Authority

from chaperone_collector import checkpoint, tree
from chaperone_collector.schema import open_reader
from chaperone_evidence import entry

WRITER = Path(__file__).parents[1] / "support" / "store_writer.py"
LIMIT_S = 60.0
COMMANDS = 150
EVERY = int(os.environ.get("CHAPERONE_FAULTS_EVERY", "0"))  # 1: at each call; as it is, at some of each kind
CALLS = {"pwrite64": 240, "fdatasync": 60, "ftruncate64": 3}  # about as many as one run makes


class Scene:
    """A stream to write, in files."""

    def __init__(self, folder: Path) -> None:
        authority = Authority("gateway CA")
        pod = Pod(authority)
        stream = Stream(pod)
        session = stream.open_session()
        for number in range(COMMANDS):
            stream.conclude(session, stream.intend(session, f"SELECT {number}", with_body=False))
            if number % 50 == 0:
                stream.head()
        stream.close_session(session, COMMANDS)
        stream.close()
        self.data = stream.take()[1]
        self._files = [folder / "frames", folder / "authority.pem", folder / "certificate.pem"]
        self._files[0].write_bytes(self.data)
        self._files[1].write_text(authority.pem)
        self._files[2].write_bytes(pod.certificate.public_bytes(Encoding.PEM))

    def write(self, directory: Path, env: dict[str, str] | None = None) -> tuple[int, list[str]]:
        """Run the writer; its exit code and what it said."""
        ran = subprocess.run(
            [sys.executable, str(WRITER), str(directory), *map(str, self._files)], env=env, capture_output=True,
            text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        return ran.returncode, ran.stdout.splitlines()


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene"))


def _acked(said: list[str]) -> int:
    return max((int(line.split()[1]) for line in said if line.split()[0] in ("stored", "acked")), default=-1)


def _points(call: str) -> list[int]:
    most = CALLS[call]
    step = EVERY or max(1, most // 4)
    return [*range(1, most + 1, step)]


@pytest.mark.parametrize(
    ("number", "count"), [(errno.EIO, 1), (errno.ENOSPC, 3), (errno.EIO, 1000)], ids=["once", "full", "broken"]
)
@pytest.mark.parametrize(("call", "nth"), [(call, nth) for call in CALLS for nth in _points(call)])
def test_nothing_acknowledged_is_lost(
    scene: Scene, faults: Faults, tmp_path: Path, call: str, nth: int, number: int, count: int
) -> None:
    code, said = scene.write(tmp_path / "data", faults.failing(call, "evidence.db", number, nth, count))
    acked = _acked(said)
    if code == 0:
        assert said[-1] == "done"  # a full disk that was emptied meanwhile, or a call that is not made so often
    else:
        assert said[-1].startswith("failed"), said
    code, said = scene.write(tmp_path / "data")
    assert code == 0, said
    assert int(said[0].split()[1]) >= acked  # what is there before anything is sent again
    database = open_reader(tmp_path / "data" / "evidence.db")
    rows = database.execute("SELECT bytes FROM entry WHERE stream <> 0 ORDER BY seq").fetchall()
    assert b"".join(entry.frame(row[0]) for row in rows) == scene.data
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    size = database.execute("SELECT max(idx) + 1 FROM entry").fetchone()[0]
    assert checkpoint.check(database, size) > 0
    assert len(tree.read_root(database, size)) == 32
    database.close()


def test_every_kind_of_call_is_met(scene: Scene, faults: Faults, tmp_path: Path) -> None:
    for call in CALLS:
        code, said = scene.write(tmp_path / call, faults.failing(call, "evidence.db", errno.EIO, 1, 10_000))
        assert code != 0, f"{call} is never called: {said}"
