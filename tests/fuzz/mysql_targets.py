"""MySQL: packets, statements and masked rows."""

from __future__ import annotations

import json
import random

from material import CANARY, CORPORA, PERSON, Target, bounded, cut, masker, pieces, values

from chaperone_sidecar.command import Effect
from chaperone_sidecar.errors import ProtocolError
from chaperone_sidecar.masking.rule import Classified, Masks
from chaperone_sidecar.protocols.mysql import messages as my
from chaperone_sidecar.protocols.mysql import prepared
from chaperone_sidecar.protocols.mysql import rows as mysql_row
from chaperone_sidecar.protocols.mysql.classify import classify as mysql_classify
from chaperone_sidecar.protocols.mysql.codec import Codec as MySqlCodec
from chaperone_sidecar.protocols.mysql.codec import Packet as MySqlPacket
from chaperone_sidecar.protocols.mysql.context import Context
from chaperone_sidecar.protocols.mysql.plan import Columns, Result

ORDERS = Context("orders")


def mysql_packets() -> tuple[Target, list[bytes]]:
    """Packets of both sides: the same however the bytes are cut; whatever reads them raises ProtocolError alone."""
    readers = (
        my.decode_handshake, my.decode_handshake_response, my.decode_column, my.decode_ok, my.decode_eof, my.decode_err,
        my.decode_prepared,
    )  # fmt: skip

    def packets(side: my.Side, parts: list[bytes]) -> list[object]:
        codec, found = MySqlCodec(side), list[object]()
        try:
            for part in parts:
                codec.feed(part)
                while (packet := codec.next()) is not None:
                    found.append(packet)
        except ProtocolError as error:
            found.append(str(error))
        return found

    def target(data: bytes, rng: random.Random) -> None:
        sides: tuple[my.Side, ...] = ("client", "upstream")
        for side in sides:
            found = packets(side, [data])
            assert packets(side, cut(data, rng)) == found
            for packet in found:
                for read in readers if isinstance(packet, MySqlPacket) else ():
                    try:
                        read(packet.payload)
                    except ProtocolError:
                        continue
        statement = prepared.Statement(b"SELECT ?, ?", mysql_classify(b"SELECT 1", ORDERS), params=rng.randrange(4))
        statement.add(1, b"ahead", 0)
        try:
            values, _ = prepared.bind(statement, data)
        except ProtocolError:
            return
        assert len(values) == statement.params

    column = my.Column("orders", "t", "t", "a", "a", 45, 253, 0)
    greeting = my.Handshake(b"8.0.36", 7, b"n" * 20, 0xFFFFFFF, my.NATIVE)
    response = my.HandshakeResponse(my.CLIENT_PROTOCOL_41 | my.CLIENT_SECURE_CONNECTION, 45, b"agent")
    answer = [b"\x01", my.encode_column(column), my.Eof().encode(), b"\x05value", my.Eof().encode()]
    return target, [
        my.packet(0, greeting.encode()) + my.packet(1, response.encode()), my.packet(0, b"\x03SELECT 1"),
        b"".join(my.packet(number, payload) for number, payload in enumerate(answer)),
        my.packet(0, my.Err(1142, "42000", "no").encode()), my.packet(0, my.Ok(3, 4).encode()),
        b"\x17\1\0\0\0\0\1\0\0\0\0\1\x08\0\xfd\0" + bytes(8) + b"\3abc",
    ]  # fmt: skip


def mysql_statements() -> tuple[Target, list[bytes]]:
    """Never raises, always has an access, and says why when something is unknown; so do masks."""
    seeds = [
        json.loads(line)["sql"].encode()
        for name in ("mysql_effects.jsonl", "mysql_masking.jsonl")
        for line in (CORPORA / name).read_text().splitlines()
    ]
    columns = Columns(Masks(classified=(Classified(("orders.customers.email",), "email"),)))

    def target(data: bytes, _: random.Random) -> None:
        found = mysql_classify(data[:4096], ORDERS)
        assert found.facts.accesses
        if any(access.effect is Effect.UNKNOWN for access in found.facts.accesses):
            assert found.facts.why_unknown
        is_one = len(found.plan.readings) == 1 and not found.plan.is_apart
        if is_one and not columns.check(found.plan) and columns.touched(found.plan.tables):
            assert columns.result(found.plan).is_checked
        if found.unset_charsets:
            sent = mysql_classify(found.sent(data[:4096]), ORDERS)
            assert sent.facts == found.facts and not sent.unset_charsets

    return target, seeds


def mysql_rows() -> tuple[Target, list[bytes]]:
    """Masked rows of both formats are rows again, the same when masked anew, with no classified value in them."""
    both = masker()
    kinds = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 245, 246, 252, 253, 254, 99)

    def target(data: bytes, rng: random.Random) -> None:
        is_binary = rng.random() < 0.5
        described = [my.Column("", "", "", f"c{number}", "", 45, rng.choice(kinds), 0) for number in range(3)]
        described[1] = my.Column("public", "t", "t", "b", "b", 45, 253, 0)
        if rng.random() < 0.7:
            described = [my.Column("public", "t", "t", name, name, 45, 253, 0) for name in "abc"]
            cells = pieces(data.replace(CANARY, b""), 3, rng)
            cells[1] = CANARY
            data = mysql_row.binary_row(cells, described) if is_binary else mysql_row.text_row(cells)
        mask = mysql_row.RowMask(both, described, Result(), is_binary=is_binary)
        mask._classes[1] = PERSON
        try:
            with bounded(len(data)):
                (once,) = mask.rows([data])
        except ProtocolError:
            return
        assert mask.rows([once]) == [once]
        again = mysql_row.binary_cells(once, described) if is_binary else mysql_row.text_cells(once, 3)
        assert CANARY not in (again[1] or b"")

    return target, [b"\x01a\x07Quorbly\x01c", b"\0\0\x01a\x07Quorbly\x01c", b"\xfb\xfb\xfb", *values()]
