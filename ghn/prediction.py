"""Predicting the parameters of any `nn.Module` in place, and saying what became of each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase as NormBase

from ghn.graphs import Graph

if TYPE_CHECKING:
    from ghn.hypernetwork import GHN

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


def predict(ghn: GHN, model: nn.Module, graph: Graph, calibration_images: Tensor | Iterable | None) -> PredictionReport:
    """Overwrites the parameters of `model` that are on a node of its `graph`; see `GHN.predict`."""
    parameters = dict(model.named_parameters())
    if any(p.is_meta for p in parameters.values()):
        raise ValueError("the network is on the meta device: give it memory first, with `model.to_empty(device=…)`")
    with torch.no_grad():
        (predicted,) = ghn(ghn.batch([graph]))
        for name, tensor in predicted.items():
            parameters[name].copy_(tensor)
    layers = [name for name, layer in model.named_modules() if isinstance(layer, NormBase) and _has_statistics(layer)]
    if calibration_images is None:
        use_batch_statistics(model)
    else:
        estimate_statistics(model, calibration_images)
    return PredictionReport(
        graph=graph,
        predicted=tuple(name for name in parameters if name in predicted),
        not_predicted={name: graph.not_predicted[name] for name in parameters if name not in predicted},
        num_predicted=sum(p.numel() for name, p in parameters.items() if name in predicted),
        num_not_predicted=sum(p.numel() for name, p in parameters.items() if name not in predicted),
        batch_statistics=tuple(layers) if calibration_images is None else (),
        estimated_statistics=() if calibration_images is None else tuple(layers),
    )


def _has_statistics(layer: NormBase) -> bool:
    return layer.running_mean is not None


def use_batch_statistics(model: nn.Module) -> None:
    """Lets all norm layers with running statistics forget them and normalise with those of each batch, always.

    This is how predicted networks are evaluated in the literature: running statistics belong to other parameters.
    """
    for layer in model.modules():
        if isinstance(layer, NormBase) and _has_statistics(layer):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None


def estimate_statistics(model: nn.Module, images: Tensor | Iterable) -> None:
    """Estimates the running statistics of all batch norms, anew: the mean over batches of images.

    Args:
        images: (N, C, S, S), or batches of them, or batches of them with labels, as a data loader gives.

    Raises:
        ValueError: there are no images.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, NormBase)]
    device = next(model.parameters()).device
    with _estimating(model, layers), torch.no_grad():
        batches = 0
        for batch in images.split(ESTIMATION_BATCH) if isinstance(images, Tensor) else images:
            model((batch if isinstance(batch, Tensor) else batch[0]).to(device))
            batches += 1
    if batches == 0:
        raise ValueError("no images to estimate the running statistics from")


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
