"""Subsets of a data set: held-out images, a few images of each class, copies in memory.

Dimensions: N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import UserError
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.order import SHOTS, TESTED, is_in_windows, keyed_rng, positions_by_class

HOLD_OUT_SEED = 20213
"""Seed of the images to hold out, so that all runs choose checkpoints on the same images."""


def hold_out(images: Images, fraction: float) -> tuple[Images, ImageSubset]:
    """Return the data set without a fraction of the train part, and that fraction, on which checkpoints are chosen.

    The fraction of each class is rounded; it is at least one image, and leaves at least one. The same images are held
    out in all runs. No pixels are copied, and `mean` and `std` stay those of the whole train part.

    Raises:
        UserError: the fraction is not in 0..1, or is 1.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"fraction of images to hold out = {fraction}: must be at least 0 and below 1")
    train = images.train
    held_out = np.zeros(len(train), dtype=bool)
    for label, indices in positions_by_class(train.labels) if fraction else ():
        count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        # The shards of a large data set hold images in random order, and the last images lie in few shards.
        shuffled = indices if is_in_windows(train) else keyed_rng(HOLD_OUT_SEED, label).permutation(indices)
        held_out[shuffled[len(indices) - count :]] = True
    rest = train.only(np.flatnonzero(~held_out)) if held_out.any() else train
    return replace(images, train=rest), train.only(np.flatnonzero(held_out))


def few_shot(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Return sorted positions in `labels` (N,), exactly `per_class` of each class that occurs.

    With the same seed, a smaller choice is part of a larger one, so that curves over `per_class` are comparable.

    Raises:
        UserError: a class has too few images.
    """
    if per_class < 1:
        raise UserError(f"per_class = {per_class}: must be at least 1 image")
    chosen = []
    for label, positions in positions_by_class(labels):
        if len(positions) < per_class:
            raise UserError(f"per_class = {per_class}: class {label} has only {len(positions)} images")
        chosen.append(keyed_rng(seed, SHOTS, label).permutation(positions)[:per_class])
    return np.sort(np.concatenate(chosen))


def balanced_choice(labels: np.ndarray, count: int) -> np.ndarray:
    """Return sorted positions of at most `count` images in `labels` (N,), each class about as frequent as in all.

    All runs choose the same images, and a smaller choice is part of a larger one.
    """
    rank = np.empty(len(labels))  # of an image in its class, 0 to 1: the choice is what lies below a limit
    for label, positions in positions_by_class(labels):
        shuffled = keyed_rng(HOLD_OUT_SEED, TESTED, label).permutation(positions)
        rank[shuffled] = (np.arange(len(positions)) + 0.5) / len(positions)
    return np.sort(np.argsort(rank, kind="stable")[:count])


def in_memory(part: ImageSubset, positions: Sequence[int] | np.ndarray | None = None) -> ImageSubset:
    """Return a copy of some images (None: all) as plain arrays, which the processes of a node share through Ray."""
    chosen = np.arange(len(part)) if positions is None else np.asarray(positions, dtype=np.int64)
    return ImageSubset(part.take(chosen), part.labels[chosen])


def without_train_part(images: Images, test_images: int | None = None) -> Images:
    """Return the data set in memory, without the images of its train part.

    Args:
        test_images: how many of the test images it has, of which each class has its share; None: all.
    """
    chosen = None if test_images is None else balanced_choice(images.test.labels, test_images)
    return replace(images, train=in_memory(images.train, []), test=in_memory(images.test, chosen))


def digest(images: Images, *parts: ImageSubset) -> str:
    """Return a digest of the classes, the test part, and further parts of a data set, hexadecimal."""
    total = hashlib.blake2b(repr((images.classes, images.mean, images.std)).encode(), digest_size=16)
    for part in (images.test, *parts):
        for array in (part.pixels, part.labels):
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def smallest_class(images: Images) -> tuple[str, int]:
    """Return the name of the class with the fewest training images, and their number."""
    labels, counts = np.unique(images.train.labels, return_counts=True)
    return images.classes[labels[counts.argmin()]], int(counts.min())


def few_and_held_out(images: Images, per_class: int, held_out: int, seed: int) -> tuple[ImageSubset, ImageSubset]:
    """Return `per_class` training images of each class, and at most `held_out` others, both in memory.

    Raises:
        UserError: a class has too few training images to leave one that is held out.
    """
    smallest, fewest = smallest_class(images)
    if per_class >= fewest:
        raise UserError(
            f"{per_class} images of each class: class {smallest} of {images.name} has {fewest} training images, of "
            f"which at least one is held out: at most {fewest - 1}"
        )
    chosen = few_shot(images.train.labels, per_class, seed)
    others = np.setdiff1d(np.arange(len(images.train)), chosen)
    kept = others[balanced_choice(images.train.labels[others], held_out)]
    return in_memory(images.train, chosen), in_memory(images.train, kept)
