"""A Ray cluster of several nodes, whose parts a test may kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import ray
from ray.cluster_utils import Cluster
from small_settings import ROOT

from pipeline.params import Params


@pytest.fixture
def cluster(small_project: Callable[..., Params], monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Start a cluster of a head without cores, and of two nodes of one core each."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
