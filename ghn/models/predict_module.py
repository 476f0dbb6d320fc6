"""Predicted parameters for any `nn.Module`, in place, and a report on each parameter.

Dimensions: B images, C channels, S×S pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.graph import Graph

ESTIMATION_BATCH = 64
"""Images per batch when running statistics are estimated from one tensor of images."""


@dataclass(frozen=True)
class PredictionReport:
    """What `GHN.predict` did to a network; each of its parameters is in `predicted` or in `not_predicted`."""

    graph: Graph
    """The traced graph."""
    predicted: tuple[str, ...]
    """Names of the parameters that were overwritten, in the order of the network."""
    not_predicted: dict[str, str]
    """Names of the parameters that were left as they were, with the reason."""
    num_predicted: int
    """Elements of all predicted parameters."""
    num_not_predicted: int
    """Elements of all other parameters."""
    batch_statistics: tuple[str, ...]
    """Names of the norm layers that now normalise with the statistics of each batch, in evaluation mode too."""
    estimated_statistics: tuple[str, ...]
    """Names of the norm layers whose running statistics were estimated from images."""

    def __str__(self) -> str:
        lines = [
            f"predicted {len(self.predicted)} parameters ({self.num_predicted:,} elements) "
            f"from a graph of {len(self.graph.nodes)} nodes"
        ]
        for reason, count in Counter(self.not_predicted.values()).items():
            names = [name for name, why in self.not_predicted.items() if why == reason]
            shown = ", ".join(names[:4]) + (f" and {count - 4} more" if count > 4 else "")
            lines.append(f"not predicted, {reason}: {shown}")
        if self.batch_statistics:
            lines.append(f"{len(self.batch_statistics)} norm layers use the statistics of each batch")
        if self.estimated_statistics:
            lines.append(f"running statistics of {len(self.estimated_statistics)} norm layers estimated from images")
        return "\n".join(lines)


def fill_module(
    hypernetwork: Hypernetwork, model: nn.Module, graph: Graph, calibration_images: Tensor | Iterable[Any] | None
) -> PredictionReport:
    """Overwrite the parameters of a module that are on a node of its graph: see `GHN.predict`.

    Args:
        calibration_images: as in `estimate_statistics`; None: norm layers use the statistics of each batch.

    Raises:
        ValueError: the module is on the meta device or was made in inference mode, or there are no images.
    """
    parameters = dict(model.named_parameters())
    if any(p.is_meta for p in parameters.values()):
        raise ValueError("the network is on the meta device: give it memory first, with `model.to_empty(device=…)`")
    if any(p.is_inference() for p in parameters.values()):
        raise ValueError("the network was made under torch.inference_mode, and cannot be changed")
    batches = None if calibration_images is None else _batches(calibration_images)
    with torch.no_grad():
        (predicted,) = hypernetwork.predict_parameters([graph])
        for name, tensor in predicted.items():
            parameters[name].copy_(tensor)
    return PredictionReport(
        graph=graph,
        predicted=tuple(name for name in parameters if name in predicted),
        not_predicted={name: graph.not_predicted[name] for name in parameters if name not in predicted},
        num_predicted=sum(p.numel() for name, p in parameters.items() if name in predicted),
        num_not_predicted=sum(p.numel() for name, p in parameters.items() if name not in predicted),
        batch_statistics=use_batch_statistics(model) if batches is None else (),
        estimated_statistics=() if batches is None else estimate_statistics(model, batches),
    )


def use_batch_statistics(model: nn.Module) -> tuple[str, ...]:
    """Make all norm layers with running statistics drop them and always normalise with those of each batch.

    Predicted networks are evaluated so in the literature, because running statistics belong to other parameters.

    Returns:
        The names of the layers.
    """
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, NormBase) and _has_statistics(layer)
    }
    for layer in layers.values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return tuple(layers)


def estimate_statistics(model: nn.Module, images: Tensor | Iterable[Any]) -> tuple[str, ...]:
    """Replace the running statistics of all batch norms by their means over batches of images.

    Other norm layers with running statistics get new ones too.

    Args:
        images: images (B, C, S, S), or batches of them, or batches of them with labels, as a data loader gives.

    Returns:
        The names of the layers.

    Raises:
        ValueError: there are no images.
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, BatchNorm) or (isinstance(layer, NormBase) and _has_statistics(layer))
    }
    batches = _batches(images)
    reference = next(model.parameters())
    with _estimating(model, list(layers.values())), torch.no_grad():
        for batch in batches:
            model(batch.to(reference.device, reference.dtype))
    return tuple(layers)


def _has_statistics(layer: NormBase) -> bool:
    return layer.running_mean is not None


def _batches(images: Tensor | Iterable[Any]) -> Iterator[Tensor]:
    """Return the images without labels, batch by batch.

    Raises:
        ValueError: there are no images, or they are of another kind; raised before the first batch is read.
    """
    batches = iter(torch.split(images, ESTIMATION_BATCH) if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise ValueError("no images to estimate the running statistics from")
    if not isinstance(first, Tensor) and not (isinstance(first, Sequence) and isinstance(first[0], Tensor)):
        raise ValueError(f"images to estimate from must be tensors, or pairs of images and labels, not {type(first)}")
    return (batch if isinstance(batch, Tensor) else batch[0] for batch in chain([first], batches))


@contextmanager
def _estimating(model: nn.Module, layers: list[NormBase]) -> Iterator[None]:
    """Let norm layers gather statistics, with equal weight for each batch, and all else be in evaluation mode.

    Afterwards modes and momenta are as they were.
    """
    modes = [(module, module.training) for module in model.modules()]
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        if not _has_statistics(layer):
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


def _give_statistics(layer: NormBase) -> None:
    """Give running statistics to a norm layer that has none."""
    reference = layer.weight if layer.weight is not None else torch.empty(0)
    layer.track_running_stats = True
    layer.running_mean = torch.zeros(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.running_var = torch.ones(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=reference.device)
