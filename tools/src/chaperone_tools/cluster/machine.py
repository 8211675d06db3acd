"""What a local cluster changes on its machine outside its folder, and how each change is undone.

Changed: one bridge, a handful of kernel settings, one cgroup per hierarchy, mounts under the cluster's folder, the
nftables tables of kube-proxy and one of our own, and the folders kubelet and the CNI library make at fixed places. What
was there before is written to `before.json` at the start and is what `restore` goes by, so a restart after a crash
restores it too.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chaperone_tools.cache import binary
from chaperone_tools.cluster.plan import Plan
from chaperone_tools.cluster.process import end
from chaperone_tools.errors import ToolsError
from chaperone_tools.progress import wait_until
from chaperone_tools.run import run, succeeds

CGROUPS = Path("/sys/fs/cgroup")
LEAVE_LIMIT_S = 60.0  # killed containers leave in milliseconds; a busy machine's disk may hold one for seconds
OWN_TABLE = "chaperone-cluster"
PROXY_TABLES = (("ip", "kube-proxy"), ("ip6", "kube-proxy"))
# Written by the bridge plugin, kubelet or ourselves; the values that stood before come back.
SETTINGS = (
    "net/ipv4/ip_forward",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# Folders that kubelet and the CNI library make at fixed places; they go again if they were not there.
FIXED_FOLDERS = (Path("/var/lib/kubelet"), Path("/var/log/containers"), Path("/var/lib/cni"))


def prepare(plan: Plan) -> None:
    """Make the bridge, the cgroups and the settings; refuse where somebody else's cluster stands.

    Raises:
        ToolsError: the bridge's addresses or kube-proxy's tables belong to something that is not ours.
    """
    for family, table in PROXY_TABLES:
        if succeeds(binary("nft"), "list", "table", family, table):
            raise ToolsError(f"the nftables table `{family} {table}` is there already: another kube-proxy runs here")
    succeeds("modprobe", "--quiet", "--all", "overlay", "br_netfilter")  # may be built in; what matters is asked below
    before: dict[str, Any] = {
        "settings": {name: value for name in SETTINGS if (value := _setting(name)) is not None},
        "folders": [str(folder) for folder in FIXED_FOLDERS if folder.exists()],
    }
    (plan.state / "before.json").write_text(json.dumps(before, indent=2))
    for name in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
        Path("/proc/sys", name).write_text("1")
    # Two pods on one bridge talk below IP; without these, service addresses would not be translated back between them.
    for name in ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"):
        setting = Path("/proc/sys", name)
        if not setting.exists():
            raise ToolsError("the kernel has no br_netfilter: load the module `br_netfilter` and run this again")
        setting.write_text("1")
    _make_bridge(plan)
    for hierarchy in _hierarchies():
        _make_cgroup(hierarchy, plan.cgroup)


def restore(plan: Plan) -> None:
    """Undo everything; also after a crash, when nothing but leftovers is there. Idempotent."""
    _end_containers(plan)
    _unmount(plan.state)
    ip = binary("ip")
    if succeeds(ip, "link", "show", plan.bridge):
        for port in Path("/sys/class/net", plan.bridge, "brif").glob("*"):
            succeeds(ip, "link", "delete", port.name)  # a namespace may have taken its end along already
        run(ip, "link", "delete", plan.bridge)
    nft = binary("nft")
    for family, table in (*PROXY_TABLES, ("inet", OWN_TABLE)):
        if succeeds(nft, "list", "table", family, table):
            run(nft, "delete", "table", family, table)
    for hierarchy in _hierarchies():
        _remove_cgroup(hierarchy / plan.cgroup)
    _remove_dead_links(plan)
    record = plan.state / "before.json"
    if record.exists():
        before = json.loads(record.read_text())
        for folder in FIXED_FOLDERS:
            if str(folder) not in before["folders"] and folder.exists():
                shutil.rmtree(folder)
        for name, value in before["settings"].items():
            Path("/proc/sys", name).write_text(value)


def mounts_under(folder: Path) -> list[Path]:
    """Mount points at or below a folder, innermost first."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Octal escapes stand for blanks, tabs and backslashes (proc(5)).
        point = Path(line.split()[4].encode().decode("unicode_escape"))
        if point == folder or folder in point.parents:
            points.append(point)
    return points[::-1]


def _make_bridge(plan: Plan) -> None:
    ip = binary("ip")
    run(ip, "link", "add", plan.bridge, "type", "bridge")
    run(ip, "address", "add", f"{plan.node_ipv4}/24", "dev", plan.bridge)
    # Duplicate detection would keep the address tentative, hence unusable, until a first pod hangs on the bridge.
    run(ip, "address", "add", f"{plan.node_ipv6}/64", "dev", plan.bridge, "nodad")
    run(ip, "link", "set", plan.bridge, "up")
    # Pods reach the node and each other, nothing beyond; and nobody beyond reaches them.
    rules = f"""table inet {OWN_TABLE} {{
      chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "{plan.bridge}" oifname != "{plan.bridge}" drop
        iifname != "{plan.bridge}" oifname "{plan.bridge}" drop
      }}
    }}"""
    run(binary("nft"), "-f", "-", stdin=rules)


def _end_containers(plan: Plan) -> None:
    """Kill every process of every pod, then the shims that watched them; all found by what is ours alone."""

    def pods() -> list[int]:
        return [pid for hierarchy in _hierarchies() for pid in _processes_in(hierarchy / plan.cgroup)]

    def kill_pods() -> bool:
        for pid in (remaining := pods()):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return not remaining

    wait_until("the end of all containers", LEAVE_LIMIT_S, kill_pods, lambda: f"still there: {pods()}")
    for pid in _shims(plan.containerd_socket):
        end(pid)


def _shims(socket: Path) -> Iterator[int]:
    """Shims that were started for this containerd: its socket is on their command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"containerd-shim" in words[0] and os.fsencode(socket) in words:
            yield int(entry.name)


def _unmount(folder: Path) -> None:
    for point in mounts_under(folder):
        if not succeeds("umount", point):
            run("umount", "--lazy", point)


def _hierarchies() -> list[Path]:
    """The roots of all cgroup hierarchies: one on a v2 machine, one a controller on v1, both kinds on a hybrid."""
    roots = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.split()[0] in {"cgroup", "cgroup2"}:
            roots.append(Path(left.split()[4]))
    return roots


def _make_cgroup(hierarchy: Path, name: str) -> None:
    group = hierarchy / name
    group.mkdir(exist_ok=True)
    controllers = hierarchy / "cgroup.controllers"
    if controllers.exists():  # v2: children get only what every parent hands down
        wanted = " ".join(f"+{controller}" for controller in controllers.read_text().split())
        for parent in (hierarchy, group):
            if wanted:
                (parent / "cgroup.subtree_control").write_text(wanted)
    for setting in ("cpuset.cpus", "cpuset.mems"):  # v1: empty until written, and processes need both
        if (group / setting).exists() and not (hierarchy / "cgroup.controllers").exists():
            (group / setting).write_text((hierarchy / setting).read_text())


def _processes_in(group: Path) -> Iterator[int]:
    for members in group.rglob("cgroup.procs") if group.is_dir() else ():
        try:
            yield from (int(word) for word in members.read_text().split())
        except (FileNotFoundError, OSError):
            continue


def _remove_cgroup(group: Path) -> None:
    """Remove it with all below it; a process on its way out holds its group a moment longer than it is listed."""

    def is_gone() -> bool:
        try:
            for folder in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    if group.is_dir():
        wait_until(f"the end of the cgroup {group}", LEAVE_LIMIT_S, is_gone, lambda: "it is busy")


def _remove_dead_links(plan: Plan) -> None:
    """Links to our pods' logs, and shims' sockets nobody listens on: both lie in folders others use too."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and plan.state in link.readlink().parents:
            link.unlink()
    listening = Path("/proc/net/unix").read_text()
    for socket in Path("/run/containerd/s").glob("*"):
        if str(socket) not in listening:
            socket.unlink(missing_ok=True)  # a shim that ends takes its own along
    for folder in (Path("/run/containerd/s"), Path("/run/containerd")):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _setting(name: str) -> str | None:
    path = Path("/proc/sys", name)
    return path.read_text().strip() if path.exists() else None
