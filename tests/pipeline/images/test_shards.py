"""Image sets of many shards: how they are decoded, read and put in order, and what happens when a shard breaks."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import ray
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from small_settings import ROOT

from pipeline.errors import UserError
from pipeline.images import load
from pipeline.images import order as image_order
from pipeline.images import shards as image_shards
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import load_cached_images
from pipeline.images.shards import ImageShard, PixelShards, decode_shards, write_image_shard
from pipeline.images.sources import RawImages
from pipeline.images.subsets import hold_out, in_memory
from pipeline.storage.files import file_sizes, read_bytes, write_bytes
from pipeline.storage.paths import image_cache

if TYPE_CHECKING:
    from flaky_bucket import FlakyBucket

PLAIN = Augmentation()
FACE = 3 * 8 * 8  # bytes of an image of `faces` at 8×8 pixels, of which 160 are to train and 40 to test


def windows_of(shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make small windows, so that a small set has several."""
    for module in (load, image_order):
        monkeypatch.setattr(module, "WINDOW", shards)


def use_shards(patch: pytest.MonkeyPatch, images_of_8_pixels: int, window: int = 16) -> None:
    """Make shards as small, and windows of as many shards."""
    patch.setattr(image_shards, "SHARD_BYTES", images_of_8_pixels * FACE)
    for module in (image_shards, load, image_order):
        patch.setattr(module, "WINDOW", window)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set a home of its own, where the shards of buckets are kept."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def set_folder(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def contents(cache: Path) -> dict[str, bytes]:
    """Return all files of the one set in a folder, by name."""
    folder = set_folder(cache)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_images(one: Images, other: Images) -> bool:
    parts = ((one.train, other.train), (one.test, other.test))
    same_parts = all(np.array_equal(a.pixels, b.pixels) and np.array_equal(a.labels, b.labels) for a, b in parts)
    return same_parts and (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)


def same_batches(one: Images, other: Images) -> bool:
    augmentation = Augmentation(shift=2, flip=True)
    training = [[training_batch(loaded, 3, step, 50, augmentation) for step in range(5)] for loaded in (one, other)]
    evaluation = [list(evaluation_batches(loaded.test, loaded, 16)) for loaded in (one, other)]
    pairs = [*zip(*training, strict=True), *zip(*evaluation, strict=True)]
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def numbered(folder: Path, sizes: list[int], side: int = 2) -> Images:
    """Write a set in shards of these sizes whose images say which one they are, in their labels and in three bytes."""
    labels = np.arange(sum(sizes))
    channels = np.stack([labels % 256, labels // 256, 7 * labels % 256], axis=1).astype(np.uint8)
    pixels = np.broadcast_to(channels[:, :, None, None], (len(labels), 3, side, side))
    parts = np.split(pixels, np.cumsum(sizes)[:-1])
    shards = [write_image_shard(str(folder), f"train-{number:05d}.npy", part) for number, part in enumerate(parts)]
    part = ImageSubset(PixelShards(str(folder), side, shards), labels)
    return Images("numbered", "0", ("a", "b"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), part, part)


def pictures(folder: Path, count: int, side: int = 12, kinds: tuple[str, ...] = ("cats", "dogs")) -> Path:
    random = np.random.default_rng(0)
    for name in kinds:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


# Shards


@settings(max_examples=40, deadline=None)
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


# The order of large sets


def shards_at_a_time(numbers: list[int]) -> int:
    """Return how many shards are needed at a time at most, when each is kept from its first image to its last."""
    first = {number: place for place, number in reversed(list(enumerate(numbers)))}
    last = {number: place for place, number in enumerate(numbers)}
    return max(sum(first[n] <= place <= last[n] for n in first) for place in range(len(numbers)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 6), min_size=4, max_size=11),
    held_out=st.sampled_from([0, 0.5]),
    batch_size=st.integers(1, 30),
    seed=st.integers(0, 2**40),
)
def test_an_epoch_of_a_large_set_shows_every_image_once_and_needs_few_shards_at_a_time(
    sizes, held_out, batch_size, seed, monkeypatch, tmp_path_factory
) -> None:
    windows_of(3, monkeypatch)
    loaded = numbered(tmp_path_factory.mktemp("set"), sizes)
    few_classes = replace(loaded, train=ImageSubset(loaded.train.source, loaded.train.labels % 3))
    rest, _ = hold_out(few_classes, held_out)
    positions = np.arange(sum(sizes)) if rest.train.positions is None else rest.train.positions
    named = replace(loaded, train=ImageSubset(loaded.train.source, positions, positions))
    count = len(named.train)
    steps = range(-(-2 * count // batch_size))
    batches = {step: training_batch(named, seed, step, batch_size, PLAIN)[1] for step in reversed(steps)}
    shown = torch.cat([batches[step] for step in steps]).tolist()
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    for epoch in (shown[:count], shown[count : 2 * count]):
        assert sorted(epoch) == positions.tolist()
        assert shards_at_a_time(shard_of[epoch].tolist()) <= 3
    again = numbered(tmp_path_factory.mktemp("again"), sizes)  # nothing of the first is remembered for it
    again = replace(again, train=ImageSubset(again.train.source, positions, positions))
    assert all(torch.equal(training_batch(again, seed, step, batch_size, PLAIN)[1], batches[step]) for step in steps)


def test_the_order_of_a_large_set_changes_with_seed_and_epoch_in_and_between_windows(tmp_path, monkeypatch) -> None:
    windows_of(4, monkeypatch)
    loaded = numbered(tmp_path, [10] * 12)
    orders = [training_batch(loaded, *key, 120, PLAIN)[1] for key in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        assert not (order[1:] == order[:-1] + 1).sum() > 10
    shards = [[set((order[start : start + 40] // 10).tolist()) for start in (0, 40, 80)] for order in orders]
    assert all(len(window) == 4 for windows in shards for window in windows)
    assert shards[0] != shards[1] != shards[2] != shards[0]


def test_evaluation_goes_through_a_large_part_in_windows_too(tmp_path, monkeypatch) -> None:
    windows_of(3, monkeypatch)
    loaded = numbered(tmp_path, [5] * 10)
    batches = [labels_B.tolist() for _, labels_B in evaluation_batches(loaded.test, loaded, 7)]
    shown = [label for batch in batches for label in batch]
    assert {len(batch) for batch in batches} <= {6, 7}
    assert sorted(shown) == list(range(50))
    assert shards_at_a_time([label // 5 for label in shown]) <= 3
    assert [labels_B.tolist() for _, labels_B in evaluation_batches(loaded.test, loaded, 7)] == batches


def test_the_classes_of_a_large_folder_are_mixed_in_its_shards(tmp_path, monkeypatch) -> None:
    folder = str(pictures(tmp_path / "pictures", count=50))
    whole = load_cached_images(folder, 8, tmp_path / "whole")
    use_shards(monkeypatch, 10, window=4)
    cut = load_cached_images(folder, 8, tmp_path / "cut")
    assert len(cut.train.source.shards) == 8
    assert all(0 < labels.sum() < 10 for labels in np.split(cut.train.labels, 8))

    def pairs(part: ImageSubset) -> Counter:
        return Counter(zip((image.tobytes() for image in part.pixels), part.labels.tolist(), strict=True))

    assert pairs(cut.train) == pairs(whole.train)
    assert same_images(replace(cut, train=whole.train), whole)
    assert same_images(load_cached_images(folder, 8, tmp_path / "again"), cut)


# Images to choose checkpoints on


@settings(max_examples=100, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), fraction=st.floats(0, 0.999))
def test_what_is_held_out_is_a_fixed_share_of_each_class_and_nothing_of_it_is_trained_on(labels, fraction) -> None:
    labels = np.array(labels)
    pixels = np.broadcast_to(np.arange(len(labels))[:, None, None, None], (len(labels), 3, 2, 2)).astype(np.uint8)
    part = ImageSubset(pixels, labels)
    loaded = Images("x", "0", tuple("abcde"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), part, part)
    rest, held_out = hold_out(loaded, fraction)
    kept, taken = (set(one.pixels[:, 0, 0, 0].tolist()) for one in (rest.train, held_out))
    assert kept | taken == set(range(len(labels)))
    assert not kept & taken
    assert len(rest.train) + len(held_out) == len(labels)
    for label, count in Counter(labels.tolist()).items():
        expected = min(max(round(fraction * count), 1), count - 1) if fraction else 0
        assert (held_out.labels == label).sum() == expected
    assert rest.test is loaded.test
    again = hold_out(replace(loaded, train=in_memory(part)), fraction)
    assert np.array_equal(again[1].pixels, held_out.pixels)
    shown, shown_labels = training_batch(rest, 0, 0, len(rest.train), PLAIN)
    assert set((shown[:, 0, 0, 0] * 255).round().int().tolist()) == kept
    assert sorted(shown_labels.tolist()) == sorted(rest.train.labels.tolist())
    batches = list(evaluation_batches(held_out, rest, 16))
    shown = [value for x_BCSS, _ in batches for value in (x_BCSS[:, 0, 0, 0] * 255).round().int().tolist()]
    assert sorted(shown) == sorted(taken)


def test_holding_out_nothing_changes_nothing(tmp_path) -> None:
    loaded = load_cached_images("faces", 8, tmp_path)
    rest, held_out = hold_out(loaded, 0)
    assert rest.train is loaded.train
    assert len(held_out) == 0
    assert held_out.pixels.shape == (0, 3, 8, 8)
    assert not list(evaluation_batches(held_out, rest, 16))
    for fraction in (-0.1, 1, float("nan")):
        with pytest.raises(UserError, match=r"to hold out = .*: must be at least 0 and below 1"):
            hold_out(loaded, fraction)


def test_what_a_large_set_holds_out_is_in_few_shards(tmp_path, monkeypatch) -> None:
    folder = str(pictures(tmp_path / "pictures", count=200))
    use_shards(monkeypatch, 10, window=4)
    loaded = load_cached_images(folder, 8, tmp_path / "cache")
    _, held_out = hold_out(loaded, 0.1)
    assert np.bincount(held_out.labels).tolist() == [16, 16]
    assert len(held_out.bounds) - 1 <= 8 < len(loaded.train.source.shards) == 32


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
    assert 1 <= len(decoded) < 8
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


# Buckets


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
