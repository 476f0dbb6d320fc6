"""The order in which images of large sets are shown, and which are held out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sharded_images import (
    PLAIN,
    numbered,
    pictures,
    same_images,
    use_shards,
    windows_of,
)

from pipeline.errors import UserError
from pipeline.images.batches import evaluation_batches, training_batch
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import load_cached_images
from pipeline.images.subsets import hold_out, in_memory

# Training and evaluation


def shards_at_a_time(numbers: list[int]) -> int:
    """Return how many shards are needed at a time at most, when each is kept from its first image to its last."""
    first = {number: place for place, number in reversed(list(enumerate(numbers)))}
    last = {number: place for place, number in enumerate(numbers)}
    return max(sum(first[n] <= place <= last[n] for n in first) for place in range(len(numbers)))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@settings(max_examples=100)
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
