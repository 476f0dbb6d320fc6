"""Predicting the parameters of any `nn.Module` in place, and saying what became of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torch.nn.modules.batchnorm import _NormBase as NormBase

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.graph import Graph

ESTIMATION_BATCH = 64
"""Images a batch when running statistics are estimated from one tensor of images."""


@dataclass(frozen=True)
class PredictionReport:
    """What `GHN.predict` did to a network: each of its parameters is in `predicted` or in `not_predicted`."""

    graph: Graph
    """What was traced."""
    predicted: tuple[str, ...]
    """Names of the parameters that were overwritten, in the order of the network."""
    not_predicted: dict[str, str]
    """Names of the parameters that were left as they were, with the reason."""
    num_predicted: int
    """Elements of all predicted parameters."""
    num_not_predicted: int
    """Elements of all others."""
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
    hypernetwork: Hypernetwork, model: nn.Module, graph: Graph, calibration_images: Tensor | Iterable | None
) -> PredictionReport:
    """Overwrites the parameters of `model` that are on a node of its `graph`; see `GHN.predict`."""
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


def _has_statistics(layer: NormBase) -> bool:
    return layer.running_mean is not None


def use_batch_statistics(model: nn.Module) -> tuple[str, ...]:
    """Lets all norm layers with running statistics forget them and normalise with those of each batch, always.

    This is how predicted networks are evaluated in the literature: running statistics belong to other parameters.
    Returns the names of the layers.
    """
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, NormBase) and _has_statistics(layer)
    }
    for layer in layers.values():
        layer.track_running_stats = False
        layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return tuple(layers)


def estimate_statistics(model: nn.Module, images: Tensor | Iterable) -> tuple[str, ...]:
    """Estimates the running statistics of all batch norms, anew: the mean over batches of images.

    Args:
        images: (N, C, S, S), or batches of them, or batches of them with labels, as a data loader gives.

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


def _batches(images: Tensor | Iterable) -> Iterator[Tensor]:
    """The images alone, batch by batch. Raises ValueError at once if there are none."""
    batches = iter(images.split(ESTIMATION_BATCH) if isinstance(images, Tensor) else images)
    first = next(batches, None)
    if first is None or len(first) == 0:
        raise ValueError("no images to estimate the running statistics from")
    if not isinstance(first, Tensor) and not (isinstance(first, Sequence) and isinstance(first[0], Tensor)):
        raise ValueError(f"images to estimate from must be tensors, or pairs of images and labels, not {type(first)}")
    return (batch if isinstance(batch, Tensor) else batch[0] for batch in chain([first], batches))


@contextmanager
def _estimating(model: nn.Module, layers: list[NormBase]) -> Iterator[None]:
    """The norms gather statistics, with equal weight for each batch; everything else is in evaluation mode."""
    was = [(layer, layer.training) for layer in model.modules()]
    momentum = [layer.momentum for layer in layers]
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
        for layer, training in was:
            layer.training = training
        for layer, value in zip(layers, momentum, strict=True):
            layer.momentum = value


def _give_statistics(layer: NormBase) -> None:
    """Running statistics for a norm that has none."""
    reference = layer.weight if layer.weight is not None else torch.empty(0)
    layer.track_running_stats = True
    layer.running_mean = torch.zeros(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.running_var = torch.ones(layer.num_features, device=reference.device, dtype=reference.dtype)
    layer.num_batches_tracked = torch.zeros((), dtype=torch.long, device=reference.device)
