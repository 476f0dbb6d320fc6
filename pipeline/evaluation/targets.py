"""The data sets that is transferred to: a few training images of each class, and held-out ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.networks import seed_of
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.load import load_images
from pipeline.images.order import positions_by_class
from pipeline.images.subsets import balanced_choice, few_shot, in_memory, smallest_class, without_train_part
from pipeline.params import AdaptSettings, FinetuneSettings, Params

log = logging.getLogger(__name__)

HELD_OUT_IMAGES = 500
"""Most images that choose learning rates and steps."""


@dataclass(frozen=True, eq=False)
class Target:
    """A data set to transfer to.

    Attributes:
        images: has the test part; its train part is empty.
        shots: the training images of each seed, by the number of images per class. A smaller number of the same seed
            is part of a larger one.
        held_out: training images that no seed trains on, which choose learning rates and steps.
        all_images: the number of images per class that stands for all training images but those, if it is in `shots`.
    """

    images: Images
    shots: Mapping[int, tuple[ImageSubset, ...]]
    held_out: ImageSubset
    all_images: int | None = None


def load_targets(
    settings: FinetuneSettings | AdaptSettings, params: Params, all_images: bool = False
) -> dict[str, Target]:
    """Return the data sets that a stage transfers to, by name, in memory: see `target_of`.

    Raises:
        UserError: a class has too few training images for all numbers of images per class.
    """
    return {
        name: target_of(
            load_images(name, params.images, params.storage),
            settings.images_per_class,
            settings.seeds,
            params.seed,
            all_images,
        )
        for name in settings.datasets
    }


def target_of(
    images: Images, images_per_class: Sequence[int], seeds: int, seed: int, all_images: bool = False
) -> Target:
    """Return a data set with training images sampled for each number of images per class and each seed, in memory.

    Numbers that the data set has too few images for are left out, and the log says so: each class keeps at least one
    image to hold out.

    Args:
        all_images: whether all images that are not held out are trained on too, by the mean number of a class.

    Raises:
        UserError: a class has too few training images for all of the numbers.
    """
    possible = possible_shots(images, images_per_class)
    labels = images.train.labels
    held_out = _held_out(labels, max(possible), seed)
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    shots = {
        number: tuple(
            in_memory(images.train, rest[few_shot(labels[rest], number, seed_of(seed, "shots", repetition))])
            for repetition in range(seeds)
        )
        for number in possible
    }
    mean = len(rest) // len(images.classes) if all_images else None
    if mean is not None and mean not in shots:
        shots[mean] = (in_memory(images.train, rest),) * seeds
    return Target(without_train_part(images), shots, in_memory(images.train, held_out), mean)


def _held_out(labels: np.ndarray, most_shots: int, seed: int) -> np.ndarray:
    """Return sorted positions of images to hold out, of which each class has its share.

    They leave `most_shots` images of each class, and half of the others.
    """
    spare = [
        np.random.default_rng(seed_of(seed, "held out", label)).permutation(positions)[most_shots:]
        for label, positions in positions_by_class(labels)
    ]
    candidates = np.sort(np.concatenate(spare))
    count = min(HELD_OUT_IMAGES, (len(candidates) + 1) // 2)
    return candidates[balanced_choice(labels[candidates], count)]


def possible_shots(images: Images, images_per_class: Sequence[int]) -> list[int]:
    """Return the numbers of images per class that leave an image of each class to hold out.

    Raises:
        UserError: none of them does.
    """
    smallest, fewest = smallest_class(images)
    possible = [number for number in images_per_class if number < fewest]
    reason = f"class {smallest} of {images.name} has {fewest} training images, and some are held out"
    if not possible:
        numbers = list(images_per_class)
        raise UserError(f"images_per_class = {numbers}: one must be less than {fewest}, because\n{reason}")
    if left_out := [str(number) for number in images_per_class if number >= fewest]:
        log.warning("nothing is trained on %s images per class of %s: %s", " or ".join(left_out), images.name, reason)
    return possible
