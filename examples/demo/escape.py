"""Ways out that do not ask the gateway. Prints `reached: …` or `stopped: …`, and ends with 0 either way.

python3 escape.py postgresql|https|tcp|marked|udp|dns HOST PORT, or ping HOST; HOST is an address.
"""

import hashlib
import socket
import ssl
import subprocess
import sys

TIMEOUT_S = 3
SO_MARK = 36
MARK = 0x63686170  # of the packets that the fence lets out; only the gateway may set it
SSL_REQUEST = bytes.fromhex("0000000804d2162f")  # PostgreSQL: may we speak TLS?
QUESTION = bytes.fromhex(
    "beef0100000100000000000006736563726574076578616d706c6503636f6d0000010001"
)  # secret.example.com A
REFUSED = 5


def postgresql(host: str, port: int) -> str:
    """Ask for the database, past the name that the gateway answers for."""
    with _connected(host, port) as raw:
        raw.sendall(SSL_REQUEST)
        if raw.recv(1) != b"S":
            raise ConnectionError("no PostgreSQL answered")
        with _encrypted(raw) as secured:
            certificate = secured.getpeercert(binary_form=True) or b""
    return f"a server with the certificate {hashlib.sha256(certificate).hexdigest()}"


def https(host: str, port: int) -> str:
    """Ask the API server for its version, which it tells anybody."""
    with _encrypted(_connected(host, port)) as secured:
        secured.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        return _said(secured.recv(64).split(b"\r\n")[0])


def tcp(host: str, port: int) -> str:
    """Say something to whoever listens there."""
    with _connected(host, port) as raw:
        raw.sendall(b"smuggled by TCP")
        return _said(raw.recv(64))


def marked(host: str, port: int) -> str:
    """The same, with the mark of the gateway's own packets."""
    with socket.socket() as raw:
        raw.settimeout(TIMEOUT_S)
        raw.setsockopt(socket.SOL_SOCKET, SO_MARK, MARK)
        raw.connect((host, port))
        raw.sendall(b"smuggled with the mark")
        return _said(raw.recv(64))


def udp(host: str, port: int) -> str:
    """Say it by UDP."""
    return _said(_asked(host, port, b"smuggled by UDP"))


def dns(host: str, port: int) -> str:
    """Put it into a question to a resolver of one's own."""
    answer = _asked(host, port, QUESTION)
    if len(answer) > 3 and answer[3] & 15 == REFUSED:
        raise ConnectionError("REFUSED: secret.example.com is no target's name")
    return _said(answer)


def ping(host: str) -> str:
    """Neither TCP nor UDP."""
    done = subprocess.run(["ping", "-c1", f"-W{TIMEOUT_S}", host], capture_output=True, text=True, check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode:
        raise ConnectionError(lines[-1])
    return lines[1]


WAYS = {"postgresql": postgresql, "https": https, "tcp": tcp, "marked": marked, "udp": udp, "dns": dns, "ping": ping}


def _connected(host: str, port: int) -> socket.socket:
    return socket.create_connection((host, port), timeout=TIMEOUT_S)


def _encrypted(raw: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whoever it is
    return context.wrap_socket(raw)


def _asked(host: str, port: int, word: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as raw:
        raw.settimeout(TIMEOUT_S)
        raw.sendto(word, (host, port))
        return raw.recv(512)


def _said(answer: bytes) -> str:
    if not answer:
        raise ConnectionError("closed without an answer")
    return repr(answer)


way, address, *port = sys.argv[1:]
try:
    print("reached:", WAYS[way](address, *map(int, port)))
except OSError as error:
    print("stopped:", error)
