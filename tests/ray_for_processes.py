"""A Ray for the processes of tests: one of its own takes each of them eight seconds of a core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from small_settings import ROOT


@contextmanager
def ray_for_processes(code: Path = ROOT) -> Iterator[str]:
    """Start a Ray of one core, whose workers run the code in a folder; yield the address for `RAY_ADDRESS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(code))
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for that
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()
