"""TLS towards agents: what a client finds in one record."""

from __future__ import annotations

import ssl
import struct

from chaperone_sidecar.tls import RECORD_BYTES, PodCa, TlsLayer

APPLICATION_DATA = 23
OVERHEAD_BYTES = 256  # what TLS may add to a record (RFC 8446, 5.2)


def test_no_record_is_longer_than_what_libpq_reads_at_once() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # What is looked at is how long records are; whose certificate it is makes no difference to that.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    server = TlsLayer(PodCa("pod").server_context(("localhost",)), server_side=True)
    client = TlsLayer(context, server_side=False, server_name="localhost")
    client.start()
    while not (server.is_established and client.is_established):
        server.feed(client.take_outgoing())
        client.feed(server.take_outgoing())
    server.take_outgoing()

    plain = bytes(range(256)) * 400
    server.write(plain)
    sent = server.take_outgoing()
    assert client.feed(sent) == plain
    while sent:
        kind, size = sent[0], struct.unpack(">H", sent[3:5])[0]
        assert kind == APPLICATION_DATA
        assert size <= RECORD_BYTES + OVERHEAD_BYTES
        sent = sent[5 + size :]
