"""`objects`: a real S3-compatible server with Object Lock (versitygw), built from tests/objects/go.

go.mod and go.sum pin it and its parts; the Go that `tools/setup.sh` finds or installs builds it, once, into the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
from ports import free_port

from chaperone_collector.archive.bucket import Bucket
from chaperone_collector.archive.options import ArchiveOptions, load
from chaperone_tools.cache import binary, cache, filled
from chaperone_tools.run import run

SOURCE: Final = Path(__file__).parents[1] / "objects" / "go"
PACKAGE: Final = "github.com/versity/versitygw/cmd/versitygw"
BUILD_LIMIT_S: Final = 900.0
START_LIMIT_S: Final = 30.0
ACCESS, SECRET = "canary-access", "canary-secret-9b1f"


class Objects:
    """One server; it may be ended and started again."""

    def __init__(self, program: Path, folder: Path) -> None:
        self.program, self.folder, self.port = program, folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        for name in ("root", "versions", "credentials"):
            (folder / name).mkdir()
        (folder / "credentials" / "access-key").write_text(ACCESS + "\n")
        (folder / "credentials" / "secret-key").write_text(SECRET + "\n")

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it listens."""
        environment = {**os.environ, "ROOT_ACCESS_KEY": ACCESS, "ROOT_SECRET_KEY": SECRET}
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                [self.program, "--port", f"127.0.0.1:{self.port}", "posix", "--versioning-dir",
                 self.folder / "versions", self.folder / "root"],
                stdout=out, stderr=out, env=environment,
            )  # fmt: skip
        ends = time.monotonic() + START_LIMIT_S
        while time.monotonic() < ends and self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        pytest.fail(f"versitygw did not start:\n{(self.folder / 'server.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(START_LIMIT_S)

    def archive(self, bucket: str, *, is_locked: bool = True, endpoint: str = "", **more: Any) -> Path:
        """A file for `--archive`, and its bucket, made where it is not there."""
        path = self.folder / f"{bucket}-{len(list(self.folder.iterdir()))}.yaml"
        said = {
            "endpoint": endpoint or self.endpoint, "bucket": bucket, "credentials": str(self.folder / "credentials"),
            "retentionDays": 2, **more,
        }  # fmt: skip
        path.write_text(json.dumps(said))
        if not (self.folder / "root" / bucket).exists():
            client = self.client(load(path))
            client.call("create_bucket", ObjectLockEnabledForBucket=is_locked)
        return path

    def client(self, options: ArchiveOptions) -> Bucket:
        """A client that asks the server itself, whatever stands before it."""
        return Bucket(ArchiveOptions(self.endpoint, options.bucket, options.credentials, prefix=options.prefix))


@pytest.fixture(scope="session")
def objects_program() -> Path:
    """The server's program, built from pinned sources into the cache."""
    go = binary("go")
    made_of = b"".join((SOURCE / name).read_bytes() for name in ("go.mod", "go.sum"))
    key = hashlib.sha256(made_of + run(go, "version").encode()).hexdigest()[:16]

    def fill(scratch: Path) -> Path:
        (scratch / "made").mkdir()
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false"}
        run(go, "build", "-trimpath", "-o", scratch / "made" / "versitygw", PACKAGE, limit_s=BUILD_LIMIT_S, env=env,
            cwd=SOURCE)  # fmt: skip
        return scratch / "made"

    return filled(cache() / "tools" / f"versitygw-{key}", fill) / "versitygw"


@pytest.fixture
def objects_with(objects_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Objects]]:
    """Start servers; all are ended after the test."""
    started: list[Objects] = []

    def start() -> Objects:
        one = Objects(objects_program, tmp_path_factory.mktemp("objects"))
        started.append(one)
        one.start()
        return one

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def objects(objects_with: Callable[[], Objects]) -> Objects:
    """A server."""
    return objects_with()
