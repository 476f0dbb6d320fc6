"""Running statistics of norm layers, estimated for given parameters.

Networks of the design space normalise with the statistics of each batch, as published. Running statistics make the
logits of an image independent of the other images in its batch.

Dimensions: B images, C channels, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase


def batch_norms(model: nn.Module) -> list[BatchNorm]:
    """Return the batch norms of a network."""
    return [layer for layer in model.modules() if isinstance(layer, BatchNorm)]


@torch.no_grad()
def estimate_running_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give all batch norms the mean and variance of their inputs, averaged over batches of images.

    Each batch counts the same, and there is no dropout. In evaluation mode the network normalises with them from then
    on. Parameters do not change.

    Args:
        batches: images (B, 3, S, S), at least one batch.
    """
    layers = batch_norms(model)
    with gathering_statistics(model, layers):
        for images_BCSS in batches if layers else ():
            model(images_BCSS)


@contextmanager
def gathering_statistics(model: nn.Module, layers: Sequence[NormBase]) -> Iterator[None]:
    """Let norm layers gather statistics, with equal weight for each batch, and all else be in evaluation mode.

    Afterwards modes and momenta are as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        if not has_statistics(layer):
            _give_statistics(layer)
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum


def has_statistics(layer: NormBase) -> bool:
    """Return whether a norm layer has running statistics."""
    return layer.running_mean is not None


def _give_statistics(layer: NormBase) -> None:
    """Give running statistics to a norm layer that has none."""
    reference = layer.weight if layer.weight is not None else torch.empty(0)
    layer.track_running_stats = True
    layer.running_mean = torch.zeros(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.running_var = torch.ones(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=reference.device)
