"""Image sets of many shards: how they are decoded and read, and what happens when a shard breaks."""

from __future__ import annotations

import json
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st
from sharded_images import (
    FACE,
    contents,
    flip,
    numbered,
    pictures,
    same_batches,
    same_images,
    set_folder,
    truncate,
    use_shards,
)

from pipeline.errors import UserError
from pipeline.images import shards as image_shards
from pipeline.images.load import load_cached_images
from pipeline.images.shards import ImageShard, decode_shards
from pipeline.images.sources import RawImages
from pipeline.images.subsets import in_memory

# Shards


@settings(max_examples=40)
@given(data=st.data(), sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_shards_are_indexed_like_the_array_that_was_cut(data, sizes, tmp_path_factory) -> None:
    part = numbered(tmp_path_factory.mktemp("set"), sizes).train
    whole = part.pixels
    assert whole.shape == part.source.shape == (sum(sizes), 3, 2, 2)
    indices = data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=12))
    assert np.array_equal(part.take(indices), whole[np.array(indices, dtype=int)])
    assert np.array_equal(part.take(indices)[:, 0, 0, 0], np.array(indices, dtype=int))
    some = np.array(sorted(set(indices)), dtype=int)
    view = part.only(some)
    assert np.array_equal(view.pixels, whole[some])
    assert np.array_equal(view.only(np.arange(len(some))[::2]).labels, some[::2])
    assert np.array_equal(in_memory(view).pixels, whole[some])


def test_a_set_in_shards_is_the_set_in_one(tmp_path, monkeypatch) -> None:
    whole = load_cached_images("faces", 8, tmp_path / "whole")
    use_shards(monkeypatch, 25)
    cut = load_cached_images("faces", 8, tmp_path / "cut")
    assert same_images(cut, whole)
    assert same_batches(cut, whole)
    assert [shard.images for shard in cut.train.source.shards] == [25] * 6 + [10]
    for shard in cut.train.source.shards:
        pixels = np.load(set_folder(tmp_path / "cut") / shard.file)
        assert (pixels.dtype, pixels.shape) == (np.uint8, (shard.images, 3, 8, 8))


def test_shards_of_imagenet_have_425_images() -> None:
    assert image_shards.images_per_shard(224) == 425
    assert image_shards.images_per_shard(32) == 20_833
    assert image_shards.images_per_shard(10_000) == 1


def test_a_part_is_sent_to_another_process_without_its_pixels(tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 25)
    train = load_cached_images("faces", 8, tmp_path).train
    train.prefetch(np.arange(160))
    sent = pickle.dumps(train.source)
    assert len(sent) < 3000 < train.source.shape[0] * FACE
    assert np.array_equal(pickle.loads(sent)[np.arange(160)], train.pixels)


# Damage, and what was interrupted


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-*.npy")}


@pytest.mark.parametrize("window", [16, 2])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip])
def test_a_damaged_shard_is_named_and_it_alone_is_decoded_again(damage, window, tmp_path, monkeypatch, caplog) -> None:
    use_shards(monkeypatch, 40, window)
    load_cached_images("faces", 8, tmp_path)
    before, folder = contents(tmp_path), set_folder(tmp_path)
    decoded = times(folder)
    damage(folder / "train-00002.npy")
    if damage is flip and window == 2:  # a large part is compared when it is read, and the message says what to do
        loaded = load_cached_images("faces", 8, tmp_path)
        loaded.train.take([0, 79, 159])
        with pytest.raises(UserError, match=r"train-00002\.npy is damaged.*\nremove it"):
            loaded.train.take([0, 100])
        (folder / "train-00002.npy").unlink()
    load_cached_images("faces", 8, tmp_path)
    assert contents(tmp_path) == before
    assert {name for name, then in times(folder).items() if then != decoded[name]} == {"train-00002.npy"}
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert f"{folder}" in warning
    assert "train-00002.npy" in warning


def test_a_shard_that_vanishes_is_named_when_it_is_read(tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 40, window=2)
    loaded = load_cached_images("faces", 8, tmp_path)
    (set_folder(tmp_path) / "train-00003.npy").unlink()
    with pytest.raises(UserError, match=r"train-00003\.npy is missing"):
        loaded.train.take([150])


def test_an_interrupted_decode_goes_on_where_it_was(tmp_path, monkeypatch) -> None:
    folder = pictures(tmp_path / "pictures", count=40)
    use_shards(monkeypatch, 10)
    load_cached_images(str(folder), 8, tmp_path / "undisturbed")
    picture = folder / "dogs" / "9.png"
    content, status = picture.read_bytes(), picture.stat()
    picture.write_bytes(b"x" * len(content))
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(UserError, match=r"dogs/9\.png cannot be read"):
        load_cached_images(str(folder), 8, tmp_path / "cache")
    decoded = times(set_folder(tmp_path / "cache"))
    assert 1 <= len(decoded) < len(times(set_folder(tmp_path / "undisturbed")))
    assert not (set_folder(tmp_path / "cache") / "meta.json").exists()
    picture.write_bytes(content)
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    load_cached_images(str(folder), 8, tmp_path / "cache")
    assert times(set_folder(tmp_path / "cache")).items() > decoded.items()
    assert contents(tmp_path / "cache") == contents(tmp_path / "undisturbed")


def test_a_shard_without_a_whole_record_is_decoded_again(tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 40)
    load_cached_images("faces", 8, tmp_path)
    before, folder = contents(tmp_path), set_folder(tmp_path)
    (folder / "meta.json").unlink()
    (folder / "records" / "train-00001.npy.json").write_text("{")
    record = json.loads((folder / "records" / "train-00002.npy.json").read_text())
    (folder / "records" / "train-00002.npy.json").write_text(json.dumps(record | {"size": 7}))
    load_cached_images("faces", 8, tmp_path)
    assert contents(tmp_path) == before


def test_two_shards_exchanged_with_their_records_are_decoded_again(tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 40, window=2)  # so large that contents are not compared before they are read
    load_cached_images("faces", 8, tmp_path)
    before, folder = contents(tmp_path), set_folder(tmp_path)
    (folder / "meta.json").unlink()
    for name in ("train-0000{}.npy", "records/train-0000{}.npy.json"):
        (folder / name.format(1)).rename(folder / "exchanged")
        (folder / name.format(2)).rename(folder / name.format(1))
        (folder / "exchanged").rename(folder / name.format(2))
    load_cached_images("faces", 8, tmp_path)
    assert contents(tmp_path) == before


def test_a_disk_that_is_too_small_is_named_before_anything_is_decoded(small_disk) -> None:
    with pytest.raises(UserError, match=r"image cache .*disk.*: 0\.0 GB are needed, 0\.0 GB are free"):
        load_cached_images("faces", 64, small_disk / "cache")
    assert not list(small_disk.rglob("*.npy"))


# Ray


def kill_a_worker(killed: list[int], stop: threading.Event) -> None:
    while not killed and not stop.is_set():
        for status in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if status.read_bytes().startswith(b"ray::decode_shard"):
                    time.sleep(0.02)  # in the middle of a shard
                    os.kill(int(status.parent.name), signal.SIGKILL)
                    killed.append(int(status.parent.name))
                    break
            except OSError:  # it has ended meanwhile
                continue
        time.sleep(0.01)


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory) -> Path:
    """Make a folder of pictures, and below `threads` what a process without Ray makes of it."""
    folder = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        use_shards(patch, 10)
        load_cached_images(str(pictures(folder / "pictures", count=40, side=400)), 8, folder / "threads")
    return folder


@ray.remote(num_cpus=1)
class Occupied:
    """Takes one of the two cores of the cluster, so that one is left for tasks."""

    def ready(self) -> None:
        pass


@pytest.mark.slow
def test_one_worker_and_two_of_which_one_is_killed_decode_to_the_bytes_of_threads(
    large_pictures, ray_on_this_machine, tmp_path, monkeypatch
) -> None:
    folder = str(large_pictures / "pictures")
    use_shards(monkeypatch, 10)
    other = Occupied.remote()
    ray.get(other.ready.remote())
    one = load_cached_images(folder, 8, tmp_path / "one")
    ray.kill(other)
    killed, stop = [], threading.Event()
    killer = threading.Thread(target=kill_a_worker, args=(killed, stop))
    killer.start()
    two = load_cached_images(folder, 8, tmp_path / "two")
    stop.set()
    killer.join()
    assert len(killed) == 1
    assert same_images(one, two)
    assert contents(tmp_path / "one") == contents(large_pictures / "threads")
    whole = contents(tmp_path / "two")
    halves = [name for name in whole if Path(name).name.startswith(".")]  # of what the killed one was writing
    assert len(halves) <= 1
    assert {name: content for name, content in whole.items() if name not in halves} == contents(tmp_path / "one")


@pytest.mark.slow
def test_a_picture_that_a_node_does_not_see_is_named(ray_on_this_machine, tmp_path, monkeypatch) -> None:
    use_shards(monkeypatch, 10)
    away = RawImages([str(tmp_path / "away" / f"{number}.png") for number in range(30)], np.zeros(30, dtype=np.int64))
    with pytest.raises(UserError, match=r"away/\d+\.png is not there.*\n.*visible from every node"):
        decode_shards(str(tmp_path / "set"), {"train": away}, 8, "away")


def test_a_storage_that_the_nodes_do_not_share_is_named(tmp_path, monkeypatch) -> None:
    shard = ImageShard("train-00000.npy", 1, 140, "0", [0, 0, 0], [0, 0, 0])
    with pytest.raises(UserError, match=r"train-00000\.npy was written by a node .*\n.*all nodes share, or a bucket"):
        image_shards._require_seen(str(tmp_path), {shard.file: shard})


@pytest.mark.slow
def test_a_worker_of_ray_does_not_wait_for_tasks_that_it_may_keep_from_running(ray_on_this_machine) -> None:
    assert image_shards._drives_ray()
    assert not ray.get(ray.remote(image_shards._drives_ray).remote())
