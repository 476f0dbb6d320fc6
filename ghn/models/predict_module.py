"""Predicted parameters for any `nn.Module`, in place, and a report on each parameter.

Dimensions: B images, C channels, S×S pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ghn.models.derived_state import (
    StatisticsReport,
    assign,
    drop_statistics,
    has_derived_tensors,
    measure_statistics,
)
from ghn.networks.graph import Graph
from ghn.tracing.trace import image_dtype

ESTIMATION_BATCH = 64
"""Most images of a batch when statistics are estimated from one tensor of images."""

SHOWN_NAMES = 4
"""Most names that a line of a report has."""


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
    statistics: StatisticsReport
    """What became of statistics that layers had of activations under the old parameters."""
    repeated: tuple[str, ...] = ()
    """Names of the predicted weights whose channels repeat, because they have more than the hypernetwork decodes."""
    rank: int | None = None
    """The highest rank of predicted weights as matrices; None: the decoder does not bound it."""

    @property
    def batch_statistics(self) -> tuple[str, ...]:
        """Names of the norm layers that now normalise with the statistics of each batch, in evaluation mode too."""
        return self.statistics.of_batch

    @property
    def estimated_statistics(self) -> tuple[str, ...]:
        """Names of the norm layers whose running statistics were estimated from images."""
        return self.statistics.estimated

    def __str__(self) -> str:
        lines = [
            f"predicted {len(self.predicted)} parameters ({self.num_predicted:,} elements) "
            f"from a graph of {len(self.graph.nodes)} nodes"
        ]
        lines += decoding_lines(self.repeated, self.rank)
        for reason in Counter(self.not_predicted.values()):
            names = [name for name, why in self.not_predicted.items() if why == reason]
            lines.append(f"not predicted, {reason}: {_first(names)}")
        if not any(node.is_class_layer for node in self.graph.nodes):
            lines.append("no classification layer was found: no layer gives an output of shape (images, classes)")
        statistics = self.statistics
        if statistics.of_batch:
            lines.append(f"{len(statistics.of_batch)} norm layers use the statistics of each batch")
        if statistics.estimated:
            lines.append(f"running statistics of {len(statistics.estimated)} norm layers estimated from images")
        if statistics.neutral:
            lines.append(
                f"{len(statistics.neutral)} norm layers cannot do without statistics and have mean 0 and variance 1, "
                f"until calibration_images are given: {_first(statistics.neutral)}"
            )
        if statistics.reset:
            lines.append(
                f"{len(statistics.reset)} observers of quantisation-aware training find new ranges when the network "
                f"runs: {_first(statistics.reset)}"
            )
        return "\n".join(lines)


def decoding_lines(repeated: Sequence[str], rank: int | None) -> list[str]:
    """Return what a report says of weights whose channels repeat, or whose rank is bounded."""
    lines = [f"channels of {len(repeated)} weights repeat: {_first(repeated)}"] if repeated else []
    return lines + ([] if rank is None else [f"weights have rank {rank} at most"])


def _first(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a network."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def require_memory(model: nn.Module) -> None:
    """Check that the parameters of a network can be overwritten.

    Raises:
        ValueError: the network is on the meta device or was made in inference mode.
    """
    if any(p.is_meta for p in model.parameters()):
        raise ValueError("the network is on the meta device: give it memory first, with `model.to_empty(device=…)`")
    if any(p.is_inference() for p in model.parameters()):
        raise ValueError("the network was made under torch.inference_mode, and cannot be changed")


def fill_module(
    model: nn.Module,
    graph: Graph,
    predicted: Mapping[str, Tensor],
    batches: Iterable[Tensor] | None,
    runs: Callable[[], bool],
) -> PredictionReport:
    """Overwrite the parameters of a module that are on a node of its graph: see `GHN.predict`.

    The network is as it was before if an error is raised.

    Args:
        predicted: parameters by name.
        batches: images (B, C, S, S) that statistics are estimated from; None: norm layers use those of each batch.
        runs: returns whether the network runs.
    """
    parameters = dict(model.named_parameters())
    can_fail = batches is not None or has_derived_tensors(model)  # else nothing of the network's own runs
    with _as_before_if_it_fails(model) if can_fail else nullcontext():
        assign(model, predicted)
        statistics = drop_statistics(model, runs) if batches is None else measure_statistics(model, batches)
    return PredictionReport(
        graph=graph,
        predicted=tuple(name for name in parameters if name in predicted),
        not_predicted={name: graph.not_predicted[name] for name in parameters if name not in predicted},
        num_predicted=sum(p.numel() for name, p in parameters.items() if name in predicted),
        num_not_predicted=sum(p.numel() for name, p in parameters.items() if name not in predicted),
        statistics=statistics,
    )


@contextmanager
def _as_before_if_it_fails(model: nn.Module) -> Iterator[None]:
    """Give a network its parameters and buffers back if the context raises an error."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    layers = [(layer, dict(layer.__dict__), dict(layer._buffers)) for layer in model.modules()]
    try:
        yield
    except BaseException:
        for layer, attributes, buffers in layers:
            layer.__dict__.update(attributes)
            layer._buffers.clear()
            layer._buffers.update(buffers)
        with torch.no_grad():
            for tensor, before in tensors:
                tensor.copy_(before)
        raise


def calibration_batches(images: Tensor | Iterable[Any], model: nn.Module) -> Iterator[Tensor]:
    """Yield images without labels as a network reads them, batch by batch, at least two images each.

    They are on the network's device and, if they are real numbers, in the number type of its first layer.

    The batches of one tensor differ in size by at most one image. A single image joins the batch before it.

    Raises:
        ValueError: there are fewer than two images, or they are of another kind.
    """
    device, dtype = device_of(model), image_dtype(model)
    if isinstance(images, Tensor):
        images = torch.tensor_split(images, max(1, math.ceil(len(images) / ESTIMATION_BATCH))) if images.dim() else []
    waiting: Tensor | None = None
    for item in images:
        batch = item if isinstance(item, Tensor) else _images_of(item)
        batch = batch.to(device, dtype if batch.is_floating_point() else batch.dtype)
        if waiting is None or not len(batch):
            waiting = batch if waiting is None else waiting
        elif len(batch) == 1 or len(waiting) == 1:
            waiting = torch.cat([waiting, batch])
        else:
            yield waiting
            waiting = batch
    if waiting is None or len(waiting) < 2:
        count = "no images" if waiting is None or not len(waiting) else "one image"
        raise ValueError(f"{count} to estimate the running statistics from: at least two are needed")
    yield waiting


def _images_of(item: object) -> Tensor:
    """Return the images of a batch with labels.

    Raises:
        ValueError: it is none.
    """
    first = item[0] if isinstance(item, Sequence) and not isinstance(item, str) and item else item
    if not isinstance(first, Tensor):
        raise ValueError(f"images to estimate from must be tensors, or pairs of images and labels, not {type(item)}")
    return first


def use_batch_statistics(model: nn.Module) -> tuple[str, ...]:
    """Make all norm layers with running statistics drop them and always normalise with those of each batch.

    Predicted networks are evaluated so in the literature, because running statistics belong to other parameters.

    Returns:
        The names of the layers.
    """
    return drop_statistics(model).of_batch


def estimate_statistics(model: nn.Module, images: Tensor | Iterable[Any]) -> tuple[str, ...]:
    """Replace the running statistics of all norm layers by their means over batches of images.

    Args:
        images: images (B, C, S, S), or batches of them, or batches of them with labels, as a data loader gives.

    Returns:
        The names of the layers.

    Raises:
        ValueError: there are fewer than two images.
    """
    with _as_before_if_it_fails(model):
        return measure_statistics(model, calibration_batches(images, model)).estimated
