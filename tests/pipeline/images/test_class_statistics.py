from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.images.class_statistics import COUNT, GRID, class_statistics, statistics_of
from pipeline.images.dataset import Images, ImageSubset


@pytest.fixture(scope="module")
def images() -> Images:
    """Return ten images of each of three classes: class c has pixels of about 60 · c."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 10)
    pixels = (60 * labels[:, None, None, None] + rng.integers(0, 20, (30, 3, 14, 14))).astype(np.uint8)
    subset = ImageSubset(pixels, labels)
    return Images("c", "", ("a", "b", "c"), (0.25,) * 3, (0.5,) * 3, subset, subset)


def test_a_class_has_mean_and_deviation_of_its_images_on_a_grid(images: Images) -> None:
    statistics = statistics_of(images, images.train.pixels, images.train.labels)
    assert statistics.shape == (3, COUNT)
    means, deviations = statistics.split(3 * GRID * GRID, dim=1)
    expected = (torch.tensor([9.5, 69.5, 129.5]) / 255 - 0.25) / 0.5
    torch.testing.assert_close(means.mean(1), expected, atol=0.01, rtol=0)
    own = torch.from_numpy(images.train.pixels[images.train.labels == 1]).float() / 255
    corner = (own[:, 0, :2, :2].mean((1, 2)) - 0.25) / 0.5
    torch.testing.assert_close(means[1, 0], corner.mean())
    torch.testing.assert_close(deviations[1, 0], corner.std(correction=0))


def test_the_key_chooses_the_images(images: Images) -> None:
    first, same, other = (class_statistics(images, 3, 5, step) for step in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(class_statistics(images, 10, 0), class_statistics(images, 10, 1))  # all images of each class


def test_one_image_of_a_class_has_no_deviation(images: Images) -> None:
    assert not class_statistics(images, 1, 0)[:, 3 * GRID * GRID :].any()


def test_too_few_images_are_refused(images: Images) -> None:
    with pytest.raises(UserError, match="has only 10 images"):
        class_statistics(images, 11, 0)
