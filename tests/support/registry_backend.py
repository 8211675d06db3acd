"""What git, pip and npm talk to, a program of its own: `registry_backend.py PORT CERTIFICATE KEY LOG FOLDER [HOST]`.

It makes in FOLDER what it serves: `git/app.git`, a bare repository; `wheels/` with shopkit; `packages/` with @shop/cart
and @shop/secret of npm. It listens on this machine alone unless told.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import ssl
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from aiohttp import web

LOG, FOLDER = Path(sys.argv[4]), Path(sys.argv[5])
BRANCHES = ["main", *(f"branch-{number:04}" for number in range(40))]


def fill() -> None:
    """Make what is served."""
    for name in ("git", "wheels", "packages"):
        (FOLDER / name).mkdir(parents=True)
    repository = FOLDER / "git/app.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", repository], check=True, timeout=60)
    # So many branches that what a client has to say of them is longer than what git sends uncompressed.
    who = "agent <agent@example.org> 1700000000 +0000"
    told = [f"commit refs/heads/{name}\ncommitter {who}\ndata 7\nof {name[-4:]}\n" for name in BRANCHES]
    import_ = ["git", "fast-import", "--quiet"]
    subprocess.run(import_, input="".join(told), text=True, check=True, timeout=60, cwd=repository)
    with zipfile.ZipFile(FOLDER / "wheels/shopkit-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shopkit.py", f"FILL = {os.urandom(100_000).hex()!r}\n")
        wheel.writestr("shopkit-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: shopkit\nVersion: 1.0\n")
        wheel.writestr("shopkit-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("shopkit-1.0.dist-info/RECORD", "shopkit.py,,\n")
    for name in ("cart", "secret"):
        (FOLDER / "package.json").write_text(json.dumps({"name": f"@shop/{name}", "version": "1.0.0"}))
        with tarfile.open(FOLDER / f"packages/{name}.tgz", "w:gz") as archive:
            archive.add(FOLDER / "package.json", "package/package.json")


async def git(request: web.Request) -> web.Response:
    """Git's own server, by CGI (gitprotocol-http)."""
    body = await request.read()
    environment = {
        "PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(FOLDER / "git"), "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": request.method, "QUERY_STRING": request.query_string, "REMOTE_USER": "agent",
        "PATH_INFO": request.path.removeprefix("/git"), "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)), "HTTP_GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
    }  # fmt: skip
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("git", "http-backend", stdin=pipe, stdout=pipe, env=environment)
    answer, _ = await process.communicate(body)
    head, _, content = answer.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    status = int(fields.pop("Status", "200").split(" ")[0])
    return web.Response(status=status, body=content, headers=fields)


async def index(request: web.Request) -> web.Response:
    """A project of a simple index (PEP 503)."""
    links = [f'<a href="/wheels/{path.name}">{path.name}</a>' for path in (FOLDER / "wheels").iterdir()]
    return web.Response(text="".join(links), content_type="text/html")


async def wheel(request: web.Request) -> web.StreamResponse:
    """A wheel, of which the first answer breaks off in its middle."""
    path = FOLDER / "wheels" / request.match_info["name"]
    if "Range" in request.headers:
        return web.FileResponse(path)
    raw, stat = path.read_bytes(), path.stat()
    response = web.StreamResponse(
        headers={"Content-Length": str(len(raw)), "ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'}
    )
    await response.prepare(request)
    await response.write(raw[: len(raw) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


async def package(request: web.Request) -> web.Response:
    """What a registry tells of a package with a scope."""
    if "%2f" not in request.raw_path.lower():
        return web.Response(status=404)
    scope, _, name = request.match_info["name"].partition("/")
    raw = (FOLDER / "packages" / f"{name}.tgz").read_bytes()
    version = {
        "name": f"{scope}/{name}", "version": "1.0.0",
        "dist": {
            "tarball": f"https://{request.host}/{scope}/{name}/-/{name}-1.0.0.tgz",
            "integrity": "sha512-" + base64.b64encode(hashlib.sha512(raw).digest()).decode(),
        },
    }  # fmt: skip
    told = {"name": f"{scope}/{name}", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    return web.Response(body=json.dumps(told).encode(), content_type="application/json")


async def tarball(request: web.Request) -> web.FileResponse:
    """The package itself."""
    return web.FileResponse(FOLDER / "packages" / f"{request.match_info['name']}.tgz")


@web.middleware
async def noted(request: web.Request, handler):  # type: ignore[no-untyped-def]
    """Note what came."""
    note(f"{request.method} {request.raw_path} {request.headers.get('Range', '-')}")
    return await handler(request)


def note(line: str) -> None:
    with LOG.open("a") as file:
        file.write(line + "\n")


def main() -> None:
    """Serve."""
    fill()
    app = web.Application(middlewares=[noted], client_max_size=1 << 30)
    app.router.add_route("*", "/git/{tail:.*}", git)
    app.router.add_get("/simple/{project}/", index)
    app.router.add_get("/wheels/{name}", wheel)
    app.router.add_get("/{scope:@[a-z]+}/{name}/-/{file}", tarball)
    app.router.add_get("/{name:@.+}", package)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(sys.argv[2], sys.argv[3])
    host = sys.argv[6] if len(sys.argv) > 6 else "127.0.0.1"
    web.run_app(app, host=host, port=int(sys.argv[1]), ssl_context=context, print=None)


if __name__ == "__main__":
    main()
