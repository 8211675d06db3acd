"""`chaperone-demo`: what Chaperone does, shown in a cluster, with the commands that a person would type.

Cluster → Chaperone → a database → identity, target, policy → an agent. Then the agent works, is refused, is held until
a person approves, tries to get out as root, and an auditor looks at what was recorded and verifies it. Every step has
an expectation on what it prints; the exit status is 0 only if all of them held. The manifests are those of
examples/demo.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import secrets
import shlex
import ssl
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chaperone_tools import demo_approval
from chaperone_tools.cache import cache, checkout
from chaperone_tools.cluster.current import Current
from chaperone_tools.cluster.main import DEFAULT_NAME, provider
from chaperone_tools.cluster.pki import Authority
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.errors import ToolsError
from chaperone_tools.install import Phases, diagnosis, install, is_true, load, rollout, uninstall, wait_for
from chaperone_tools.kubectl import Kubectl

EXAMPLES: Final = Path("examples") / "demo"  # of the checkout, in which every shown command runs
IMAGES: Final = ("postgres", "agent")
AGENTS: Final = "agents"
DATA: Final = "data"
HOST: Final = "orders-db.data.svc"
CONNECTION: Final = f"host={HOST} dbname=orders sslmode=verify-full"
AGENT: Final = ("kubectl", "exec", "-n", AGENTS, "deploy/billing-agent", "-c", "agent")
FREE: Final = ("kubectl", "exec", "-n", DATA, "free")
LISTENER_PORT: Final = "9999"
DENIED: Final = "refused by Chaperone"

COMMAND_LIMIT_S: Final = 60.0  # of one shown command; an attempt to escape takes 3 s
ROLLOUT_LIMIT_S: Final = 180.0  # 10 s alone; initdb and a gateway's start on a busy machine take longer
READY_LIMIT_S: Final = 60.0  # policy is compiled and stored within a second or two
RECORDED_LIMIT_S: Final = 60.0  # the gateway ships as it records
SIGNED_LIMIT_S: Final = 45.0  # a head every ten seconds


@dataclass
class Story:
    """Runs commands as a person would type them, shows what they print, and keeps what was not as expected."""

    environment: Mapping[str, str]
    failures: list[str] = field(default_factory=list)

    def chapter(self, title: str) -> None:
        """A heading."""
        print(f"\n{_styled(f'== {title}', '1;36')}", flush=True)

    def run(
        self,
        *command: str,
        script: str = "",
        shows: Sequence[str] = (),
        hides: Sequence[str] = (),
        status: int = 0,
    ) -> str:
        """Type a command and judge what comes back; gives what it printed.

        Args:
            command: the words.
            script: name of a file of examples/demo that it reads from its standard input.
            shows: what its output must contain.
            hides: what it must not.
            status: its exit status.
        """
        source = EXAMPLES / script
        shown = _typed(command) + (f" < {source}" if script else "")
        print(f"\n{_styled(f'$ {shown}', '1')}", flush=True)
        text = (checkout() / source).read_text() if script else ""
        ended, output = self._output(command, text)
        print(output.rstrip(), flush=True)
        for wanted in shows:
            self.expect(wanted in output, f"`{shown}` did not show {wanted!r}")
        for unwanted in hides:
            self.expect(unwanted not in output, f"`{shown}` showed {unwanted!r}")
        self.expect(ended == status, f"`{shown}` ended with {ended}, not {status}")
        return output

    def apply(self, name: str, images: Mapping[str, str] | None = None) -> None:
        """Apply a manifest, with the references of the images where it has a placeholder.

        Raises:
            ToolsError: it was refused; nothing after it can work.
        """
        text = (checkout() / EXAMPLES / name).read_text()
        used = {f"chaperone-demo/{target}": reference for target, reference in (images or {}).items()}
        used = {placeholder: reference for placeholder, reference in used.items() if placeholder in text}
        for placeholder, reference in used.items():
            text = text.replace(placeholder, reference)
        edits = " ".join(f"-e 's|{placeholder}|{reference}|'" for placeholder, reference in used.items())
        path = EXAMPLES / name
        shown = f"sed {edits} {path} | kubectl apply -f -" if edits else f"kubectl apply -f {path}"
        print(f"\n{_styled(f'$ {shown}', '1')}", flush=True)
        ended, output = self._output(("kubectl", "apply", "-f", "-"), text)
        print(output.rstrip(), flush=True)
        if ended:
            raise ToolsError(f"{path} was not accepted")

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Keep what is not as it should be, and say so at once."""
        if not is_so:
            self.failures.append(otherwise)
            print(_styled(f"!! not as expected: {otherwise}", "1;31"), flush=True)

    def _output(self, command: Sequence[str], text: str) -> tuple[int, str]:
        try:
            done = subprocess.run(
                command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                timeout=COMMAND_LIMIT_S, env=self.environment, cwd=checkout(), check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
            return -1, f"{said}\n(ended after {COMMAND_LIMIT_S:.0f} s)"
        except OSError as error:
            raise ToolsError(f"`{command[0]}` does not run: {error.strerror}") from error
        return done.returncode, done.stdout


@dataclass(frozen=True)
class Attempt:
    """A way out that does not ask the gateway. `arguments` are those of escape.py."""

    what: str
    arguments: tuple[str, ...]
    is_free: bool = True  # whether a pod without a fence gets through, on every kernel


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
        print(_styled(f"{number}. not as expected: {failure}", "1;31"), file=sys.stderr)
    print(f"demo: {len(failures)} things were not as expected" if failures else "demo: OK")
    return 1 if failures else 0


def _demo(cluster: Provider, phases: Phases) -> list[str]:
    with phases.phase("cluster"):
        cluster.up()
    installed = install(cluster, phases=phases)
    images = load(cluster, IMAGES, phases)
    kubectl = Kubectl(cluster.kubeconfig())
    story = Story(_environment(cluster))
    print(f"\n{_styled(f'$ export KUBECONFIG={cluster.kubeconfig()}', '1')}")

    story.chapter("A database, with a certificate and passwords that no agent ever sees")
    with phases.phase("database"):
        story.apply("00-namespaces.yaml")
        certificate = _secrets(kubectl, installed.namespace)
        story.apply("10-database.yaml", images)
        story.apply("60-outside.yaml", images)
        _await_rollout(kubectl, DATA, "statefulset/orders-db")
        kubectl("wait", f"--namespace={DATA}", "--for=condition=Ready", "pod/free", "pod/outside", "--timeout=90s")

    story.chapter("What an agent may do there: target, identity, policy")
    with phases.phase("target, identity, policy"):
        for name in ("20-target.yaml", "30-identity.yaml", "40-policy.yaml"):
            story.apply(name)
        wait_for("Ready of target, identity and policy", READY_LIMIT_S, lambda: _not_ready(kubectl), lambda: "")
    story.run("kubectl", "get", "accesstargets,agentidentities,accesspolicies", "-n", AGENTS)

    story.chapter("The agent")
    with phases.phase("agent"):
        # An earlier run's pod keeps the gateway it was born with; this run shows what is installed now.
        gone = ("--ignore-not-found", "--cascade=foreground", "--timeout=60s")
        kubectl("delete", "deployment", "billing-agent", f"--namespace={AGENTS}", *gone)
        story.apply("50-agent.yaml", images)
        _await_rollout(kubectl, AGENTS, "deployment/billing-agent")
    pod = _agent_pod(kubectl)
    names = (
        "custom-columns=POD:.metadata.name,BEFORE THE AGENT:.spec.initContainers[*].name,AGENT:.spec.containers[*].name"
    )
    story.run(
        "kubectl", "get", "pods", "-n", AGENTS, "-o", names,
        shows=("chaperone-fence", "chaperone-gateway", "chaperone-opa"),
    )  # fmt: skip

    with phases.phase("the agent works"):
        _work(story)
    with phases.phase("a person approves"):
        _ask(story, kubectl)
    with phases.phase("the agent tries to get out"):
        _escape(story, kubectl, pod, certificate)
    with phases.phase("the auditor looks"):
        _audit(story, kubectl, pod, installed.namespace)
    return story.failures


def _work(story: Story) -> None:
    story.chapter("The agent works: root in its container, psql, no password")
    story.run(*AGENT, "--", "id", shows=("uid=0(root)",))
    _psql(story, "SELECT id, item, cents FROM orders ORDER BY id", shows=("engine", "(4 rows)"))
    _psql(story, "SELECT * FROM secrets", shows=(DENIED, 'rule "uncovered"'), hides=("not for agents",), status=1)
    _psql(story, "SELECT name, email FROM customers ORDER BY id", shows=("a***@example.org",), hides=("ada.king",))
    _psql(story, "SELECT name, upper(email) AS x FROM customers", shows=("[Email]",), hides=("ADA.KING",))
    _psql(story, "SELECT name FROM customers WHERE email LIKE 'a%'", shows=(DENIED, "read_sensitive"), status=1)
    _psql(story, "DROP TABLE orders", shows=(DENIED, "Ask the DBA on call."), status=1)
    _psql(story, "UPDATE invoices SET paid = true WHERE id = 1", shows=("UPDATE 1",))
    story.chapter("A program of the agent: psycopg, in a transaction, refused in between and still in step")
    story.run(
        *_with_stdin(AGENT), "--", "python3", "-", script="report.py",
        shows=("Ada: 1299.00", f"not allowed: {DENIED}", "still in step: 3 customers"), hides=("Traceback",),
    )  # fmt: skip


def _ask(story: Story, kubectl: Kubectl) -> None:
    story.chapter("A command that waits until somebody of billing-leads has approved it")
    held = (*AGENT, "--", "psql", CONNECTION, "-c", "DELETE FROM invoices WHERE id = 4")
    demo_approval.approve(story, kubectl, AGENTS, held, shows=("DELETE ",))
    _psql(story, "SELECT id, paid FROM invoices ORDER BY id", shows=("(3 rows)",))


def _psql(story: Story, statement: str, *, shows: Sequence[str], hides: Sequence[str] = (), status: int = 0) -> None:
    story.run(*AGENT, "--", "psql", CONNECTION, "-c", statement, shows=shows, hides=hides, status=status)


def _escape(story: Story, kubectl: Kubectl, pod: Mapping[str, Any], certificate: str) -> None:
    story.chapter("The agent tries to get out another way, as root; each way is open to a pod without a fence")
    outside = _addresses(kubectl.json("pod", "outside", f"--namespace={DATA}"))
    results = []
    for attempt in _attempts(kubectl, outside):
        arguments = ("--", "python3", "-", *attempt.arguments)
        if attempt.is_free:
            story.run(*_with_stdin(FREE), *arguments, script="escape.py", shows=("reached:",))
        said = story.run(*_with_stdin(AGENT), *arguments, script="escape.py")
        # Where something answers for the database, it must be the gateway, which asks, decides and records.
        is_gateway = attempt.arguments[0] == "postgresql" and "reached: a server" in said and certificate not in said
        is_stopped = said.startswith("stopped:") or is_gateway
        story.expect(is_stopped, f"{attempt.what} was not stopped")
        results.append((attempt.what, "held by the gateway" if is_gateway else "stopped" if is_stopped else "GOT OUT"))
    story.chapter("What the pod outside has received: the words of the free pod, none of the agent's")
    log = story.run("kubectl", "logs", "-n", DATA, "outside")
    for address in _addresses(pod):
        heard = re.search(rf"from (::ffff:)?{re.escape(address)} ", log)
        story.expect(heard is None, f"something of the agent's reached the pod outside from {address}")
    print()
    for what, result in results:
        print(f"  {what:<60} {result}")


def _attempts(kubectl: Kubectl, outside: Sequence[str]) -> Iterator[Attempt]:
    database = _addresses(kubectl.json("pod", "orders-db-0", f"--namespace={DATA}"))[0]
    api = kubectl.json("service", "kubernetes", "--namespace=default")["spec"]["clusterIP"]
    yield Attempt("PostgreSQL at the address of the database's pod", ("postgresql", database, "5432"))
    yield Attempt("the API server", ("https", api, "443"))
    for address in outside:
        family = "IPv6" if ":" in address else "IPv4"
        yield Attempt(f"TCP to another pod, {family}", ("tcp", address, LISTENER_PORT))
        yield Attempt(f"UDP to another pod, {family}", ("udp", address, LISTENER_PORT))
    address = outside[0]
    yield Attempt("TCP that claims to be the gateway's", ("marked", address, LISTENER_PORT), is_free=False)
    yield Attempt("a question to a resolver of its own", ("dns", address, "53"))
    yield Attempt("ping", ("ping", address))


def _audit(story: Story, kubectl: Kubectl, pod: Mapping[str, Any], system_namespace: str) -> None:
    story.chapter("The auditor: what was done, by whom, what was refused")
    name = pod["metadata"]["name"]
    wait_for(
        "the records of ten sessions at the collector",
        RECORDED_LIMIT_S,
        lambda: _not_recorded(kubectl, name),
        lambda: diagnosis(kubectl, system_namespace),
    )
    story.run("kubectl", "get", "sessions", "-n", AGENTS, shows=("billing-agent", "orders-db", "Closed"))
    story.run(
        "kubectl", "get", "commands", "-n", AGENTS,
        shows=("read-orders", "settle-invoices", "delete-invoices", "never", "uncovered", "Allow", "Deny"),
    )  # fmt: skip
    session = max(_sessions(kubectl, name), key=lambda one: (one["status"]["denied"] > 0, one["status"]["commands"]))
    session_name, last = session["metadata"]["name"], session["status"]["lastSeq"]
    story.run(
        "kubectl", "get", "sessions", session_name, "-n", AGENTS, "-o", "yaml",
        shows=("owner: Billing on-call", f"pod: {name}", "state: Closed"),
    )  # fmt: skip
    wait_for(
        "a signed head after the session",
        SIGNED_LIMIT_S,
        lambda: "" if _last_seq(kubectl, session_name) > last else "the next head of the stream",
        lambda: diagnosis(kubectl, system_namespace),
    )
    story.chapter("The proof, checked offline")
    with tempfile.TemporaryDirectory(prefix="chaperone-demo-") as folder:
        bundle, trust = Path(folder) / f"{session_name}.tar", Path(folder) / f"{session_name}.trust.pem"
        story.run("chaperone", "export", session_name, "-n", AGENTS, "-o", str(bundle), shows=("bundle:", "trust:"))
        if not (bundle.exists() and trust.exists()):
            return
        log_keys = ("--log-policy", str(bundle.with_suffix(".log.policy")))
        story.run("chaperone", "verify", str(bundle), "--trust", str(trust), *log_keys, shows=("log:", "verify: OK"))
        story.run(
            "chaperone", "replay", session_name, "--bundle", str(bundle), "--trust", str(trust), *log_keys,
            shows=("not allowed", "verify: OK"),
        )  # fmt: skip
        print(f"\nOne byte of the bundle is changed, at {_change_a_byte(bundle)}.")
        story.run("chaperone", "verify", str(bundle), "--trust", str(trust), shows=("verify: FAILED",), status=1)


def _not_recorded(kubectl: Kubectl, pod: str) -> str:
    """What the collector lacks of the story: ten sessions, all closed, four of them with a refusal."""
    found = _sessions(kubectl, pod)
    closed = sum(one["status"]["state"] == "Closed" for one in found)
    refused = sum(one["status"]["denied"] > 0 for one in found)
    return "" if closed >= 10 and refused >= 4 else f"{closed} of 10 sessions closed, {refused} of 4 with a refusal"


def _sessions(kubectl: Kubectl, pod: str) -> list[dict[str, Any]]:
    found = kubectl.json("sessions", f"--namespace={AGENTS}")["items"]
    return [one for one in found if one["spec"].get("pod") == pod]


def _last_seq(kubectl: Kubectl, session: str) -> int:
    last: int = kubectl.json("sessions", session, f"--namespace={AGENTS}")["status"]["lastSeq"]
    return last


def _change_a_byte(bundle: Path) -> int:
    """Change one byte of the first record that lies in a bundle; gives its place."""
    with tarfile.open(bundle) as tar:
        segment = next(one for one in tar if "streams/" in one.name and one.isfile())
    place = segment.offset_data + 200  # inside the first record's header
    with bundle.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))
    return place


def _secrets(kubectl: Kubectl, system_namespace: str) -> str:
    """Make what 10-database.yaml and 20-target.yaml name, unless it is there; gives the certificate's SHA-256."""
    found = json.loads(kubectl("get", "secrets", f"--namespace={DATA}", "--output=json"))["items"]
    stored = {one["metadata"]["name"]: one["data"] for one in found}
    if not {"orders-db-superuser", "orders-db-agent", "orders-db-tls"} <= stored.keys():
        authority = Authority("orders-db CA")
        server = authority.server(HOST, [HOST, f"{HOST}.cluster.local", "orders-db"])
        stored = {
            "orders-db-superuser": _encoded(password=_random()),
            "orders-db-agent": _encoded(username="agent_rw", password=_random()),
            "orders-db-tls": _encoded(
                **{
                    "tls.crt": server.certificate.decode(),
                    "tls.key": server.key.decode(),
                    "ca.crt": authority.pair.certificate.decode(),
                }
            ),
        }
        for name, data in stored.items():
            _put_secret(kubectl, DATA, name, data)
    _put_secret(kubectl, system_namespace, "orders-db-agent", stored["orders-db-agent"], "kubernetes.io/basic-auth")
    _put_secret(kubectl, system_namespace, "orders-db-ca", {"ca.crt": stored["orders-db-tls"]["ca.crt"]})
    print(f"\nSecrets with random passwords and a certificate: orders-db-* in {DATA} and {system_namespace}.")
    pem = base64.b64decode(stored["orders-db-tls"]["tls.crt"]).decode()
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


def _put_secret(kubectl: Kubectl, namespace: str, name: str, data: Mapping[str, str], kind: str = "Opaque") -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": kind,
        "data": dict(data),
    }
    # On the server's side, or kubectl would write the values into an annotation too.
    kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", stdin=json.dumps(secret))


def _encoded(**values: str) -> dict[str, str]:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def _random() -> str:
    return secrets.token_urlsafe(24)


def _not_ready(kubectl: Kubectl) -> str:
    """Which of the declared objects are not in force yet, and why."""
    found = kubectl.json("accesstargets,agentidentities,accesspolicies", f"--namespace={AGENTS}")["items"]
    lacking = []
    for one in found:
        reasons = [each for each in one.get("status", {}).get("conditions") or () if each["type"] == "Ready"]
        if not is_true(one, "Ready"):
            why = f"{reasons[0]['reason']}: {reasons[0].get('message', '')}" if reasons else "not judged yet"
            lacking.append(f"{one['kind']} {one['metadata']['name']} ({why})")
    return ", ".join(lacking)


def _await_rollout(kubectl: Kubectl, namespace: str, workload: str) -> None:
    wait_for(
        f"the rollout of {workload}",
        ROLLOUT_LIMIT_S,
        lambda: rollout(kubectl, namespace, workload),
        lambda: diagnosis(kubectl, namespace),
    )


def _agent_pod(kubectl: Kubectl) -> dict[str, Any]:
    pods = kubectl.json("pods", f"--namespace={AGENTS}", "--selector=app=billing-agent")["items"]
    living = [one for one in pods if "deletionTimestamp" not in one["metadata"]]
    if len(living) != 1:
        raise ToolsError(f"there are {len(living)} pods of billing-agent\n{diagnosis(kubectl, AGENTS)}")
    pod: dict[str, Any] = living[0]
    return pod


def _addresses(pod: Mapping[str, Any]) -> list[str]:
    """A pod's addresses, IPv4 first."""
    return sorted((one["ip"] for one in pod["status"]["podIPs"]), key=lambda address: ":" in address)


def _environment(cluster: Provider) -> dict[str, str]:
    """With the cluster, and with the pinned kubectl and this workspace's `chaperone` before all others."""
    folders = (str(cache() / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", ""))
    return {**os.environ, "KUBECONFIG": str(cluster.kubeconfig()), "PATH": os.pathsep.join(folders)}


def _down(cluster: Provider) -> None:
    if not isinstance(cluster, Current):
        cluster.down()
        return
    kubectl = Kubectl(cluster.kubeconfig())
    names = ("accesstarget/orders-db", f"namespace/{AGENTS}", f"namespace/{DATA}")
    kubectl("delete", *names, "--ignore-not-found", "--timeout=110s")
    uninstall(cluster)


def _end(cluster: Provider, phases: Phases, *, is_kept: bool) -> None:
    print(f"\n{_styled('== How long it took', '1;36')}")
    for name, seconds in phases.done:
        print(f"  {name:<44} {seconds:6.1f} s")
    print(f"  {'together':<44} {sum(seconds for _, seconds in phases.done):6.1f} s")
    if is_kept:
        print(f"\n{_styled('== What next', '1;36')}")
        print(f"  export KUBECONFIG={cluster.kubeconfig()}")
        print(f"  kubectl exec -it -n {AGENTS} deploy/billing-agent -c agent -- psql '{CONNECTION}'")
        print(f"  kubectl edit accesspolicy billing -n {AGENTS}      # in force within seconds, in open sessions too")
        print(f"  kubectl get commands -n {AGENTS} --watch")
        print("  chaperone-cluster down                            # takes everything away\n")


def _with_stdin(command: Sequence[str]) -> tuple[str, ...]:
    return (*command[:2], "-i", *command[2:])


def _typed(command: Sequence[str]) -> str:
    """A command line as a person would type it: double quotes where they do, for SQL's own are single ones."""
    words = []
    for word in command:
        is_plain_text = " " in word and not set('"$`\\!') & set(word)
        words.append(f'"{word}"' if is_plain_text else shlex.quote(word))
    return " ".join(words)


def _styled(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() else text
