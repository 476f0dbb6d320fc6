"""The data sets that networks are fine-tuned on: a few training images of each class, and held-out ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.evaluation.networks import seed_of
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.subsets import few_shot, in_memory, smallest_class, without_train_part

log = logging.getLogger(__name__)

HELD_OUT_IMAGES = 500
"""Most images that choose the learning rate."""


@dataclass(frozen=True, eq=False)
class Target:
    """A data set to transfer to.

    Attributes:
        images: has the test part; its train part is empty.
        shots: the training images of each seed, by the number of images per class. A smaller number of the same seed
            is part of a larger one.
        held_out: the images that choose learning rates. The first seed trains on none of them.
    """

    images: Images
    shots: Mapping[int, tuple[ImageSubset, ...]]
    held_out: ImageSubset


def target_of(images: Images, images_per_class: Sequence[int], seeds: int, seed: int) -> Target:
    """Return a data set with training images sampled for each number of images per class and each seed, in memory.

    Numbers that the data set has too few images for are left out, and the log says so: each class keeps at least one
    image to hold out.

    Raises:
        UserError: a class has too few training images for all of the numbers.
    """
    possible = possible_shots(images, images_per_class)
    labels = images.train.labels
    chosen = {
        number: [few_shot(labels, number, seed_of(seed, "shots", repetition)) for repetition in range(seeds)]
        for number in possible
    }
    others = np.setdiff1d(np.arange(len(images.train)), chosen[max(possible)][0])
    order = np.random.default_rng(seed_of(seed, "held out")).permutation(len(others))
    return Target(
        images=without_train_part(images),
        shots={
            number: tuple(in_memory(images.train, positions) for positions in of_seeds)
            for number, of_seeds in chosen.items()
        },
        held_out=in_memory(images.train, np.sort(others[order[:HELD_OUT_IMAGES]])),
    )


def possible_shots(images: Images, images_per_class: Sequence[int]) -> list[int]:
    """Return the numbers of images per class that leave an image of each class to hold out.

    Raises:
        UserError: none of them does.
    """
    smallest, fewest = smallest_class(images)
    possible = [number for number in images_per_class if number < fewest]
    reason = f"class {smallest} of {images.name} has {fewest} training images, and some are held out"
    if not possible:
        raise UserError(
            f"finetune.images_per_class = {list(images_per_class)}: one must be less than {fewest}, because\n{reason}"
        )
    if left_out := [str(number) for number in images_per_class if number >= fewest]:
        log.warning("no fine-tuning on %s images per class of %s: %s", " or ".join(left_out), images.name, reason)
    return possible
