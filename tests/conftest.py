"""A project folder with small settings, and a bucket on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from small_settings import ROOT, small_settings

from pipeline.params import Params, load_params

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first: a long one that begins last would leave the other processes idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c() -> None:
    """Let children receive Ctrl-C: a shell starts its background jobs without it, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = FlakyBucket()
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
    yield bucket
    bucket.close()


@pytest.fixture
def bucket(flaky_bucket: FlakyBucket) -> str:
    """Return the address of an empty storage in a bucket."""
    return flaky_bucket.url
