"""A project folder with small settings, Ray on this machine, and a bucket on it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, settings
from small_settings import ROOT, small_settings

from pipeline.params import Params, load_params

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on a CPU; Triton reads it when it is imported

# Machines differ in speed, and a failure must come again: no deadlines, and the same examples each time.
settings.register_profile(
    "suite", deadline=None, derandomize=True, max_examples=15, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, because one that begins last leaves the other processes idle.

    Among them are those that share a Ray, one after another.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    cores = {item.path: ray_cores(item) for item in items if SHARED_RAY in item.fixturenames}
    items.sort(key=lambda item: (item.path not in slow, cores.get(item.path, 0)))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Let children receive Ctrl-C: a shell starts its background jobs without it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# --- Ray ---

SHARED_RAY = "ray_on_this_machine"

running_ray = ExitStack()
"""Stops the Ray that modules share, if one runs."""


def ray_cores(item: pytest.Item | pytest.FixtureRequest) -> int:
    """Return how many cores a module wants: two, or what its constant `RAY_CORES` says."""
    return getattr(item.module, "RAY_CORES", 2)


@pytest.fixture(scope="module", autouse=True)
def no_ray_of_another_module(request: pytest.FixtureRequest) -> None:
    """Stop the Ray of modules before unless this module shares it."""
    items = (item for item in request.session.items if getattr(item, "module", None) is request.module)
    if not any(SHARED_RAY in item.fixturenames for item in items):
        running_ray.close()


@pytest.fixture(scope="module")
def ray_on_this_machine(request: pytest.FixtureRequest) -> None:
    """Start Ray, or go on with the one of a module before: its start and that of its workers take many seconds."""
    import ray

    from pipeline.cluster.ray_cluster import ray_cluster

    if ray.is_initialized() and ray.cluster_resources().get("CPU") == ray_cores(request):
        return
    running_ray.close()
    patch = running_ray.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("PYTHONPATH", str(ROOT))  # the packages are found from any working directory
    patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for that
    patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process more for each run
    running_ray.enter_context(ray_cluster(num_cpus=ray_cores(request)))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread, as a worker has: where cores are busy, threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_project(one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Params]:
    """Make an empty project folder the working directory; the function writes and reads the settings there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep))
    monkeypatch.chdir(tmp_path)

    def settings(**changes: Any) -> Params:
        Path("params.yaml").write_text(yaml.safe_dump(small_settings(**changes)))
        return load_params()

    return settings


@pytest.fixture
def flaky_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FlakyBucket]:
    """Return an empty bucket on this machine, which the environment names; it fails when the test asks it to."""
    from flaky_bucket import FlakyBucket
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # one that an earlier test has left knows the address of another server
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    bucket = FlakyBucket()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.close()


@pytest.fixture
def bucket(flaky_bucket: FlakyBucket) -> str:
    """Return the address of an empty storage in a bucket."""
    return flaky_bucket.url
