"""Results of a run, made up; object storage and Ray on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from example_results import make_results
from small_settings import ROOT

from pipeline.cluster import ray_cluster


@pytest.fixture(scope="session")
def results_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("run") / "results")


@pytest.fixture
def results(results_of_a_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(results_of_a_run, tmp_path / "results"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty storage in a bucket."""
    import boto3
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()  # one that an earlier test has left knows the address of another server
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket/prefix"
    server.stop()


@pytest.fixture(scope="module")
def ray_on_this_machine() -> Iterator[None]:
    """A Ray cluster of two cores for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the packages are found from any working directory
        with ray_cluster(num_cpus=2):
            yield
