"""Java for an agent's pod: a runtime made of this machine's JDK, programs compiled with it, and their libraries."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from stage import Pod

RUNTIME: Final = "/opt/java"
_RELEASE: Final = "17"
_MODULES: Final = "java.base,java.management,java.naming,java.net.http,java.sql,jdk.crypto.ec"
_LIMIT_S: Final = 180.0
_SOURCES: Final = Path(__file__).parent


def make_java(folder: Path, libraries: Sequence[Path] = ()) -> Path:
    """An archive of `bin/java` with what it needs, and of `lib/programs` with our programs and the libraries."""
    runtime = folder / "runtime"
    small = ("--strip-debug", "--no-man-pages", "--no-header-files")
    _run("jlink", f"--add-modules={_MODULES}", *small, f"--output={runtime}")
    programs = runtime / "lib/programs"
    programs.mkdir()
    _run("javac", f"--release={_RELEASE}", "-d", programs, *sorted(_SOURCES.glob("*.java")))
    for library in libraries:
        shutil.copy(library, programs)
    archive = folder / "java.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(runtime, arcname=".")
    return archive


def put_java(pod: Pod, archive: Path) -> None:
    """Unpack it in a pod, past every gateway."""
    with archive.open("rb") as content:
        pod.feed(content, "sh", "-c", f"mkdir -p {RUNTIME} && tar -x -C {RUNTIME}")


def java(program: str, *arguments: str) -> tuple[str, ...]:
    """The command line of one of our programs in the pod."""
    programs = f"{RUNTIME}/lib/programs"
    return (f"{RUNTIME}/bin/java", "-XX:TieredStopAtLevel=1", "-cp", f"{programs}:{programs}/*", program, *arguments)


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=_LIMIT_S)
