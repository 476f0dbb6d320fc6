"""The scores of a network that normalises with running statistics, estimated from training images.

Dimensions: B images of a batch, C channels, S image side in pixels.
"""

from __future__ import annotations

import torch
from torch import nn

from ghn.networks.running_statistics import estimate_running_statistics
from pipeline.evaluation.scores import Scores, score
from pipeline.images.batches import evaluation_batches, in_layout
from pipeline.images.dataset import Images, ImageSubset
from pipeline.images.subsets import balanced_choice, in_memory

STATISTICS_IMAGES = 512
"""Training images, at most, that running statistics are estimated from: enough, as they are means over all pixels."""


def statistics_images(train: ImageSubset) -> ImageSubset:
    """Return the training images that statistics are estimated from, in memory; each class has its share."""
    return in_memory(train, balanced_choice(train.labels, STATISTICS_IMAGES))


def score_with_running_statistics(
    module: nn.Module,
    estimated_from: ImageSubset,
    images: Images,
    batch: int,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Scores:
    """Give a network running statistics, and return its scores on the test images with them.

    Args:
        module: a network on the device, which keeps the statistics.
        estimated_from: images of the train part.
        batch: images per batch.
        memory_format: of the images.
    """
    batches = evaluation_batches(estimated_from, images, batch)
    estimate_running_statistics(module, (in_layout(x.to(device), memory_format) for x, _ in batches))
    module.eval()
    return score(
        lambda x: module(in_layout(x, memory_format)),
        evaluation_batches(images.test, images, batch),
        device,
    )
