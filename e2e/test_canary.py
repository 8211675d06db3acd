"""The database's password is nowhere but in the Secrets that hold it: not in a log, event, record, object, environment,
command line or file of the spool."""

from __future__ import annotations

import base64
import json
import subprocess

import pytest
from stage import DATA, READ, Database, Kubectl, Pod, Team, until

from chaperone_tools.cache import binary
from chaperone_tools.install import Installed

pytestmark = pytest.mark.cluster

KINDS = "events,configmaps,pods,deployments,statefulsets,agentidentities,accesstargets,accesspolicies"
# All that the processes of one pod hold in environment, command line, and the files of gateway and spool.
SEARCH = """
import pathlib, sys
uid, *needles = sys.argv[1:]
looked = hits = 0
for entry in pathlib.Path("/proc").iterdir():
    try:
        if uid.replace("-", "_") not in (entry / "cgroup").read_text().replace("-", "_"):
            continue
        places = [entry / "environ", entry / "cmdline"]
        for folder in ("var/lib/chaperone", "run/chaperone", "run/chaperone-bundle", "etc/chaperone-trust", "tmp"):
            places += [path for path in (entry / "root" / folder).rglob("*") if path.is_file()]
    except OSError:
        continue
    for place in places:
        try:
            data = place.read_bytes()
        except OSError:
            continue
        looked += 1
        for needle in needles:
            if needle.encode() in data:
                hits += 1
                print("found in", place)
print(looked, hits)
"""


def logs(kubectl: Kubectl, namespace: str) -> str:
    """What every container of a namespace printed, former runs included."""
    said = []
    for one in kubectl.json("pods", f"--namespace={namespace}")["items"]:
        name = one["metadata"]["name"]
        for options in ([], ["--previous"]):
            command = [str(binary("kubectl")), f"--kubeconfig={kubectl.kubeconfig}", "logs", f"--namespace={namespace}"]
            done = subprocess.run(
                [*command, name, "--all-containers", *options], capture_output=True, text=True, timeout=60, check=False
            )  # fmt: skip
            said.append(done.stdout)
    return "".join(said)


def test_the_password_is_nowhere_but_in_its_secrets(
    team: Team, database: Database, kubectl: Kubectl, chaperone_installed: Installed, node: Pod
):
    team.identity()
    team.policy(READ)
    agent = team.pod()
    assert agent.psql("SELECT count(*) FROM orders").out == "4\n"
    assert agent.psql("SELECT nonsense FROM orders").status == 1
    assert agent.psql("SELECT * FROM secrets").status == 1
    until("the commands are listed", lambda: len(team.commands()) >= 3)
    needles = (database.password, base64.b64encode(database.password.encode()).decode().rstrip("="))
    held = kubectl.json("secret", "orders-db-agent", f"--namespace={DATA}")
    assert needles[1] in json.dumps(held)  # this is what a find looks like

    seen = {
        "objects": kubectl("get", KINDS, "--all-namespaces", "--output=json"),
        "evidence": kubectl("get", "sessions,commands", f"--namespace={team.namespace}", "--output=json"),
        "logs of the agents": logs(kubectl, team.namespace),
        "logs of Chaperone": logs(kubectl, chaperone_installed.namespace),
        "environment of the agent": agent.run("env").out,
    }
    assert all(len(text) > 50 for text in seen.values()), {place: len(text) for place, text in seen.items()}
    for place, text in seen.items():
        assert not any(needle in text for needle in needles), f"the password is in {place}"

    found = node.python(SEARCH, agent.seen["metadata"]["uid"], *needles)
    looked, hits = found.out.strip().split("\n")[-1].split()
    assert int(looked) > 10, found.err
    assert hits == "0", found.out
