"""Kubernetes: requests, and streams over SPDY."""

from __future__ import annotations

import json
import random
import struct
import zlib

from material import CORPORA, Target, bounded, cut

from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.protocols.kubernetes import classify as kubernetes
from chaperone_sidecar.protocols.kubernetes import request, spdy


def kubernetes_requests() -> tuple[Target, list[bytes]]:
    """A request line is refused, or read the same again from the form that is forwarded; any body has facts."""
    lines = (CORPORA / "kubernetes_requests.jsonl").read_text().splitlines()
    seeds = [json.loads(line)["request"].encode() for line in lines]

    def target(data: bytes, rng: random.Random) -> None:
        line, _, body = data.partition(b"\n")
        method, _, path = line.decode("latin-1").partition(" ")
        try:
            found = request.read(method, path)
        except ProtocolError:
            return
        assert request.read(method, found.target) == found
        with bounded(10 * len(data)):
            facts = kubernetes.classify(found, rng.choice((kubernetes.JSON, kubernetes.JSON_PATCH)), body).facts
        assert facts.accesses

    body = b'{"metadata":{"name":"x"},"data":{"a":"b"}}'
    patch = b'[{"op":"add","path":"/data/a","value":"b"}]'
    return target, [*seeds, *(one + b"\n" + body for one in seeds), *(one + b"\n" + patch for one in seeds)]


def kubernetes_streams() -> tuple[Target, list[bytes]]:
    """SPDY/3.1 frames are the same however the bytes are cut, or broken in the same way."""

    def frames_of(parts: list[bytes]) -> list[object]:
        codec, found = spdy.Codec(), []
        try:
            for part in parts:
                codec.feed(part)
                while not isinstance(frame := codec.next(), spdy.NeedData):
                    found.append(frame)
        except ProtocolError as error:
            found.append(str(error))
        return found

    def target(data: bytes, rng: random.Random) -> None:
        assert frames_of(cut(data, rng)) == frames_of([data])

    writer = spdy.Codec()
    seeds = [writer.reply(1), writer.data(1, b"hello", is_fin=True), writer.ping(1), writer.go_away()]
    packed = zlib.compressobj(zdict=spdy.DICTIONARY)
    block = packed.compress(spdy.block_of((("streamtype", "stdin"),))) + packed.flush(zlib.Z_SYNC_FLUSH)
    opened = struct.pack(">IIIIH", 1 << 31 | 3 << 16 | spdy.SYN_STREAM, 10 + len(block), 1, 0, 0) + block
    return target, [*seeds, opened, opened + b"".join(seeds[1:])]
