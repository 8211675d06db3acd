"""Fixtures of the cluster tests: the cluster that `chaperone-cluster` gives, Chaperone in it, and a namespace to fill.

The cluster is taken down at the end if these tests brought it up; a cluster that ran before is left as it is.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator

import pytest
from servers import Servers, make_servers
from stage import AGENTS_LABEL, Database, Pod, Team, make_database, make_namespace, pod

from chaperone_tools.cluster.main import DEFAULT_NAME, provider
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.images.build import build_all
from chaperone_tools.install import Installed, install
from chaperone_tools.kubectl import Kubectl

LIMIT_S = 900  # of a test; each of its steps has a limit of its own, and says what it waited for


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test is the first one starts everything, and the limit of a test counts that too."""
    for item in items:
        if item.get_closest_marker("cluster") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Provider]:
    """The cluster, up."""
    found = provider(os.environ.get("CHAPERONE_PROVIDER"), DEFAULT_NAME)
    is_ours = found.up()
    yield found
    if is_ours:
        found.down()


@pytest.fixture(scope="session")
def kubectl(cluster: Provider) -> Kubectl:
    """An administrator's kubectl."""
    return Kubectl(cluster.kubeconfig())


def _loaded(cluster: Provider, target: str) -> str:
    (image,) = build_all([target]).values()
    cluster.load_image(image.reference, image.archive)
    return image.reference


@pytest.fixture(scope="session")
def agent_image(cluster: Provider) -> str:
    """An image that stands for any an agent may come in."""
    return _loaded(cluster, "agent")


@pytest.fixture(scope="session")
def chaperone_installed(cluster: Provider) -> Installed:
    """Chaperone, installed from the chart as a person would do it."""
    return install(cluster)


@pytest.fixture(scope="session")
def database(cluster: Provider, kubectl: Kubectl, chaperone_installed: Installed) -> Database:
    """A PostgreSQL with TLS, and the target that leads to it."""
    return make_database(kubectl, _loaded(cluster, "postgres"), chaperone_installed.namespace)


@pytest.fixture(scope="session")
def servers(
    cluster: Provider, kubectl: Kubectl, chaperone_installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> Servers:
    """A MariaDB with TLS, a host with sshd, and the targets that lead to them."""
    folder = tmp_path_factory.mktemp("keys")
    return make_servers(kubectl, _loaded(cluster, "servers"), chaperone_installed.namespace, folder)


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of this test's own."""
    name = f"test-{secrets.token_hex(4)}"
    make_namespace(kubectl, name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def make_team(kubectl: Kubectl, database: Database, agent_image: str) -> Iterator[Callable[[], Team]]:
    """Makes namespaces of agents to which the target is open."""
    made: list[str] = []

    def make() -> Team:
        name = f"team-{secrets.token_hex(4)}"
        made.append(name)
        make_namespace(kubectl, name, **{AGENTS_LABEL: "true"})
        return Team(kubectl, name, agent_image)

    yield make
    for name in made:
        kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="module")
def team(make_team: Callable[[], Team]) -> Team:
    """One such namespace for all tests of a module."""
    return make_team()


@pytest.fixture(scope="session")
def free_pod(kubectl: Kubectl, agent_image: str) -> Iterator[Pod]:
    """A pod that nobody fences, with the same image: what fails there too proves nothing about a fence."""
    name = f"free-{secrets.token_hex(4)}"
    make_namespace(kubectl, name)
    kubectl.apply(pod(name, "free", agent_image))
    kubectl("wait", f"--namespace={name}", "--for=condition=Ready", "pod/free", "--timeout=90s")
    yield Pod(kubectl, name, "free")
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def node(kubectl: Kubectl, agent_image: str) -> Iterator[Pod]:
    """A pod that sees the processes of the node and may read their files."""
    name = f"node-{secrets.token_hex(4)}"
    make_namespace(kubectl, name)
    kubectl.apply(pod(name, "node", agent_image, hostPID=True))
    kubectl("wait", f"--namespace={name}", "--for=condition=Ready", "pod/node", "--timeout=90s")
    yield Pod(kubectl, name, "node")
    kubectl("delete", "namespace", name, "--wait=false")
