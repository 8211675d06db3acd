"""Tokens of persons at the broker: only what its issuer signed, for this agent, now, says on whose behalf it acts."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import jwt
import oidc
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from fix_broker import Broker, Pod, secret
from manifests import identity, policy, rule, target
from oidc import AUDIENCE, EMAIL, SUBJECT, Issuer, issuing

from chaperone_operator.broker.errors import Refused
from chaperone_operator.broker.issuer import FRESH_S, PAUSE_S, STALE_S, Issuers, read
from chaperone_operator.broker.secret import Secrets
from chaperone_operator.broker.snapshots import Claims, Delegation
from chaperone_operator.broker.source import Unready
from chaperone_operator.broker.user import LEEWAY_S, MAX_LIFE_S, User, Users
from chaperone_operator.compile import compile_namespace
from chaperone_operator.kube import SECRETS


class Authorities(Secrets):
    """The Secret of the issuer's CA, without an API server."""

    def __init__(self, pem: str) -> None:
        self._pem = pem

    async def authority(self, name: str, target: str, field: str = "") -> str:
        if name != "issuer-ca":
            raise Unready("SecretMissing", "there is none")
        return self._pem


class Checked:
    """A checker of tokens with a clock of the test's."""

    def __init__(self, issuer: Issuer) -> None:
        self.now = 1000.0
        self.issuer = issuer
        self._users = Users(Issuers(Authorities(issuer.ca_pem), lambda: self.now))

    async def identify(self, token: str, **changed: Any) -> User:
        usual: dict[str, Any] = {
            "issuer": self.issuer.url, "audience": AUDIENCE, "jwks_url": "", "ca_secret": "issuer-ca",
            "claims": Claims("sub", "email", "groups"),
        }  # fmt: skip
        return await self._users.identify("billing-agent", Delegation(**(usual | changed)), token)

    async def refusal(self, token: str, status: int = 401, **changed: Any) -> str:
        with pytest.raises(Refused) as refused:
            await self.identify(token, **changed)
        assert refused.value.status == status
        for part in token.split("."):
            assert len(part) < 8 or part not in str(refused.value)
        return str(refused.value)


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    async with issuing(tmp_path) as found:
        yield found


@pytest.fixture
def checked(issuer: Issuer) -> Checked:
    return Checked(issuer)


async def test_a_good_token_says_who_it_is_and_until_when(checked: Checked, issuer: Issuer) -> None:
    ends = int(time.time()) + 300
    found = await checked.identify(issuer.token(exp=ends))
    assert found == User(SUBJECT, issuer.url, EMAIL, ("finance", "staff"), ends + LEEWAY_S)


@pytest.mark.parametrize("make", [oidc.rsa_key, oidc.ec_key, ed25519.Ed25519PrivateKey.generate])
async def test_keys_of_all_admitted_kinds_sign(checked: Checked, issuer: Issuer, make: Callable[[], Any]) -> None:
    issuer.keys = {"other": make()}
    assert (await checked.identify(issuer.token())).subject == SUBJECT


async def test_keys_are_found_where_the_identity_says(checked: Checked, issuer: Issuer) -> None:
    issuer.stated = "https://elsewhere.example.com"  # a discovery document that would be refused
    assert (await checked.identify(issuer.token(), jwks_url=f"{issuer.url}/keys")).subject == SUBJECT
    assert "another issuer" in await Checked(issuer).refusal(issuer.token(), 503)


async def test_other_claims_can_say_who_it_is(checked: Checked, issuer: Issuer) -> None:
    claims = Claims("oid", "upn", "roles")
    found = await checked.identify(issuer.token(oid="o-1", upn="a@b", roles="admin"), claims=claims)
    assert (found.subject, found.email, found.groups) == ("o-1", "a@b", ("admin",))


async def test_an_address_that_was_not_verified_is_not_told(checked: Checked, issuer: Issuer) -> None:
    assert (await checked.identify(issuer.token(email_verified=False))).email == ""
    assert (await checked.identify(issuer.token(email_verified=True))).email == EMAIL


async def test_no_token_stands_for_longer_than_a_day(checked: Checked, issuer: Issuer) -> None:
    for ends in (int(time.time()) + 10**9, 1e300):
        found = await checked.identify(issuer.token(exp=ends))
        assert found.expires_at_unix <= time.time() + MAX_LIFE_S + 1


NOW = int(time.time())  # when the tests were collected; this one may run an hour later
DAY_S = 86_400


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"exp": NOW - LEEWAY_S - 5}, "has expired"),
        ({"nbf": NOW + DAY_S}, "is not valid yet"),
        ({"iat": NOW + DAY_S}, "is not valid yet"),
        ({"aud": "other-agent"}, "for another audience"),
        ({"aud": ["other-agent", "third"]}, "for another audience"),
        ({"iss": "https://other.example.com"}, "of another issuer"),
        ({"exp": None}, "lacks exp"),
        ({"iat": None}, "lacks exp, iat"),
        ({"aud": None}, "lacks exp, iat, aud"),
        ({"iss": None}, "lacks"),
        ({"exp": "soon"}, "is not well formed"),
        ({"exp": float("inf")}, "is not well formed"),
        ({"exp": True}, "has expired"),
        ({"sub": None}, "nobody's name"),
        ({"sub": ""}, "nobody's name"),
        ({"sub": "a\nb"}, "nobody's name"),
        ({"sub": "a" * 257}, "nobody's name"),
        ({"sub": 7}, "nobody's name"),
        ({"email": ["a@b"]}, "is no address"),
        ({"groups": {"finance": True}}, "is no list"),
        ({"groups": ["finance", 7]}, "is no list"),
        ({"groups": [f"g{number}" for number in range(257)]}, "is no list"),
    ],
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)  # fmt: skip
async def test_a_token_that_says_what_cannot_be_trusted_is_refused(
    checked: Checked, issuer: Issuer, changed: dict[str, Any], why: str
) -> None:
    assert why in await checked.refusal(issuer.token(**changed))


async def test_clocks_may_differ_by_a_minute(checked: Checked, issuer: Issuer) -> None:
    now = int(time.time())
    assert await checked.identify(issuer.token(exp=now - LEEWAY_S + 10))
    assert await checked.identify(issuer.token(iat=now + LEEWAY_S - 10, nbf=now + LEEWAY_S - 10))


def forged(issuer: Issuer, algorithm: str, key: bytes) -> str:
    """A token that names the published key and is signed with something else."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = jwt.decode(issuer.token(), options={"verify_signature": False})
    signed = part({"alg": algorithm, "kid": "first", "typ": "JWT"}) + b"." + part(claims)
    made = b"" if algorithm == "none" else jwt.get_algorithm_by_name(algorithm).sign(signed, key)
    return (signed + b"." + base64.urlsafe_b64encode(made).rstrip(b"=")).decode()


async def test_a_token_without_signature_or_signed_with_the_public_key_as_secret_is_refused(
    checked: Checked, issuer: Issuer
) -> None:
    public = issuer.keys["first"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    for algorithm in ("none", "HS256", "HS512"):
        assert "algorithm" in await checked.refusal(forged(issuer, algorithm, pem)), algorithm
    assert "algorithm" in await checked.refusal(issuer.token(algorithm="RS512"))
    assert "signature" in await checked.refusal(issuer.token("first", oidc.rsa_key()))
    assert "algorithm" in await checked.refusal(issuer.token("first", oidc.ec_key()))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "." * 9, "e30.e30.e30", "none", "ä.ö.ü", "[" * 9000 + ".x.y"])
async def test_what_is_no_token_is_refused(checked: Checked, issuer: Issuer, text: str) -> None:
    assert await checked.refusal(text)
    assert issuer.asked == 0  # nobody is asked about what names no key


async def test_a_token_that_names_no_key_or_asks_for_the_unknown_is_refused(checked: Checked, issuer: Issuer) -> None:
    key, claims = issuer.keys["first"], jwt.decode(issuer.token(), options={"verify_signature": False})
    assert "does not name its key" in await checked.refusal(jwt.encode(claims, key, "RS256"))
    headers = {"kid": "first", "crit": ["later"], "later": True}
    assert "cannot be read" in await checked.refusal(jwt.encode(claims, key, "RS256", headers=headers))


async def test_keys_that_are_rotated_count_without_a_restart_and_old_ones_no_more(
    checked: Checked, issuer: Issuer
) -> None:
    old = issuer.token()
    assert await checked.identify(old)
    asked = issuer.asked
    issuer.keys = {"second": oidc.ec_key()}
    new = issuer.token()
    assert "does not publish" in await checked.refusal(new)  # within the pause nobody is asked again
    assert issuer.asked == asked
    checked.now += PAUSE_S
    assert await checked.identify(new)
    assert "does not publish" in await checked.refusal(old)


async def test_a_key_that_was_taken_back_is_refused_after_an_hour_at_the_latest(
    checked: Checked, issuer: Issuer
) -> None:
    token = issuer.token()
    assert await checked.identify(token)
    issuer.keys = {"second": oidc.ec_key()}
    checked.now += FRESH_S - 1
    assert await checked.identify(token)
    checked.now += 2
    assert "does not publish" in await checked.refusal(token)


async def test_invented_keys_do_not_make_the_broker_ask_each_time(checked: Checked, issuer: Issuer) -> None:
    stranger = oidc.ec_key()
    for number in range(20):
        assert "does not publish" in await checked.refusal(issuer.token(f"k{number}", stranger))
    assert issuer.asked == 2  # discovery and keys


async def test_known_keys_stand_while_the_issuer_is_away_but_not_for_ever(checked: Checked, issuer: Issuer) -> None:
    token = issuer.token()
    assert await checked.identify(token)
    issuer.is_down = True
    checked.now += FRESH_S + 1
    assert await checked.identify(token)
    assert "does not publish" in await checked.refusal(issuer.token("new", oidc.ec_key()))
    checked.now += STALE_S - FRESH_S
    assert "HTTP status 503" in await checked.refusal(token, 503)
    issuer.is_down = False
    checked.now += PAUSE_S
    assert await checked.identify(token)


async def test_an_issuer_that_answers_too_much_or_leads_elsewhere_is_not_followed(issuer: Issuer) -> None:
    token = issuer.token()
    issuer.padding = 300 << 10
    assert "too large" in await Checked(issuer).refusal(token, 503)
    issuer.padding, issuer.redirects_to = 0, f"{issuer.url}/keys"
    assert "HTTP status 302" in await Checked(issuer).refusal(token, 503)
    assert "no certificate of a CA" in await Checked(issuer).refusal(token, 503, ca_secret="other")
    issuer.redirects_to = ""
    port = issuer.url.rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]", "169.254.169.254", "[::ffff:127.0.0.1]"):
        asked = issuer.asked
        place = f"https://{host}:{port}/keys"
        assert "cannot be reached" in await Checked(issuer).refusal(token, 503, jwks_url=place)
        assert issuer.asked == asked


async def test_an_issuer_whose_certificate_is_of_another_ca_is_not_believed(issuer: Issuer) -> None:
    other = Checked(issuer)
    other._users = Users(Issuers(Authorities(oidc.Authority("another CA").pem)))
    assert "Certificate" in await other.refusal(issuer.token(), 503)


def test_keys_that_are_weak_shared_private_or_for_other_uses_are_left_out() -> None:
    good = oidc.jwk(oidc.ec_key(), "good")
    private = oidc.ECAlgorithm.to_jwk(oidc.ec_key(), as_dict=True) | {"kid": "private"}
    keys = [
        good, oidc.jwk(oidc.rsa_key(1024), "weak"), {"kty": "oct", "k": "c2VjcmV0", "kid": "shared", "alg": "HS256"},
        oidc.jwk(oidc.ec_key(), "enc", use="enc"), {**oidc.jwk(oidc.ec_key(), "x"), "kid": None}, private, 7, {},
        oidc.jwk(oidc.rsa_key(), "odd", alg="RS512"), oidc.jwk(oidc.rsa_key(), "one", alg="PS256"),
        oidc.jwk(oidc.ec_key(), "good"),
    ]  # fmt: skip
    found = read({"keys": keys})
    assert {kid: key.algorithms for kid, key in found.items()} == {"good": ("ES256",), "one": ("PS256",)}
    assert read({}) == read({"keys": {"a": 1}}) == {}


@pytest.mark.peer
async def test_a_gateway_learns_who_the_user_of_its_identity_is_and_nothing_for_others(
    broker: Broker, issuer: Issuer
) -> None:
    delegated = {"issuer": issuer.url, "audience": AUDIENCE, "jwks": {"caSecretRef": {"name": "issuer-ca"}}}
    snapshot = compile_namespace(
        broker.agents,
        [identity(namespace=broker.agents, delegation=delegated), identity("other-agent", namespace=broker.agents)],
        [target(allowedNamespaces={"names": [broker.agents]})],
        [policy([rule("read", "Allow", ["read"])], namespace=broker.agents)], [],
        namespace_labels={}, system_namespace=broker.system,
    )  # fmt: skip
    assert snapshot.is_usable, snapshot.problems
    async with broker.admin() as client:
        made = secret("issuer-ca", "Opaque", **{"ca.crt": issuer.ca_pem})
        await client.apply(SECRETS, "issuer-ca", made, manager="test", namespace=broker.system)
    try:
        await broker.put_snapshot(snapshot)
        pod = await broker.pod("delegated")
        assert (await pod.exchange())[0] == 200
        status, answer = await asked(pod, issuer.token())
        assert status == 200, answer
        assert answer.pop("expires_at_unix") > time.time()
        assert answer == {
            "subject": SUBJECT, "issuer": issuer.url, "email": EMAIL, "groups": ["finance", "staff"],
        }  # fmt: skip
        assert (await asked(pod, issuer.token(aud="other-agent")))[0] == 401
        assert (await asked(pod, 7))[0] == 400
        assert (await asked(pod, issuer.token(), has_certificate=False))[0] == 401
        answers = await pod.until_limited("POST", "/v1/users", 700, json={"token": "x"})
        assert {one.status for one in answers} == {401, 429}
        other = await broker.pod("plain", labels={"chaperone.dev/identity": "other-agent"}, told="other-agent")
        assert (await other.exchange())[0] == 200
        assert (await asked(other, issuer.token()))[0] == 403
    finally:
        await broker.put_snapshot(broker.compiled())


async def asked(pod: Pod, token: object, **more: Any) -> tuple[int, Any]:
    return await pod.call("POST", "/v1/users", json={"token": token}, **more)
