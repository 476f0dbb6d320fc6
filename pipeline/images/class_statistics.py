"""Statistics of the classes of a data set, which describe it to a hypernetwork.

Dimensions: N images, S side in pixels, G side of a grid, K classes, F = 6·G·G statistics.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.images.dataset import Images
from pipeline.images.order import keyed_rng
from pipeline.images.subsets import few_shot

GRID = 7
"""Side of the grid on which images are averaged."""

COUNT = 6 * GRID * GRID
"""F: mean and standard deviation of each of three channels at each place of the grid."""

CHOICE = 20217
"""Part of the keys of the random numbers that choose images."""


def class_statistics(images: Images, per_class: int, *key: int) -> Tensor:
    """Return the statistics float32 (K, F) of some training images of each class, sampled by the key.

    Raises:
        UserError: a class has too few training images.
    """
    seed = int(keyed_rng(CHOICE, *key).integers(2**31))
    chosen = few_shot(images.train.labels, per_class, seed)
    return statistics_of(images, images.train.take(chosen), images.train.labels[chosen])


def statistics_of(images: Images, pixels_N3SS: np.ndarray, labels_N: np.ndarray) -> Tensor:
    """Return mean and deviation over the images of each class, on a grid, float32 (K, F).

    Args:
        images: the data set, whose mean and deviation pixels are scaled by.
        pixels_N3SS: uint8; of each class at least one image.
        labels_N: their classes.
    """
    mean_C11, std_C11 = (torch.tensor(values)[:, None, None] for values in (images.mean, images.std))
    x_N3SS = (torch.from_numpy(pixels_N3SS).float() / 255 - mean_C11) / std_C11
    grid_NF = F.adaptive_avg_pool2d(x_N3SS, GRID).flatten(1)
    rows = []
    for label in range(len(images.classes)):
        own_MF = grid_NF[torch.from_numpy(labels_N == label)]
        rows.append(torch.cat([own_MF.mean(0), own_MF.std(0, correction=0)]))
    return torch.stack(rows)
