"""What the agent's questions get, and what the gateway itself understands of name servers' answers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading

import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaperone_sidecar.config import Host, Target, Tls, Upstream
from chaperone_sidecar.dial import AddressForbidden, check
from chaperone_sidecar.dns import Names, answer
from chaperone_sidecar.resolver import NameNotFound, Resolver, absolute, read_conf

CONF = read_conf(
    "search agents.svc.cluster.local svc.cluster.local cluster.local example.org\n"
    "nameserver 10.96.0.10\noptions ndots:5\n"
)


def target(*names: str) -> Target:
    """A target whose names have consecutive virtual addresses."""
    hosts = tuple(Host(name, f"240.240.0.{n}", f"fd63:6861:7065::{n}") for n, name in enumerate(names, 1))
    return Target("orders-db", "PostgreSQL", 5432, hosts, Upstream(names[0], 5432), Tls("Disable"))


NAMES = Names([target("orders-db.data.svc", "ledger", "db.example.com")], CONF)


def ask(name: str, qtype: str = "A", names: Names = NAMES) -> tuple[dns.message.Message, tuple[str, str] | None]:
    """Ask as dnspython does, which is strict about what it gets."""
    query = dns.message.make_query(name, qtype)
    found = answer(query.to_wire(), names)
    assert found is not None
    reply = dns.message.from_wire(found.packet)
    assert query.is_response(reply)
    return reply, found.denied


def data(reply: dns.message.Message) -> list[str]:
    """What an answer says."""
    return [str(item) for rrset in reply.answer for item in rrset]


@pytest.mark.parametrize(
    ("name", "qtype", "said"),
    [
        ("orders-db.data.svc", "A", ["240.240.0.1"]),
        ("ORDERS-db.Data.svc", "A", ["240.240.0.1"]),
        ("orders-db.data.svc", "AAAA", ["fd63:6861:7065::1"]),
        ("orders-db.data.svc.cluster.local", "A", ["240.240.0.1"]),
        ("ledger", "A", ["240.240.0.2"]),
        ("db.example.com", "AAAA", ["fd63:6861:7065::3"]),
        ("db.example.com", "MX", []),
        ("_postgresql._tcp.db.example.com", "SRV", ["0 0 5432 db.example.com."]),
        (str(dns.reversename.from_address("240.240.0.2")), "PTR", ["ledger."]),
        (str(dns.reversename.from_address("fd63:6861:7065::3")), "PTR", ["db.example.com."]),
    ],
)
def test_declared_names_are_answered(name: str, qtype: str, said: list[str]) -> None:
    reply, denied = ask(name, qtype)
    assert (reply.rcode(), data(reply), denied) == (dns.rcode.NOERROR, said, None)


@pytest.mark.parametrize(
    ("name", "qtype"),
    [
        ("evil.example", "A"),
        ("secret.payload.db.example.com", "A"),
        ("com", "NS"),
        ("xdb.example.com", "TXT"),
        (str(dns.reversename.from_address("10.0.0.1")), "PTR"),
        ("_postgresql._tcp.evil.example", "SRV"),
        ("_postgresql._udp.db.example.com", "SRV"),
        ("kubernetes.default.svc.cluster.local", "A"),
    ],
)
def test_everything_else_is_refused_and_noted(name: str, qtype: str) -> None:
    reply, denied = ask(name, qtype)
    assert (reply.rcode(), data(reply)) == (dns.rcode.REFUSED, [])
    assert denied == (name.lower().rstrip("."), qtype)


@pytest.mark.parametrize(
    "name", ["ledger.agents.svc.cluster.local", "ledger.example.org", "db.example.com.cluster.local"]
)
def test_a_librarys_expansions_of_declared_names_do_not_exist_so_that_its_search_goes_on(name: str) -> None:
    reply, denied = ask(name)
    assert (reply.rcode(), denied) == (dns.rcode.NXDOMAIN, None)


def test_another_class_is_refused() -> None:
    found = answer(dns.message.make_query("ledger", "A", rdclass="CH").to_wire(), NAMES)
    assert found is not None
    assert dns.message.from_wire(found.packet).rcode() == dns.rcode.REFUSED


def test_answers_get_no_answer() -> None:
    query = dns.message.make_query("ledger", "A")
    assert answer(dns.message.make_response(query).to_wire(), NAMES) is None


@given(st.binary(max_size=512))
def test_arbitrary_bytes_never_do_harm(junk: bytes) -> None:
    found = answer(junk, NAMES)
    assert found is None or len(found.packet) >= 12


@given(st.binary(min_size=1, max_size=40), st.integers(0, 60))
def test_a_damaged_question_never_does_harm(noise: bytes, at: int) -> None:
    packet = dns.message.make_query("orders-db.data.svc", "A").to_wire()
    found = answer(packet[:at] + noise + packet[at:], NAMES)
    assert found is None or found.packet[:2] != b""


def test_only_services_get_the_clusters_domain() -> None:
    assert absolute("Orders-DB.data.svc.", "k8s.corp") == "orders-db.data.svc.k8s.corp"
    assert absolute("db.example.com", "k8s.corp") == "db.example.com"
    assert read_conf("search agents.svc.k8s.corp svc.k8s.corp k8s.corp").cluster_domain == "k8s.corp"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "169.254.169.254", "169.254.0.7", "100.100.100.200", "224.0.0.1",
        "240.240.0.9", "255.255.255.255", "::", "::1", "fe80::1", "ff02::1", "fd00:ec2::254", "fd63:6861:7065::9",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1",
    ],
)  # fmt: skip
def test_forbidden_addresses_are_refused_in_every_spelling(address: str) -> None:
    with pytest.raises(AddressForbidden, match="no target may lead to"):
        check(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "93.184.216.34", "fd00::1", "2001:db8::1"])
def test_other_addresses_pass(address: str) -> None:
    check(ipaddress.ip_address(address))


class Server:
    """A name server of the test on loopback: answers by `answers`, once over UDP and always over TCP."""

    def __init__(self, answers: dict[tuple[str, str], list[str]], *, truncate: bool = False) -> None:
        self.answers, self.truncate, self.asked = answers, truncate, 0
        while True:  # one port for both
            self.udp = socket.socket(type=socket.SOCK_DGRAM)
            self.udp.bind(("127.0.0.1", 0))
            self.port = self.udp.getsockname()[1]
            try:
                self.tcp = socket.create_server(("127.0.0.1", self.port))
            except OSError:
                self.udp.close()
            else:
                break
        for loop in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=loop, daemon=True).start()

    def _reply(self, packet: bytes, *, truncate: bool) -> bytes:
        query = dns.message.from_wire(packet)
        reply = dns.message.make_response(query)
        question = query.question[0]
        qtype = dns.rdatatype.to_text(question.rdtype)
        if truncate:
            reply.flags |= dns.flags.TC
            return reply.to_wire()
        for name, kind, text in self._chain(str(question.name).rstrip("."), qtype):
            reply.answer.append(dns.rrset.from_text(f"{name}.", 5, "IN", kind, text))
        return reply.to_wire()

    def _chain(self, name: str, qtype: str) -> list[tuple[str, str, str]]:
        for kind in (qtype, "CNAME"):
            found = self.answers.get((name, kind))
            if found:
                records = [(name, kind, text) for text in found]
                return records if kind != "CNAME" else records + self._chain(found[0].rstrip("."), qtype)
        return []

    def _serve_udp(self) -> None:
        while True:
            packet, asker = self.udp.recvfrom(4096)
            self.asked += 1
            self.udp.sendto(b"\0\0" + packet[2:], asker)  # another id: somebody guessing
            self.udp.sendto(self._reply(packet, truncate=self.truncate), asker)

    def _serve_tcp(self) -> None:
        while True:
            connection, _ = self.tcp.accept()
            with connection:
                size = int.from_bytes(connection.recv(2))
                reply = self._reply(connection.recv(size), truncate=False)
                connection.sendall(len(reply).to_bytes(2) + reply)


def resolver(server: Server) -> Resolver:
    """One that asks the test's server, without a mark."""
    return Resolver(read_conf("nameserver 127.0.0.1"), socket.socket, server.port)


@pytest.mark.parametrize("truncate", [False, True])
async def test_the_gateway_follows_aliases_and_truncated_answers_and_ignores_forged_ones(truncate: bool) -> None:
    server = Server(
        {
            ("db.example.com", "CNAME"): ["real.example.net."],
            ("real.example.net", "A"): ["192.0.2.7", "192.0.2.8"],
            ("real.example.net", "AAAA"): ["2001:db8::7"],
        },
        truncate=truncate,
    )
    found = await resolver(server).addresses("DB.example.com")
    assert [str(one) for one in found] == ["192.0.2.7", "192.0.2.8", "2001:db8::7"]


async def test_answers_are_remembered_and_addresses_are_not_asked_for() -> None:
    server = Server({("ledger", "A"): ["192.0.2.9"]})
    asking = resolver(server)
    await asking.addresses("ledger")
    asked = server.asked
    await asyncio.gather(*(asking.addresses("ledger") for _ in range(10)))
    assert [str(one) for one in await asking.addresses("2001:db8::1")] == ["2001:db8::1"]
    assert server.asked == asked


async def test_a_name_without_addresses_is_told_by_name() -> None:
    with pytest.raises(NameNotFound, match=r"the name nowhere\.example has no address"):
        await resolver(Server({})).addresses("nowhere.example")
