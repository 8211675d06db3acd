"""HTTP: requests."""

from __future__ import annotations

import json
import random

from material import CORPORA, Target, cut

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.http import classify as http_classify
from chaperone_sidecar.protocols.http import messages as http_messages
from chaperone_sidecar.protocols.http import target as http_target
from chaperone_sidecar.protocols.http.codec import Codec as HttpCodec


def http() -> tuple[Target, list[bytes]]:
    """Requests of HTTP/1.1: one reading however they are cut, with one normal form, or refused."""
    lines = (CORPORA / "http_smuggling.jsonl").read_text().splitlines()
    seeds = [json.loads(line)["raw"].encode("latin-1") for line in lines]
    seeds.append(b"PUT /a%2D?b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")

    def read(pieces: list[bytes]) -> list[object]:
        reader, found, body = HttpCodec("client"), list[object](), b""
        try:
            for piece in pieces:
                reader.feed(piece)
                while not isinstance(message := reader.next(), http_messages.NeedData):
                    if isinstance(message, http_messages.Data):
                        body += message.data
                    else:
                        found += [body, message]
                        body = b""
        except ProtocolError:
            return [*found, "refused"]
        return found

    def target(data: bytes, rng: random.Random) -> None:
        found = read([data])
        assert read(cut(data, rng)) == found
        for message in found:
            if isinstance(message, http_messages.RequestHead):
                try:
                    asked = http_classify.read(message)
                except ProtocolError:
                    continue
                assert http_target.read(asked.target.raw) == asked.target
                assert http_classify.classify(asked, data).facts.accesses

    return target, seeds
