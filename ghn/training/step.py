"""The gradient of a training step, one micro-batch at a time.

A step's gradient is a sum over architectures. So workers that compute different micro-batches, and add up their
gradients, have the gradient of one process that computes the whole meta-batch.

A micro-batch is split at the predicted parameters. Each target network runs forward and backward alone, which frees its
activations, and leaves the gradient at its parameters. One backward pass through the hypernetwork follows. So a step
needs the memory of one target network and of one micro-batch's parameters, however large the meta-batch is.

A GPU works while the CPU goes on. Within a micro-batch the CPU waits for it once: for the scores of all target
networks, which say whose gradients count.

Dimensions: B images or texts, C channels, S×S pixels, T tokens, K classes or tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from ghn.models.hypernetwork import Hypernetwork
from ghn.networks.functional import run_program
from ghn.networks.graph_batch import GraphBatch
from ghn.networks.program import Program
from ghn.training.meta_batch import SampledArchitecture

DROPOUT_STREAM = 102
"""Key of the random numbers of dropout, so that no two uses of randomness share a stream: see `ARCHITECTURE_STREAM`."""

STEP_PHASES = ("hypernetwork_forward", "target_forward", "target_backward", "hypernetwork_backward")
"""The phases of a step whose seconds are measured; graphs are not among them, because they can be prepared before."""


@dataclass(frozen=True)
class StepSettings:
    """Settings by which the loss of a step is computed.

    `architecture_clip` is the largest norm of one architecture's gradient at its predicted parameters (None: no limit,
    as published). `precision` is that of the target networks: with bfloat16 they run in autocast, where matrix products
    and convolutions have that precision and the rest that of their inputs. `penalty` times the norms of all predicted
    tensors, added up, is a part of the loss that is not reported (Knyazev et al., ICML 2023: 3e-5).
    """

    seed: int
    label_smoothing: float = 0.0
    architecture_clip: float | None = None
    precision: torch.dtype = torch.float32
    penalty: float = 0.0


@dataclass(frozen=True)
class MicroBatch:
    """Architectures of a meta-batch whose parameters are predicted together, by their positions in the meta-batch.

    `own` are the positions whose target networks this worker runs. `graphs` are the graphs of all architectures, and
    `graph_seconds` the seconds that it took to build them.
    """

    architectures: dict[int, SampledArchitecture]
    own: list[int]
    graphs: GraphBatch
    graph_seconds: float

    @classmethod
    def of(cls, ghn: Hypernetwork, architectures: Mapping[int, SampledArchitecture], own: Sequence[int]) -> MicroBatch:
        """Return the micro-batch of these architectures, with their graphs built.

        It may be prepared while the hypernetwork's weights change, because only its configuration is read.
        """
        started = perf_counter()
        graphs = ghn.batch([item.program.graph for item in architectures.values()])
        return cls(dict(architectures), list(own), graphs, perf_counter() - started)


@dataclass(frozen=True)
class TargetScores:
    """Loss and top-1 accuracy of one target network, and the norm of its gradient before clipping.

    All three are NaN where the loss or the gradient was not finite. Such an architecture is dropped.
    """

    loss: float
    top1: float
    gradient_norm: float

    @property
    def is_finite(self) -> bool:
        """Whether the architecture counts, because its loss and gradient are finite."""
        return math.isfinite(self.loss)


DROPPED_SCORES = TargetScores(math.nan, math.nan, math.nan)
"""Scores of a dropped architecture."""


class Stopwatch:
    """The seconds of each phase of a step, added up, and the names of the phases in a profile (`torch.profiler`).

    On a GPU they are measured by its own clock, from when it has done all that was launched before the phase until it
    has done what was launched in it. Nothing waits for it but `seconds`.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._seconds = dict.fromkeys(STEP_PHASES, 0.0)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the seconds that the context takes to those of the phase."""
        with record_function(name):
            if self.device.type == "cuda":
                began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                stream = torch.cuda.current_stream(self.device)
                began.record(stream)
                yield
                ended.record(stream)
                self._events.append((name, began, ended))
            else:
                started = perf_counter()
                yield
                self._seconds[name] += perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase, in their order, after a wait for the GPU."""
        for name, began, ended in self._events:
            ended.synchronize()
            self._seconds[name] += began.elapsed_time(ended) / 1000
        self._events.clear()
        return dict(self._seconds)


def accumulate_micro_batch(
    ghn: Hypernetwork,
    micro_batch: MicroBatch,
    inputs: Tensor,
    labels: Tensor,
    step: int,
    settings: StepSettings,
    watch: Stopwatch,
) -> dict[int, TargetScores]:
    """Add the gradient of the summed losses of a micro-batch's own target networks to `.grad` of the hypernetwork.

    An architecture whose loss or gradient is not finite is dropped: it adds nothing.

    Args:
        inputs: images (B, 3, S, S) or texts (B, T), int64, the same for all architectures. Channels last in memory is a
            quarter faster.
        labels: their classes, int64 (B,), or the tokens that come next, int64 (B, T).

    Returns:
        The scores of the own target networks by position in the meta-batch.
    """
    predicted_tensors, gradients, measured = {}, {}, {}
    with watch.phase("hypernetwork_forward"):
        predicted = ghn(micro_batch.graphs)
    for (position, item), parameters in zip(micro_batch.architectures.items(), predicted, strict=True):
        if position not in micro_batch.own:
            continue
        dropout = torch.Generator().manual_seed(_generator_seed(settings.seed, DROPOUT_STREAM, step, position))
        predicted_tensors[position] = list(parameters.values())
        measured[position], gradients[position] = target_gradient(
            item.program, parameters, inputs, labels, settings, dropout, watch
        )
    scores = scores_of(measured)
    finite = [position for position, found in scores.items() if found.is_finite]
    with watch.phase("hypernetwork_backward"):
        if finite:
            tensors = [tensor for position in finite for tensor in predicted_tensors[position]]
            torch.autograd.backward(tensors, [part for position in finite for part in gradients[position]])
    return scores


def scores_of(measured: Mapping[int, Tensor]) -> dict[int, TargetScores]:
    """Return the scores of target networks from what `target_gradient` measured, after a wait for the device."""
    if not measured:
        return {}
    rows = torch.stack(list(measured.values())).tolist()
    return {
        position: TargetScores(*row) if all(map(math.isfinite, row)) else DROPPED_SCORES
        for position, row in zip(measured, rows, strict=True)
    }


def target_gradient(
    program: Program,
    parameters: Mapping[str, Tensor],
    inputs: Tensor,
    labels: Tensor,
    settings: StepSettings,
    dropout: torch.Generator | None = None,
    watch: Stopwatch | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Return what is measured of one target network, and the gradient at its parameters, in their order and clipped.

    Nothing waits for the device. What is measured are loss, top-1 accuracy and norm of the gradient before clipping,
    (3,), for `scores_of`. Where one is not finite, the gradient is of no use.

    Args:
        inputs: images (B, 3, S, S), or texts (B, T), int64.
        labels: their classes, int64 (B,), or the tokens that come next, int64 (B, T).
        dropout: the generator of the dropout masks; None switches dropout off.
    """
    watch = watch or Stopwatch(inputs.device)
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
    with watch.phase("target_forward"):
        with _autocast(inputs.device.type, settings.precision):
            logits = run_program(program, leaves, inputs, dropout)
        if logits.dtype == torch.bfloat16:
            logits = logits.float()
        # Of texts, each position counts as an image does.
        logits_RK, labels_R = logits.flatten(0, -2), labels.flatten()
        loss = F.cross_entropy(logits_RK, labels_R, label_smoothing=settings.label_smoothing)
        top1 = (logits_RK.detach().argmax(1) == labels_R).to(loss.dtype).mean()
    with watch.phase("target_backward"):
        gradient = list(torch.autograd.grad(loss, list(leaves.values())))
        if settings.penalty:
            _add_gradient_of_norms(gradient, [leaf.detach() for leaf in leaves.values()], settings.penalty)
        norm = torch.nn.utils.get_total_norm(gradient)
        if settings.architecture_clip is not None:
            torch._foreach_mul_(gradient, (settings.architecture_clip / norm).clamp(max=1))
    return torch.stack([loss.detach(), top1, norm.to(loss.dtype)]), gradient


def _add_gradient_of_norms(gradient: list[Tensor], tensors: list[Tensor], penalty: float) -> None:
    """Add the gradient of `penalty` times the sum of the tensors' norms, in place; that of a zero tensor is zero."""
    norms = torch._foreach_norm(tensors)
    factors = [penalty / norm.clamp_min(torch.finfo(norm.dtype).tiny) for norm in norms]
    torch._foreach_addcmul_(gradient, tensors, factors)


def _autocast(device: str, precision: torch.dtype) -> AbstractContextManager[None]:
    """Return autocast to bfloat16; for any other precision, a context without effect."""
    return torch.autocast(device, precision) if precision == torch.bfloat16 else nullcontext()


def _generator_seed(seed: int, *key: int) -> int:
    """Return a 63-bit seed for PyTorch's generators, a function of the run's seed and a key."""
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> 1)
