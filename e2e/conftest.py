"""Fixtures of the cluster tests: the cluster that `chaperone-cluster` gives, and a namespace a test may fill."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest
from kubectl import Kubectl

from chaperone_tools.cluster.main import DEFAULT_NAME, provider
from chaperone_tools.cluster.provider import Provider
from chaperone_tools.images.build import build_all


@pytest.fixture(scope="session")
def cluster() -> Provider:
    """The cluster, up. It stays up for the next run: `chaperone-cluster down` ends it."""
    found = provider(os.environ.get("CHAPERONE_PROVIDER"), DEFAULT_NAME)
    found.up()
    return found


@pytest.fixture(scope="session")
def kubectl(cluster: Provider) -> Kubectl:
    """An administrator's kubectl."""
    return Kubectl(cluster.kubeconfig())


@pytest.fixture(scope="session")
def agent_image(cluster: Provider) -> str:
    """An image that stands for any an agent may come in."""
    (image,) = build_all(["agent"]).values()
    cluster.load_image(image.reference, image.archive)
    return image.reference


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A namespace of this test's own."""
    name = f"test-{secrets.token_hex(4)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
