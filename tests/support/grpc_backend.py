"""A customer's gRPC service, as a program of its own: `python grpc_backend.py PORT CERTIFICATE KEY LOG`.

Messages are bytes: the gateway reads none, so no schema is needed to call it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

LOG: Path | None = None
SERVICE = "shop.v1.Orders"


def note(name: str, context: grpc.ServicerContext) -> None:
    """Note what reached the service."""
    assert LOG is not None
    fields = dict(context.invocation_metadata())
    with LOG.open("a") as file:
        file.write(f"{name} {fields.get('authorization', '-')}\n")


def get(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Say what came, and the credential."""
    note("Get", context)
    context.set_trailing_metadata((("x-total", "1"),))
    if request == b"none":
        context.abort(grpc.StatusCode.NOT_FOUND, "there is no jane.doe@example.com")
    if request == b"slow":
        time.sleep(30)
    return b"got " + request + b" as " + dict(context.invocation_metadata()).get("authorization", "").encode()


def pay(request: bytes, context: grpc.ServicerContext) -> bytes:
    """What people are asked about."""
    note("Pay", context)
    return b"paid " + request


def watch(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    """So many messages."""
    note("Watch", context)
    for number in range(int(request)):
        if not context.is_active():
            break
        yield b"%d" % number + b"B" * (1000 if int(request) > 1000 else 1)


def add(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    """How much came."""
    note("Add", context)
    return b"%d" % sum(map(len, requests))


def talk(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    """An answer to each."""
    note("Talk", context)
    for request in requests:
        yield b"re " + request


def main() -> None:
    """Serve."""
    global LOG  # noqa: PLW0603 - a program of one file
    port, certificate, key, log = sys.argv[1:]
    LOG = Path(log)
    server = grpc.server(ThreadPoolExecutor(16))
    handlers: dict[str, Any] = {
        "Get": grpc.unary_unary_rpc_method_handler(get),
        "Pay": grpc.unary_unary_rpc_method_handler(pay),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
        "Add": grpc.stream_unary_rpc_method_handler(add),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if certificate:
        pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
        server.add_secure_port(f"127.0.0.1:{port}", grpc.ssl_server_credentials([pair]))
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
