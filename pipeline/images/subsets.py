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
from pipeline.images.order import SHOTS, is_in_windows, keyed_rng, positions_by_class

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


def in_memory(part: ImageSubset, positions: Sequence[int] | np.ndarray | None = None) -> ImageSubset:
    """Return a copy of some images (None: all) as plain arrays, which the processes of a node share through Ray."""
    chosen = np.arange(len(part)) if positions is None else np.asarray(positions, dtype=np.int64)
    return ImageSubset(part.take(chosen), part.labels[chosen])


def without_train_part(images: Images) -> Images:
    """Return the data set in memory, without the images of its train part."""
    return replace(images, train=in_memory(images.train, []), test=in_memory(images.test))


def digest(images: Images, *parts: ImageSubset) -> str:
    """Return a digest of the classes, the test part, and further parts of a data set, hexadecimal."""
    total = hashlib.blake2b(repr((images.classes, images.mean, images.std)).encode(), digest_size=16)
    for part in (images.test, *parts):
        for array in (part.pixels, part.labels):
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()
