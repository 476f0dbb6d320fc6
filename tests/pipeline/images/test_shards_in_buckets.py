"""Shards in a bucket: each node fetches those that it needs, once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sharded_images import (
    FACE,
    PLAIN,
    contents,
    flip,
    same_batches,
    same_images,
    set_folder,
    use_shards,
)
from small_settings import ROOT

from pipeline.errors import UserError
from pipeline.images.batches import training_batch
from pipeline.images.load import load_cached_images
from pipeline.storage.files import file_sizes, read_bytes, write_bytes
from pipeline.storage.paths import image_cache

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a home of its own, where the shards of buckets are kept."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def in_bucket(flaky_bucket: FlakyBucket) -> str:
    return str(image_cache(flaky_bucket.url))


def test_images_in_a_bucket_are_those_on_a_disk(flaky_bucket, home, tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 40)
    flaky_bucket.answer(503, requests=3)
    loaded = load_cached_images("faces", 8, in_bucket(flaky_bucket))
    on_disk = load_cached_images("faces", 8, tmp_path / "cache")
    assert same_images(loaded, on_disk)
    assert same_batches(loaded, on_disk)
    name = set_folder(tmp_path / "cache").name
    for file, content in contents(tmp_path / "cache").items():
        assert read_bytes(f"{in_bucket(flaky_bucket)}/{name}/{file}") == content
    flaky_bucket.requests.clear()
    assert same_images(load_cached_images("faces", 8, in_bucket(flaky_bucket)), on_disk)
    assert not [request for request in flaky_bucket.requests if "PUT" in request or "-0000" in request]


FETCH = """
import sys
from pipeline.images import shards
from pipeline.images.load import load_cached_images
shards.SHARD_BYTES = 40 * 3 * 8 * 8
print("ready", flush=True)
sys.stdin.readline()
images = load_cached_images("faces", 8, sys.argv[1])
print(int(images.train.pixels.sum()), int(images.test.pixels.sum()), flush=True)
"""


@pytest.mark.slow
def test_two_processes_of_a_node_fetch_each_shard_once(flaky_bucket, home, tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 40)
    loaded = load_cached_images("faces", 8, tmp_path / "cache")
    load_cached_images("faces", 8, in_bucket(flaky_bucket))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCH, in_bucket(flaky_bucket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    flaky_bucket.requests.clear()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    expected = f"{loaded.train.pixels.sum()} {loaded.test.pixels.sum()}\n"
    assert [process.communicate(timeout=120)[0] for process in processes] == [expected] * 2
    fetched = Counter(request for request in flaky_bucket.requests if "-0000" in request)
    assert len(fetched) == 5
    assert set(fetched.values()) == {1}


def test_the_next_window_is_fetched_while_this_one_is_used(flaky_bucket, home, monkeypatch) -> None:
    use_shards(monkeypatch, 20, window=2)
    loaded = load_cached_images("faces", 8, in_bucket(flaky_bucket))
    assert len(loaded.train.source.shards) == 8
    assert not list(home.rglob("*.npy"))  # nothing before it is needed

    def fetched() -> int:
        return len(list(home.rglob("train-*.npy")))

    training_batch(loaded, 0, 0, 4, PLAIN)
    assert fetched() <= 3
    for step in range(1, 5):  # half of the window of 40 images
        training_batch(loaded, 0, step, 4, PLAIN)
    deadline = time.monotonic() + 20
    while fetched() < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert fetched() == 4
    flaky_bucket.requests.clear()
    training_batch(loaded, 0, 10, 4, PLAIN)  # the first one of the next window
    assert sum("train-" in request for request in flaky_bucket.requests) <= 1  # for the window after it


def test_a_damaged_shard_of_a_bucket_is_named_and_a_damaged_copy_is_fetched_again(
    flaky_bucket, home, monkeypatch, caplog
) -> None:
    use_shards(monkeypatch, 40)
    expected = load_cached_images("faces", 8, in_bucket(flaky_bucket)).train.pixels
    copy = next(home.rglob("train-00002.npy"))
    flip(copy)
    loaded = load_cached_images("faces", 8, in_bucket(flaky_bucket))
    assert np.array_equal(loaded.train.pixels, expected)
    assert f"{copy} is damaged: fetching it again" in caplog.text

    place = f"{loaded.train.source.folder}/train-00001.npy"
    write_bytes(place, read_bytes(place)[:-1] + b"!")
    next(home.rglob("train-00001.npy")).unlink()
    again = load_cached_images("faces", 8, in_bucket(flaky_bucket))
    assert np.array_equal(again.train.take([0, 159]), expected[[0, 159]])
    with pytest.raises(UserError, match=r"s3://bucket/.*/train-00001\.npy is damaged.*\nremove it"):
        again.train.take([41])
    assert file_sizes(loaded.train.source.folder)["train-00001.npy"] == 40 * FACE + 128


def test_a_home_that_is_too_small_for_the_shards_is_named(flaky_bucket, home, small_disk, monkeypatch) -> None:
    loaded = load_cached_images("faces", 64, in_bucket(flaky_bucket))
    monkeypatch.setenv("HOME", str(small_disk))
    with pytest.raises(UserError, match=r"image cache .*disk/\.cache/ghn/images/.*GB are needed, 0\.0 GB are free"):
        loaded.train.take([0])
    assert len(loaded.test.take([0])) == 1


def test_the_place_of_images_is_in_the_storage(tmp_path, monkeypatch) -> None:
    assert image_cache("s3://bucket/prefix/") == "s3://bucket/prefix/images"
    assert image_cache(str(tmp_path)) == tmp_path / "images"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert image_cache("storage") == tmp_path / "storage" / "images"
