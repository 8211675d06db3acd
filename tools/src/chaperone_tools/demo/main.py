"""`chaperone-demo`: what Chaperone does, shown in a cluster, with the commands that a person would type.

Cluster → Chaperone → six backends → identity, targets, policies → an agent. Then the agent works, is refused, does one
task over six protocols, waits until a person approves, tries to get out as root, and an auditor looks at what was
recorded and verifies it. Every step has an expectation on what it prints; the exit status is 0 only if all of them
held. The manifests are those of examples/demo.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chaperone_tools.cache import cache
from chaperone_tools.cluster.current import Current
from chaperone_tools.cluster.main import DEFAULT_NAME, provider
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.demo.audit import audit
from chaperone_tools.demo.escape import escape
from chaperone_tools.demo.staging import (
    AGENTS,
    CONNECTION,
    DATA,
    TARGETS,
    WORKLOADS,
    Secrets,
    agent_pod,
    await_rollout,
    not_ready,
)
from chaperone_tools.demo.story import Story, styled
from chaperone_tools.demo.task import do_task
from chaperone_tools.demo.work import work
from chaperone_tools.errors import ToolsError
from chaperone_tools.install import Phases, install, load, uninstall, wait_for
from chaperone_tools.kubectl import Kubectl

IMAGES: Final = ("postgres", "servers", "agent")
BACKENDS: Final = (
    "10-database.yaml", "11-customers.yaml", "12-payments.yaml", "13-host.yaml", "14-worker.yaml", "15-tickets.yaml",
)  # fmt: skip
READY_LIMIT_S: Final = 60.0  # policy is compiled and stored within a second or two


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="chaperone-demo", description="Chaperone in a cluster, from nothing to `verify: OK`."
    )
    end = top.add_mutually_exclusive_group()
    end.add_argument("--keep", dest="is_kept", action="store_true", default=True, help="leave it all up (the default)")
    end.add_argument("--down", dest="is_kept", action="store_false", help="take everything down at the end")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `chaperone-demo`; 0 when everything was as it should be."""
    given = parser().parse_args(argv)
    phases = Phases()
    failures: list[str] = []
    try:
        cluster = provider(os.environ.get("CHAPERONE_PROVIDER"), DEFAULT_NAME)
        try:
            failures = _demo(cluster, phases)
        finally:
            if not given.is_kept:
                with phases.phase("taking it down"):
                    _down(cluster)
        _end(cluster, phases, is_kept=given.is_kept)
    except ToolsError as error:
        print(f"chaperone-demo: {error}", file=sys.stderr)
        return 1
    for number, failure in enumerate(failures, 1):
        print(styled(f"{number}. not as expected: {failure}", "1;31"), file=sys.stderr)
    print(f"demo: {len(failures)} things were not as expected" if failures else "demo: OK")
    return 1 if failures else 0


def _demo(cluster: Provider, phases: Phases) -> list[str]:
    with phases.phase("cluster"):
        cluster.up()
    installed = install(cluster, phases=phases)
    images = {f"chaperone-demo/{name}": image for name, image in load(cluster, IMAGES, phases).items()}
    kubectl = Kubectl(cluster.kubeconfig())
    story = Story(_environment(cluster))
    print(f"\n{styled(f'$ export KUBECONFIG={cluster.kubeconfig()}', '1')}")

    story.chapter(
        "Two databases, a web API, an MCP server, a host and a worker, with credentials that no agent ever sees"
    )
    with phases.phase("backends"):
        story.apply("00-namespaces.yaml")
        secrets = Secrets(kubectl, installed.namespace)
        values = secrets.make()
        for name in (*BACKENDS, "60-outside.yaml"):
            story.apply(name, images)
        for workload in WORKLOADS:
            await_rollout(kubectl, DATA, workload)
        kubectl("wait", f"--namespace={DATA}", "--for=condition=Ready", "pod/free", "pod/outside", "--timeout=90s")

    story.chapter("What an agent may do there: targets, identity, policies")
    with phases.phase("targets, identity, policies"):
        for name in ("20-target.yaml", "21-targets.yaml", "30-identity.yaml", "40-policy.yaml", "41-policies.yaml"):
            story.apply(name, values)
        wait_for("Ready of targets, identity and policies", READY_LIMIT_S, lambda: not_ready(kubectl), lambda: "")
    story.run("kubectl", "get", "accesstargets,agentidentities,accesspolicies", "-n", AGENTS)

    story.chapter("The agent")
    with phases.phase("agent"):
        # An earlier run's pod keeps the gateway it was born with; this run shows what is installed now.
        gone = ("--ignore-not-found", "--cascade=foreground", "--timeout=60s")
        kubectl("delete", "deployment", "billing-agent", f"--namespace={AGENTS}", *gone)
        story.apply("50-agent.yaml", images)
        await_rollout(kubectl, AGENTS, "deployment/billing-agent")
    pod = agent_pod(kubectl)
    names = (
        "custom-columns=POD:.metadata.name,BEFORE THE AGENT:.spec.initContainers[*].name,AGENT:.spec.containers[*].name"
    )
    story.run(
        "kubectl", "get", "pods", "-n", AGENTS, "-o", names,
        shows=("chaperone-fence", "chaperone-gateway", "chaperone-opa"),
    )  # fmt: skip

    with phases.phase("the agent works"):
        work(story)
    with phases.phase("one task, six protocols"):
        do_task(story, kubectl)
    with phases.phase("the agent tries to get out"):
        escape(story, kubectl, pod, secrets.certificate)
    with phases.phase("the auditor looks"):
        audit(story, kubectl, pod, installed.namespace)
    return story.failures


def _environment(cluster: Provider) -> dict[str, str]:
    """With the cluster, and with the pinned kubectl and this workspace's `chaperone` before all others."""
    folders = (str(cache() / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return {**os.environ, "KUBECONFIG": str(cluster.kubeconfig()), "PATH": os.pathsep.join(folders)}


def _down(cluster: Provider) -> None:
    if not isinstance(cluster, Current):
        cluster.down()
        return
    kubectl = Kubectl(cluster.kubeconfig())
    names = [f"accesstarget/{name}" for name in TARGETS]
    names += [f"namespace/{name}" for name in (AGENTS, DATA, "agent-accounts")]
    kubectl("delete", *names, "--ignore-not-found", "--timeout=110s")
    uninstall(cluster)


def _end(cluster: Provider, phases: Phases, *, is_kept: bool) -> None:
    print(f"\n{styled('== How long it took', '1;36')}")
    for name, seconds in phases.done:
        print(f"  {name:<44} {seconds:6.1f} s")
    print(f"  {'together':<44} {sum(seconds for _, seconds in phases.done):6.1f} s")
    if is_kept:
        print(f"\n{styled('== What next', '1;36')}")
        print(f"  export KUBECONFIG={cluster.kubeconfig()}")
        print(f"  kubectl exec -it -n {AGENTS} deploy/billing-agent -c agent -- psql '{CONNECTION}'")
        print(f"  kubectl edit accesspolicy billing -n {AGENTS}      # in force within seconds, in open sessions too")
        print(f"  kubectl get commands -n {AGENTS} --watch")
        print("  chaperone-cluster down                            # takes everything away\n")
