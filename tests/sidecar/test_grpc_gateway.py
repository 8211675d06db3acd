"""gRPC through the real `chaperone dev`: calls of every kind by grpcio, against a service of grpcio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from fix_http import BACKEND, CANARY, NAME, Api, Backend, running_backend
from manifests import rule
from recordings import every_byte
from waiting import Person, eventually

from chaperone_evidence import record

SERVICE = "shop.v1.Orders"
CALLS = ["create", "execute_code"]


def may(name: str, action: str, *methods: str, **more: Any) -> dict[str, Any]:
    """A rule of calls."""
    objects = [
        f"{form.format(method)}" for method in methods for form in (f"grpc:{SERVICE}.{{}}", f"path:/{SERVICE}/{{}}")
    ]
    return rule(name, action, CALLS, objects, **more)


RULES = [
    may("calls", "Allow", "Get", "Watch", "Add", "Talk"),
    may("pay", "RequireApproval", "Pay", approval={"groups": ["leads"], "wait": "60s", "validFor": "60s"}),
    may("never", "Deny", "Drop", message="Ask the shop team: 50% of drops go wrong."),
]


@pytest.fixture(scope="module")
def http_backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """The service."""
    with running_backend(tmp_path_factory.mktemp("backend"), program=BACKEND.with_name("grpc_backend.py")) as found:
        yield found


@pytest.fixture(scope="module")
def shop(api_with: Callable[..., Api]) -> Iterator[Api]:
    """A gateway to it; its evidence must verify in the end."""
    found = api_with(rules=RULES, recording={"results": "Full"}, credential={"header": "Authorization"})
    yield found
    assert found.gateway.stop() == 0, "".join(found.gateway.output)
    assert found.gateway.verify().stdout.endswith("verify: OK\n")


def channel(api: Api) -> grpc.Channel:
    """As an agent opens it."""
    return grpc.secure_channel(
        f"127.0.0.1:{api.gateway.port}", grpc.ssl_channel_credentials(api.ca_pem.encode()),
        options=(("grpc.ssl_target_name_override", NAME), ("grpc.default_authority", NAME)),
    )  # fmt: skip


def call(api: Api, method: str, request: bytes, **more: Any) -> bytes:
    """A call of one message each way."""
    with channel(api) as opened:
        found: bytes = opened.unary_unary(f"/{SERVICE}/{method}")(request, timeout=20, **more)
        return found


def refused(api: Api, method: str, request: bytes = b"", **more: Any) -> tuple[grpc.StatusCode, str]:
    """How a call is refused."""
    with pytest.raises(grpc.RpcError) as error:
        call(api, method, request, **more)
    return error.value.code(), error.value.details()


def intents(api: Api) -> list[record.CommandIntent]:
    return [one for one in api.gateway.records() if isinstance(one, record.CommandIntent)]


def outcomes(api: Api) -> list[record.CommandOutcome]:
    return [one for one in api.gateway.records() if isinstance(one, record.CommandOutcome)]


def test_calls_of_every_kind_pass_with_the_credential(shop: Api) -> None:
    assert call(shop, "Get", b"seven") == b"got seven as " + b"[credential]".ljust(len(f"Bearer {CANARY}"), b"*")
    assert f"Get Bearer {CANARY}" in shop.backend.heard()
    with channel(shop) as opened:
        assert len(list(opened.unary_stream(f"/{SERVICE}/Watch")(b"20", timeout=20))) == 20
        pieces = (b"x" * 100_000 for _ in range(40))
        assert opened.stream_unary(f"/{SERVICE}/Add")(pieces, timeout=20) == b"4000000"
        gate = threading.Semaphore(1)  # each message is sent only when the one before was answered

        def said() -> Iterator[bytes]:
            for number in range(20):
                assert gate.acquire(timeout=20)
                yield b"%d" % number

        heard = []
        for answer in opened.stream_stream(f"/{SERVICE}/Talk")(said(), timeout=20):
            heard.append(answer)
            gate.release()
        assert heard == [b"re %d" % number for number in range(20)]


def test_a_denied_call_names_the_rule_in_its_status(shop: Api) -> None:
    code, told = refused(shop, "Drop")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert 'by rule "never" of policy "agents/billing": Ask the shop team: 50% of drops go wrong.' in told
    code, told = refused(shop, "Other")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert not any(line.startswith(("Drop", "Other")) for line in shop.backend.heard())


def test_the_status_of_the_service_passes_and_is_recorded(shop: Api) -> None:
    code, told = refused(shop, "Get", b"none")
    assert (code, told) == (grpc.StatusCode.NOT_FOUND, "there is no jane.doe@example.com")
    found = outcomes(shop)[-1]
    assert (found.status, found.code) == ("error", "grpc-status:5")
    intent = next(one for one in intents(shop) if one.command == found.command)
    assert [(one.effect, one.object) for one in intent.accesses] == [
        ("execute_code", f"grpc:{SERVICE}.Get"), ("create", f"path:/{SERVICE}/Get"),
    ]  # fmt: skip
    with channel(shop) as opened:
        answer, ended = opened.unary_unary(f"/{SERVICE}/Get").with_call(b"marked", timeout=20)
        assert answer is not None
        assert ("x-total", "1") in ended.trailing_metadata()
    kept = every_byte(shop.gateway.evidence)
    assert b"\x00\x00\x00\x00\x06marked" in kept  # a call of one message is recorded with it
    assert b"x-total: 1" in kept
    assert b"grpc-status: 0" in kept


def test_what_is_compressed_is_refused(shop: Api) -> None:
    code, told = refused(shop, "Get", b"x" * 1000, compression=grpc.Compression.Gzip)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "compressed" in told


def test_held_calls_wait_beside_each_other_and_others_go_on(shop: Api) -> None:
    person, heard = Person(shop.gateway), shop.backend.heard
    with channel(shop) as opened:
        pay, get = opened.unary_unary(f"/{SERVICE}/Pay"), opened.unary_unary(f"/{SERVICE}/Get")
        first = pay.future(b"first", timeout=100)
        one, shown = person.next(1)
        assert str(shown["text"]).startswith(f"POST /{SERVICE}/Pay")
        second = pay.future(b"second", timeout=100)
        other, _ = person.next(2)
        assert get(b"meanwhile", timeout=20).startswith(b"got meanwhile")
        assert not any(line.startswith("Pay") for line in heard())
        person.decide(one, "deny")
        assert first.exception().code() is grpc.StatusCode.PERMISSION_DENIED
        assert 'rule "pay"' in first.exception().details()
        person.decide(other, "approve")
        assert second.result() == b"paid second"
        gone = pay.future(b"third", timeout=100)
        person.next(3)
        gone.cancel()
    eventually(lambda: [one.state for one in resolved(shop)] == ["Denied", "Used", "Cancelled"])
    assert sum(line.startswith("Pay") for line in heard()) == 1


def resolved(api: Api) -> list[record.ApprovalOutcome]:
    return [one for one in api.gateway.records() if isinstance(one, record.ApprovalOutcome)]


def test_a_stream_of_messages_cannot_be_approved(shop: Api) -> None:
    gate = threading.Event()

    def said() -> Iterator[bytes]:
        yield b"first"
        gate.wait(20)

    with channel(shop) as opened, pytest.raises(grpc.RpcError) as error:
        opened.stream_unary(f"/{SERVICE}/Pay")(said(), timeout=20)
    gate.set()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "is a stream of messages" in error.value.details()


def test_a_deadline_ends_the_call_at_the_service(shop: Api) -> None:
    with channel(shop) as opened:
        grpc.channel_ready_future(opened).result(60)
        with pytest.raises(grpc.RpcError) as error:
            opened.unary_unary(f"/{SERVICE}/Get")(b"slow", timeout=10)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: outcomes(shop)[-1].status == "aborted")


def test_a_call_that_is_cut_ends_with_a_status(api_with: Callable[..., Api]) -> None:
    api = api_with(
        rules=RULES, masks=[{"detectors": ["Email"], "method": "Redact"}], unmaskable="Allow",
        limits={"bytesPerSession": "1Mi", "commandDuration": "10s"},
    )  # fmt: skip
    code, told = refused(api, "Get", b"none")
    assert (code, told[:11]) == (grpc.StatusCode.NOT_FOUND, "there is no")
    assert "example.com" not in told
    for number, rule_name in ((b"1", "commandDuration"), (b"5000", "bytesPerSession")):
        with channel(api) as opened:
            answers = opened.stream_stream(f"/{SERVICE}/Talk")
            heard: list[bytes] = []
            gate = threading.Event()

            def said(number: bytes = number, gate: threading.Event = gate) -> Iterator[bytes]:
                for _ in range(int(number)):
                    yield b"x" * 1000
                gate.wait(20)

            with pytest.raises(grpc.RpcError) as error:
                heard.extend(answers(said(), timeout=20))
            gate.set()
        assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert f"limit:{rule_name}" in error.value.details()
        assert outcomes(api)[-1].code == f"limit:{rule_name}"


def test_where_values_are_masked_no_call_is_sent(api_with: Callable[..., Api]) -> None:
    api = api_with(rules=RULES, masks=[{"detectors": ["Email"], "method": "Redact"}])
    before = api.backend.heard()
    code, told = refused(api, "Get")
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "messages of gRPC cannot be" in told
    assert api.backend.heard() == before
    assert intents(api)[-1].rule == "unmaskable"


def test_a_service_without_http_2_is_unavailable(
    api_with: Callable[..., Api], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_backend(tmp_path_factory.mktemp("old")) as backend:
        code, told = refused(api_with(backend, rules=RULES), "Get")
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "does not speak HTTP/2" in told
