"""The cache of decoded images, and the batches that are taken from it."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_settings import ROOT

from pipeline.errors import UserError
from pipeline.images.batches import Augmentation, evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import load_cached_images
from pipeline.images.subsets import balanced_choice, few_shot

PLAIN = Augmentation()


@pytest.fixture(scope="module")
def mnist(tmp_path_factory) -> Images:
    return load_cached_images("mnist_5k", 28, tmp_path_factory.mktemp("cache"))


def numbered(count: int, side: int = 4) -> Images:
    """Return images that say which one they are: the label is the position, and so is every pixel (modulo 256)."""
    labels = np.arange(count)
    pixels = np.broadcast_to(labels[:, None, None, None], (count, 3, side, side)).astype(np.uint8)
    part = ImageSubset(pixels, labels)
    return Images("numbered", "0", ("a", "b"), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), part, part)


def noise(count: int, side: int, seed: int = 0) -> Images:
    random = np.random.default_rng(seed)
    part = ImageSubset(random.integers(0, 256, (count, 3, side, side), dtype=np.uint8), random.integers(0, 5, count))
    return Images("noise", "0", tuple("abcde"), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), part, part)


def pictures(folder: Path, count: int = 5, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def stored_folder(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def same_images(one: Images, other: Images) -> bool:
    same_parts = all(
        np.array_equal(a.pixels, b.pixels) and np.array_equal(a.labels, b.labels)
        for a, b in ((one.train, other.train), (one.test, other.test))
    )
    return same_parts and (one.classes, one.mean, one.std) == (other.classes, other.mean, other.std)


# Decoding


def test_the_default_set_has_4000_images_to_train_and_1000_to_test(mnist) -> None:
    assert mnist.train.pixels.shape == (4000, 3, 28, 28)
    assert mnist.test.pixels.shape == (1000, 3, 28, 28)
    assert mnist.train.pixels.dtype == np.uint8
    assert mnist.train.labels.dtype == np.int64
    assert np.bincount(mnist.train.labels).tolist() == [400] * 10
    assert np.bincount(mnist.test.labels).tolist() == [100] * 10


def test_no_image_is_in_both_parts(mnist) -> None:
    train = {image.tobytes() for image in mnist.train.pixels}
    assert not any(image.tobytes() in train for image in mnist.test.pixels)


def test_gray_images_have_three_equal_channels(mnist) -> None:
    assert (mnist.train.pixels == mnist.train.pixels[:, :1]).all()


def test_mean_and_deviation_are_those_of_the_train_part(tmp_path) -> None:
    images = load_cached_images("folder", 12, tmp_path / "cache", folder=str(pictures(tmp_path / "pictures")))
    scaled = np.asarray(images.train.pixels, dtype=np.float64) / 255
    assert images.mean == pytest.approx(scaled.mean(axis=(0, 2, 3)))
    assert images.std == pytest.approx(scaled.std(axis=(0, 2, 3)))
    assert len(set(images.mean)) == 3


def test_a_channel_without_variation_does_not_make_batches_infinite(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / "black" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (7, 0, 0)).save(tmp_path / "black" / name / f"{number}.png")
    images = load_cached_images(str(tmp_path / "black"), 8, tmp_path / "cache")
    assert training_batch(images, 0, 0, 4, PLAIN)[0].abs().max() < 1e-5


@pytest.mark.parametrize("test_fraction", [0.001, 0.25, 0.999])
def test_each_class_gives_its_share_to_the_test_part_but_is_in_both(test_fraction, tmp_path) -> None:
    images = load_cached_images("faces", 8, tmp_path, test_fraction=test_fraction)
    expected = min(max(round(test_fraction * 100), 1), 99)
    assert np.bincount(images.test.labels).tolist() == [expected, expected]
    assert len(images.train) + len(images.test) == 200


def test_the_same_images_are_for_testing_in_every_cache(tmp_path) -> None:
    assert same_images(load_cached_images("faces", 16, tmp_path / "a"), load_cached_images("faces", 16, tmp_path / "b"))


def test_another_class_does_not_change_how_the_classes_before_it_are_split(tmp_path) -> None:
    folder = pictures(tmp_path / "pictures", count=20)
    before = load_cached_images(str(folder), 8, tmp_path / "cache")
    os.rename(pictures(tmp_path / "more", count=20, seed=1) / "cats", folder / "zebras")
    after = load_cached_images(str(folder), 8, tmp_path / "cache")
    assert np.array_equal(after.test.pixels[: len(before.test)], before.test.pixels)


@pytest.mark.parametrize("image_size", [0, -3])
def test_an_impossible_image_size_is_refused(image_size, tmp_path) -> None:
    with pytest.raises(UserError, match=f"image_size = {image_size}: must be at least 1"):
        load_cached_images("faces", image_size, tmp_path)


@pytest.mark.parametrize("test_fraction", [0, 1, -0.5, 20, float("nan")])
def test_an_impossible_test_fraction_is_refused(test_fraction, tmp_path) -> None:
    with pytest.raises(UserError, match=r"test_fraction = .*: must be above 0 and below 1"):
        load_cached_images("faces", 8, tmp_path, test_fraction=test_fraction)


def test_a_cache_that_cannot_be_made_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"image cache .*file"):
        load_cached_images("faces", 8, tmp_path / "file")


# The cache


def test_a_decoded_set_is_not_decoded_again(tmp_path) -> None:
    load_cached_images("faces", 8, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in stored_folder(tmp_path).iterdir()}
    load_cached_images("faces", 8, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in stored_folder(tmp_path).iterdir()} == before


def test_a_complete_cache_may_be_read_only(tmp_path) -> None:
    expected = load_cached_images("faces", 8, tmp_path)
    for lock in tmp_path.glob("*.lock"):
        lock.unlink()
    tmp_path.chmod(0o500)
    assert same_images(load_cached_images("faces", 8, tmp_path), expected)
    tmp_path.chmod(0o700)
    assert not list(tmp_path.glob("*.lock"))


def test_size_fraction_and_data_set_have_their_own_folders(tmp_path) -> None:
    load_cached_images("faces", 8, tmp_path)
    load_cached_images("faces", 9, tmp_path)
    load_cached_images("faces", 8, tmp_path, test_fraction=0.5)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 3


def test_a_set_with_its_own_test_part_does_not_depend_on_the_fraction(tmp_path) -> None:
    for part in ("train", "test"):
        pictures(tmp_path / "pictures" / part)
    for test_fraction in (0.2, 0.5):
        load_cached_images(str(tmp_path / "pictures"), 8, tmp_path / "cache", test_fraction=test_fraction)
    assert stored_folder(tmp_path / "cache")


def test_a_changed_folder_is_decoded_again(tmp_path) -> None:
    folder = pictures(tmp_path / "pictures")
    first = load_cached_images(str(folder), 8, tmp_path / "cache")
    Image.new("RGB", (9, 9)).save(folder / "cats" / "new.png")
    second = load_cached_images(str(folder), 8, tmp_path / "cache")
    assert len(second.train) + len(second.test) == len(first.train) + len(first.test) + 1
    Image.new("RGB", (9, 9), (255, 0, 0)).save(folder / "cats" / "new.png")
    os.utime(folder / "cats" / "new.png", ns=(1, 1))  # even within the resolution of the clock
    assert not same_images(load_cached_images(str(folder), 8, tmp_path / "cache"), second)


def test_a_moved_folder_needs_no_decoding(tmp_path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder = pictures(tmp_path / "pictures")
    load_cached_images(str(folder), 8, tmp_path / "cache")
    folder.rename(tmp_path / "elsewhere" / "pictures")
    load_cached_images(str(tmp_path / "elsewhere" / "pictures"), 8, tmp_path / "cache")
    assert stored_folder(tmp_path / "cache")


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 64
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [Path.unlink, cut_off, flipped])
@pytest.mark.parametrize("name", ["train-00000.npy", "test-00000.npy", "train_labels.npy", "meta.json"])
def test_a_damaged_cache_is_named_and_rebuilt(name, damage, tmp_path, caplog) -> None:
    expected = load_cached_images("faces", 8, tmp_path / "expected")
    load_cached_images("faces", 8, tmp_path / "cache")
    damage(stored_folder(tmp_path / "cache") / name)
    assert same_images(load_cached_images("faces", 8, tmp_path / "cache"), expected)
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert str(stored_folder(tmp_path / "cache")) in warning.getMessage()
    assert name in warning.getMessage()


def test_what_a_killed_process_left_long_ago_is_removed(tmp_path) -> None:
    expected = load_cached_images("faces", 8, tmp_path / "expected")
    stored = tmp_path / "cache" / stored_folder(tmp_path / "expected").name
    stored.mkdir(parents=True)
    old, new = stored / ".train-00000.npy.0123", stored / ".train-00000.npy.4567"  # the other may be being written
    for left in (old, new):
        left.write_bytes(b"half an arr")
    os.utime(old, (1, 1))
    assert same_images(load_cached_images("faces", 8, tmp_path / "cache"), expected)
    assert not old.exists()
    assert new.exists()


LOAD_AT_THE_SIGNAL = """
import pathlib, sys, time
from pipeline.images.load import load_cached_images
folder, cache = map(pathlib.Path, sys.argv[1:])
print("ready", flush=True)
sys.stdin.readline()
images = load_cached_images(str(folder), 64, cache)
print(len(images.train), len(images.test), int(images.train.pixels.sum()), flush=True)
"""


@pytest.mark.slow
def test_two_processes_that_start_at_once_both_get_the_images(tmp_path) -> None:
    folder = pictures(tmp_path / "pictures", count=150)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD_AT_THE_SIGNAL, folder, tmp_path / "cache"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    results = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert results[0] == results[1]
    assert results[0].startswith("240 60 ")
    assert stored_folder(tmp_path / "cache")  # one folder, nothing temporary


def test_threads_that_start_at_once_all_get_the_images(tmp_path) -> None:
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load_cached_images("faces", 8, tmp_path), range(4)))
    assert all(same_images(images, loaded[0]) for images in loaded)


# Training batches


def test_a_training_batch_is_normalised(mnist) -> None:
    x_BCSS, labels_B = training_batch(mnist, 0, 0, 4000, PLAIN)
    assert (x_BCSS.dtype, labels_B.dtype) == (torch.float32, torch.int64)
    assert x_BCSS.shape == (4000, 3, 28, 28)
    assert x_BCSS.mean().item() == pytest.approx(0, abs=1e-3)
    assert x_BCSS.std().item() == pytest.approx(1, abs=1e-3)


def test_a_step_takes_the_same_images_whatever_was_taken_before(mnist) -> None:
    augmentation = Augmentation(shift=2, flip=True)
    expected = training_batch(mnist, 3, 77, 64, augmentation)
    for seed, step in ((3, 76), (3, 78), (4, 77), (3, 10_000)):
        other = training_batch(mnist, seed, step, 64, augmentation)
        assert not torch.equal(other[0], expected[0])
    again = training_batch(mnist, 3, 77, 64, augmentation)
    assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))


def test_the_global_random_state_is_neither_used_nor_changed(mnist) -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    first = training_batch(mnist, 3, 5, 8, Augmentation(2, True))[0]
    following = (np.random.random(), torch.rand(1).item())
    np.random.seed(1)
    torch.manual_seed(1)
    assert (np.random.random(), torch.rand(1).item()) == following
    assert torch.equal(training_batch(mnist, 3, 5, 8, Augmentation(2, True))[0], first)


@settings(max_examples=100)
@given(count=st.integers(1, 40), batch_size=st.integers(1, 130), seed=st.integers(0, 2**64))
def test_every_epoch_shows_every_image_once(count, batch_size, seed) -> None:
    images = numbered(count)
    epochs = 3
    steps = -(-epochs * count // batch_size)
    batches = [training_batch(images, seed, step, batch_size, PLAIN) for step in range(steps)]
    assert all(len(labels_B) == batch_size for _, labels_B in batches)
    shown = torch.cat([labels_B for _, labels_B in batches])
    for epoch in range(epochs):
        assert sorted(shown[epoch * count : (epoch + 1) * count].tolist()) == list(range(count))


@settings(max_examples=50)
@given(step=st.integers(0, 10**12), batch_size=st.integers(1, 100), seed=st.integers(0, 100))
def test_images_and_labels_belong_together(step, batch_size, seed) -> None:
    x_BCSS, labels_B = training_batch(numbered(37), seed, step, batch_size, Augmentation(flip=True))
    assert torch.equal((x_BCSS * 255).round().long(), labels_B[:, None, None, None].expand(-1, 3, 4, 4))


def test_epochs_differ_in_order() -> None:
    images = numbered(100)
    first, second = (training_batch(images, 0, step, 100, PLAIN)[1] for step in (0, 1))
    assert not torch.equal(first, second)


@settings(max_examples=60)
@given(shift=st.integers(0, 6), flip=st.booleans(), step=st.integers(0, 1000), side=st.integers(7, 12))
def test_an_augmented_image_is_the_image_moved_and_mirrored_on_the_mean_colour(shift, flip, step, side) -> None:
    images = noise(6, side)
    plain, labels = training_batch(images, 0, step, 8, PLAIN)
    augmented, augmented_labels = training_batch(images, 0, step, 8, Augmentation(shift, flip))
    assert torch.equal(labels, augmented_labels)
    padded = torch.nn.functional.pad(plain, (shift, shift, shift, shift))
    for canvas, result in zip(padded, augmented, strict=True):
        moved = [
            canvas[:, top : top + side, left : left + side]
            for top in range(2 * shift + 1)
            for left in range(2 * shift + 1)
        ]
        possible = [*moved, *(window.flip(2) for window in moved)] if flip else moved
        assert any(torch.equal(result, window) for window in possible)


def test_all_shifts_and_both_sides_are_equally_frequent() -> None:
    pixels = np.full((1, 3, 5, 5), 102, dtype=np.uint8)  # the mean: 0 after normalisation
    pixels[0, :, 2, 2] = 255
    part = ImageSubset(pixels, np.zeros(1, dtype=np.int64))
    images = Images("dot", "0", ("a", "b"), (0.4, 0.4, 0.4), (0.2, 0.2, 0.2), part, part)
    x_BCSS, _ = training_batch(images, 0, 0, 4000, Augmentation(shift=1))
    share = (x_BCSS[:, 0] > 1).float().mean(0)
    assert share[1:4, 1:4].numpy() == pytest.approx(np.full((3, 3), 1 / 9), abs=0.02)
    assert share.sum().item() == pytest.approx(1)

    pixels[0, :, 2, 0] = 0
    x_BCSS, _ = training_batch(images, 0, 0, 4000, Augmentation(flip=True))
    assert (x_BCSS[:, 0, 2, 0] < -1).float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_mirroring_does_not_change_the_shifts() -> None:
    images = noise(50, 8)
    shifted = training_batch(images, 0, 0, 50, Augmentation(2))[0]
    both = training_batch(images, 0, 0, 50, Augmentation(2, flip=True))[0]
    same = (both == shifted).flatten(1).all(1)
    mirrored = (both == shifted.flip(3)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert same.any()
    assert mirrored.any()


def test_a_shift_out_of_sight_is_refused() -> None:
    with pytest.raises(UserError, match="shift = -1: must be at least 0"):
        Augmentation(shift=-1)
    with pytest.raises(UserError, match="shift = 8: must be less than the image size, 8 pixels"):
        training_batch(noise(4, 8), 0, 0, 4, Augmentation(shift=8))


# Evaluation batches


@settings(max_examples=200)
@given(count=st.integers(2, 300), batch_size=st.integers(1, 100))
def test_evaluation_shows_every_image_once_in_batches_of_nearly_one_size(count, batch_size) -> None:
    images = numbered(count, side=1)
    batches = [labels_B.tolist() for _, labels_B in evaluation_batches(images.test, images, batch_size)]
    sizes = [len(batch) for batch in batches]
    assert sorted(label for batch in batches for label in batch) == list(range(count))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)


def test_a_single_test_image_is_a_batch() -> None:
    images = numbered(1)
    assert [len(labels_B) for _, labels_B in evaluation_batches(images.test, images, 64)] == [1]


def test_evaluation_batches_mix_the_classes_always_in_the_same_way(mnist) -> None:
    first = list(evaluation_batches(mnist.test, mnist, 64))
    second = list(evaluation_batches(mnist.test, mnist, 64))
    for (x_BCSS, labels_B), (other_x_BCSS, other_labels_B) in zip(first, second, strict=True):
        assert torch.equal(x_BCSS, other_x_BCSS)
        assert torch.equal(labels_B, other_labels_B)
        assert len(labels_B.unique()) >= 8
    assert [len(labels_B) for _, labels_B in first] == [63] * 8 + [62] * 8


def test_evaluation_normalises_as_training_does() -> None:
    images = noise(20, 6)
    trained = training_batch(images, 0, 0, 20, PLAIN)[0]
    evaluated = torch.cat([x_BCSS for x_BCSS, _ in evaluation_batches(images.test, images, 7)])
    assert {image.numpy().tobytes() for image in trained} == {image.numpy().tobytes() for image in evaluated}


# Fewer test images


@settings(max_examples=100)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6), data=st.data())
def test_a_choice_has_each_class_in_proportion_and_is_part_of_a_larger_one(sizes, data) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = data.draw(st.integers(1, len(labels)))
    chosen = balanced_choice(labels, count)
    assert len(chosen) == count and np.all(np.diff(chosen) > 0)
    shares = count / len(labels) * np.array(sizes)
    assert np.abs(np.bincount(labels[chosen], minlength=len(sizes)) - shares).max() <= len(sizes)
    assert set(chosen) <= set(balanced_choice(labels, count + 1))


def test_a_choice_of_more_images_than_there_are_is_all_of_them() -> None:
    assert np.array_equal(balanced_choice(np.arange(30) % 3, 40), np.arange(30))


# Few-shot


@settings(max_examples=100)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=60), seed=st.integers(0, 2**40))
def test_few_shot_takes_exactly_so_many_of_each_class(labels, seed) -> None:
    labels = np.array(labels)
    counts = np.bincount(labels)
    most = counts[counts > 0].min()
    for per_class in range(1, most + 1):
        indices = few_shot(labels, per_class, seed)
        assert len(set(indices.tolist())) == len(indices)
        assert np.array_equal(np.bincount(labels[indices]), np.where(np.bincount(labels) > 0, per_class, 0))
    with pytest.raises(UserError, match=f"per_class = {most + 1}: class . has only {most} images"):
        few_shot(labels, most + 1, seed)


def test_few_shot_depends_on_the_seed_and_fewer_are_part_of_more() -> None:
    labels = np.arange(1000) % 10
    five, ten = few_shot(labels, 5, seed=1), few_shot(labels, 10, seed=1)
    assert set(five) < set(ten)
    assert np.array_equal(five, few_shot(labels, 5, seed=1))
    assert not np.array_equal(five, few_shot(labels, 5, seed=2))


def test_no_shots_are_refused() -> None:
    with pytest.raises(UserError, match="per_class = 0: must be at least 1"):
        few_shot(np.arange(3), 0, seed=1)


# Limits


def test_limits_decide_what_is_refused_and_not_what_is_decoded(tmp_path) -> None:
    folder = pictures(tmp_path / "pictures")
    (folder / "cats" / "photo.heic").write_bytes(b"a photo")
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"more than images\.passed_over = 0 allows"):
        load_cached_images(str(folder), 8, cache, most_passed_over=0)
    with pytest.raises(UserError, match=r"has 600 pixels, more than images\.max_pixels = 599"):
        load_cached_images(str(folder), 8, cache, most_passed_over=0.2, max_pixels=599)
    first = load_cached_images(str(folder), 8, cache, most_passed_over=0.2, max_pixels=600)
    again = load_cached_images(str(folder), 8, cache, most_passed_over=0.5, max_pixels=10_000)
    assert first.settings_hash == again.settings_hash
    assert stored_folder(cache)
    with pytest.raises(UserError, match=r"more than images\.passed_over = 0\.01 allows"):
        load_cached_images(str(folder), 8, cache, most_passed_over=0.01)
