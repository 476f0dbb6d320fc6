"""Results of a run, made up; object storage, disks that fail, and Ray on this machine."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE
from typing import TYPE_CHECKING

import pytest
from example_results import make_results
from small_settings import ROOT

from pipeline.cluster import ray_cluster

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket


@pytest.fixture(scope="session")
def results_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_results(tmp_path_factory.mktemp("run") / "results")


@pytest.fixture
def results(results_of_a_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(results_of_a_run, tmp_path / "results"))


@pytest.fixture
def flaky_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FlakyBucket]:
    """A bucket, empty, of this machine; it fails when the test tells it to. The environment names it."""
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
    """The address of an empty storage in a bucket."""
    return flaky_bucket.url


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on an empty disk of 1 MiB."""
    with mounted_disk(tmp_path, "size=1m") as folder:
        yield folder


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that cannot be written."""
    with mounted_disk(tmp_path, "size=1m,ro") as folder:
        yield folder


@contextmanager
def mounted_disk(folder: Path, options: str) -> Iterator[Path]:
    """A disk in memory, by the options of `mount`; gone after the block, or with this process. Skips where none can be.

    It is mounted in a name space of its own, for which user name spaces or root are enough; `/proc` leads there.
    """
    (folder / "disk").mkdir()
    mount = ["sh", "-c", 'mount -t tmpfs -o "$0" tmpfs "$1" && echo mounted && read line', options, folder / "disk"]
    complaints = []
    for own_name_space in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        try:
            keeper = subprocess.Popen([*own_name_space, *mount], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True)
        except FileNotFoundError as error:
            pytest.skip(f"no disk can be mounted: {error}")
        with keeper:
            if keeper.stdout.readline() == "mounted\n":
                yield Path(f"/proc/{keeper.pid}/root{folder}/disk")
                return
            complaints.append(keeper.stderr.read().strip())
    pytest.skip(f"no disk can be mounted: {'; '.join(complaints)}")


@pytest.fixture(scope="module")
def ray_on_this_machine() -> Iterator[None]:
    """A Ray cluster of two cores for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))  # the packages are found from any working directory
        with ray_cluster(num_cpus=2):
            yield
