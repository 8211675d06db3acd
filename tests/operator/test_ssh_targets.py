"""SSH targets in compiler, admission and broker: host keys, patterns of paths, known hosts, keys of Secrets."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from fix_broker import Broker, secret
from leasing import enrolled, leased, put_target
from manifests import Object, identity, policy, rule, target

from chaperone_operator.admission.inject import Agent, Settings, inject, missing, without_ours
from chaperone_operator.admission.protect import violations
from chaperone_operator.compile import compile_namespace, glob
from chaperone_operator.compile.check import alone
from chaperone_operator.compile.credential import Place
from chaperone_operator.kube import SECRETS
from chaperone_sidecar.config import decode

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBQ3bcNXcm4JlxzqcpAyHPZxB4L4YYBjkZgMYsD9AvoZ"
SETTINGS = Settings("1", "gateway", "opa", "uid", "ca", "key")
AGENT = Agent("build-agent")


def host(**spec: Any) -> Object:
    return target("build-host", **({"protocol": "SSH", "ssh": {"hostKeys": [KEY]}} | spec))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"ssh": {}}, "NoHostKey"),
        ({"ssh": {"hostKeys": ["ssh-ed25519 AAAA"]}}, "BadHostKey"),
        ({"ssh": {"hostAuthorities": [f"{KEY}\n{KEY}"]}}, "BadHostKey"),
        ({"ssh": {"hostKeys": [KEY] * 33}}, "TooManyHostKeys"),
        ({"tls": {"mode": "Disable"}}, "NoTls"),
        ({"protocol": "PostgreSQL"}, "NotSsh"),
        ({"classified": [{"columns": ["a.b.c"], "class": "email"}]}, "MaskNotPossible"),
    ],
)
def test_a_host_that_cannot_be_told_from_another_is_refused(spec: Object, reason: str) -> None:
    assert reason in {one.reason for one in alone(host(**spec)) if one.is_blocking}


def test_the_gateway_is_told_the_keys_of_hosts() -> None:
    granted = policy([rule("r", "Allow", ["read"], ["path:/srv/*"])], targets=[{"name": "build-host"}])
    snapshot = compile_namespace("agents", [identity()], [host()], [granted], [], namespace_labels={})
    assert snapshot.is_usable, snapshot.problems
    configs = msgspec.json.decode(snapshot.gateway, type=dict[str, msgspec.Raw])
    found = decode(bytes(configs["billing-agent"])).targets[0]
    assert (found.protocol, found.port, found.ssh.host_keys) == ("SSH", 22, (KEY,))


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("path:/srv/*", ["path:/srv/a", "path:/srv/a/b.txt", "path:/srv/.ssh/x.y"], ["path:/srv", "path:/srv2/a"]),
        ("path:/srv/*.log", ["path:/srv/a.log", "path:/srv/a/b.c.log"], ["path:/srv/a.logs", "path:/srv/axlog"]),
        ("path:/etc/foo.d/*", ["path:/etc/foo.d/x.conf"], ["path:/etc/fooxd/x"]),
        ("command:*", ["command:ls"], ["command:a.b", "path:/x"]),
    ],
)
def test_patterns_of_paths_take_any_characters(pattern: str, matching: list[str], other: list[str]) -> None:
    glob.check(pattern)
    compiled = re.compile(glob.expression(pattern).replace(r"\z", r"\Z"))
    assert all(map(compiled.match, matching)) and not any(map(compiled.match, other))
    first = glob.first_part(pattern)
    assert first == "" or all(one.split(".", 1)[0] == first for one in matching)


def pod(*mounts: Object) -> Object:
    return {
        "metadata": {"name": "agent", "labels": {}},
        "spec": {"containers": [{"name": "agent", "image": "x", "volumeMounts": list(mounts)}], "volumes": []},
    }


def known_hosts(injected: Object) -> list[Object]:
    return [one for one in injected["spec"]["containers"][0]["volumeMounts"] if one.get("subPath")]


def test_containers_find_the_gateways_host_key_where_clients_look() -> None:
    injected = inject(pod(), SETTINGS, AGENT)
    assert known_hosts(injected) == [
        {
            "name": "chaperone-trust", "mountPath": "/etc/ssh/ssh_known_hosts2", "readOnly": True,
            "subPath": "ssh_known_hosts",
        }
    ]  # fmt: skip
    assert inject(injected, SETTINGS, AGENT) == injected
    assert missing(injected, SETTINGS, AGENT) == () and violations(injected) == ()
    assert known_hosts(inject(without_ours(injected, SETTINGS, AGENT), SETTINGS, AGENT))


@pytest.mark.parametrize("path", ["/etc", "/etc/ssh/", "/etc/ssh/ssh_known_hosts2", "/"])
def test_a_volume_of_the_agents_own_is_not_mounted_into(path: str) -> None:
    injected = inject(pod({"name": "own", "mountPath": path}), SETTINGS, AGENT)
    assert known_hosts(injected) == []


@pytest.mark.parametrize(
    "change", [{"readOnly": False}, {"subPath": "ca.crt"}, {"mountPath": "/x"}, {"name": "chaperone-token"}]
)
def test_no_other_mount_of_our_volumes_is_let_pass(change: Object) -> None:
    injected = inject(pod(), SETTINGS, AGENT)
    mounts = injected["spec"]["containers"][0]["volumeMounts"]
    mounts[-1] = {**mounts[-1], **change}
    assert "our-volume" in {one.rule for one in violations(injected)}


@pytest.mark.peer
async def test_a_key_in_a_secret_is_leased_as_a_key(broker: Broker) -> None:
    pod = await enrolled(broker)
    async with broker.admin() as client:
        made = secret("host-key", "kubernetes.io/ssh-auth", username="deploy", **{"ssh-privatekey": "PRIVATE"})
        await client.apply(SECRETS, "host-key", made, manager="test", namespace=broker.system)
    await put_target(broker, {"secretRef": {"name": "host-key"}}, Place("ssh.example", 22, "", "VerifyFull", ""))
    lease = await leased(pod, lambda found: found["kind"] == "key")
    assert (lease["username"], lease["private_key"], lease["password"]) == ("deploy", "PRIVATE", "")
