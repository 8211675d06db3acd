"""How long a change of policy takes to reach the gateways of 1 000 pods, and what operator and broker use meanwhile.

    uv run python bench/policy_scale.py [--namespaces 10] [--pods 100] [--policies 20] [--rounds 5] [--proved 2]

One replica each of operator and broker, as processes with their own rights, at a real API server. The pods are objects
only, injected by the operator's webhook; no node runs them. One client plays all of their gateways: each enrols with
its pod's token from an address of its own, waits for the next configuration as gateways do and fetches the bundle that
it names. A gateway "has" a policy when the bundle is there; how long its OPA takes to load it is not in the times.

Two agents' policies of each namespace have tests and Rego of their own, for which the operator runs `opa`. Client, API
server and etcd share the machine with what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import aiohttp
import fix_apiserver
import fix_broker
import fix_crds
import fix_opa
import fix_operator
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fix_broker import Broker, Pod, ServiceCa
from fix_operator import Operator
from manifests import cluster_policy, identity, policy, rule, target
from process_usage import cpu_seconds, resident_mib

from chaperone_operator import kubeconfig
from chaperone_operator.kube import (
    ACCESS_POLICIES,
    AGENT_IDENTITIES,
    CLUSTER_ACCESS_POLICIES,
    NAMESPACES,
    PODS,
    SERVICE_ACCOUNTS,
    Client,
    Object,
)

LONG_POLL_S: Final = 30  # of gateways
AT_ONCE: Final = 16  # pods that are created or enrolled at one time, as a rollout does
SETTLE_S: Final = 4.0  # between rounds; budgets of calls fill up again, and counts of pods are written
LIMIT_S: Final = 120.0
IDLE_S: Final = 30.0
AGENTS: Final = 5  # identities of a namespace


@dataclass(eq=False)
class Gateway:
    """The gateway of one pod: what it has, and since when."""

    pod: Pod
    session: aiohttp.ClientSession
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    revision: str = ""
    since_s: float = 0.0
    refusals: int = 0

    async def follow(self) -> None:
        """Take each policy as it comes, for ever."""
        while True:
            params = {"revision": self.revision, "wait": str(LONG_POLL_S)}
            async with self.session.get("/v1/config", params=params) as answer:
                if answer.status == 304:
                    continue
                if answer.status != 200:
                    self.refusals += 1
                    await asyncio.sleep(1.0)
                    continue
                revision: str = (await answer.json())["revision"]
            async with self.session.get("/v1/bundle") as answer:
                bundle = await answer.read()
                if answer.status != 200 or not bundle:
                    self.refusals += 1
                    await asyncio.sleep(1.0)
                    continue
            self.revision, self.since_s = revision, time.perf_counter()
            self.changed.set()

    async def after(self, revision: str) -> float:
        """When the gateway had another revision than that."""
        while self.revision == revision:
            self.changed.clear()
            await self.changed.wait()
        return self.since_s


def rules(number: int, salt: str = "") -> list[Object]:
    """Five rules; `salt` makes them others than before."""
    schema = f"app{number}"
    return [
        rule("read", "Allow", ["read"], [f"{schema}.*", "public.customers"]),
        rule("write", "Allow", ["modify"], [f"{schema}.orders"], message=f"Orders only. {salt}".strip()),
        rule("ask", "RequireApproval", ["destroy"], [f"{schema}.*"],
             approval={"groups": ["leads"], "count": 1}),
        rule("secrets", "Deny", ["read"], [f"{schema}.secrets"]),
        rule("settings", "Allow", ["transaction"]),
    ]  # fmt: skip


def agents_policy(namespace: str, number: int, *, is_proved: bool, salt: str = "") -> Object:
    """A policy of one agent of a namespace."""
    proof: Object = {}
    if is_proved:
        accesses = [{"effect": "read", "object": f"app{number}.orders"}]
        proof = {
            "tests": [{"name": "reads", "accesses": accesses, "expect": {"action": "Allow"}}],
            "rego": 'deny contains "too many at once" if count(input.accesses) > 50',
        }
    made = policy(
        rules(number, salt), f"policy-{number}", namespace,
        subjects=[{"identity": f"agent-{number % AGENTS}"}], targets=[{"name": f"db-{namespace}"}], **proof,
    )  # fmt: skip
    return named(made)


def named(item: Object) -> Object:
    """Without what the API server sets."""
    return item | {"metadata": {key: item["metadata"][key] for key in ("name", "namespace") if key in item["metadata"]}}


def guardrail(salt: str) -> Object:
    """A ClusterAccessPolicy for everybody."""
    denied = rule("nobody-drops", "Deny", ["privilege"], message=f"Ask the platform team. {salt}")
    return named(cluster_policy([denied], "guardrail"))


def pod(name: str, number: int) -> Object:
    """A pod as its author writes it."""
    labels = {"app": f"agent-{number % AGENTS}"}
    spec = {"serviceAccountName": "agent", "containers": [{"name": "agent", "image": "example.com/agent:1"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


class Scale:
    """One installation and its gateways."""

    def __init__(self, options: argparse.Namespace, operator: Operator, folder: Path, admin: Client) -> None:
        self._options = options
        self._operator = operator
        self._folder = folder
        self._admin = admin
        self._slots = asyncio.Semaphore(AT_ONCE)
        self.namespaces = [operator.namespace(f"team-{number}") for number in range(options.namespaces)]
        self.gateways: dict[str, list[Gateway]] = {}
        self.broker: Broker | None = None

    async def declare(self) -> None:
        """Targets, identities and policies, and wait until they are in force."""
        for namespace in self.namespaces:
            await self._admin.create(SERVICE_ACCOUNTS, {"metadata": {"name": "agent"}}, namespace)
            agents = [named(identity(f"agent-{number}", namespace)) for number in range(AGENTS)]
            policies = [
                agents_policy(namespace, number, is_proved=number < self._options.proved)
                for number in range(self._options.policies)
            ]
            database = named(target(f"db-{namespace}", allowedNamespaces={"names": [namespace]}))
            await asyncio.to_thread(self._operator.apply, database, *agents, *policies)
        await self.apply_guardrail("first")
        for namespace in self.namespaces:
            await asyncio.to_thread(
                self._operator.eventually,
                lambda namespace=namespace: self._operator.condition("accesspolicy", "policy-0", namespace),
                lambda found: found.get("status") == "True",
                LIMIT_S,
            )

    async def start_broker(self) -> Broker:
        """The broker, with its rights in the same system namespace."""
        system = self._operator.system_namespace
        cluster = (await self._admin.get(NAMESPACES, "kube-system"))["metadata"]["uid"]
        await fix_broker.grant(self._admin, system)
        unused = Ed25519PrivateKey.generate()  # what is stored here the operator has signed
        self.broker = Broker(self._operator.api, system, "", self._folder, ServiceCa(), cluster, unused)
        self.broker.write_pair()
        self.broker.start()
        return self.broker

    async def create_pods(self) -> None:
        """All pods, through the webhooks."""
        every = [(namespace, number) for namespace in self.namespaces for number in range(self._options.pods)]
        created = await asyncio.gather(*(self._create(namespace, number) for namespace, number in every))
        for (namespace, number), made in zip(every, created, strict=True):
            index = self.namespaces.index(namespace)
            address = f"127.1.{index}.{number + 1}"
            one = Pod(self._broker, namespace, made["metadata"]["name"], made["metadata"]["uid"], "agent")
            one.address = address
            self.gateways.setdefault(namespace, []).append(Gateway(one, None))  # type: ignore[arg-type]

    async def enrol(self) -> None:
        """A certificate for each gateway."""
        await asyncio.gather(*(self._enrol(one) for one in self.every))

    @property
    def every(self) -> list[Gateway]:
        """All gateways."""
        return [one for many in self.gateways.values() for one in many]

    @property
    def _broker(self) -> Broker:
        assert self.broker is not None
        return self.broker

    async def apply_policy(self, namespace: str, salt: str) -> None:
        """Change one policy of a namespace."""
        changed = agents_policy(namespace, 7, is_proved=self._options.proved > 7, salt=salt)
        body = {"spec": changed["spec"]}
        await self._admin.apply(ACCESS_POLICIES, "policy-7", body, manager="bench", namespace=namespace)

    async def apply_guardrail(self, salt: str) -> None:
        """Change the cluster policy."""
        await self._admin.apply(
            CLUSTER_ACCESS_POLICIES, "guardrail", {"spec": guardrail(salt)["spec"]}, manager="bench"
        )

    async def suspend(self, namespace: str, *, is_suspended: bool) -> None:
        """Suspend one agent of a namespace, or let it go on."""
        body: Object = {"spec": {"suspended": is_suspended}}
        await self._admin.merge_patch(AGENT_IDENTITIES, "agent-0", body, namespace)

    async def spread(self, change: Callable[[], Awaitable[None]], told: list[Gateway]) -> list[float]:
        """Make a change; seconds until each gateway had what follows from it, sorted."""
        before = [one.revision for one in told]
        began = time.perf_counter()
        await change()
        async with asyncio.timeout(LIMIT_S):
            ends = await asyncio.gather(*(one.after(old) for one, old in zip(told, before, strict=True)))
        return sorted(end - began for end in ends)

    async def _create(self, namespace: str, number: int) -> Object:
        async with self._slots:
            return await self._admin.create(PODS, pod(f"agent-{number}", number), namespace)

    async def _enrol(self, gateway: Gateway) -> None:
        async with self._slots:
            status, answer = await gateway.pod.exchange()
            if status != 200:
                raise SystemExit(f"not enrolled: {answer}")
            context = gateway.pod.context()
            gateway.session = aiohttp.ClientSession(
                self._broker.url, connector=gateway.pod.connector(context), timeout=aiohttp.ClientTimeout(LIMIT_S)
            )


class Usage:
    """CPU time and memory of operator, broker and this client; `row` says what they used since the row before."""

    def __init__(self, operator: int, broker: int) -> None:
        self._pids = (operator, broker, os.getpid())
        self._before = [cpu_seconds(pid) for pid in self._pids]

    def row(self, what: str, times: str) -> None:
        """Print a row of the table."""
        now = [cpu_seconds(pid) for pid in self._pids]
        used = [f"{after - before:.1f}" for after, before in zip(now, self._before, strict=True)]
        memory = [f"{resident_mib(pid):.0f}" for pid in self._pids]
        self._before = now
        print(f"| {' | '.join([what, times, *used, *memory[:2]])} |", flush=True)


def told(rounds: list[list[float]]) -> str:
    """First, median and last of the gateways: medians of the rounds, and the slowest of all."""
    firsts, medians, lasts = ([pick(one) for one in rounds] for pick in (min, statistics.median, max))
    middle = [statistics.median(many) for many in (firsts, medians, lasts)]
    return " | ".join(f"{one:.2f}" for one in [*middle, max(lasts)])


async def measure(options: argparse.Namespace, operator: Operator, replica: int, folder: Path) -> None:
    """Set everything up, print the table."""
    async with Client(kubeconfig.from_file(operator.api.kubeconfig)) as admin:
        scale = Scale(options, operator, folder, admin)
        broker = await scale.start_broker()
        assert broker.process is not None
        try:
            usage = Usage(replica, broker.process.pid)
            print("| what | first s | median s | last s | slowest round s | operator CPU s | broker CPU s | "
                  "client CPU s | operator MiB | broker MiB |\n|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
            began = time.perf_counter()
            await scale.declare()
            usage.row(f"{options.namespaces * options.policies} policies come into force", _whole(began))
            began = time.perf_counter()
            await scale.create_pods()
            usage.row(f"{len(scale.every)} pods created", _whole(began))
            began = time.perf_counter()
            await scale.enrol()
            usage.row("all enrolled", _whole(began))
            async with asyncio.TaskGroup() as group:
                following = [group.create_task(one.follow()) for one in scale.every]
                async with asyncio.timeout(LIMIT_S):
                    await asyncio.gather(*(one.after("") for one in scale.every))
                await asyncio.sleep(SETTLE_S)
                usage.row("all have the first policy", "– | – | – | –")
                await asyncio.sleep(IDLE_S)
                usage.row(f"{IDLE_S:.0f} s without a change", "– | – | – | –")
                await changes(options, scale, usage)
                for task in following:
                    task.cancel()
            print(f"\ncalls of gateways that were refused: {sum(one.refusals for one in scale.every)}")
        finally:
            for one in scale.every:
                if one.session is not None:
                    await one.session.close()
            broker.stop()


def _whole(began_s: float) -> str:
    return f"– | – | {time.perf_counter() - began_s:.1f} | –"


async def changes(options: argparse.Namespace, scale: Scale, usage: Usage) -> None:
    """The changes, each some rounds; every round's CPU time is in its row."""
    some = [scale.namespaces[number % len(scale.namespaces)] for number in range(options.rounds)]
    rounds = []
    for number, namespace in enumerate(some):
        rounds.append(await scale.spread(lambda: scale.apply_policy(namespace, f"{number}"), scale.gateways[namespace]))  # noqa: B023
        await asyncio.sleep(SETTLE_S)
    usage.row(f"{options.rounds} × a policy of {options.pods} pods", told(rounds))
    rounds = []
    for number in range(options.rounds):
        rounds.append(await scale.spread(lambda: scale.apply_guardrail(f"{number}"), scale.every))  # noqa: B023
        await asyncio.sleep(SETTLE_S)
    usage.row(f"{options.rounds} × the cluster policy of {len(scale.every)} pods", told(rounds))
    rounds = []
    for number in range(options.rounds):
        namespace, is_suspended = some[number - number % 2], number % 2 == 0  # each is suspended, then resumed
        here = scale.gateways[namespace]
        rounds.append(await scale.spread(lambda: scale.suspend(namespace, is_suspended=is_suspended), here))  # noqa: B023
        await asyncio.sleep(SETTLE_S)
    usage.row(f"{options.rounds} × an agent suspended or resumed", told(rounds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--namespaces", type=int, default=10)
    parser.add_argument("--pods", type=int, default=100, help="in each namespace")
    parser.add_argument("--policies", type=int, default=20, help="in each namespace")
    parser.add_argument("--proved", type=int, default=2, help="policies of each namespace with tests and Rego")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    fix_opa.opa_binary()
    with tempfile.TemporaryDirectory(prefix="chaperone-scale-") as name:
        folder = Path(name)
        for part in ("api", "operator", "broker"):
            (folder / part).mkdir()
        with fix_apiserver.running(folder / "api") as server:
            fix_crds.establish(server)
            with fix_operator.installed(server, folder / "operator") as held, fix_operator.serving(held) as replica:
                asyncio.run(measure(options, held, replica.process.pid, folder / "broker"))


if __name__ == "__main__":
    main()
