"""The gradient of a training step, one slice of the meta-batch at a time.

A step's gradient is a sum over architectures, so any number of workers that add up their slices have the gradient of
one process computing all of it. A slice is split at the predicted parameters: each target network runs forward and
backward alone, which frees its activations, and leaves a gradient there; one backward pass through the Hypernetwork follows.
So a step needs the memory of one target network and of one slice's parameters, however large the meta-batch is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from ghn.deepnets1m.architecture import Architecture
from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.graph_batch import GraphBatch
from ghn.training.meta_batch import SampledArchitecture

DROPOUT_STREAM = 102
"""What random numbers are for: part of the key, so that no two uses share a stream (see `ghn.training.meta_batch`)."""

STEP_PHASES = ("hypernetwork_forward", "target_forward", "target_backward", "hypernetwork_backward")
"""What a step's time goes to, beside the graphs, which can be prepared before."""


@dataclass(frozen=True)
class StepSettings:
    """How the loss of a step is computed.

    `architecture_clip` is the largest norm of one architecture's gradient at its predicted parameters (None: no limit,
    as published). `precision` is that of the target networks: with bfloat16 they run in autocast, where matrix products
    and convolutions have that precision and the rest that of their inputs.
    """

    seed: int
    label_smoothing: float = 0.0
    architecture_clip: float | None = None
    precision: torch.dtype = torch.float32


@dataclass(frozen=True)
class MicroBatch:
    """A part of a meta-batch, by position in it, with its graphs laid out; `graph_seconds` is what that took.

    The parameters of the whole part are predicted; `mine` are the positions whose target networks are run.
    """

    drawn: dict[int, SampledArchitecture]
    mine: list[int]
    graphs: GraphBatch
    graph_seconds: float

    @classmethod
    def of(
        cls, ghn: Hypernetwork, drawn: Mapping[int, SampledArchitecture], mine: Sequence[int], image_size: int
    ) -> MicroBatch:
        """Reads the hypernetwork's configuration, not its weights: it may be prepared while those change."""
        started = perf_counter()
        classes = ghn.config.num_classes
        graphs = ghn.batch([item.architecture.graph(image_size, classes) for item in drawn.values()])
        return cls(dict(drawn), list(mine), graphs, perf_counter() - started)


@dataclass(frozen=True)
class TargetScores:
    """What one target network had: its loss, top-1, and the norm of its gradient before it was clipped.

    All three are NaN where the loss or the gradient was not finite, and the architecture was dropped.
    """

    loss: float
    top1: float
    gradient_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss)


NONFINITE = TargetScores(math.nan, math.nan, math.nan)


@dataclass
class Stopwatch:
    """Adds up the seconds of the parts of a step, and names them in a profile (`torch.profiler`)."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEP_PHASES, 0.0))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        with record_function(name):
            started = self._now()
            yield
            self.seconds[name] += self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # its work would else be counted where it is waited for
        return perf_counter()


def accumulate_micro_batch(
    ghn: Hypernetwork,
    part: MicroBatch,
    images: Tensor,
    labels: Tensor,
    step: int,
    settings: StepSettings,
    watch: Stopwatch,
) -> dict[int, TargetScores]:
    """Adds the gradient of Σ loss over a slice to the `.grad` of the hypernetwork's weights; returns the scores.

    An architecture whose loss or gradient is not finite is dropped: it adds nothing.

    Args:
        images: (B, 3, S, S) and labels: int64 (B,), the same for all architectures. Channels last is a quarter faster.
    """
    scores: dict[int, TargetScores] = {}
    tensors: list[Tensor] = []
    gradients: list[Tensor] = []
    with watch.part("hypernetwork_forward"):
        predicted = ghn(part.graphs)
    for (position, item), parameters in zip(part.drawn.items(), predicted, strict=True):
        if position not in part.mine:
            continue
        dropout = torch.Generator().manual_seed(_key(settings.seed, DROPOUT_STREAM, step, position))
        scores[position], gradient = target_gradient(
            item.architecture, parameters, images, labels, settings, dropout, watch
        )
        if scores[position].is_finite:
            tensors += parameters.values()
            gradients += gradient
    with watch.part("hypernetwork_backward"):
        if tensors:
            torch.autograd.backward(tensors, gradients)
    return scores


def target_gradient(
    architecture: Architecture,
    parameters: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    settings: StepSettings,
    dropout: torch.Generator | None = None,
    watch: Stopwatch | None = None,
) -> tuple[TargetScores, list[Tensor]]:
    """The scores of one target network, and the gradient at its parameters (in their order, clipped).

    The gradient is empty when it or the loss is not finite.
    """
    watch = watch or Stopwatch(images.device)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    with watch.part("target_forward"):
        with _autocast(images.device.type, settings.precision):
            logits = architecture.forward(leaves, images, dropout)
        if logits.dtype == torch.bfloat16:
            logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    with watch.part("target_backward"):
        gradient = list(torch.autograd.grad(loss, list(leaves.values())))
        norm = torch.nn.utils.get_total_norm(gradient).item()
    if not (math.isfinite(norm) and math.isfinite(loss.item())):
        return NONFINITE, []
    if settings.architecture_clip is not None and norm > settings.architecture_clip:
        torch._foreach_mul_(gradient, settings.architecture_clip / norm)
    top1 = (logits.argmax(1) == labels).float().mean().item()
    return TargetScores(loss.item(), top1, norm), gradient


def _autocast(device: str, precision: torch.dtype) -> AbstractContextManager:
    return torch.autocast(device, precision) if precision == torch.bfloat16 else nullcontext()


def _key(seed: int, *key: int) -> int:
    """A 63-bit seed for PyTorch's generators."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)
