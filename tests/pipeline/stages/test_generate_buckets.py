"""Stage `generate` with a bucket as storage: its bad days, and a node that is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ray.cluster_utils import Cluster

from ghn.deepnets1m.sampling import sample_architecture
from pipeline.architectures.splits import store_architectures
from pipeline.architectures.store import ArchitectureStore, _checked_shard
from pipeline.cluster.ray_cluster import ray_cluster
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.results import MANIFEST
from pipeline.storage.files import file_sizes, read_bytes, write_bytes

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

pytestmark = pytest.mark.slow

SmallProject = Callable[..., Params]

COUNTS = {"train": 1000, "val": 3, "test": 20, "wide": 10, "deep": 3, "dense": 3, "bn_free": 3, "shard_rows": 250}


@pytest.fixture
def settings_in_bucket(flaky_bucket: FlakyBucket) -> Iterator[dict[str, Any]]:
    """Write settings whose storage is the bucket, and a cluster whose workers know its address."""
    with ray_cluster(num_cpus=2):
        yield {"generate": COUNTS, "storage": flaky_bucket.url}


def test_a_bucket_that_does_not_answer_for_a_while_delays_the_stage_and_changes_nothing(
    flaky_bucket: FlakyBucket, settings_in_bucket: dict[str, Any], small_project: SmallProject
) -> None:
    params = small_project(**settings_in_bucket)
    flaky_bucket.answer(503, seconds=3)
    store_architectures(params)
    manifest = MANIFEST.read_bytes()
    store_architectures(params.model_copy(update={"storage": "storage"}))
    assert MANIFEST.read_bytes() == manifest
    for file in Path().glob("storage/architectures/*/*/*.parquet"):
        assert read_bytes(f"{flaky_bucket.url}/{file.relative_to('storage')}") == file.read_bytes()
    folder = next(Path().glob("storage/architectures/train/*"))
    in_bucket = file_sizes(f"{flaky_bucket.url}/architectures/train/{folder.name}")
    assert in_bucket == {file.name: file.stat().st_size for file in folder.glob("*.parquet")}


def test_architectures_are_read_from_a_bucket_and_a_damaged_object_is_named(
    flaky_bucket: FlakyBucket, settings_in_bucket: dict[str, Any], small_project: SmallProject
) -> None:
    params = small_project(**settings_in_bucket)
    store_architectures(params)
    _checked_shard.cache_clear()  # as in a process that has read nothing yet
    store = ArchitectureStore(flaky_bucket.url)
    flaky_bucket.requests.clear()
    assert store.read("train", 3) == store.read("train", 3) != store.read("train", 4)
    attempt = store["train"].row(700, "draw")["draw"][0].as_py()
    assert store.read("train", 700) == sample_architecture(0, "train", 700, attempt)
    folder = store.manifest["splits"]["train"]["folder"]
    assert flaky_bucket.requests == [
        f"GET /bucket/prefix/{folder}/{shard}.parquet" for shard in ("00000000-00000250", "00000500-00000750")
    ]
    place = f"{store['train'].folder}/00000250-00000500.parquet"
    write_bytes(place, read_bytes(place)[:-1])
    with pytest.raises(UserError, match=r"00000250-00000500\.parquet is damaged"):
        store.read("train", 300)


def test_a_bucket_without_permission_is_named(
    flaky_bucket: FlakyBucket, settings_in_bucket: dict[str, Any], small_project: SmallProject
) -> None:
    params = small_project(**settings_in_bucket)
    flaky_bucket.require_permission()
    with pytest.raises(UserError, match="refuses it") as caught:
        store_architectures(params)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_node_that_is_lost_costs_its_shards_and_nothing_else(
    flaky_bucket: FlakyBucket, small_project: SmallProject
) -> None:
    params = small_project(generate={**COUNTS, "train": 6000, "shard_rows": 500}, storage=flaky_bucket.url)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    lost = cluster.add_node(num_cpus=1)

    def lose_node() -> None:
        while sum(line.startswith("PUT") for line in flaky_bucket.requests) < 7:
            time.sleep(0.01)
        cluster.remove_node(lost, allow_graceful=False)

    loser = threading.Thread(target=lose_node)
    try:
        with ray_cluster(cluster.address):
            loser.start()
            store_architectures(params)
        loser.join()
    finally:
        cluster.shutdown()
    train = ArchitectureStore(flaky_bucket.url)["train"]
    assert train.table("index")["index"].to_pylist() == list(range(6000))
    manifest = MANIFEST.read_bytes()
    with ray_cluster(num_cpus=2):
        store_architectures(params.model_copy(update={"storage": "undisturbed"}))
    assert MANIFEST.read_bytes() == manifest
