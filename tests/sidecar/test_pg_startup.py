"""The beginning of a connection: protocol versions, TLS asked for and TLS at once, and clients that mean harm."""

from __future__ import annotations

import socket
import ssl
import struct
import threading

import psycopg
import pytest
from fix_dev import Gateway
from fix_postgres import Postgres
from psycopg import errors
from waiting import eventually

from chaperone_sidecar.protocols.postgresql import messages as m

pytestmark = pytest.mark.peer

SSL_REQUEST = struct.pack(">II", 8, m.SSL_REQUEST)
GSSENC_REQUEST = struct.pack(">II", 8, m.GSSENC_REQUEST)


def startup(minor: int, *pairs: tuple[str, str]) -> bytes:
    body = b"".join(f"{name}\0{value}\0".encode() for name, value in (("user", "agent"), *pairs)) + b"\0"
    return struct.pack(">II", len(body) + 8, 3 << 16 | minor) + body


def connect(port: int) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", port), 20)
    one.settimeout(20)
    return one


def unverified(alpn: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def read_until(one: socket.socket, kind: str) -> list[tuple[str, bytes]]:
    """Messages up to one of this type, or the end."""
    found: list[tuple[str, bytes]] = []
    with one.makefile("rb") as stream:
        while not found or found[-1][0] != kind:
            head = stream.read(5)
            if len(head) < 5:
                break
            found.append((chr(head[0]), stream.read(int.from_bytes(head[1:], "big") - 4)))
    return found


def ready(one: socket.socket, hello: bytes) -> dict[str, bytes]:
    """Send a startup message; the last message of each type up to ReadyForQuery."""
    one.sendall(hello)
    return dict(read_until(one, "Z"))


@pytest.mark.parametrize(
    ("minor", "options", "answer", "key_bytes"),
    [
        (0, (), None, 4),
        (2, (), None, 32),
        (9999, (), struct.pack(">II", 3 << 16 | 2, 0), 32),
        (0, (("_pq_.new", "1"),), struct.pack(">II", 3 << 16, 1) + b"_pq_.new\0", 4),
        (2, (("_pq_.z", "1"), ("_pq_.a", "1")), struct.pack(">II", 3 << 16 | 2, 2) + b"_pq_.z\0_pq_.a\0", 32),
    ],
)
def test_the_version_is_agreed_on_as_the_server_does_it(
    dev_gateway: Gateway, minor: int, options: tuple[tuple[str, str], ...], answer: bytes | None, key_bytes: int
) -> None:
    with connect(dev_gateway.port) as one:
        found = ready(one, startup(minor, *options))
    assert found.get("v") == answer
    assert len(found["K"]) == 4 + key_bytes


@pytest.mark.parametrize("version", ["3.0", "3.2", "latest"])
def test_libpq_speaks_each_version_and_its_cancel_key_works(
    dev_gateway: Gateway, postgres: Postgres, version: str
) -> None:
    with psycopg.connect(
        dev_gateway.conninfo, max_protocol_version=version, sslmode="require", autocommit=True
    ) as connection:
        assert connection.pgconn.full_protocol_version == (30000 if version == "3.0" else 30002)

        def cancel() -> None:
            eventually(lambda: sleeps(postgres, "own key"))  # what does not run yet cannot be cancelled
            connection.cancel_safe()  # over TLS, as the session is

        cancelling = threading.Thread(target=cancel)
        cancelling.start()
        with pytest.raises(errors.QueryCanceled):
            connection.execute("SELECT pg_sleep(60), 'own key' FROM orders LIMIT 1")
        cancelling.join()
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_libpq_may_begin_with_tls(dev_gateway: Gateway) -> None:
    with psycopg.connect(dev_gateway.conninfo, sslmode="require", sslnegotiation="direct") as connection:
        assert connection.pgconn.ssl_in_use
        assert connection.execute("SELECT count(*) FROM orders").fetchone() == (1000,)


def test_a_client_hello_may_come_byte_by_byte(dev_gateway: Gateway) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = unverified("postgresql").wrap_bio(incoming, outgoing)
    with connect(dev_gateway.port) as one:
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with pytest.raises(ssl.SSLWantReadError):
            tls.do_handshake()
        for byte in outgoing.read():
            one.sendall(bytes((byte,)))
        while True:
            incoming.write(one.recv(65536))
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                continue
            break
        assert tls.selected_alpn_protocol() == "postgresql"


@pytest.mark.parametrize("alpn", ["", "http/1.1"])
def test_tls_at_once_without_the_protocols_name_is_cut_off(dev_gateway: Gateway, alpn: str) -> None:
    with (
        connect(dev_gateway.port) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
        unverified(alpn).wrap_socket(plain) as one,
    ):
        one.sendall(startup(0))
        if not one.recv(1):
            raise ConnectionResetError


def test_what_only_begins_like_tls_is_cut_off(dev_gateway: Gateway) -> None:
    with connect(dev_gateway.port) as one:
        one.sendall(b"\x16\x03\x01\x00\x10" + bytes(16))
        assert b"Z" not in (_read_to_the_end(one))


def _read_to_the_end(one: socket.socket) -> bytes:
    found = b""
    try:
        while data := one.recv(4096):
            found += data
    except ConnectionError:
        pass
    return found


def test_gssenc_is_declined_and_tls_may_follow(dev_gateway: Gateway) -> None:
    with connect(dev_gateway.port) as plain:
        plain.sendall(GSSENC_REQUEST)
        assert plain.recv(1) == b"N"
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S"
        with unverified().wrap_socket(plain) as one:
            assert ready(one, startup(0))["Z"] == b"I"


@pytest.mark.parametrize(
    "hello",
    [
        SSL_REQUEST + SSL_REQUEST,
        GSSENC_REQUEST + GSSENC_REQUEST,
        GSSENC_REQUEST + startup(0),
        SSL_REQUEST + startup(0),
        struct.pack(">II", 10_001, 3 << 16) + bytes(9_993),
        struct.pack(">II", 0x7FFFFFFF, 3 << 16),
        struct.pack(">II", 7, 3 << 16),
        struct.pack(">II", 8, 2 << 16),
        struct.pack(">II", 9, 4 << 16) + b"\0",
        struct.pack(">II", 12, 3 << 16) + b"user",
        startup(0, ("user", "another")),
        startup(0, ("replication", "database")),
    ],
)
def test_a_beginning_that_is_not_one_is_refused(dev_gateway: Gateway, hello: bytes) -> None:
    with connect(dev_gateway.port) as one:
        one.sendall(hello)
        found = _read_to_the_end(one)
    assert found.startswith(b"E")
    assert b"08P01" in found


@pytest.mark.parametrize("request_again", [SSL_REQUEST, GSSENC_REQUEST])
def test_encryption_is_not_asked_for_twice(dev_gateway: Gateway, request_again: bytes) -> None:
    with connect(dev_gateway.port) as plain:
        plain.sendall(SSL_REQUEST)
        assert plain.recv(1) == b"S"
        with unverified().wrap_socket(plain) as one:
            one.sendall(request_again)
            assert read_until(one, "E")[-1][0] == "E"


def test_a_second_gssenc_request_is_refused(dev_gateway: Gateway) -> None:
    with connect(dev_gateway.port) as one:
        one.sendall(GSSENC_REQUEST)
        assert one.recv(1) == b"N"
        one.sendall(GSSENC_REQUEST)
        assert b"08P01" in _read_to_the_end(one)


@pytest.mark.parametrize("size", [0, 3, 257])
def test_a_cancel_request_with_a_key_of_another_length_is_refused(dev_gateway: Gateway, size: int) -> None:
    with connect(dev_gateway.port) as one:
        one.sendall(m.encode_cancel(1, bytes(size)))
        assert b"08P01" in _read_to_the_end(one)


def sleeps(postgres: Postgres, word: str) -> bool:
    query = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND strpos(query, %s) > 0"
    with postgres.admin() as admin:
        return bool(admin.execute(query, [word]).fetchall())


def test_a_key_of_the_short_form_does_not_open_a_session_of_the_long_one(
    dev_gateway: Gateway, postgres: Postgres
) -> None:
    with connect(dev_gateway.port) as one:
        key = ready(one, startup(2))["K"]
        process_id, secret = int.from_bytes(key[:4], "big"), key[4:]
        one.sendall(m.encode_query(b"SELECT pg_sleep(60), 'long form'"))
        eventually(lambda: sleeps(postgres, "long form"))
        with connect(dev_gateway.port) as other:
            other.sendall(m.encode_cancel(process_id, secret[:4]))
            assert other.recv(1) == b""
        eventually(lambda: sleeps(postgres, "long form"))
        with connect(dev_gateway.port) as other:
            other.sendall(m.encode_cancel(process_id, secret))
            assert other.recv(1) == b""
        assert b"57014" in dict(read_until(one, "Z"))["E"]
