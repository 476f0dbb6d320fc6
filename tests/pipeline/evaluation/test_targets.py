from __future__ import annotations

import logging

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluation.targets import Target, target_of
from pipeline.images.dataset import Images


@pytest.fixture(scope="module")
def target(images: Images) -> Target:
    return target_of(images, images_per_class=[1, 10], seeds=2, seed=0)


def as_set(pixels: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in pixels}


def test_the_few_shots_are_exactly_n_images_of_each_class(images: Images) -> None:
    target = target_of(images, [1, 10, 25], seeds=3, seed=0)
    assert list(target.shots) == [1, 10, 25]
    for number, of_seeds in target.shots.items():
        assert len(of_seeds) == 3
        for shots in of_seeds:
            assert np.bincount(shots.labels).tolist() == [number] * 10
        assert not np.array_equal(of_seeds[0].pixels, of_seeds[1].pixels)


def test_fewer_images_of_a_seed_are_part_of_more(target: Target) -> None:
    for one, ten in zip(target.shots[1], target.shots[10], strict=True):
        assert as_set(one.pixels) < as_set(ten.pixels)


def test_no_image_both_trains_and_chooses_the_learning_rate(images: Images, target: Target) -> None:
    train, held_out = as_set(images.train.pixels), as_set(target.held_out.pixels)
    assert len(held_out) == 500
    assert held_out < train
    for of_seeds in target.shots.values():
        for shots in of_seeds:
            assert not held_out & as_set(shots.pixels)
            assert as_set(shots.pixels) < train
    assert np.array_equal(target.images.test.pixels, images.test.pixels)


def test_all_images_are_those_that_are_not_held_out(images: Images) -> None:
    target = target_of(images, [1, 10], seeds=2, seed=0, all_images=True)
    assert target.all_images == (len(images.train) - 500) // 10
    assert list(target.shots) == [1, 10, target.all_images]
    for shots in target.shots[target.all_images]:
        assert as_set(shots.pixels) | as_set(target.held_out.pixels) == as_set(images.train.pixels)
        assert len(shots) == len(images.train) - 500


def test_other_seeds_sample_other_images(images: Images, target: Target) -> None:
    same, other = (target_of(images, [1, 10], seeds=2, seed=seed) for seed in (0, 1))
    assert np.array_equal(same.shots[10][1].pixels, target.shots[10][1].pixels)
    assert np.array_equal(same.held_out.pixels, target.held_out.pixels)
    assert not np.array_equal(other.shots[10][0].pixels, target.shots[10][0].pixels)


def test_numbers_of_images_that_a_class_cannot_spare_are_left_out_and_the_log_says_so_once(
    images: Images, caplog: pytest.LogCaptureFixture
) -> None:
    fewest = int(np.bincount(images.train.labels).min())
    with caplog.at_level(logging.WARNING):
        target = target_of(images, [10, fewest - 1, fewest, fewest + 5], seeds=1, seed=0)
    assert list(target.shots) == [10, fewest - 1]
    assert len(target.held_out) > 0
    (message,) = caplog.messages
    assert f"nothing is trained on {fewest} or {fewest + 5} images per class of digits" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        target_of(images, [1, 10], seeds=1, seed=0)
    assert caplog.messages == []


def test_a_data_set_with_too_few_images_for_all_numbers_is_refused(images: Images) -> None:
    fewest = int(np.bincount(images.train.labels).min())
    with pytest.raises(UserError, match=rf"images_per_class = \[{fewest}\]: one must be less than {fewest}") as error:
        target_of(images, [fewest], seeds=1, seed=0)
    assert "digits" in str(error.value)
