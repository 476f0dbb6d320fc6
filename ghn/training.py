"""The mathematics of a training step: which architectures it holds, who computes which, and the gradient.

Everything drawn is a function of (seed, step) alone. A step's gradient is a sum over architectures, so any
number of workers that add up their slices have the gradient of one process computing all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ghn.architectures import Architecture
from ghn.hypernetwork import GHN
from ghn.sampling import training_widths

# What random numbers are for; part of the key, so that no two uses share a stream.
ARCHITECTURES, DROPOUT = 101, 102

COST_OF_A_NODE = 2_000_000
"""What one graph node adds to an architecture's predicted cost, in floating-point operations: small networks spend
most of their time starting operations, not computing them."""


@dataclass(frozen=True)
class TrainingSet:
    """What drawing a meta-batch needs to know of the training architectures: arrays (count,) and a reader."""

    nodes: np.ndarray
    parameters: np.ndarray
    flops: np.ndarray
    read: Callable[[int], Architecture]


@dataclass(frozen=True)
class Drawn:
    """One architecture of a meta-batch, with its training widths; `index` is its place in the training set."""

    index: int
    architecture: Architecture
    cost: float


def draw_meta_batch(
    training_set: TrainingSet,
    seed: int,
    step: int,
    meta_batch: int,
    widths: Sequence[int],
    head_widths: Sequence[int],
    max_nodes: int,
) -> list[Drawn]:
    """The architectures of a step. A draw with more than `max_nodes` graph nodes in all is drawn again.

    Raises:
        ValueError: a hundred draws in a row were too large.
    """
    count = len(training_set.nodes)
    for attempt in range(100):
        rng = _random(seed, ARCHITECTURES, step, attempt)
        indices = rng.choice(count, meta_batch, replace=meta_batch > count)
        if training_set.nodes[indices].sum() <= max_nodes:
            break
    else:
        raise ValueError(f"max_nodes = {max_nodes}: too few for {meta_batch} architectures a step")
    drawn = []
    for index, draw in zip(indices.tolist(), rng.random((meta_batch, 2)), strict=True):
        architecture = training_set.read(index)
        architecture = training_widths(architecture, training_set.parameters[index], widths, head_widths, draw)
        flops = training_set.flops[index] * (architecture.C / 32) ** 2
        drawn.append(Drawn(index, architecture, flops + COST_OF_A_NODE * training_set.nodes[index]))
    return drawn


def share_out(costs: Sequence[float], workers: int) -> list[list[int]]:
    """For each worker the positions that it computes: the costliest first, each to whoever has least to do."""
    slices: list[list[int]] = [[] for _ in range(workers)]
    load = [0.0] * workers
    for position in sorted(range(len(costs)), key=lambda p: -costs[p]):
        worker = load.index(min(load))
        slices[worker].append(position)
        load[worker] += costs[position]
    return [sorted(positions) for positions in slices]


@dataclass(frozen=True)
class StepSettings:
    """How the loss of a step is computed.

    `architecture_clip` is the largest norm of one architecture's gradient at its predicted parameters (None:
    no limit, as published).
    """

    seed: int
    label_smoothing: float = 0.0
    architecture_clip: float | None = None
    precision: torch.dtype = torch.float32


@dataclass
class SliceResult:
    """What a slice of a step gave: for each of its positions loss and top-1, NaN where it was dropped; seconds."""

    losses: dict[int, float]
    top1: dict[int, float]
    graph_seconds: float = 0.0
    hypernetwork_seconds: float = 0.0
    target_seconds: float = 0.0


def accumulate_slice(
    ghn: GHN,
    drawn: dict[int, Drawn],
    images: Tensor,
    labels: Tensor,
    step: int,
    settings: StepSettings,
) -> SliceResult:
    """Adds the gradient of Σ loss over a slice of the meta-batch to the `.grad` of the hypernetwork's weights.

    The step is split at the predicted parameters: each target network runs forward and backward alone, which
    frees its activations, and leaves a gradient there; one backward pass through the GHN follows. An
    architecture whose loss or gradient is not finite is dropped: it adds nothing.

    Args:
        drawn: the slice, by position in the meta-batch.
        images: float (B, 3, S, S) and labels: int64 (B,), the same for all architectures.
    """
    result = SliceResult({}, {})
    if not drawn:
        return result
    started = perf_counter()
    size, classes = images.shape[-1], ghn.config.num_classes
    batch = ghn.batch([item.architecture.graph(size, classes) for item in drawn.values()])
    result.graph_seconds = perf_counter() - started
    started = perf_counter()
    predicted = ghn(batch)
    result.hypernetwork_seconds = perf_counter() - started

    started = perf_counter()
    images = images.contiguous(memory_format=torch.channels_last)  # a quarter faster on CPUs
    tensors: list[Tensor] = []
    gradients: list[Tensor] = []
    for (position, item), parameters in zip(drawn.items(), predicted, strict=True):
        dropout = torch.Generator().manual_seed(_key(settings.seed, DROPOUT, step, position))
        loss, top1, gradient = target_gradient(item.architecture, parameters, images, labels, settings, dropout)
        result.losses[position], result.top1[position] = loss, top1
        if math.isfinite(loss):
            tensors += parameters.values()
            gradients += gradient
    result.target_seconds = perf_counter() - started

    started = perf_counter()
    if tensors:
        torch.autograd.backward(tensors, gradients)
    result.hypernetwork_seconds += perf_counter() - started
    return result


def target_gradient(
    architecture: Architecture,
    parameters: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    settings: StepSettings,
    dropout: torch.Generator | None = None,
) -> tuple[float, float, list[Tensor]]:
    """Cross entropy and top-1 of one target network, and the gradient at its parameters (in their order).

    The loss is NaN, and the gradient empty, when either is not finite.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    with _autocast(images.device.type, settings.precision):
        logits = architecture.forward(leaves, images, dropout)
    loss = F.cross_entropy(
        logits.float() if logits.dtype == torch.bfloat16 else logits,
        labels,
        label_smoothing=settings.label_smoothing,
    )
    gradient = list(torch.autograd.grad(loss, list(leaves.values())))
    norm = torch.nn.utils.get_total_norm(gradient).item()
    if not (math.isfinite(norm) and math.isfinite(loss.item())):
        return math.nan, math.nan, []
    if settings.architecture_clip is not None and norm > settings.architecture_clip:
        torch._foreach_mul_(gradient, settings.architecture_clip / norm)
    top1 = (logits.argmax(1) == labels).float().mean().item()
    return loss.item(), top1, gradient


def learning_rate(base: float, step: int, steps: int, milestones: Sequence[float], decay: float) -> float:
    """The learning rate of a step: multiplied by `decay` at each of the shares `milestones` of all steps."""
    return base * decay ** sum(step >= share * steps for share in milestones)


def _autocast(device: str, precision: torch.dtype):
    return nullcontext() if precision == torch.float32 else torch.autocast(device, precision)


def _random(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _key(seed: int, *key: int) -> int:
    """A 63-bit seed for PyTorch's generators."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)
