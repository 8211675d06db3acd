"""Chaperone into a cluster, as a person would do it: images, the chart, and waiting until all of it works.

The demo and the cluster tests install through this one function, so what they show is what the chart does. Everything
is idempotent: a second call builds what changed, and the chart rolls out what has another image.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from chaperone_tools.cache import binary, checkout
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.errors import ToolsError
from chaperone_tools.images.build import build_all
from chaperone_tools.kubectl import Kubectl
from chaperone_tools.progress import SLOW_POLL_S, wait_until
from chaperone_tools.run import run, tail

NAMESPACE: Final = "chaperone-system"
RELEASE: Final = "chaperone"
IMAGES: Final = ("gateway", "operator", "collector", "opa")
WORKLOADS: Final = {
    "deployment/chaperone-operator": "operator",
    "deployment/chaperone-broker": "operator",
    "statefulset/chaperone-collector": "collector",
}
"""What the chart runs, and of which image."""
WEBHOOKS: Final = ("mutatingwebhookconfiguration/chaperone", "validatingwebhookconfiguration/chaperone")
API_SERVICE: Final = "v1alpha1.evidence.chaperone.dev"

HELM_LIMIT_S: Final = 180.0  # it writes objects and waits for none of them
ROLLOUT_LIMIT_S: Final = (
    300.0  # 20 s alone; a loaded machine starts Python slowly, and the broker waits for the operator
)
NEWS_EVERY_S: Final = 10.0  # how often a wait says what it still lacks
LOG_LINES: Final = 20  # of each container that is not ready
EVENT_LINES: Final = 15


@dataclass
class Phases:
    """How long each phase took, for people while it runs and for a table afterwards."""

    done: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say that a phase begins and, when it ends, its seconds."""
        print(f"  {name} …", file=sys.stderr, flush=True)
        begun = time.monotonic()
        try:
            yield
        except BaseException:
            print(f"  {name}: failed after {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
            raise
        seconds = time.monotonic() - begun
        self.done.append((name, seconds))
        print(f"  {name:<44} {seconds:6.1f} s", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Installed:
    """What was installed: the system namespace and the reference of each image."""

    namespace: str
    images: Mapping[str, str]


def install(cluster: Provider, namespace: str = NAMESPACE, phases: Phases | None = None) -> Installed:
    """Build the images, put them on the nodes, install the chart and wait until everything answers.

    Raises:
        ToolsError: any of that failed; a wait that failed carries pods, events and the logs of what is not ready. Also
            when what became ready is not what was installed, because somebody else changed it meanwhile.
    """
    phases = phases or Phases()
    images = load(cluster, IMAGES, phases)
    chart, kubectl = checkout() / "charts" / "chaperone", Kubectl(cluster.kubeconfig())
    with phases.phase("chart"):
        # helm installs definitions that are absent, and never touches those that are there.
        kubectl("apply", "--server-side", "--force-conflicts", f"--filename={checkout() / 'crds'}")
        values = [f"images.{name}={reference}" for name, reference in images.items()]
        _helm(
            cluster, "upgrade", "--install", RELEASE, str(chart), "--create-namespace",
            f"--namespace={namespace}", "--set", ",".join([*values, "imagePullPolicy=IfNotPresent"]),
        )  # fmt: skip
    with phases.phase("operator, broker, collector"):
        wait_for(
            f"the rollout of Chaperone in {namespace}",
            ROLLOUT_LIMIT_S,
            lambda: _lacking(kubectl, namespace),
            lambda: diagnosis(kubectl, namespace),
        )
        _require_own(kubectl, namespace, images)
    return Installed(namespace, images)


def uninstall(cluster: Provider, namespace: str = NAMESPACE) -> None:
    """Take the release and its namespace away. The custom resources and their definitions stay, as helm leaves them.

    Raises:
        ToolsError: helm or kubectl failed, or the namespace did not go in time.
    """
    _helm(cluster, "uninstall", RELEASE, f"--namespace={namespace}", "--ignore-not-found", "--wait", "--timeout=120s")
    # What the operator made at run time (certificates, snapshots) belongs to no release.
    Kubectl(cluster.kubeconfig())("delete", "namespace", namespace, "--ignore-not-found", "--timeout=110s")


def load(cluster: Provider, targets: tuple[str, ...], phases: Phases) -> dict[str, str]:
    """Build images where they changed and make them known to the nodes; gives their references by target.

    Raises:
        ToolsError: a build failed, or the provider cannot take images.
    """
    with phases.phase(f"images: {', '.join(targets)}"):
        images = build_all(targets)
    with phases.phase("images onto the node"):
        for image in images.values():
            cluster.load_image(image.reference, image.archive)
    return {name: image.reference for name, image in images.items()}


def wait_for(what: str, limit_s: float, lacking: Callable[[], str], explain: Callable[[], str]) -> None:
    """Ask until nothing is lacking, and say now and then what still is.

    Args:
        what: names the wait in its failure.
        limit_s: the longest that it may take.
        lacking: says in a few words what is missing; "" when nothing is.
        explain: what a person needs to see when it took too long.

    Raises:
        ToolsError: it took too long; carries what was lacking and the explanation.
    """
    begun = time.monotonic()
    lack, told_s = "", 0.0

    def is_so() -> bool:
        nonlocal lack, told_s
        lack = lacking()
        waited_s = time.monotonic() - begun
        if lack and waited_s - told_s >= NEWS_EVERY_S:
            told_s = waited_s
            print(f"    {waited_s:4.0f} s of at most {limit_s:.0f}: {lack}", file=sys.stderr, flush=True)
        return not lack

    wait_until(what, limit_s, is_so, lambda: f"still lacking: {lack}\n{explain()}", SLOW_POLL_S)


def rollout(kubectl: Kubectl, namespace: str, *workloads: str) -> str:
    """What Deployments and StatefulSets lack of being rolled out; "" when nothing.

    Raises:
        ToolsError: one of them does not exist.
    """
    found = [kubectl.json(one, f"--namespace={namespace}") for one in workloads]
    return ", ".join(lack for one in found if (lack := _rollout(one)))


def diagnosis(kubectl: Kubectl, namespace: str) -> str:
    """Pods, the last events, and the logs of every container that is not ready."""
    parts = [
        _told(kubectl, "get", "pods", f"--namespace={namespace}", "--output=wide"),
        tail(_told(kubectl, "get", "events", f"--namespace={namespace}", "--sort-by=.lastTimestamp"), EVENT_LINES),
    ]
    for pod, container, restarts in _unready(kubectl, namespace):
        which = ("logs", f"--namespace={namespace}", pod, f"--container={container}", f"--tail={LOG_LINES}")
        parts.append(f"--- log of {pod} {container}\n{_told(kubectl, *which)}")
        if restarts:
            parts.append(f"--- and of its run before\n{_told(kubectl, *which, '--previous')}")
    return "\n".join(part for part in parts if part)


def _helm(cluster: Provider, *arguments: str) -> None:
    run(binary("helm"), f"--kubeconfig={cluster.kubeconfig()}", *arguments, limit_s=HELM_LIMIT_S)


def _lacking(kubectl: Kubectl, namespace: str) -> str:
    """What of the installation does not work yet."""
    try:
        rolling = rollout(kubectl, namespace, *WORKLOADS)
        webhooks = kubectl.json(*WEBHOOKS)["items"]
        api = kubectl.json("apiservice", API_SERVICE)
    except ToolsError as error:
        return tail(str(error), 1)
    found = [f"{rolling}{_stuck(kubectl, namespace)}"] if rolling else []
    found += [f"caBundle of {one['kind']}" for one in webhooks if not _has_authority(one)]
    if not is_true(api, "Available"):
        found.append(f"APIService {API_SERVICE}")
    return ", ".join(found)


def _require_own(kubectl: Kubectl, namespace: str, images: Mapping[str, str]) -> None:
    """An installation that another hand repaired says nothing about the chart."""
    for workload, target in WORKLOADS.items():
        pod = kubectl.json(workload, f"--namespace={namespace}")["spec"]["template"]["spec"]
        for container in pod["containers"]:
            if container["image"] != images[target]:
                raise ToolsError(
                    f"{workload} runs {container['image']}, not {images[target]}, which was installed: somebody else "
                    "changed it meanwhile. Run this again when nobody else works in the cluster"
                )


def _stuck(kubectl: Kubectl, namespace: str) -> str:
    """Why containers do not run, in the kubelet's words: CrashLoopBackOff, ErrImagePull and the like."""
    reasons = set()
    for pod in kubectl.json("pods", f"--namespace={namespace}")["items"]:
        status = pod.get("status", {})
        for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            reasons.add(one.get("state", {}).get("waiting", {}).get("reason", ""))
    told = ", ".join(sorted(reasons - {"", "ContainerCreating", "PodInitializing"}))
    return f" ({told})" if told else ""


def _rollout(workload: Mapping[str, Any]) -> str:
    """What a Deployment or StatefulSet lacks of being rolled out."""
    wanted, status = workload["spec"].get("replicas", 1), workload.get("status", {})
    name = workload["metadata"]["name"]
    if status.get("observedGeneration", 0) < workload["metadata"]["generation"]:
        return f"{name} not seen yet"
    updated, ready = status.get("updatedReplicas", 0), status.get("readyReplicas", 0)
    if updated == wanted and ready == wanted and status.get("replicas", 0) == wanted:
        return ""
    return f"{name} {min(updated, ready)}/{wanted}"


def _has_authority(configuration: Mapping[str, Any]) -> bool:
    return all(one["clientConfig"].get("caBundle") for one in configuration.get("webhooks") or ())


def is_true(item: Mapping[str, Any], condition: str) -> bool:
    """Whether an object's status says so of the condition."""
    conditions = item.get("status", {}).get("conditions") or ()
    return any(one["type"] == condition and one["status"] == "True" for one in conditions)


def _unready(kubectl: Kubectl, namespace: str) -> list[tuple[str, str, int]]:
    """Pod, container and restarts of each container that has begun and is not ready."""
    try:
        pods = kubectl.json("pods", f"--namespace={namespace}")["items"]
    except ToolsError:
        return []
    found = []
    for pod in pods:
        status = pod.get("status", {})
        for one in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
            is_over = "terminated" in one.get("state", {})  # an init container that did its work
            if one["restartCount"] or not (one["ready"] or is_over):
                found.append((pod["metadata"]["name"], one["name"], one["restartCount"]))
    return found


def _told(kubectl: Kubectl, *arguments: str) -> str:
    """What kubectl says, be it that it failed: a diagnosis never hides the failure it explains."""
    try:
        return kubectl(*arguments).rstrip()
    except ToolsError as error:
        return str(error)
