"""Subsets of a data set: held-out images, a few of each class, copies in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.errors import UserError
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.order import SHOTS, is_in_windows, keyed_rng, positions_by_class

HOLD_OUT_SEED = 20213


def hold_out(images: Images, fraction: float) -> tuple[Images, ImageSubset]:
    """The data set without a `fraction` of the train part, and that fraction: images to choose checkpoints on.

    Of each class the fraction is taken, rounded, and at least one image, but never the last one. These are always the
    same images. Nothing is copied; `mean` and `std` stay those of the whole train part.
    Raises UserError if the fraction is impossible.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"fraction of images to hold out = {fraction}: must be at least 0 and below 1")
    train = images.train
    held_out = np.zeros(len(train), dtype=bool)
    for label, indices in positions_by_class(train.labels) if fraction else ():
        count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        # Images of a large set are scattered over its shards already; its last ones lie in few shards together.
        shuffled = indices if is_in_windows(train) else keyed_rng(HOLD_OUT_SEED, label).permutation(indices)
        held_out[shuffled[len(indices) - count :]] = True
    rest = train.only(np.flatnonzero(~held_out)) if held_out.any() else train
    return replace(images, train=rest), train.only(np.flatnonzero(held_out))


def few_shot(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Sorted positions in `labels` (N,), exactly `per_class` of each class that occurs in it.

    With the same seed a smaller choice is part of a larger one: curves over `per_class` are comparable.
    Raises UserError if a class has too few images.
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
    """A copy of some images (None: all) as plain arrays, which Ray shares within a node."""
    chosen = np.arange(len(part)) if positions is None else np.asarray(positions, dtype=np.int64)
    return ImageSubset(part.take(chosen), part.labels[chosen])


def without_train_part(images: Images) -> Images:
    """Return the data set in memory, without the images of its train part."""
    return replace(images, train=in_memory(images.train, []), test=in_memory(images.test))


def digest(images: Images, *parts: ImageSubset) -> str:
    """A digest of the classes, the test part, and further parts of a data set."""
    total = hashlib.blake2b(repr((images.classes, images.mean, images.std)).encode(), digest_size=16)
    for part in (images.test, *parts):
        total.update(np.ascontiguousarray(part.pixels))
        total.update(np.ascontiguousarray(part.labels))
    return total.hexdigest()
