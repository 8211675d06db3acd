"""The `local` provider: a real one-node cluster of processes of this machine, without Docker or a registry.

Order of start: folder and machine → containerd, etcd → API server → controllers, scheduler, images → kubelet,
kube-proxy → node Ready → cluster DNS. Everything is throw-away, so the end is abrupt: daemons are killed, then
whatever is left of the pods is found by the cluster's own cgroup, socket and folder. The same way cleans up after a
crash.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from chaperone_tools.cache import binary
from chaperone_tools.cluster import config, lock, machine, manifests, parts
from chaperone_tools.cluster.kubeconfig import kubeconfig
from chaperone_tools.cluster.pki import Authority, signing_keys, write_private
from chaperone_tools.cluster.plan import STATE, plan_of
from chaperone_tools.cluster.process import Daemon
from chaperone_tools.errors import ToolsError
from chaperone_tools.images.archive import Image
from chaperone_tools.progress import SLOW_POLL_S, phase, wait_until
from chaperone_tools.run import run, succeeds

START_LIMIT_S = 120.0  # each wait of a start: 3 s alone, but builds and tests may share the machine
IMPORT_LIMIT_S = 300.0
NAMESPACE = "k8s.io"  # the containerd namespace the kubelet looks into
NAMES = (
    "containerd",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
)
_CNI_FOLDERS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"))


class Local:
    """One cluster of this machine. `images` gives the sandbox and DNS images that the node itself needs."""

    def __init__(self, name: str, images: Callable[[], Mapping[str, Image]], state: Path = STATE) -> None:
        self._plan = plan_of(name, state)
        self._images = images
        self._root = state
        self._parts = {part: Daemon(part, self._plan.pids, self._plan.logs) for part in NAMES}

    def up(self) -> bool:
        """See Provider."""
        self._require_root()
        with lock.exclusive(self._root):
            if others := lock.others(self._root, self._plan.name):
                down = f"chaperone-cluster down --provider local --name {others[0]}"
                raise ToolsError(f"the cluster {others[0]!r} is here, and one at a time can be: `{down}` ends it")
            running = self._running()
            if len(running) == len(NAMES) and self._is_ready():
                return False
            if self._plan.state.exists():
                with phase("removing what an earlier start left"):
                    self._remove()
            try:
                self._start()
            except ToolsError as error:
                kept = "the logs stay until `down` or the next `up`"
                raise ToolsError(f"{error}\n({kept}: {self._plan.logs})") from error
        return True

    def down(self) -> None:
        """See Provider."""
        self._require_root()
        if not self._plan.state.exists():
            return
        with lock.exclusive(self._root), phase(f"taking {self._plan.name} down"):
            self._remove()

    def status(self) -> str:
        """See Provider."""
        if not self._plan.state.exists():
            return f"no local cluster {self._plan.name!r}"
        pids = {part: daemon.pid() for part, daemon in self._parts.items()}
        lines = [f"{part:<26} {f'pid {pid}' if pid else 'not running'}" for part, pid in pids.items()]
        lines.append(f"{'node':<26} {'Ready' if self._is_ready() else 'not Ready'}")
        lines.append(f"{'kubeconfig':<26} {self._plan.kubeconfig}")
        return "\n".join(lines)

    def load_image(self, reference: str, archive: Path) -> None:
        """See Provider."""
        if self._parts["containerd"].pid() is None:
            raise ToolsError(f"the cluster {self._plan.name!r} does not run: `chaperone-cluster up` first")
        if reference in self._ctr("images", "ls", "-q").split():
            return
        self._ctr("images", "import", str(archive), limit_s=IMPORT_LIMIT_S)

    def kubeconfig(self) -> Path:
        """See Provider."""
        if not self._plan.kubeconfig.exists():
            raise ToolsError(f"there is no local cluster {self._plan.name!r}: `chaperone-cluster up` makes one")
        return self._plan.kubeconfig

    def logs(self, part: str, lines: int) -> str:
        """See Provider."""
        if part and part not in self._parts:
            raise ToolsError(f"{part!r} is none of the parts: {', '.join(NAMES)}")
        return "\n".join(self._parts[name].last_words(lines) for name in ([part] if part else NAMES))

    def _start(self) -> None:
        plan = self._plan
        with phase("images of the node"):
            images = self._images()
        with phase("keys, configuration, bridge"):
            self._write_files(images)
            machine.prepare(plan)
        with phase("etcd and containerd"):
            client_port, peer_port = _free_ports(2)
            self._parts["etcd"].start(binary("etcd"), parts.etcd(plan, client_port, peer_port))
            self._parts["containerd"].start(binary("containerd"), parts.containerd(plan), {"PATH": _path()})
            self._await("etcd", "etcd's port", lambda: _answers("127.0.0.1", client_port))
            self._await("containerd", "containerd's answer", self._containerd_answers)
        with phase("API server"):
            self._parts["kube-apiserver"].start(binary("kube-apiserver"), parts.kube_apiserver(plan, client_port))
            self._await("kube-apiserver", "the API server's readiness", lambda: self._raw("/readyz"))
        with phase("controllers, scheduler, objects of the cluster"):
            self._launch("kube-controller-manager", parts.kube_controller_manager(plan))
            self._launch("kube-scheduler", parts.kube_scheduler(plan))
            self._kubectl("apply", "--filename=-", stdin=manifests.objects(plan, images["coredns"].reference))
        with phase("importing images"):
            for image in images.values():
                self.load_image(image.reference, image.archive)
        with phase("kubelet and kube-proxy: node Ready"):
            self._launch("kubelet", parts.kubelet(plan))
            self._launch("kube-proxy", parts.kube_proxy(plan))
            self._await("kubelet", "the node's readiness", self._is_ready)
        with phase("cluster DNS"):
            self._await("kubelet", "CoreDNS's readiness", self._dns_is_ready)

    def _write_files(self, images: Mapping[str, Image]) -> None:
        plan = self._plan
        plan.state.mkdir(mode=0o711, parents=True)
        folders = [plan.pki, plan.etc, plan.logs, plan.pids, plan.etc / "cni", plan.logs / "pods"]
        volumes = [plan.state / "volumes" / f"volume-{number}" for number in range(manifests.VOLUMES)]
        for folder in (*folders, *volumes, plan.state / "volume-plugins"):
            folder.mkdir(parents=True)
        plan.pki.chmod(0o700)
        for volume in volumes:
            volume.chmod(0o777)  # pods of any user may claim one, as provisioned volumes let them
        self._write_keys()
        files = {
            "containerd.toml": config.containerd(plan, images["pause"].reference, _cni_binaries()),
            "cni/10-chaperone.conflist": config.cni(plan),
            "kubelet.yaml": config.kubelet(plan),
            "kube-proxy.yaml": config.kube_proxy(plan),
            "kube-scheduler.yaml": config.scheduler(plan),
            "resolv.conf": b"",  # pods without cluster DNS resolve nothing
        }
        for name, content in files.items():
            (plan.etc / name).write_bytes(content)

    def _write_keys(self) -> None:
        plan = self._plan
        authority, front_proxy = Authority(f"{plan.name} cluster CA"), Authority(f"{plan.name} front-proxy CA")
        service = "kubernetes.default.svc"
        names = [plan.node_ipv4, plan.node_ipv6, plan.api_service_ip, "127.0.0.1", "localhost", plan.node]
        names += ["kubernetes", "kubernetes.default", service, f"{service}.{plan.domain}"]
        authority.pair.write(plan.pki, "ca")
        front_proxy.pair.write(plan.pki, "front-proxy-ca")
        front_proxy.client(parts.FRONT_PROXY).write(plan.pki, "front-proxy-client")
        authority.server("kube-apiserver", names).write(plan.pki, "apiserver")
        authority.client("kube-apiserver-kubelet-client").write(plan.pki, "apiserver-kubelet-client")
        node = f"system:node:{plan.node}"
        authority.server(node, [plan.node_ipv4, plan.node_ipv6, plan.node]).write(plan.pki, "kubelet")
        private, public = signing_keys()
        write_private(plan.pki / "sa.key", private)
        (plan.pki / "sa.pub").write_bytes(public)
        users = {
            plan.etc / "kube-controller-manager.kubeconfig": ("system:kube-controller-manager",),
            plan.etc / "kube-scheduler.kubeconfig": ("system:kube-scheduler",),
            plan.etc / "kube-proxy.kubeconfig": ("system:kube-proxy",),
            plan.etc / "kubelet.kubeconfig": (node, "system:nodes"),
            plan.kubeconfig: ("kubernetes-admin", "system:masters"),
        }
        context = f"chaperone-{plan.name}"
        for path, (user, *groups) in users.items():
            login = authority.client(user, *groups)
            write_private(path, kubeconfig(context, plan.server, authority.pair.certificate, login))

    def _launch(self, part: str, arguments: list[str]) -> None:
        self._parts[part].start(binary(part), arguments, {"PATH": _path()})

    def _await(self, part: str, what: str, is_so: Callable[[], bool]) -> None:
        daemon = self._parts[part]

        def settled() -> bool:
            for name, other in self._parts.items():
                if other.log.exists() and other.pid() is None:
                    raise ToolsError(f"{name} ended while the cluster started\n{other.last_words()}")
            return is_so()

        wait_until(what, START_LIMIT_S, settled, daemon.last_words, SLOW_POLL_S)

    def _remove(self) -> None:
        for part in reversed(NAMES):
            self._parts[part].stop()
        machine.restore(self._plan)
        left = machine.mounts_under(self._plan.state)
        if left:
            raise ToolsError(f"still mounted, and not to be deleted through: {', '.join(map(str, left))}")
        # What a killed daemon had just started, as a plugin of the CNI, may still write there to its own end.
        wait_until("the end of the folder", machine.LEAVE_LIMIT_S, self._is_removed, self._remnants, SLOW_POLL_S)

    def _is_removed(self) -> bool:
        shutil.rmtree(self._plan.state, ignore_errors=True)
        return not self._plan.state.exists()

    def _remnants(self) -> str:
        return f"still there: {', '.join(map(str, self._plan.state.iterdir()))}"

    def _running(self) -> list[str]:
        return [part for part, daemon in self._parts.items() if daemon.pid() is not None]

    def _containerd_answers(self) -> bool:
        return succeeds(binary("ctr"), "--address", self._plan.containerd_socket, "version", limit_s=5)

    def _is_ready(self) -> bool:
        status = "{.status.conditions[?(@.type=='Ready')].status}"
        return self._says("True", "get", "node", self._plan.node, f"--output=jsonpath={status}")

    def _dns_is_ready(self) -> bool:
        ready = "--output=jsonpath={.status.readyReplicas}"
        return self._says("1", "get", "deployment", "coredns", "--namespace=kube-system", ready)

    def _raw(self, path: str) -> bool:
        return self._says("ok", "get", f"--raw={path}")

    def _says(self, answer: str, *arguments: str) -> bool:
        try:
            return self._kubectl(*arguments).strip() == answer
        except ToolsError:
            return False

    def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        kubectl = (binary("kubectl"), f"--kubeconfig={self._plan.kubeconfig}", "--request-timeout=10s")
        return run(*kubectl, *arguments, stdin=stdin, limit_s=60)

    def _ctr(self, *arguments: str, limit_s: float = 60.0) -> str:
        ctr = (binary("ctr"), "--address", self._plan.containerd_socket, "--namespace", NAMESPACE)
        return run(*ctr, *arguments, limit_s=limit_s)

    def _require_root(self) -> None:
        if os.geteuid() != 0:
            raise ToolsError("a local cluster mounts, bridges and starts containers: run this as root (sudo -E)")


def _cni_binaries() -> Path:
    for folder in _CNI_FOLDERS:
        if (folder / "bridge").exists():
            return folder
    raise ToolsError("the CNI plugins are missing: `tools/setup.sh cluster` installs containernetworking-plugins")


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
