"""SSH in a real pod: OpenSSH as it is, decided and recorded; a certificate that the broker signs for each session."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

import pytest
from servers import BUILD, CARD, LEGACY, SILENT, STRANGE, Servers
from stage import Kubectl, Object, Pod, Ran, Team, chaperone, replayed, until
from voting import LEADS, Held, may_vote, pending, person

pytestmark = pytest.mark.cluster

TARGETS: Final = ("e2e-build", "e2e-legacy", "e2e-silent", "e2e-strange")
RULES: tuple[Object, ...] = (
    {"name": "look", "action": "Allow",
     "match": {"effects": ["read"], "objects": ["command:*", "path:/srv/app/*", "path:/srv/app"]}},
    {"name": "clone", "action": "Allow",
     "match": {"effects": ["read", "bulk_read"], "objects": ["command:git-upload-pack", "path:/srv/git/*"]}},
    {"name": "push", "action": "Allow",
     "match": {"effects": ["modify"], "objects": ["command:git-receive-pack", "path:/srv/git/app.git"]}},
    {"name": "deliver", "action": "Allow",
     "match": {"effects": ["create", "modify"], "objects": ["command:*", "path:/srv/app/releases/*"]}},
    {"name": "sync", "action": "Allow",
     "match": {"effects": ["bulk_read", "bulk_write"], "objects": ["command:rsync", "path:/srv/app/releases/*"]}},
    {"name": "session", "action": "Allow", "match": {"effects": ["session"]}},
    {"name": "shells", "action": "Allow", "match": {"effects": ["execute_code"], "objects": ["shell"]}},
    {"name": "move", "action": "RequireApproval",
     "match": {"effects": ["modify", "create"], "objects": ["command:touch", "path:/srv/app/current"]},
     "approval": {"groups": [LEADS], "wait": "60s", "validFor": "2m"}},
    {"name": "never", "action": "Deny", "match": {"effects": ["destroy", "privilege"]},
     "message": "Ask the owner of the host."},
)  # fmt: skip
# Clients that are libraries: a command, a file there and back, and a file that is not granted.
PARAMIKO: Final = """
import sys, paramiko
with paramiko.SSHClient() as client:
    client.load_host_keys("/etc/chaperone-trust/ssh_known_hosts")
    client.connect(sys.argv[1], username="deploy", password="none", look_for_keys=False, allow_agent=False)
    print(client.exec_command("head -c 3 /srv/app/app.log")[1].read().decode())
    with client.open_sftp() as sftp:
        sftp.open("/srv/app/releases/paramiko", "w").write("from paramiko")
        print(sftp.open("/srv/app/releases/paramiko").read().decode())
        try:
            sftp.open("/etc/shadow")
        except PermissionError as error:
            print(error)
"""
ASYNCSSH: Final = """
import asyncio, pathlib, sys, asyncssh
async def main():
    known = "/etc/chaperone-trust/ssh_known_hosts"
    async with asyncssh.connect(sys.argv[1], known_hosts=known, client_keys=None, agent_path=None) as connection:
        print((await connection.run("head -c 3 /srv/app/app.log")).stdout)
        async with connection.start_sftp_client() as sftp:
            pathlib.Path("/tmp/sent").write_text("from asyncssh")
            await sftp.put("/tmp/sent", "/srv/app/releases/asyncssh")
            await sftp.get("/srv/app/releases/asyncssh", "/tmp/got")
            print(pathlib.Path("/tmp/got").read_text())
            try:
                await sftp.get("/etc/shadow", "/tmp/shadow")
            except asyncssh.SFTPPermissionDenied as error:
                print(error)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def agent(team: Team, servers: Servers) -> Pod:
    """An agent that may look, deliver releases and clone, and has to ask before it changes what is current."""
    team.identity(evidence={"results": "Full"})
    team.policy(*RULES, targets=TARGETS, limits={"bytesPerSession": "1Mi"})
    may_vote(team)
    return team.pod()


def ssh(agent: Pod, *words: str) -> Ran:
    """OpenSSH with no option that would make it easier."""
    return agent.run("ssh", *words)


@pytest.mark.parametrize("host", [BUILD, LEGACY])
def test_commands_run_with_a_certificate_of_the_broker_and_with_a_key(agent: Pod, servers: Servers, host: str):
    done = ssh(agent, host, "id -un && head -c 9 /srv/app/app.log")
    assert (done.status, done.out) == (0, "deploy\npaid with"), done.err


def test_certificate_says_in_the_hosts_log_whose_session_it_is(agent: Pod, team: Team, servers: Servers):
    assert ssh(agent, BUILD, "head -c 3 /srv/app/app.log").out == "pai"

    def is_told() -> bool:
        log = servers.host.logs("main")
        accepted = re.findall(r"Accepted publickey for deploy .* ED25519-CERT .* ID (\S+) \(serial", log)
        return bool(accepted) and accepted[-1].startswith(f"chaperone:{team.namespace}/billing:")

    until("the host's log has the session", is_told)


def test_what_is_refused_names_the_rule_and_changes_nothing(agent: Pod, servers: Servers):
    done = ssh(agent, BUILD, "rm -rf /srv/app")
    assert done.status == 126
    assert "Ask the owner of the host." in done.err and 'rule "never"' in done.err
    assert CARD in servers.read("/srv/app/app.log")
    done = ssh(agent, BUILD, "cat /etc/shadow")
    assert (done.status, done.out) == (126, "") and "read_sensitive" in done.err


@pytest.mark.parametrize(
    ("host", "port", "why"), [(SILENT, 23, "cannot be reached"), (STRANGE, 22, "host key")], ids=["down", "strange"]
)
def test_what_is_wrong_with_the_host_is_told_on_stderr(agent: Pod, host: str, port: int, why: str):
    done = ssh(agent, f"-p{port}", host, "head -c 3 /srv/app/app.log")
    assert (done.status, done.out) == (255, ""), done
    assert why in done.err, done.err


def test_scp_and_sftp_move_files_within_policy(agent: Pod, servers: Servers):
    agent.run("sh", "-c", "echo release-7 > /tmp/release")
    done = agent.run("scp", "/tmp/release", f"{BUILD}:/srv/app/releases/seven")
    assert done.status == 0, done.err
    assert servers.read("/srv/app/releases/seven") == "release-7\n"
    done = agent.run(
        "sftp", "-b", "-", BUILD, stdin="get /srv/app/releases/seven /tmp/back\nput /tmp/back /srv/app/no\n"
    )
    assert done.status != 0 and "path:/srv/app/no" in done.err, done
    assert agent.run("cat", "/tmp/back").out == "release-7\n"
    assert servers.read("/srv/app/no") == ""


def test_a_limit_cuts_a_file_that_is_too_long(agent: Pod, team: Team, servers: Servers):
    agent.run("sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x > /tmp/long")
    done = agent.run("scp", "/tmp/long", f"{BUILD}:/srv/app/releases/long")
    assert done.status == 1
    assert "limits.bytesPerSession" in done.err, done.err
    assert 0 < servers.read("/srv/app/releases/long").count("x") < 1 << 20  # scp may still set how long the file is

    def is_recorded() -> bool:
        return any("limit:bytesPerSession" in json.dumps(one) for one in team.commands(target="e2e-build"))

    until("it is recorded", is_recorded)


@pytest.mark.parametrize("mode", ["-O", "-s"], ids=["old", "sftp"])
def test_scp_copies_in_both_of_its_protocols(agent: Pod, servers: Servers, mode: str):
    there = f"/srv/app/releases/scp{mode}"
    agent.run("sh", "-c", f"echo by {mode} > /tmp/scp")
    done = agent.run("sh", "-c", f"scp {mode} /tmp/scp {BUILD}:{there} && scp {mode} {BUILD}:{there} /tmp/scp.back")
    assert done.status == 0, done.err
    assert agent.run("cat", "/tmp/scp.back").out == servers.read(there) == f"by {mode}\n"


def test_rsync_copies_a_tree_both_ways(agent: Pod, servers: Servers):
    there = f"{BUILD}:/srv/app/releases/tree/"
    done = agent.run("sh", "-c", "mkdir -p /tmp/tree/a && echo leaf > /tmp/tree/a/leaf && "
                     f"rsync -rt /tmp/tree/ {there} && rsync -rt {there} /tmp/tree.back/")  # fmt: skip
    assert done.status == 0, done.err
    assert agent.run("cat", "/tmp/tree.back/a/leaf").out == servers.read("/srv/app/releases/tree/a/leaf") == "leaf\n"
    done = agent.run("rsync", "-a", "/tmp/tree/", there)  # it would make links
    assert done.status != 0 and 'rule "never"' in done.err, done


@pytest.mark.parametrize(("program", "name"), [(PARAMIKO, "paramiko"), (ASYNCSSH, "asyncssh")], ids=["p", "a"])
def test_libraries_run_commands_and_move_files(agent: Pod, servers: Servers, program: str, name: str):
    done = agent.python(program, BUILD)
    assert done.status == 0, done.err
    assert done.out.startswith(f"pai\nfrom {name}\n") and "refused" in done.out, done.out
    assert servers.read(f"/srv/app/releases/{name}") == f"from {name}"


def test_git_clones_and_pushes_where_it_may(agent: Pod, team: Team, servers: Servers):
    done = agent.run("git", "clone", f"{BUILD}:/srv/git/app.git", "/tmp/clone")
    assert done.status == 0, done.err
    assert agent.run("git", "-C", "/tmp/clone", "log", "--format=%s").out == "one commit\n"
    git = ("git", "-C", "/tmp/clone", "-c", "user.name=agent", "-c", "user.email=agent@example.org")
    assert agent.run(*git, "commit", "--allow-empty", "--message=by an agent").status == 0
    done = agent.run(*git, "push", "origin", "main")
    assert done.status == 0, done.err
    pushed = ("git", "--git-dir=/srv/git/app.git", "-c", "safe.directory=*", "log", "--format=%s", "-1", "main")
    assert servers.host.run(*pushed).out == "by an agent\n"
    done = agent.run(*git, "push", f"{BUILD}:/srv/git/other.git", "main")
    assert done.status != 0 and "modify" in done.err and "path:/srv/git/other.git" in done.err, done
    until("it is recorded", lambda: decided(team, "git-receive-pack '/srv/git/other.git'") == ["Deny"])
    assert decided(team, "git-receive-pack '/srv/git/app.git'") == ["Allow"]
    assert decided(team, "git-upload-pack '/srv/git/app.git'") == ["Allow"]
    assert set(decided(team, "GIT_PROTOCOL")) == {"Deny"}  # git goes on without its variable


def decided(team: Team, command: str) -> list[str]:
    """What was decided, in records, each time a command was run."""
    return [one["spec"]["decision"] for one in team.commands(command=command)]


def test_forwarding_is_refused(agent: Pod, team: Team, servers: Servers):
    (address, *_) = servers.database.addresses
    done = ssh(agent, "-W", f"{address}:3306", BUILD)
    assert done.status == 255 and "administratively prohibited" in done.err, done
    until("it is recorded", lambda: bool(team.commands(decision="Deny", command=f"direct-tcpip {address}:3306")))


def test_what_a_lead_approves_runs_and_what_one_denies_does_not(
    kubectl: Kubectl, team: Team, agent: Pod, servers: Servers, tmp_path: Path
):
    lead = person(kubectl, tmp_path, "lead-1", LEADS)
    for decide, wanted in (("deny", ""), ("approve", "there")):
        held = Held(lambda: ssh(agent, BUILD, "touch /srv/app/current"))
        name = pending(kubectl, team)
        voted = chaperone(lead, decide, name, "-n", team.namespace, "--yes", "--reason", "the test says so")
        assert voted.status == 0, voted.err
        done = held.end()
        there = servers.host.run("sh", "-c", "test -e /srv/app/current && echo there").out.strip()
        assert (done.status, there) == (126 if decide == "deny" else 0, wanted), done.err
        assert ("Denied by lead-1 (the test says so)" in done.err) == (decide == "deny")


def test_auditor_lists_and_replays_a_shell_on_a_terminal(agent: Pod, team: Team, kubectl: Kubectl):
    done = agent.run("ssh", "-tt", BUILD, stdin="echo $((40 + 2)) from $(id -un)\nexit\n")
    assert done.status == 0 and "42 from deploy" in done.out, done
    until("the session is listed", lambda: bool(team.commands(kind="shell")))
    session = team.commands(kind="shell")[-1]["spec"]["session"]
    listed = kubectl("get", "sessions", session, f"--namespace={team.namespace}", "--no-headers").split()
    assert listed[1:4] == ["billing", "e2e-build", "SSH"]
    assert "42 from deploy" in replayed(team, session, "42 from deploy")


def test_nothing_goes_around_the_gateway(agent: Pod, servers: Servers, free_pod: Pod):
    (address, *_) = servers.host.addresses
    scan = ("ssh-keyscan", "-t", "ed25519", "-T")
    assert "ssh-ed25519" in free_pod.run(*scan, "30", address).out  # it does listen
    assert agent.run(*scan, "3", address).out == ""


def test_shell_of_a_suspended_identity_is_cut_and_replays_as_it_was_seen(agent: Pod, team: Team, kubectl: Kubectl):
    before = team.commands(kind="shell")
    typed = "mkfifo /tmp/typed; (echo 'echo live$((40 + 2))'; sleep 110) > /tmp/typed 2>/dev/null &"
    live = Held(lambda: agent.run("sh", "-c", f"{typed} ssh -tt {BUILD} < /tmp/typed 2>&1 | tee /tmp/shell"))
    until("it runs", lambda: "live42" in agent.run("cat", "/tmp/shell").out)
    team.identity(suspended=True)
    done = live.end()
    assert "suspended" in done.out, done
    until("its session is listed", lambda: len(team.commands(kind="shell")) > len(before))
    session = team.commands(kind="shell")[-1]["spec"]["session"]
    assert "live42" in replayed(team, session, "live42")
    team.identity(evidence={"results": "Full"})
    until("it works again", lambda: ssh(agent, BUILD, "head -c 3 /srv/app/app.log").out == "pai")


def test_suspended_identity_is_cut_off_with_a_word_and_comes_back(agent: Pod, team: Team):
    live = Held(lambda: agent.run("sh", "-c", f"ssh {BUILD} 'echo begun; sleep 110' | tee /tmp/begun"))
    until("it runs", lambda: agent.run("cat", "/tmp/begun").out == "begun\n")
    team.identity(suspended=True)
    done = live.end()
    assert "suspended" in done.err, done
    done = ssh(agent, BUILD, "head -c 3 /srv/app/app.log")
    assert done.status == 255 and "suspended" in done.err, done.err
    team.identity(evidence={"results": "Full"})
    until("it works again", lambda: ssh(agent, BUILD, "head -c 3 /srv/app/app.log").out == "pai")
